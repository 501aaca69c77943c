"""``inspect`` on X.509 certificates: AMD's chips, intermediates and roots, and any other.

A certificate is authentic if signatures lead from it to a pinned root (or one of ``--trust-root``) and dates hold; the
certificates in between come from the same file, ``--with`` or this package. In a file of several certificates each is
judged by itself: a CA among them that is not valid at that time is a warning where the others are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cosmian_vm.endorsements import intel
from cosmian_vm.endorsements.amd import (
    UNUSABLE,
    AmdEndorsements,
    ChipCertificate,
    common_name,
    is_chip_certificate,
    load_certificate,
    load_crl,
    parse_chip_certificate,
    pinned_intermediates,
    pinned_roots,
    serial_number,
)
from cosmian_vm.errors import EndorsementError, EvidenceFormatError
from cosmian_vm.evidence.snp import split_objects
from cosmian_vm.inspection.model import CERTIFICATE, CRL, JSON, Facts, Kind, Material, Roots, hexed, rfc3339
from cosmian_vm.verifier.amd_chain import build_chain, chain_problems, is_authority_of, validity_problem
from cosmian_vm.verifier.amd_revocation import check_revocation
from cosmian_vm.verifier.result import Check, Status, fail, ok, warning
from cosmian_vm.verifier.snp import chain_line

__all__ = [
    "KINDS",
    "all_roots",
    "amd_material",
    "certificate_facts",
    "chain_check",
    "chip_facts",
    "named",
]

_ID = "tee.chain"
_WHAT = "X.509 certificate"
_MAX_DEPTH = 8


def _matches(raw: bytes) -> bool:
    """One DER certificate, or PEM text with a certificate in it."""
    start = raw[:1]
    if start != b"\x30" and b"-----BEGIN" not in raw[:4096]:
        return False
    try:
        certificates, _ = split_objects(raw, _WHAT)
    except EvidenceFormatError:
        # Damaged PEM text of a certificate is a damaged certificate; binary that is no certificate is something else.
        return raw.lstrip().startswith((b"-----BEGIN CERTIFICATE-----", b"-----BEGIN TRUSTED CERTIFICATE-----"))
    return bool(certificates)


def _load(raw: bytes) -> list[x509.Certificate]:
    """All certificates of a file; EvidenceFormatError if one cannot be read."""
    certificates, _ = split_objects(raw, _WHAT)
    try:
        return [load_certificate(der) for der in certificates]
    except EndorsementError as exc:
        raise EvidenceFormatError(_WHAT, str(exc)) from exc


def _facts(raw: bytes, material: Material) -> Facts:  # noqa: ARG001 - the interface of a kind
    every = [certificate_facts(certificate) for certificate in _load(raw)]
    facts: Facts = {"bytes": len(raw), **every[0]}
    if len(every) > 1:
        facts["certificates"] = list(every)
    return facts


def certificate_facts(certificate: x509.Certificate) -> Facts:
    """What a certificate says; of a chip certificate, AMD's extensions too. Raises EvidenceFormatError."""
    try:
        spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        spki_sha256: JSON = hashlib.sha256(spki).hexdigest()
    except UNUSABLE:
        spki_sha256 = None  # a kind of key that cryptography does not know
    facts: Facts = {
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "serial": f"{serial_number(certificate):#x}",
        "not_before": rfc3339(certificate.not_valid_before_utc),
        "not_after": rfc3339(certificate.not_valid_after_utc),
        "sha256": hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest(),
        "spki_sha256": spki_sha256,
    }
    if is_chip_certificate(certificate):
        try:
            facts |= chip_facts(parse_chip_certificate(certificate))
        except EndorsementError as exc:
            raise EvidenceFormatError(_WHAT, str(exc)) from exc
    return facts


def chip_facts(chip: ChipCertificate) -> Facts:
    """AMD's extensions of a VCEK or VLEK."""
    facts: Facts = {"struct_version": chip.struct_version, "product_name": chip.product_name, **chip.svns}
    if chip.hwid is not None:
        facts["hwid"] = hexed(chip.hwid)
    if chip.csp_id is not None:
        facts["csp_id"] = chip.csp_id
    return facts


def amd_material(material: Material) -> tuple[AmdEndorsements, tuple[str, ...]]:
    """Certificates and CRLs of the material, AMD's pinned intermediates behind them; and what of it is unusable."""
    certificates: list[x509.Certificate] = []
    crls: list[x509.CertificateRevocationList] = []
    problems: list[str] = []
    for item in material.items:
        try:
            if item.kind == CERTIFICATE:
                certificates.append(load_certificate(item.raw))
            elif item.kind == CRL:
                crls.append(load_crl(item.raw))
        except EndorsementError as exc:
            problems.append(f"{item.name}: {exc}")
    return AmdEndorsements((*certificates, *pinned_intermediates()), tuple(crls)), tuple(problems)


def all_roots(roots: Roots) -> tuple[x509.Certificate, ...]:
    """AMD's pinned roots and the user's own; unusable ones of these are left out, they can vouch for nothing."""
    extra = []
    for der in roots.extra:
        try:
            extra.append(load_certificate(der))
        except EndorsementError:
            continue
    return (*pinned_roots(), *extra)


def _verify(raw: bytes, material: Material, at: datetime, roots: Roots) -> list[Check]:
    try:
        certificates = _load(raw)
    except EvidenceFormatError as exc:
        return [fail(_ID, str(exc))]
    endorsements, problems = amd_material(material)
    known = (*certificates, *endorsements.certificates)
    trusted = all_roots(roots)
    checks: list[Check] = []
    outdated: list[tuple[int, Check]] = []
    for certificate in certificates:
        if is_chip_certificate(certificate):
            checks += _verify_chip(
                certificate, known, [crl.public_bytes(Encoding.DER) for crl in endorsements.crls], trusted, at
            )
            continue
        found = chain_check(certificate, known, trusted, at)
        date = validity_problem(certificate, at)
        if found.status is Status.OK and date is not None:
            outdated.append((len(checks), fail(_ID, f"{named(certificate)} is not valid at this time: {date}")))
        else:
            checks.append(found)
    for position, check in reversed(outdated):
        checks.insert(position, check if not any(c.status is Status.OK for c in checks) else _softened(check))
    return [replace(c, details=(*c.details, *problems)) if c.status is Status.FAIL else c for c in checks]


def _softened(check: Check) -> Check:
    return warning(check.id, check.line)


def _verify_chip(
    certificate: x509.Certificate,
    known: Sequence[x509.Certificate],
    crls: Sequence[bytes],
    roots: Sequence[x509.Certificate],
    at: datetime,
) -> list[Check]:
    """A VCEK or VLEK by AMD's rules, and whether its chain is revoked where there is a CRL."""
    try:
        chip = parse_chip_certificate(certificate)
    except EndorsementError as exc:
        return [fail(_ID, str(exc))]
    link = build_chain(chip, known, roots)
    if isinstance(link, str):
        return [fail(_ID, f"The chain does not hold: {link}")]
    problems = chain_problems(None, link, at)
    revocation = check_revocation(link, crls, at)
    if problems:
        return [fail(_ID, f"The chain does not hold: {problems[0]}", problems[1:]), revocation]
    return [ok(_ID, chain_line(link)), revocation]


def chain_check(
    certificate: x509.Certificate,
    known: Sequence[x509.Certificate],
    amd_roots: Sequence[x509.Certificate],
    at: datetime,
) -> Check:
    """Any other certificate: is it a root that we trust, or do signatures lead from it to one? Its own dates are the
    caller's, those above it are checked here.
    """
    roots = (*amd_roots, intel.pinned_root())
    if certificate in roots:
        return ok(_ID, f"{named(certificate)} is a trusted root")
    below = certificate
    for _ in range(_MAX_DEPTH):
        issuer = next((c for c in (*roots, *known) if _issued(below, c)), None)
        if issuer is None or issuer == below:
            who = "itself alone" if below.issuer == below.subject else f"{below.issuer.rfc4514_string()[:200]!r}"
            return fail(_ID, f"{named(certificate)} leads to no trusted root: {named(below)} is vouched for by {who}")
        problem = validity_problem(issuer, at)
        if problem is not None and issuer not in roots:
            return fail(_ID, f"{named(certificate)}: {problem}")
        if issuer in roots:
            if problem is not None:
                return fail(_ID, f"{named(certificate)}: {problem}")
            return ok(_ID, f"{named(certificate)} leads to the root {named(issuer)}")
        below = issuer
    return fail(_ID, f"{named(certificate)}: more than {_MAX_DEPTH} certificates up there is no root yet")


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether ``issuer`` is a CA that signed ``certificate`` (any algorithm that cryptography verifies)."""
    if certificate.issuer != issuer.subject:
        return False
    if is_authority_of(certificate, issuer):
        return True
    try:
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, x509.ExtensionNotFound, *UNUSABLE):
        return False
    return constraints.ca


def named(certificate: x509.Certificate) -> str:
    """How a line names a certificate: its common name, else its subject, in quotes."""
    return repr(common_name(certificate.subject) or certificate.subject.rfc4514_string()[:200])


KINDS = (
    Kind(
        name="certificate",
        title="X.509 certificate",
        matches=_matches,
        facts=_facts,
        verify=_verify,
    ),
)
