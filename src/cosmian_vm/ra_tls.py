"""RA-TLS: X.509 certificates that carry the evidence of the machine whose key they are for. Made and taken apart. Pure.

===================  =====================================================================================
extension            its value (bare, or in one more OCTET STRING)
===================  =====================================================================================
1.2.840.113741...6   SGX quote; ``report_data`` begins with the hash of the key
1.2.840.113741...7   SEV-SNP report, certificates behind it
1.2.840.113741...8   TDX quote
2.23.133.5.4.9       the same, or DICE tagged evidence: CBOR ``tag([quote, claims])``; ``report_data`` begins with
                     the hash of ``claims``, and its ``pubkey-hash`` is ``[algorithm, hash of the key]``
===================  =====================================================================================

The hash of a key is SHA-256 of the uncompressed point (65 bytes), which is what we write, or of the whole
SubjectPublicKeyInfo, which others write. Behind it stand 32 bytes of extra data, zeros where there is none. Zeros are
what tells such evidence from an agent's: there a client chooses the first 32 bytes (evidence.binding).

Sources: 1.3.x certificates; TCG DICE Attestation Architecture 1.1, "Tagged evidence" (the OID); Interoperable RA-TLS
of the CCC Attestation SIG (the CBOR form).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import new as new_hash
from hashlib import sha256
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from cosmian_vm.errors import EvidenceFormatError, InputError
from cosmian_vm.evidence import _cbor
from cosmian_vm.evidence.bundle import TeeKind, tee_kind

__all__ = [
    "DICE_OID",
    "EXTRA_DATA_SIZE",
    "MAX_DAYS",
    "OIDS",
    "UNEXPECTED_EXTRA_DATA",
    "Embedded",
    "binding_problem",
    "embedded",
    "make_certificate",
    "may_be_an_agents",
    "report_data_for",
]

WHAT: Final = "RA-TLS certificate"

OIDS: Final = {
    "1.2.840.113741.1337.6": TeeKind.SGX,
    "1.2.840.113741.1337.7": TeeKind.SNP,
    "1.2.840.113741.1337.8": TeeKind.TDX,
}
"""Extensions that hold a quote of one kind of TEE, and no other."""
DICE_OID: Final = "2.23.133.5.4.9"
"""The extension that holds evidence of any kind."""
EXTRA_DATA_SIZE: Final = 32
_HASH_LIKE: Final = 16
"""An agent's hash never ends in so many zero bytes, however a client chooses the nonce that went into it."""
UNEXPECTED_EXTRA_DATA: Final = (
    "The evidence carries extra data that nobody expects: it may be an agent's answer to somebody who gave it the hash "
    "of a key of his own for a nonce"
)
MAX_DAYS: Final = 36500


def may_be_an_agents(extra_data: bytes) -> bool:
    """Whether the 32 bytes behind a key's hash could be what stands in an agent's evidence behind a client's nonce: a
    hash. A short text, zeros behind it, could not.
    """
    return any(extra_data[-_HASH_LIKE:])


_OID_OF = {kind: oid for oid, kind in OIDS.items()}
_HASHES = {1: "sha256", 7: "sha384", 8: "sha512"}  # IANA, Named Information Hash Algorithm Registry
_OCTET_STRING = 0x04
_CLOCK_SLACK = timedelta(hours=1)  # a client's clock may be behind ours
# What cryptography raises for a key or an extension that it cannot read.
_UNUSABLE = (ValueError, TypeError, UnsupportedAlgorithm, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)


@dataclass(frozen=True, slots=True)
class Embedded:
    """Evidence in a certificate. ``kind``: by its own bytes, None where it is of none that is known. ``claims``: the
    CBOR claims beside it (DICE), None where ``report_data`` names the key itself.
    """

    oid: str
    raw: bytes
    kind: TeeKind | None
    claims: bytes | None = None

    @property
    def misplaced(self) -> bool:
        """It stands in the extension of another kind of TEE."""
        return self.oid in OIDS and self.kind is not OIDS[self.oid]


def report_data_for(key: ec.EllipticCurvePublicKey, extra: bytes = b"") -> bytes:
    """The 64 bytes that a quote must carry for a certificate of ``key``: SHA-256 of the uncompressed point, then
    ``extra`` (at most 32 bytes), zero-padded. Raises ValueError where ``extra`` is longer.
    """
    if len(extra) > EXTRA_DATA_SIZE:
        raise ValueError(f"extra data of {len(extra)} bytes")
    point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return sha256(point).digest() + extra.ljust(EXTRA_DATA_SIZE, b"\0")


def make_certificate(
    key: ec.EllipticCurvePrivateKey,
    evidence: bytes,
    *,
    subject: str,
    sans: Iterable[str],
    days: int,
    now: datetime,
) -> bytes:
    """A self-signed certificate (PEM) that carries ``evidence``, which must already be for ``key``.

    ``evidence``: an SNP report (certificates behind it), a TDX or SGX quote; its bytes decide the extension.
    ``subject``: RFC 4514. ``sans``: DNS names and IP addresses. ``now``: aware. Raises InputError for a subject, a name
    or a number of days that cannot be.
    """
    kind = tee_kind(evidence)
    if kind is None:
        raise InputError("the TEE's evidence is of no kind that RA-TLS has an extension for")
    if not 1 <= days <= MAX_DAYS:
        raise InputError(f"a certificate is valid for 1 to {MAX_DAYS} days, not for {days}")
    name = _subject(subject)
    extension = x509.UnrecognizedExtension(x509.ObjectIdentifier(_OID_OF[kind]), evidence)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _CLOCK_SLACK)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(extension, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    names = [_general_name(text) for text in dict.fromkeys(sans)]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _subject(text: str) -> x509.Name:
    try:
        name = x509.Name.from_rfc4514_string(text)
    except (ValueError, TypeError) as exc:
        raise InputError(
            f"--subject {text!r}: expected is a name as RFC 4514 writes it: CN=vm.example.com,O=Me"
        ) from exc
    if not list(name):
        raise InputError("--subject is empty; expected is a name as RFC 4514 writes it: CN=vm.example.com,O=Me")
    return name


def _general_name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        ascii_name = text if text.isascii() else text.encode("idna").decode("ascii")
        if not ascii_name or len(ascii_name) > 253 or not all(c.isalnum() or c in "-_.*" for c in ascii_name):
            raise ValueError(text)
        return x509.DNSName(ascii_name)
    except ValueError as exc:
        raise InputError(f"--san {text!r}: neither a DNS name nor an IP address") from exc


def embedded(certificate: x509.Certificate) -> list[Embedded]:
    """All evidence that a certificate carries. Raises EvidenceFormatError where its extensions cannot be read."""
    try:
        extensions = list(certificate.extensions)
    except _UNUSABLE as exc:
        raise EvidenceFormatError(WHAT, " ".join(str(exc).split())[:200]) from exc
    found = []
    for extension in extensions:
        oid, value = extension.oid.dotted_string, extension.value
        if (oid in OIDS or oid == DICE_OID) and isinstance(value, x509.UnrecognizedExtension):
            found.append(_recognised(oid, value.value))
    return found


def _recognised(oid: str, value: bytes) -> Embedded:
    for raw, claims in _readings(value):
        kind = tee_kind(raw)
        if kind is not None:
            return Embedded(oid, raw, kind, claims)
    return Embedded(oid, value, None)


def _readings(value: bytes) -> Iterator[tuple[bytes, bytes | None]]:
    """What an extension's value may hold, and the claims beside it."""
    for raw in (value, _octets(value)):
        if raw:
            yield raw, None
            try:
                item = _cbor.decode(raw)
            except EvidenceFormatError:
                continue
            while isinstance(item, _cbor.Tagged):
                item = item.value
            parts = item if isinstance(item, list) else [item]
            if parts and isinstance(parts[0], bytes):
                yield parts[0], parts[1] if len(parts) > 1 and isinstance(parts[1], bytes) else None


def _octets(value: bytes) -> bytes:
    """The content of one more OCTET STRING around it, empty where there is none."""
    if len(value) < 2 or value[0] != _OCTET_STRING:
        return b""
    size = value[1] & 0x7F if value[1] & 0x80 else 0
    length = int.from_bytes(value[2 : 2 + size], "big") if size else value[1]
    return value[2 + size :] if len(value) == 2 + size + length else b""


def binding_problem(report_data: bytes, claims: bytes | None, certificate: x509.Certificate) -> tuple[str, str]:
    """Whether evidence names the key of ``certificate``: how it names it, and "", or "" and what is wrong.

    ``report_data``: 64 bytes; ``claims``: as in Embedded.
    """
    try:
        encodings = _key_encodings(certificate)
        if claims is not None:
            return _claimed_binding(claims, report_data[:32], encodings)
    except (EvidenceFormatError, *_UNUSABLE) as exc:
        return "", f"It cannot be told which key the evidence is for: {' '.join(str(exc).split())[:200]}"
    for name, encoded in encodings:
        if sha256(encoded).digest() == report_data[:32]:
            return f"report_data begins with the SHA-256 of the certificate's key ({name})", ""
    return "", "The evidence is for another key: report_data is not the SHA-256 of the certificate's"


def _claimed_binding(claims: bytes, bound: bytes, encodings: Sequence[tuple[str, bytes]]) -> tuple[str, str]:
    if sha256(claims).digest() != bound:
        return "", "report_data is not the SHA-256 of the claims beside the evidence"
    decoded = _cbor.decode(claims)
    value = decoded.get("pubkey-hash") if isinstance(decoded, dict) else None
    if isinstance(value, bytes):
        value = _cbor.decode(value)
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], int):
        return "", "The claims beside the evidence name no key (pubkey-hash)"
    algorithm = _HASHES.get(value[0])
    if algorithm is None:
        return "", f"The claims name the key by an unknown hash ({value[0]})"
    if any(new_hash(algorithm, encoded).digest() == value[1] for _, encoded in encodings):
        return "report_data is the SHA-256 of claims that name the certificate's key", ""
    return "", "The evidence is for another key: the claims do not name the certificate's"


def _key_encodings(certificate: x509.Certificate) -> list[tuple[str, bytes]]:
    """The ways in which a key is hashed. Raises what _UNUSABLE holds for a key that cryptography does not know."""
    key = certificate.public_key()
    found = []
    if isinstance(key, ec.EllipticCurvePublicKey):
        found.append(("uncompressed point", key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)))
    found.append(("SubjectPublicKeyInfo", key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)))
    return found
