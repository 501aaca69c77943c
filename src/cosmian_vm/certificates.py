"""X.509 leaf certificates: the fingerprint that evidence is bound to, and certificates of our own. Pure.

What is asked of every connection's certificate is read from its DER here; cryptography is loaded only to make one, so
that an agent that has its certificate does without.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from datetime import datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, NamedTuple

from cosmian_vm.errors import EndorsementError

if TYPE_CHECKING:
    from cryptography import x509

__all__ = ["SelfSigned", "generate_key", "leaf_der", "leaf_problem", "self_signed", "spki_sha256"]

_LIFETIME = timedelta(days=3650)
_CLOCK_SLACK = timedelta(hours=24)  # a fresh machine's clock may be ahead of the client's
_MAX_COMMON_NAME = 64  # RFC 5280, appendix A.1: ub-common-name
_MAX_CERTIFICATE = 1 << 20
_MIN_RSA_BITS = 2048

# DER tags (X.690)
_INTEGER, _BIT_STRING, _OID, _SEQUENCE, _VERSION, _EXTENSIONS = 0x02, 0x03, 0x06, 0x30, 0xA0, 0xA3
# tbsCertificate from serialNumber to subjectPublicKeyInfo (RFC 5280, section 4.1)
_TBS_TAGS = [_INTEGER, _SEQUENCE, _SEQUENCE, _SEQUENCE, _SEQUENCE, _SEQUENCE]
_SPKI = 5
_CRITICAL = b"\x01\x01\xff"
# keyUsage, subjectAltName, basicConstraints, subject and authority key id, certificatePolicies, extKeyUsage
_KNOWN_EXTENSIONS = frozenset(b"\x55\x1d" + bytes([last]) for last in (15, 17, 19, 14, 35, 32, 37))
_RSA = bytes.fromhex("2a864886f70d010101")
_ED25519 = bytes.fromhex("2b6570")
_EC = bytes.fromhex("2a8648ce3d0201")
_CURVES = frozenset(bytes.fromhex(oid) for oid in ("2a8648ce3d030107", "2b81040022"))  # P-256, P-384


class SelfSigned(NamedTuple):
    """A certificate and its private key (PKCS #8, not encrypted), both PEM."""

    certificate_pem: bytes
    key_pem: bytes

    def __repr__(self) -> str:
        """Without the key."""
        return "SelfSigned(...)"


def spki_sha256(der: bytes) -> bytes:
    """SHA-256 (32 bytes) of the SubjectPublicKeyInfo in the certificate ``der``, byte for byte as it stands there.

    Raises EndorsementError where ``der`` is no X.509 certificate.
    """
    spki = _tbs(der)[_SPKI]
    return sha256(der[spki.offset : spki.end]).digest()


def leaf_der(pem: bytes) -> bytes:
    """The first certificate (DER) of a PEM file, which is the one that a TLS server shows as its own.

    Raises EndorsementError where there is none.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    try:
        return x509.load_pem_x509_certificates(pem)[0].public_bytes(Encoding.DER)
    except (ValueError, TypeError) as exc:
        raise EndorsementError(f"not a certificate in PEM form: {_plain(exc)}") from exc


def leaf_problem(der: bytes) -> str | None:
    """Why a published 1.3.x client would refuse this leaf, in one line; None where it would not.

    It insists on X.509 v3, no unknown critical extension, and P-256, P-384, Ed25519 or RSA of at least 2048 bits.

    Raises EndorsementError where ``der`` is no X.509 certificate.
    """
    tbs = _tbs(der)
    extensions = [field for field in tbs[_SPKI + 1 :] if field.tag == _EXTENSIONS]
    if not extensions:
        return "has no extensions, it is not of X.509 version 3"
    for extension in _children(der, _only(der, extensions[0])):
        parts = _children(der, extension)
        oid = _content(der, parts[0]) if parts and parts[0].tag == _OID else b""
        critical = len(parts) == 3 and der[parts[1].offset : parts[1].end] == _CRITICAL
        if critical and oid not in _KNOWN_EXTENSIONS:
            return f"has a critical extension that clients do not know ({_dotted(oid)})"
    return _key_problem(der, tbs[_SPKI])


def _key_problem(der: bytes, spki: _Element) -> str | None:
    """The same for the key alone: SubjectPublicKeyInfo is algorithm, parameters and a bit string."""
    algorithm, key = _expect(der, spki, [_SEQUENCE, _BIT_STRING])
    parts = _children(der, algorithm)
    oid = _content(der, parts[0]) if parts and parts[0].tag == _OID else b""
    if oid == _ED25519:
        return None
    if oid == _EC and len(parts) == 2:
        curve = _content(der, parts[1])
        return None if curve in _CURVES else f"has a key on another curve than P-256 and P-384 ({_dotted(curve)})"
    if oid == _RSA:
        inner = _Element(_BIT_STRING, key.offset, key.start + 1, key.end)  # behind the count of unused bits
        modulus = _expect(der, _only(der, inner), [_INTEGER, _INTEGER])[0]
        bits = int.from_bytes(_content(der, modulus), "big").bit_length()
        return None if bits >= _MIN_RSA_BITS else f"has an RSA key of only {bits} bits"
    return f"has a key of a kind that clients do not know ({_dotted(oid)})"


def generate_key() -> bytes:
    """A fresh P-256 private key, PKCS #8 PEM, not encrypted."""
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

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
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

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
    from cryptography import x509

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
    from cryptography import x509

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


class _Element(NamedTuple):
    """One DER element: its tag stands at ``offset``, its content from ``start`` to ``end``."""

    tag: int
    offset: int
    start: int
    end: int


def _tbs(der: bytes) -> list[_Element]:
    """The fields of tbsCertificate from serialNumber on. Raises EndorsementError where there are none."""
    if len(der) > _MAX_CERTIFICATE:
        raise EndorsementError(f"TLS certificate: larger than {_MAX_CERTIFICATE} bytes")
    whole = _only(der, _Element(0, 0, 0, len(der)))
    tbs, _, _ = _expect(der, whole, [_SEQUENCE, _SEQUENCE, _BIT_STRING])
    fields = _children(der, tbs)
    if fields and fields[0].tag == _VERSION:  # absent in X.509 v1
        del fields[0]
    if [field.tag for field in fields[: len(_TBS_TAGS)]] != _TBS_TAGS:
        raise EndorsementError("TLS certificate: not an X.509 certificate")
    return fields


def _expect(der: bytes, parent: _Element, tags: list[int]) -> list[_Element]:
    children = _children(der, parent)
    if [child.tag for child in children] != tags:
        raise EndorsementError(f"TLS certificate: not an X.509 certificate, at offset {parent.offset:#x}")
    return children


def _only(der: bytes, parent: _Element) -> _Element:
    return _expect(der, parent, [_SEQUENCE])[0]


def _children(der: bytes, parent: _Element) -> list[_Element]:
    """The elements that fill ``parent`` exactly, in their one valid form (definite, shortest lengths)."""
    found = []
    at = parent.start
    while at < parent.end:
        start = at + 2
        size = der[at + 1] if start <= parent.end else 0xFF
        if size & 0x80:
            count = size & 0x7F
            size = int.from_bytes(der[start : start + count], "big")
            start += count
            if not 1 <= count <= 4 or size < max(0x80, 1 << 8 * (count - 1)):
                raise EndorsementError(f"TLS certificate: not DER at offset {at:#x}")
        if start + size > parent.end or der[at] & 0x1F == 0x1F:
            raise EndorsementError(f"TLS certificate: not DER at offset {at:#x}")
        found.append(_Element(der[at], at, start, start + size))
        at = start + size
    return found


def _content(der: bytes, element: _Element) -> bytes:
    return der[element.start : element.end]


def _dotted(oid: bytes) -> str:
    """An object identifier as people write it (X.690, 8.19)."""
    if not oid:
        return "none"
    numbers, value = [], 0
    for byte in oid[:64]:
        value = value << 7 | byte & 0x7F
        if not byte & 0x80:
            numbers.append(value)
            value = 0
    first = min(numbers[0] // 40, 2) if numbers else 0
    return ".".join(map(str, [first, numbers[0] - 40 * first, *numbers[1:]])) if numbers else oid.hex()


def _plain(exc: BaseException) -> str:
    return " ".join(str(exc).split())[:200] or type(exc).__name__
