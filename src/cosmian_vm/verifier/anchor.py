"""Who vouches for the TPM's attestation key? Pure. The strongest that holds is the anchor:

1. ``tee``          Azure: the TEE's report is bound to the HCL's runtime data, and this names the very key.
2. ``svsm``         an SVSM below the guest (VMPL 0) names its vTPM's EK in a report of its own, and the EK's TPM has
                    the key (TPM2_ActivateCredential, which this verifier asked for).
3. ``certificate``  a TPM maker certified the key; or the EK, and the EK's TPM has the key; or another key of the TPM
                    that certified ours (TPM2_Certify) for this connection.
4. ``operator``     nobody but whoever runs the TPM.

The first two hold as far as the launch measurement is that of a firmware that you trust: a guest of somebody's own may
claim to be an HCL or an SVSM. A snapshot's ``tee.measurement`` says that it is the same one.

What is offered as a proof and is wrong is a problem and not merely no proof: somebody tries to pass.

Sources: Microsoft, "Azure Confidential VM guest attestation"; AMD 58019, "Attestation Protocol"; TPM 2.0 Library
Specification, part 1, "Credential Protection", part 3, TPM2_Certify, TPM2_ActivateCredential.
"""

from __future__ import annotations

import hmac
from datetime import datetime
from hashlib import sha512
from typing import NamedTuple

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.bundle import Activation, EndorsementKey, Evidence, PlatformAk, SvsmReport, TpmEvidence
from cosmian_vm.evidence.snp import SnpReport, parse_report
from cosmian_vm.evidence.tpm import RsaParameters, name, parse_public, parse_signature
from cosmian_vm.evidence.tpm_certify import parse_certify
from cosmian_vm.reference.snapshot import Anchor
from cosmian_vm.verifier._tpm_ak import ak_problems
from cosmian_vm.verifier._tpm_certificates import TpmRoots, certified_key
from cosmian_vm.verifier._tpm_signature import key_of, signature_problem

__all__ = ["OPERATOR", "Anchored", "find_anchor", "rank", "svsm_problem"]

_ORDER: tuple[Anchor, ...] = ("operator", "certificate", "svsm", "tee")
_OF_ONE_GUEST = (
    "report_id",
    "measurement",
    "policy",
    "host_data",
    "id_key_digest",
    "author_key_digest",
    "chip_id",
    "launch_tcb",
    "reported_tcb",
)
"""What two reports of one guest have in common. A key that leaked from old firmware may not vouch for the SVSM where
the guest's own report is of a chip that is up to date.
"""
_EC_POINT_OR_MODULUS = "the key that the runtime data names"


class Anchored(NamedTuple):
    """``anchor``: who vouches. ``line``: in words. ``details``: what else was offered. ``problem``: why a proof that
    was offered is wrong; the key then has no anchor at all.
    """

    anchor: Anchor
    line: str
    details: tuple[str, ...] = ()
    problem: str = ""


OPERATOR = Anchored(
    "operator", "only the cloud operator vouches for it: this TPM's word holds against everyone but the operator"
)


def rank(anchor: Anchor) -> int:
    """How much an anchor is worth: more is better."""
    return _ORDER.index(anchor)


def find_anchor(evidence: Evidence, *, binding: bytes, roots: TpmRoots, now: datetime, svsm: str | None) -> Anchored:
    """See the module. ``binding``: 32 bytes, what the platform's key must have certified ours for. ``svsm``: what is
    wrong with the SVSM's report (svsm_problem), "" if nothing, None where there is none.

    Never raises.
    """
    tpm = evidence.tpm
    if tpm is None:
        return OPERATOR
    try:
        ak_name = name(tpm.ak_public)
        if evidence.hcl_report is not None:
            return _hcl(evidence.hcl_report, tpm)
        activated = _activated(evidence.activation, tpm.ek, ak_name)
        if activated.problem:
            return activated
        if svsm is not None:
            return _svsm(svsm, evidence.svsm, evidence.activation, activated)
        found = [_own_certificate(tpm, roots, now), _platform(tpm.platform_ak, ak_name, binding, roots, now)]
        if activated.anchor == "certificate" and tpm.ek is not None:
            found.append(_endorsed(tpm.ek, roots, now))
        elif activated.details:
            found.append(activated)
    except EvidenceFormatError as exc:
        return _wrong(f"what vouches for the attestation key cannot be read: {exc}")
    return _best(found)


def _wrong(problem: str) -> Anchored:
    return Anchored("operator", OPERATOR.line, (), problem)


def _best(found: list[Anchored | None]) -> Anchored:
    offered = [one for one in found if one is not None]
    wrong = next((one for one in offered if one.problem), None)
    if wrong is not None:
        return wrong
    best = max(offered, key=lambda one: rank(one.anchor), default=OPERATOR)
    details = tuple(dict.fromkeys(detail for one in offered for detail in one.details))
    return best._replace(details=details)


def _hcl(raw: bytes, tpm: TpmEvidence) -> Anchored:
    """That the runtime data is what the TEE's report is bound to is ``tee.report_data``."""
    from cosmian_vm.evidence.azure import parse_hcl_report, runtime_data  # where there is such evidence

    ak = runtime_data(parse_hcl_report(raw)).ak
    parameters = parse_public(tpm.ak_public).parameters
    if not isinstance(parameters, RsaParameters):
        return _wrong(f"it is not an RSA key, as {_EC_POINT_OR_MODULUS} is")
    own = (int.from_bytes(parameters.modulus), parameters.exponent or 65537)
    if own != (ak.modulus, ak.exponent):
        return _wrong(f"it is not {_EC_POINT_OR_MODULUS}: the TEE vouches for another TPM")
    return Anchored("tee", "the TEE's own report vouches for it, by the runtime data of its firmware (HCL)")


def svsm_problem(told: SvsmReport, guest: SnpReport, asked: bytes) -> str:
    """What contradicts that an SVSM below this guest holds the vTPM of ``told.manifest``; empty if nothing does.

    ``asked``: the 64 bytes that the report must answer. The signature is for the caller to check.
    """
    try:
        report = parse_report(told.report)
    except EvidenceFormatError as exc:
        return f"the SVSM's report cannot be read: {exc}"
    if report.vmpl != 0:
        return f"the SVSM's report is from VMPL {report.vmpl}, not 0"
    if not 0 < guest.vmpl < 4:
        return f"the guest itself runs at VMPL {guest.vmpl}: there is no SVSM below it"
    if other := [field for field in _OF_ONE_GUEST if getattr(report, field) != getattr(guest, field)]:
        return f"the SVSM's report is of another guest, or of another chip or firmware ({', '.join(other)})"
    if report.report_data != sha512(asked + told.manifest).digest():
        return "the SVSM's report is not bound to this request and its vTPM's manifest"
    return ""


def _svsm(problem: str, told: SvsmReport | None, activation: Activation | None, activated: Anchored) -> Anchored:
    if problem:
        return _wrong(problem)
    if told is None or activation is None or activated.anchor != "certificate":
        return OPERATOR._replace(
            details=(
                "an SVSM shows its vTPM's EK, but that this key is in the same TPM was not proven",
                *activated.details,
            )
        )
    if parse_public(activation.ek_public) != parse_public(told.manifest):
        return _wrong("the EK of the credential is not the one in the SVSM's manifest")
    return Anchored("svsm", "the service module (SVSM) below the guest holds it, out of the operator's reach")


def _activated(activation: Activation | None, ek: EndorsementKey | None, ak_name: bytes) -> Anchored:
    """``anchor`` "certificate" stands for: the EK's TPM proved to have the key."""
    if activation is None:
        return OPERATOR
    if not activation.answered:
        return OPERATOR._replace(details=("the machine did not prove that this key is in the TPM of its EK",))
    if ek is None or activation.ek_public != ek.public or activation.ak_name != ak_name:
        return _wrong("the credential was made for another EK or another attestation key than the evidence shows")
    if not activation.expected or not hmac.compare_digest(activation.expected, activation.answered):
        return _wrong("the machine could not open the credential: its TPM has the EK and not this key")
    return Anchored("certificate", "")


def _own_certificate(tpm: TpmEvidence, roots: TpmRoots, now: datetime) -> Anchored | None:
    if tpm.ak_certificate is None:
        return None
    return _chained("the attestation key", tpm.ak_public, (tpm.ak_certificate,), roots, now)


def _endorsed(ek: EndorsementKey, roots: TpmRoots, now: datetime) -> Anchored | None:
    if not ek.certificates:
        return OPERATOR._replace(details=("it is in the TPM of its EK, which nobody certified",))
    return _chained("the TPM's endorsement key", ek.public, ek.certificates, roots, now)


def _platform(
    told: PlatformAk | None, ak_name: bytes, binding: bytes, roots: TpmRoots, now: datetime
) -> Anchored | None:
    if told is None:
        return None
    public = parse_public(told.public)
    if problems := ak_problems(public):
        return _wrong(f"the platform's key that certified it is no attestation key: {problems[0]}")
    signature = parse_signature(told.signature)
    if problem := signature_problem(key_of(public), signature, told.attest):
        return _wrong(f"its certification is not by the platform's key: {problem}")
    info = parse_certify(told.attest)
    if info.name != ak_name:
        return _wrong("the platform's key certified another key than this one")
    if info.extra_data != binding:
        return _wrong("the platform's key certified it for another connection: that was replayed")
    return _chained("another key of its TPM", told.public, told.certificates, roots, now)


def _chained(
    what: str, tpmt_public: bytes, certificates: tuple[bytes, ...], roots: TpmRoots, now: datetime
) -> Anchored:
    key = key_of(parse_public(tpmt_public))
    found = certified_key(key, certificates, (*roots.makers, *roots.operators), now)
    if found.problem:
        return _wrong(f"{what} has no certificate that counts: {found.problem}")
    if found.root is None:
        certificate = f"a certificate ({found.subject or 'unnamed'}) of a root that nobody here trusts (--tpm-root)"
        return OPERATOR._replace(details=(f"{what} has {certificate}",))
    root = found.root.subject.rfc4514_string()
    if found.root in roots.makers:
        return Anchored("certificate", f"the TPM's maker certified {what}: {found.subject or 'unnamed'}, by {root}")
    return Anchored("operator", f"the operator certified {what} ({root}): it holds against everyone but the operator")
