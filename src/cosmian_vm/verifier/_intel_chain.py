"""Intel's certificate chains, CRLs and signed documents: each question by itself, time apart from signatures.

1. A chain hangs on a root that the verifier was given (build_path).
2. Everything in it is current (dated).
3. Nothing in it is revoked, by CRLs that its issuers signed (crl_problem, crl_dated, revoked).
4. TCB info and QE identity are signed by "Intel SGX TCB Signing", directly under such a root (document_problem).

A problem is one line of plain words; an empty string means none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import pairwise
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.x509.oid import ExtensionOID, SignatureAlgorithmOID

from cosmian_vm.endorsements.amd import common_name
from cosmian_vm.endorsements.intel import p256_key
from cosmian_vm.endorsements.remembered import remembered

__all__ = [
    "CA_NAMES",
    "PCK_NAME",
    "SIGNER_NAME",
    "Path",
    "build_path",
    "crl_dated",
    "crl_problem",
    "dated",
    "document_problem",
    "is_of",
    "is_signed",
    "named",
    "revoked",
]

PCK_NAME = "Intel SGX PCK Certificate"
CA_NAMES = ("Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA")
SIGNER_NAME = "Intel SGX TCB Signing"

_E = TypeVar("_E", bound=x509.ExtensionType)
_ES256 = ec.ECDSA(hashes.SHA256())
# What we look at, or what says nothing about trust: an unknown critical extension makes a certificate unusable.
_KNOWN_EXTENSIONS = frozenset(
    {
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.CRL_DISTRIBUTION_POINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    }
)
_KNOWN_CRL_EXTENSIONS = frozenset({ExtensionOID.AUTHORITY_KEY_IDENTIFIER, ExtensionOID.CRL_NUMBER})


@dataclass(frozen=True, slots=True)
class Path:
    """A chain whose signatures hold: ``certificates`` leaf first without the root, which is one of the verifier's."""

    certificates: tuple[x509.Certificate, ...]
    root: x509.Certificate

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate that all this is about."""
        return self.certificates[0]


@remembered
def named(certificate: x509.Certificate) -> str:
    """The certificate's common name, printable."""
    return ascii(common_name(certificate.subject) or certificate.subject.rfc4514_string())[1:-1]


def is_signed(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    """Whether ``signature`` (r and s, 32 bytes each, big-endian) is ``key``'s over ``message``, ECDSA with SHA-256."""
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    try:
        key.verify(encode_dss_signature(r, s), message, _ES256)
    except InvalidSignature:
        return False
    return True


def build_path(
    chain: Sequence[x509.Certificate], roots: Iterable[x509.Certificate], *, authority: bool = False
) -> tuple[Path | None, str]:
    """The path from ``chain`` (leaf first; the root may stand at its end) to one of ``roots``, or what is wrong.

    A root in the chain must be, byte for byte, one that the verifier was given. ``authority``: the first certificate
    is to be an authority, as where it signs CRLs. Dates are not looked at.
    """
    return _path(tuple(chain), tuple(roots), authority)


@lru_cache(maxsize=256)
def _path(
    certificates: tuple[x509.Certificate, ...],
    roots: tuple[x509.Certificate, ...],
    authority: bool,
) -> tuple[Path | None, str]:
    last = certificates[-1]
    if last.subject == last.issuer:
        if last not in roots:
            return None, f"the chain ends in {named(last)}, which is not a root that we trust"
        candidates: tuple[x509.Certificate, ...] = (last,)
        certificates = certificates[:-1]
    else:
        candidates = tuple(root for root in roots if root.subject == last.issuer)
    if not certificates:
        return None, "there is nothing in the chain but a root"
    constraints = _extension(certificates[0], x509.BasicConstraints)
    if authority != (constraints is not None and constraints.ca):
        return None, f"{named(certificates[0])} is {'no' if authority else 'an'} authority"
    for number, (child, issuer) in enumerate(pairwise(certificates), int(authority)):
        if problem := _issue_problem(child, issuer, number):
            return None, problem
    problem = f"no root that we trust is named {common_name(last.issuer) or last.issuer.rfc4514_string()!r}"
    for root in candidates:
        problem = _issue_problem(certificates[-1], root, len(certificates) - 1 + int(authority))
        if not problem:
            return Path(certificates, root), ""
    return None, problem


@remembered
def _issue_problem(child: x509.Certificate, issuer: x509.Certificate, below: int) -> str:
    """Why ``issuer`` did not issue ``child``, below which stand ``below`` further authorities."""
    for certificate in (child, issuer):
        unknown = [e.oid.dotted_string for e in certificate.extensions if e.critical and e.oid not in _KNOWN_EXTENSIONS]
        if unknown:
            return f"{named(certificate)} has the critical extension {unknown[0]}, which nobody knows"
    constraints = _extension(issuer, x509.BasicConstraints)
    usage = _extension(issuer, x509.KeyUsage)
    length = None if constraints is None else constraints.path_length
    if constraints is None or not constraints.ca or usage is None or not usage.key_cert_sign:
        return f"{named(issuer)} is not a certificate authority"
    if length is not None and length < below:
        return f"{named(issuer)} may have {length} authorities below it, not {below}"
    if p256_key(issuer) is None or child.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA256:
        return f"{named(child)} is not signed with ECDSA P-256 and SHA-256"
    try:
        child.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return f"{named(child)} is not signed by {named(issuer)}"
    return ""


def _extension(certificate: x509.Certificate, kind: type[_E]) -> _E | None:
    return next((e.value for e in certificate.extensions if isinstance(e.value, kind)), None)


@remembered
def _window(certificate: x509.Certificate) -> tuple[datetime, datetime]:
    return certificate.not_valid_before_utc, certificate.not_valid_after_utc


@remembered
def _crl_window(crl: x509.CertificateRevocationList) -> tuple[datetime, datetime | None]:
    return crl.last_update_utc, crl.next_update_utc


@remembered
def is_of(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    """Whether ``crl`` names ``issuer`` as the one that it is of; not yet whether that is true."""
    return crl.issuer == issuer.subject


def dated(certificates: Iterable[x509.Certificate], now: datetime) -> str:
    """Which certificate is not valid at ``now``, and since or until when."""
    for certificate in certificates:
        start, end = _window(certificate)
        if now < start:
            return f"{named(certificate)} is valid only from {_day(start)} on"
        if now > end:
            return f"{named(certificate)} expired on {_day(end)}"
    return ""


def _day(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def document_problem(
    chain: Sequence[x509.Certificate], signature: bytes, text: bytes, roots: Iterable[x509.Certificate]
) -> tuple[Path | None, str]:
    """Whether ``text`` is signed by Intel's TCB signer, whose ``chain`` ends at one of ``roots``; dates apart."""
    path, problem = build_path(chain, roots)
    if path is None:
        return None, problem
    # A PCK certificate hangs on the same root, and its key signs what an enclave tells it to.
    if len(path.certificates) != 1 or common_name(path.leaf.subject) != SIGNER_NAME:
        return None, f"it is signed by {named(path.leaf)}, not by {SIGNER_NAME}"
    key = p256_key(path.leaf)
    if key is None or not _document_is_signed(key, signature, text):
        return None, f"its signature is not that of {SIGNER_NAME}"
    return path, ""


@remembered
def _document_is_signed(key: ec.EllipticCurvePublicKey, signature: bytes, text: bytes) -> bool:
    return is_signed(key, signature, text)


@remembered
def crl_problem(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> str:
    """Why ``crl`` is not one of ``issuer``; dates apart."""
    name = named(issuer)
    if crl.issuer != issuer.subject:
        return f"the CRL is not one of {name} but of {ascii(common_name(crl.issuer))[1:-1]}"
    unknown = [e.oid.dotted_string for e in crl.extensions if e.critical and e.oid not in _KNOWN_CRL_EXTENSIONS]
    if unknown:
        return f"the CRL of {name} has the critical extension {unknown[0]}, which nobody knows"
    usage = _extension(issuer, x509.KeyUsage)
    key = p256_key(issuer)
    if usage is None or not usage.crl_sign:
        return f"{name} may not sign CRLs"
    if key is None or crl.signature_algorithm_oid != SignatureAlgorithmOID.ECDSA_WITH_SHA256:
        return f"the CRL of {name} is not signed with ECDSA P-256 and SHA-256"
    try:
        signed = crl.is_signature_valid(key)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        signed = False
    return "" if signed else f"the CRL of {name} is not signed by it"


def crl_dated(crl: x509.CertificateRevocationList, now: datetime) -> str:
    """Why ``crl`` says nothing about ``now``."""
    start, end = _crl_window(crl)
    if end is not None and start <= now <= end:
        return ""
    name = ascii(common_name(crl.issuer))[1:-1]
    if now < start:
        return f"the CRL of {name} is of {_day(start)}, later than the time of this verification"
    if end is None:
        return f"the CRL of {name} does not say until when it holds"
    return f"the CRL of {name} expired on {_day(end)}"


@remembered
def revoked(crl: x509.CertificateRevocationList, certificate: x509.Certificate) -> str:
    """That ``certificate`` stands in ``crl``, and since when."""
    entry = crl.get_revoked_certificate_by_serial_number(certificate.serial_number)
    if entry is None:
        return ""
    return (
        f"{named(certificate)} (serial {certificate.serial_number:#x}) was revoked on {_day(entry.revocation_date_utc)}"
    )
