"""Evidence bundles: an agent's whole answer, as ``verify --save-evidence`` keeps it with nonce and TLS certificate."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import msgspec
from cryptography import x509

from cosmian_vm.endorsements.amd import collect, load_certificate, pinned_roots
from cosmian_vm.endorsements.intel import pinned_root
from cosmian_vm.endorsements.intel_collateral import IntelCollateral
from cosmian_vm.errors import EndorsementError, EvidenceFormatError
from cosmian_vm.evidence.binding import NONCE_SIZE
from cosmian_vm.evidence.bundle import Evidence, TeeKind, TlsPeer, tee_kind
from cosmian_vm.evidence.intel_quote import parse_quote
from cosmian_vm.inspection.intel import fitting_collateral, intel_roots
from cosmian_vm.inspection.model import (
    CERTIFICATE,
    OTHER,
    PCR_VALUES,
    TPM_PUBLIC,
    TPM_SIGNATURE,
    Facts,
    Item,
    Kind,
    Material,
    PcrValues,
    Roots,
    hexed,
)
from cosmian_vm.verifier.appraisal import appraise
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.result import CHECK_IDS, Check, Status, skip
from cosmian_vm.wire import SavedEvidence, svsm_report, tpm_evidence

__all__ = ["KINDS"]

_NOT_IN_A_FILE = frozenset({"tls.certificate", "tls.application", "vm.owner", "tee.measurement", "tee.instance"})
"""Questions about the connection or the snapshot, neither of which a file of evidence holds."""

_decoder = msgspec.json.Decoder(SavedEvidence)


def _matches(raw: bytes) -> bool:
    return raw[:64].lstrip()[:1] == b"{" and b'"tee_quote"' in raw and b'"endorsements"' in raw


def _read(raw: bytes) -> SavedEvidence:
    try:
        return _decoder.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise EvidenceFormatError("evidence bundle", " ".join(str(exc).split())) from exc


def _facts(raw: bytes, material: Material) -> Facts:
    """What the agent says of itself, and the facts of each part under its name."""
    bundle = _read(raw)
    facts: Facts = {
        "bytes": len(raw),
        "api": bundle.api,
        "agent_version": bundle.agent_version,
        "tee_kind": bundle.tee_kind,
        "cloud": bundle.cloud,
        "owners": list(bundle.owners),
        "ima_from": bundle.ima_from,
        "nonce": None if bundle.nonce is None else hexed(bundle.nonce),
        "endorsements": len(bundle.endorsements),
    }
    inner = _inner_material(bundle, material)
    parts = {
        "tee_quote": bundle.tee_quote,
        "tpm_quote": None if bundle.tpm is None else bundle.tpm.quote,
        "ima_log": bundle.ima_log,
        "boot_event_log": bundle.boot_event_log,
        "tls_certificate": bundle.tls_certificate,
        "hcl_report": bundle.hcl_report,
        "cc_event_log": bundle.cc_event_log,
        "svsm_report": None if bundle.svsm is None else bundle.svsm.report,
    }
    for name, part in parts.items():
        facts[name] = None if part is None else _part(part, name, inner)
    return facts


def _part(raw: bytes, name: str, material: Material) -> Facts:
    from cosmian_vm.inspection.identify import inspect  # it imports every kind, this one too

    found = inspect(raw, material, name=name)
    facts: Facts = {"kind": found.kind}
    if found.problem:
        facts["problem"] = found.problem
    return facts | found.facts


def _inner_material(bundle: SavedEvidence, material: Material) -> Material:
    """What the bundle holds beside each of its parts, then what the user gave."""
    from cosmian_vm.inspection.identify import known_kinds
    from cosmian_vm.inspection.material import classify

    items = [item for blob in bundle.endorsements for item in classify("endorsements", blob, known_kinds())]
    pcrs: tuple[PcrValues, ...] = ()
    if bundle.tpm is not None:
        items.append(Item(TPM_SIGNATURE, "tpm.signature", bundle.tpm.signature))
        items.append(Item(TPM_PUBLIC, "tpm.ak_public", bundle.tpm.ak_public))
        values = PcrValues("tpm.pcrs", {"sha256": dict(enumerate(bundle.tpm.pcrs))})
        items.append(Item(PCR_VALUES, "tpm.pcrs", b""))
        pcrs = (values,)
    return Material((*items, *material.items), (*pcrs, *material.pcrs))


def _verify(raw: bytes, material: Material, at: datetime, roots: Roots) -> list[Check]:
    """The appraisal itself, but for what needs a live connection or a snapshot."""
    bundle = _read(raw)
    nonce = bundle.nonce or next((raw for raw in material.raw(OTHER) if len(raw) == NONCE_SIZE), None)
    leaf = bundle.tls_certificate or next(iter(material.raw(CERTIFICATE)), None)
    evidence = _evidence(bundle, leaf or b"")
    verdict = appraise(
        evidence,
        collect(_usable([*bundle.endorsements, *material.raw(CERTIFICATE), *material.raw("crl")])),
        None,
        Policy(without_tpm=bundle.tpm is None),
        nonce=nonce if nonce is not None and len(nonce) == NONCE_SIZE else bytes(NONCE_SIZE),
        roots=_all_roots(roots),
        now=at,
        collateral=_collateral(bundle.tee_quote, material, roots),
    ).verdict
    checks = [c for c in verdict.checks if c.id not in _NOT_IN_A_FILE or _is_bad_log(c)]
    if nonce is None or leaf is None:
        lacking = "the nonce (32 bytes) and the agent's TLS certificate, which the file does not hold: give them --with"
        unbound = [replace(skip(name, f"Needs {lacking}"), required=True) for name in ("tee.report_data", "tpm.nonce")]
        checks = [check for check in checks if check.id not in ("tee.report_data", "tpm.nonce")] + unbound
    return sorted(checks, key=lambda check: CHECK_IDS.index(check.id))


def _is_bad_log(check: Check) -> bool:
    """Without a snapshot ``tee.measurement`` fails for nothing but a CC event log that contradicts the TD's RTMRs."""
    return check.id == "tee.measurement" and check.status is Status.FAIL


def _evidence(bundle: SavedEvidence, leaf: bytes) -> Evidence:
    return Evidence(
        api=bundle.api,
        tee=bundle.tee_quote,
        tpm=None if bundle.tpm is None else tpm_evidence(bundle.tpm),
        ima_log=bundle.ima_log,
        boot_event_log=bundle.boot_event_log,
        tls=TlsPeer(leaf=leaf, trusted=None),
        endorsements=tuple(bundle.endorsements),
        ima_from=bundle.ima_from,
        owners=tuple(bundle.owners),
        cloud=bundle.cloud,
        agent_version=bundle.agent_version,
        hcl_report=bundle.hcl_report,
        cc_event_log=bundle.cc_event_log,
        svsm=svsm_report(bundle.svsm),
    )


def _collateral(tee: bytes | None, material: Material, roots: Roots) -> IntelCollateral | None:
    """Of what was given beside the file, the collateral that fits the quote."""
    if tee is None or tee_kind(tee) not in (TeeKind.TDX, TeeKind.SGX):
        return None
    try:
        return fitting_collateral(parse_quote(tee), material, intel_roots(roots))[0]
    except EvidenceFormatError:
        return None


def _usable(blobs: list[bytes]) -> list[bytes]:
    """Those that are certificates or CRLs at all; the rest proves nothing and spoils nothing."""
    good = []
    for blob in blobs:
        try:
            collect([blob])
        except EndorsementError:
            continue
        good.append(blob)
    return good


def _all_roots(roots: Roots) -> tuple[x509.Certificate, ...]:
    return (*pinned_roots(), pinned_root(), *(load_certificate(der) for der in roots.extra))


KINDS = (Kind(name="evidence-bundle", title="Evidence of a machine", matches=_matches, facts=_facts, verify=_verify),)
