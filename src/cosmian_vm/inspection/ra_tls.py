"""``inspect`` on RA-TLS certificates: X.509 certificates that carry the evidence of the machine whose key they are for
(their forms: ``cosmian_vm.ra_tls``).

Such a certificate signs itself: what it is worth is the evidence, and the key that the evidence binds. A quote under
the extension of another platform is shown for what it is; whether that is acceptable, ``ratls verify`` asks.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from cosmian_vm.endorsements.amd import UNUSABLE, load_certificate
from cosmian_vm.errors import EndorsementError, EvidenceFormatError
from cosmian_vm.evidence.bundle import TeeKind
from cosmian_vm.evidence.intel_quote import parse_quote
from cosmian_vm.evidence.snp import parse_evidence, split_objects
from cosmian_vm.inspection.certificate import certificate_facts, named
from cosmian_vm.inspection.intel import KINDS as INTEL_KINDS
from cosmian_vm.inspection.intel import SGX_QUOTE, TDX_QUOTE
from cosmian_vm.inspection.model import JSON, Facts, Kind, Material, Roots
from cosmian_vm.inspection.snp import KINDS as SNP_KINDS
from cosmian_vm.ra_tls import (
    EXTRA_DATA_SIZE,
    UNEXPECTED_EXTRA_DATA,
    Embedded,
    binding_problem,
    embedded,
    may_be_an_agents,
)
from cosmian_vm.verifier.amd_chain import validity_problem
from cosmian_vm.verifier.result import Check, fail, ok, skip

__all__ = ["KINDS", "quotes_in"]

_WHAT = "RA-TLS certificate"
_EXTENSIONS = {
    "1.2.840.113741.1337.6": "Intel quote (RA-TLS)",
    "1.2.840.113741.1337.7": "AMD SEV-SNP report (RA-TLS)",
    "1.2.840.113741.1337.8": "Intel TDX quote (RA-TLS)",
    "2.23.133.5.4.9": "TCG DICE tagged evidence",
}
_REPORT_DATA = "tee.report_data"
_KINDS = (*(kind for kind in INTEL_KINDS if kind.name in (SGX_QUOTE, TDX_QUOTE)), *SNP_KINDS)


def _matches(raw: bytes) -> bool:
    """One certificate, or PEM text that begins with one, that has an extension of RA-TLS."""
    if raw[:1] != b"\x30" and b"-----BEGIN CERTIFICATE" not in raw[:4096]:
        return False
    try:
        return bool(embedded(_certificate(raw)))
    except EvidenceFormatError:
        return False


def _certificate(raw: bytes) -> x509.Certificate:
    certificates, _ = split_objects(raw, _WHAT)
    if not certificates:
        raise EvidenceFormatError(_WHAT, "no certificate in it")
    try:
        return load_certificate(certificates[0])
    except EndorsementError as exc:
        raise EvidenceFormatError(_WHAT, str(exc)) from exc


def quotes_in(raw: bytes) -> tuple[bytes, ...]:
    """The TEE reports and quotes in a certificate (DER, PEM). Raises EvidenceFormatError where it cannot be read."""
    return tuple(item.raw for item in embedded(_certificate(raw)) if _kind_of(item) is not None)


def _kind_of(item: Embedded) -> Kind | None:
    """What to show it as; None where it is of no kind that is known."""
    return None if item.kind is None else next((kind for kind in _KINDS if kind.matches(item.raw)), None)


def _facts(raw: bytes, material: Material) -> Facts:
    certificate = _certificate(raw)
    evidence: list[JSON] = [_evidence_facts(item, material) for item in embedded(certificate)]
    return {"bytes": len(raw), **certificate_facts(certificate), "evidence": evidence}


def _evidence_facts(item: Embedded, material: Material) -> Facts:
    facts: Facts = {"oid": item.oid, "extension": _EXTENSIONS[item.oid], "kind": None, "bytes": len(item.raw)}
    kind = _kind_of(item)
    if kind is None:
        return facts
    facts["kind"] = kind.name
    try:
        facts |= kind.facts(item.raw, material)
    except EvidenceFormatError as exc:
        facts["problem"] = str(exc)
    if item.claims is not None:
        facts["claims"] = item.claims.hex()
    return facts


def _verify(raw: bytes, material: Material, at: datetime, roots: Roots) -> list[Check]:
    """The evidence as if it stood alone, the binding of the certificate's key, and the certificate itself."""
    certificate = _certificate(raw)
    checks: list[Check] = []
    for item in embedded(certificate):
        kind = _kind_of(item)
        if kind is None:
            checks.append(fail("tee.signature", f"The extension {item.oid} holds no evidence of a kind that is known"))
            continue
        checks += _evidence_checks(kind, item.raw, material, at, roots)
        checks.append(_binding(item, certificate))
    problem = validity_problem(certificate, at)
    dates = ok("certificate.dates", "The certificate is valid at this time") if problem is None else None
    checks.append(dates or fail("certificate.dates", f"The certificate is not valid at this time: {problem}"))
    return [*checks, _own_signature(certificate)]


def _evidence_checks(kind: Kind, raw: bytes, material: Material, at: datetime, roots: Roots) -> list[Check]:
    try:
        return [check for check in kind.verify(raw, material, at, roots) if check.id != _REPORT_DATA]
    except EvidenceFormatError as exc:
        return [fail("tee.signature", f"The evidence cannot be read: {exc}")]


def _report_data(item: Embedded) -> bytes:
    if item.kind is TeeKind.SNP:
        return parse_evidence(item.raw).report.report_data
    return parse_quote(item.raw).body.report_data


def _binding(item: Embedded, certificate: x509.Certificate) -> Check:
    """Whether the evidence names the certificate's key: SHA-256 in the first half of report_data."""
    try:
        report_data = _report_data(item)
    except EvidenceFormatError as exc:
        return fail(_REPORT_DATA, f"It cannot be told which key the evidence is for: {exc}")
    line, problem = binding_problem(report_data, item.claims, certificate)
    if not problem and may_be_an_agents(report_data[EXTRA_DATA_SIZE:]):
        problem = f"{UNEXPECTED_EXTRA_DATA} (cosmian_certtool ratls verify --extra-data compares them)"
    return fail(_REPORT_DATA, problem) if problem else ok(_REPORT_DATA, line)


def _own_signature(certificate: x509.Certificate) -> Check:
    """What a certificate signs itself holds together; of another's signature nothing depends."""
    name = "certificate.signature"
    if certificate.issuer != certificate.subject:
        return skip(name, f"{named(certificate)} is issued by another; its key is vouched for by the evidence alone")
    verify: Callable[[x509.Certificate], None] = certificate.verify_directly_issued_by
    try:
        verify(certificate)
    except (InvalidSignature, *UNUSABLE):
        return fail(name, "The certificate was changed after it was made: its own signature does not verify")
    return ok(name, "The certificate is signed by its own key")


KINDS = (
    Kind(
        name="ra-tls-certificate",
        title="RA-TLS certificate (X.509 with TEE evidence)",
        matches=_matches,
        facts=_facts,
        verify=_verify,
    ),
)
