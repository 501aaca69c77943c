"""Certificates of TPM keys (EK, AK): of which key, and does the chain lead to a root that the verifier was given? Pure.

Makers follow the TCG EK Credential Profile loosely: critical extensions of their own, serial numbers of zero, lifetimes
to the year 9999. Asked is what matters: the key, each signature, that issuers are authorities, the dates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cosmian_vm.endorsements.amd import load_certificate
from cosmian_vm.errors import EndorsementError
from cosmian_vm.verifier._tpm_signature import SigningKey

__all__ = ["Certified", "TpmRoots", "certified_key"]

_MAX_CHAIN = 8
_WEAK = frozenset({"md5", "sha1"})


class TpmRoots(NamedTuple):
    """Roots of those who certify TPMs. ``makers``: of hardware, or of a TPM inside a TEE. ``operators``: of clouds,
    which certify the vTPMs that they run themselves.
    """

    makers: tuple[x509.Certificate, ...] = ()
    operators: tuple[x509.Certificate, ...] = ()


class Certified(NamedTuple):
    """``root``: the one that the key's certificate leads to, None where it leads to none that is known. ``subject``:
    whom the certificate names. ``problem``: why it is no certificate of this key, or says nothing about ``now``.
    """

    root: x509.Certificate | None
    subject: str
    problem: str = ""


def certified_key(
    key: SigningKey, certificates: Sequence[bytes], roots: Iterable[x509.Certificate], now: datetime
) -> Certified:
    """What ``certificates`` (DER, the key's own first, padding of the NV index behind them) are worth for ``key``.

    Never raises: what cannot be read is a problem.
    """
    loaded = []
    try:
        loaded = [load_certificate(_unpadded(raw)) for raw in certificates[:_MAX_CHAIN]]
    except EndorsementError as exc:
        return Certified(None, "", f"its certificate cannot be read: {exc}")
    if not loaded:
        return Certified(None, "", "there is no certificate")
    leaf, others = loaded[0], loaded[1:]
    subject = leaf.subject.rfc4514_string() or f"serial number {leaf.serial_number:x}"
    if not _same_key(leaf, key):
        return Certified(None, subject, f"the certificate of {subject} is of another key")
    path = _path(leaf, others, tuple(roots))
    if path is None:
        return Certified(None, subject)
    for certificate in path:
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            name = certificate.subject.rfc4514_string() or subject
            return Certified(None, subject, f"the certificate of {name} is not valid at this time")
    return Certified(path[-1], subject)


def _unpadded(raw: bytes) -> bytes:
    """Without what fills an NV index up behind a certificate: zeros or ones, which no signature covers."""
    if raw[:2] != b"\x30\x82":  # SEQUENCE with a length of two bytes, as every certificate of this size
        return raw
    end = 4 + int.from_bytes(raw[2:4])
    padding = raw[end:]
    return raw[:end] if padding in (bytes(len(padding)), b"\xff" * len(padding)) else raw


def _same_key(certificate: x509.Certificate, key: SigningKey) -> bool:
    try:
        own = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return False
    if isinstance(own, rsa.RSAPublicKey) and isinstance(key, rsa.RSAPublicKey):
        return own.public_numbers() == key.public_numbers()
    if isinstance(own, ec.EllipticCurvePublicKey) and isinstance(key, ec.EllipticCurvePublicKey):
        return own.public_numbers() == key.public_numbers()
    return False


def _path(
    leaf: x509.Certificate, others: Sequence[x509.Certificate], roots: Sequence[x509.Certificate]
) -> list[x509.Certificate] | None:
    """From ``leaf`` to one of ``roots``, every signature checked; None where there is no such path."""
    path = [leaf]
    while len(path) <= _MAX_CHAIN:
        last = path[-1]
        root = next((root for root in roots if _issued(last, root)), None)
        if root is not None:
            return [*path, root]
        issuer = next((c for c in others if c not in path and _issued(last, c)), None)
        if issuer is None:
            return None
        path.append(issuer)
    return None


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        constraints = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value
        hashed = certificate.signature_hash_algorithm
        if not constraints.ca or (hashed is not None and hashed.name in _WEAK):
            return False
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound):
        return False
    return True
