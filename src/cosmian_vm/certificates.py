"""X.509 leaf certificates: the fingerprint that evidence is bound to, and certificates of our own. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from cosmian_vm.errors import EndorsementError

__all__ = ["SelfSigned", "generate_key", "leaf_der", "leaf_problem", "self_signed", "spki_sha256"]

_LIFETIME = timedelta(days=3650)
_CLOCK_SLACK = timedelta(hours=24)  # a fresh machine's clock may be ahead of the client's
_MAX_COMMON_NAME = 64  # RFC 5280, appendix A.1: ub-common-name
_MAX_CERTIFICATE = 1 << 20
_MIN_RSA_BITS = 2048
_KNOWN_EXTENSIONS = frozenset(
    {
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.CERTIFICATE_POLICIES,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
    }
)
_TBS_FIELDS_BEFORE_SPKI = 5  # serialNumber, signature, issuer, validity, subject (RFC 5280, section 4.1)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class SelfSigned:
    """A certificate and its private key (PKCS #8, not encrypted), both PEM. Its ``repr`` shows neither."""

    certificate_pem: bytes
    key_pem: bytes


def spki_sha256(der: bytes) -> bytes:
    """SHA-256 (32 bytes) of the SubjectPublicKeyInfo in the certificate ``der``, byte for byte as it stands there.

    Raises EndorsementError where ``der`` is no X.509 certificate.
    """
    _load(der)
    certificate = _Element.at(der, 0)
    tbs = _Element.at(der, certificate.start)
    field = _Element.at(der, tbs.start)
    if field.tag == 0xA0:  # [0] version, absent in X.509 v1
        field = _Element.at(der, field.end)
    for _ in range(_TBS_FIELDS_BEFORE_SPKI):
        field = _Element.at(der, field.end)
    return sha256(der[field.offset : field.end]).digest()


def leaf_der(pem: bytes) -> bytes:
    """The first certificate (DER) of a PEM file, which is the one that a TLS server shows as its own.

    Raises EndorsementError where there is none.
    """
    try:
        return x509.load_pem_x509_certificates(pem)[0].public_bytes(Encoding.DER)
    except (ValueError, TypeError) as exc:
        raise EndorsementError(f"not a certificate in PEM form: {_plain(exc)}") from exc


def leaf_problem(der: bytes) -> str | None:
    """Why a published 1.3.x client would refuse this leaf, in one line; None where it would not.

    It insists on X.509 v3, no unknown critical extension, and P-256, P-384, Ed25519 or RSA of at least 2048 bits.
    """
    certificate = _load(der)
    if certificate.version is not x509.Version.v3:
        return "is X.509 v1; expected is version 3"
    try:
        key = certificate.public_key()
        critical = [e.oid for e in certificate.extensions if e.critical and e.oid not in _KNOWN_EXTENSIONS]
    except Exception as exc:  # cryptography has many ways to say that it knows no such thing
        return f"cannot be read in full: {_plain(exc)}"
    if critical:
        return f"has the critical extension {critical[0].dotted_string}, which clients do not know"
    if isinstance(key, rsa.RSAPublicKey):
        return None if key.key_size >= _MIN_RSA_BITS else f"has an RSA key of only {key.key_size} bits"
    if isinstance(key, ec.EllipticCurvePublicKey):
        return None if key.curve.name in {"secp256r1", "secp384r1"} else f"has a key on the curve {key.curve.name}"
    return None if isinstance(key, ed25519.Ed25519PublicKey) else "has a key of a kind that clients do not know"


def generate_key() -> bytes:
    """A fresh P-256 private key, PKCS #8 PEM, not encrypted."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def self_signed(
    common_name: str, sans: Iterable[str] = (), *, now: datetime, key_pem: bytes | None = None
) -> SelfSigned:
    """A self-signed TLS server certificate, valid for ten years around ``now`` (timezone-aware).

    ``sans``: DNS names and IP addresses beside ``common_name``; what is neither is left out. ``key_pem``: the private
    key to certify (P-256, P-384, RSA or Ed25519, PEM), a fresh P-256 key without it. A common name of more than 64
    characters is cut; the alternative names hold it whole.

    Raises EndorsementError where the key cannot be used.
    """
    key_pem = generate_key() if key_pem is None else key_pem
    try:
        key = load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError) as exc:
        raise EndorsementError(f"not a private key in PEM form: {_plain(exc)}") from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey):
        raise EndorsementError("a TLS key must be P-256, P-384, RSA or Ed25519")
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:_MAX_COMMON_NAME] or "localhost")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SLACK)
        .not_valid_after(now + _LIFETIME)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_digital_signature(), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    names = _general_names([common_name, *sans])
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    certificate = builder.sign(key, algorithm)
    return SelfSigned(certificate_pem=certificate.public_bytes(Encoding.PEM), key_pem=key_pem)


def _digital_signature() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general_names(names: Iterable[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for name in dict.fromkeys(names):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            if _is_dns_name(name):
                found.append(x509.DNSName(name))
    return found


def _is_dns_name(name: str) -> bool:
    labels = name.rstrip(".").split(".")
    return len(name) <= 253 and all(
        0 < len(label) <= 63 and label.isascii() and all(c.isalnum() or c in "-_" for c in label) for label in labels
    )


@dataclass(frozen=True, slots=True)
class _Element:
    """One DER element (X.690): its tag stands at ``offset``, its content from ``start`` to ``end``."""

    tag: int
    offset: int
    start: int
    end: int

    @classmethod
    def at(cls, der: bytes, offset: int) -> _Element:
        """The element whose tag is at ``offset``."""
        head = der[offset : offset + 2]
        if len(head) < 2:
            raise EndorsementError(f"TLS certificate: cut short at offset {offset:#x}")
        size, start = head[1], offset + 2
        if size & 0x80:
            count = size & 0x7F
            size, start = int.from_bytes(der[start : start + count], "big"), start + count
        if start + size > len(der):
            raise EndorsementError(f"TLS certificate: cut short at offset {offset:#x}")
        return cls(head[0], offset, start, start + size)


def _load(der: bytes) -> x509.Certificate:
    if len(der) > _MAX_CERTIFICATE:
        raise EndorsementError(f"TLS certificate: larger than {_MAX_CERTIFICATE} bytes")
    try:
        return x509.load_der_x509_certificate(der)
    except (ValueError, TypeError) as exc:
        raise EndorsementError(f"TLS certificate: not an X.509 certificate: {_plain(exc)}") from exc


def _plain(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:200] or type(exc).__name__
