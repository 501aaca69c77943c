"""``inspect`` on X.509 certificate revocation lists, DER or PEM.

A list is authentic if its issuer's key signed it, the issuer leads to a pinned root (or one of ``--trust-root``), and
it is current. The issuer comes from ``--with`` or this package.
"""

from __future__ import annotations

import hashlib
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.endorsements import intel
from cosmian_vm.endorsements.amd import UNUSABLE, read_crl
from cosmian_vm.endorsements.intel import crl_of
from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.snp import split_objects
from cosmian_vm.inspection.certificate import all_roots, amd_material, chain_check, named
from cosmian_vm.inspection.model import CRL, JSON, Facts, Kind, Material, Roots, rfc3339
from cosmian_vm.verifier.amd_chain import validity_problem
from cosmian_vm.verifier.result import Check, fail, ok

__all__ = ["KINDS"]

_WHAT = "X.509 CRL"
_SIGNATURE, _DATES = "crl.signature", "crl.dates"


def _matches(raw: bytes) -> bool:
    """A DER CRL, or PEM text of CRLs alone: with certificates among them it is a file of certificates."""
    if raw[:1] != b"\x30" and b"-----BEGIN" not in raw[:4096]:
        return False
    try:
        certificates, crls = split_objects(raw, _WHAT)
    except EvidenceFormatError:
        return raw.lstrip().startswith(b"-----BEGIN X509 CRL-----")
    return bool(crls) and not certificates


def _load(raw: bytes) -> list[x509.CertificateRevocationList]:
    _, crls = split_objects(raw, _WHAT)
    return [crl_of(der, _WHAT) for der in crls]


def _facts(raw: bytes, material: Material) -> Facts:  # noqa: ARG001 - the interface of a kind
    every = [_crl_facts(crl) for crl in _load(raw)]
    facts: Facts = {"bytes": len(raw), **every[0]}
    if len(every) > 1:
        facts["crls"] = list(every)
    return facts


def _crl_facts(crl: x509.CertificateRevocationList) -> Facts:
    der = crl.public_bytes(Encoding.DER)
    entries: list[JSON] = [
        {"serial": f"{entry.serial_number:#x}", "revoked": rfc3339(entry.revocation_date_utc), **_reason(entry)}
        for entry in crl
    ]
    return {
        "issuer": crl.issuer.rfc4514_string(),
        "this_update": rfc3339(crl.last_update_utc),
        "next_update": None if crl.next_update_utc is None else rfc3339(crl.next_update_utc),
        **_number(crl),
        "partial": read_crl(der).partial,
        "entries": len(entries),
        "revoked": entries,
        "sha256": hashlib.sha256(der).hexdigest(),
    }


def _number(crl: x509.CertificateRevocationList) -> Facts:
    try:
        return {"number": crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number}
    except (x509.ExtensionNotFound, *UNUSABLE):
        return {}


def _reason(entry: x509.RevokedCertificate) -> Facts:
    try:
        return {"reason": entry.extensions.get_extension_for_class(x509.CRLReason).value.reason.value}
    except (x509.ExtensionNotFound, *UNUSABLE):
        return {}


def _verify(raw: bytes, material: Material, at: datetime, roots: Roots) -> list[Check]:
    return [check for crl in _load(raw) for check in _judge(crl, material, at, roots)]


def _judge(crl: x509.CertificateRevocationList, material: Material, at: datetime, roots: Roots) -> list[Check]:
    """``crl.signature``, ``tee.chain`` of the issuer, ``crl.dates``."""
    known = amd_material(material)[0].certificates
    trusted = all_roots(roots)
    name = crl.issuer.rfc4514_string()[:200]
    candidates = [c for c in (*trusted, intel.pinned_root(), *known) if c.subject == crl.issuer]
    issuer = next((c for c in candidates if _signed(crl, c)), None)
    dates = _dates(crl, at)
    if issuer is None:
        why = f"it is not signed by the key of {name!r}" if candidates else f"give its issuer --with: {name!r}"
        return [fail(_SIGNATURE, f"The list cannot be trusted: {why}"), dates]
    checks = [ok(_SIGNATURE, f"The list is signed by {named(issuer)}"), chain_check(issuer, known, trusted, at), dates]
    problem = None if issuer in trusted else validity_problem(issuer, at)
    if problem is not None:
        checks[1] = fail("tee.chain", f"{named(issuer)} is not valid at this time: {problem}")
    return checks


def _signed(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    try:
        key = issuer.public_key()
        if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey):
            return False
        return _may_sign(issuer) and crl.is_signature_valid(key)
    except (InvalidSignature, *UNUSABLE):
        return False


def _may_sign(issuer: x509.Certificate) -> bool:
    """A CA, whose key usage, if any is named, is the signing of CRLs."""
    try:
        if not issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return False
    except x509.ExtensionNotFound:
        return False
    try:
        return issuer.extensions.get_extension_for_class(x509.KeyUsage).value.crl_sign
    except x509.ExtensionNotFound:
        return True


def _dates(crl: x509.CertificateRevocationList, at: datetime) -> Check:
    if at < crl.last_update_utc:
        return fail(_DATES, f"The list is valid only from {rfc3339(crl.last_update_utc)} on")
    if crl.next_update_utc is None:
        return fail(_DATES, "The list has no end of validity: nothing says whether it is still the latest")
    if at > crl.next_update_utc:
        return fail(_DATES, f"The list is outdated: the next one was due on {rfc3339(crl.next_update_utc)}")
    return ok(_DATES, f"The list is current until {rfc3339(crl.next_update_utc)}")


KINDS = (Kind(name=CRL, title="X.509 certificate revocation list", matches=_matches, facts=_facts, verify=_verify),)
