"""What AMD vouches for: the pinned roots, chip certificates (VCEK, VLEK) and revocation lists. Pure but for the pinned
certificates, which are read from this package.

Source: AMD 57230, "Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface Specification", tables "VCEK
Certificate X.509 Fields", "VCEK/VLEK Certificate Extensions"; chain: ARK (root) -> ASK (VCEK) or ASVK (VLEK) -> chip.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import cache, lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import msgspec
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.utils import CryptographyDeprecationWarning

from cosmian_vm.endorsements.remembered import remembered
from cosmian_vm.errors import EndorsementError, EvidenceFormatError
from cosmian_vm.evidence.snp import MAX_OBJECTS, Product, SigningKey, split_objects

__all__ = [
    "PINNED_INTERMEDIATES",
    "PINNED_ROOTS",
    "UNUSABLE",
    "AmdEndorsements",
    "ChipCertificate",
    "Names",
    "Product",
    "RevocationList",
    "collect",
    "common_name",
    "crl_url",
    "is_chip_certificate",
    "is_pinned_root",
    "load_certificate",
    "load_crl",
    "names",
    "parse_chip_certificate",
    "pinned_intermediates",
    "pinned_roots",
    "read_crl",
    "serial_number",
]

PINNED_ROOTS: Mapping[str, Product] = {
    "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd": Product.MILAN,
    "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1": Product.GENOA,
    "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a": Product.TURIN,
}
"""SHA-256 of each ARK certificate (DER) to its product. Only these are AMD's roots."""

PINNED_INTERMEDIATES: Mapping[str, str] = {
    "67d303bd3905fd38db8b20e0793699870e7fa612eaad5dec358293fd8c0bac1b": "SEV-Milan",
    "c5e081f59b7efab1fe2f8b505e159704e72f29cab7ef7cf628a05a42439082f5": "SEV-VLEK-Milan",
    "5464738c1546aed5f2cecf1dc98c5c960a92e8913238a61711bc90ec6e828521": "SEV-Genoa",
    "197e610743a917d6b9bb982a5a9226ccc0a15b611be0619e626aca9151457372": "SEV-VLEK-Genoa",
    "5b77ef5fe7a7a004fd9032668fba9d0fda22f88c4442069a479636a6ae3b3185": "SEV-Turin",
    "104e10a8bd060a3c20a434261a57d0588fd65a88915b4f65b08bdecaf8df1a3c": "SEV-VLEK-Turin",
}
"""SHA-256 of each ASK and ASVK certificate (DER) to its common name. They are a convenience, not roots: a chain
through them is verified like any other."""

UNUSABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""All that cryptography raises for a certificate or CRL that it cannot read, at once or when a part is asked for."""

_OID_COMMON_NAME = x509.NameOID.COMMON_NAME
_ARC = "1.3.6.1.4.1.3704.1"
_OID_STRUCT_VERSION = f"{_ARC}.1"
_OID_PRODUCT_NAME = f"{_ARC}.2"
_OID_HWID = f"{_ARC}.4"
_OID_CSP_ID = f"{_ARC}.5"
_SVN_BASE = {1: "bl", 2: "tee", 3: "snp", 4: "spl4", 5: "spl5", 6: "spl6", 7: "spl7", 8: "ucode", 9: "fmc"}
_OID_SVN = {f"{_ARC}.3.{number}": name for number, name in _SVN_BASE.items()}

_CHIP_NAMES = {"SEV-VCEK": SigningKey.VCEK, "SEV-VLEK": SigningKey.VLEK}
_HWID_SIZES = (64, 8)
_DER_INTEGER, _DER_OCTET_STRING = 0x02, 0x04
_DER_STRINGS = (0x0C, 0x13, 0x16)  # UTF8String, PrintableString, IA5String
_FAMILIES = {"Bergamo": Product.GENOA, "Siena": Product.GENOA} | {product.value: product for product in Product}
# (Bergamo and Siena use Genoa's root.)


class AmdEndorsements(msgspec.Struct, frozen=True):
    """Certificates (chip, ASK, ASVK, perhaps ARK) and CRLs from wherever; trusted for nothing until they chain to a
    root that the verifier was given.
    """

    certificates: tuple[x509.Certificate, ...] = ()
    crls: tuple[x509.CertificateRevocationList, ...] = ()


class ChipCertificate(msgspec.Struct, frozen=True, kw_only=True):
    """What a VCEK or VLEK certificate says. ``svns``: component to security version number, in the certificate's order
    (its "spl4" to "spl7" are reserved). ``hwid``: chip identity, 64 bytes (Turin: 8), None in a VLEK. ``csp_id``: cloud
    provider that a VLEK was loaded for. ``product``: None where the name is of no product that we know.
    """

    certificate: x509.Certificate
    kind: SigningKey
    serial: int
    struct_version: int
    product_name: str
    product: Product | None
    svns: Mapping[str, int]
    hwid: bytes | None
    csp_id: str | None
    public_key: ec.EllipticCurvePublicKey


class RevocationList(NamedTuple):
    """What a CRL says. ``issuer``: DER. ``serials``: what it revokes, AMD's zeros included. ``partial``: a critical
    extension narrows it down (delta, distribution point); RFC 5280, 5.2, forbids to rely on it then.
    """

    crl: x509.CertificateRevocationList
    issuer: bytes
    last_update: datetime
    next_update: datetime | None
    serials: frozenset[int]
    partial: bool


class Names(NamedTuple):
    """Names of a certificate, DER, and their common names; serial number."""

    subject: bytes
    issuer: bytes
    subject_cn: str
    issuer_cn: str
    serial: int


_warnings_lock = threading.Lock()


@contextmanager
def _serial_zero_is_known() -> Iterator[None]:
    """AMD gives every VCEK the serial number 0, which RFC 5280 forbids and cryptography warns about: that one warning
    is silenced here and nowhere else. (``catch_warnings`` swaps a global, hence the lock.)
    """
    with _warnings_lock, warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message="Parsed a serial number which wasn't positive", category=CryptographyDeprecationWarning
        )
        yield


@lru_cache(maxsize=128)
def load_certificate(der: bytes) -> x509.Certificate:
    """Load an X.509 certificate (DER). Raises EndorsementError, saying what is wrong with it."""
    try:
        with _serial_zero_is_known():
            certificate = x509.load_der_x509_certificate(der)
            certificate.subject, certificate.issuer, certificate.signature_algorithm_oid  # noqa: B018 - lazy parts
        return certificate
    except UNUSABLE as exc:
        raise EndorsementError(f"not a usable X.509 certificate: {_one_line(exc)}") from exc


@lru_cache(maxsize=32)
def load_crl(der: bytes) -> x509.CertificateRevocationList:
    """Load an X.509 CRL (DER). Raises EndorsementError, saying what is wrong with it."""
    try:
        with _serial_zero_is_known():
            crl = x509.load_der_x509_crl(der)
            crl.issuer, crl.last_update_utc, crl.next_update_utc  # noqa: B018 - lazy parts
        return crl
    except UNUSABLE as exc:
        raise EndorsementError(f"not a usable X.509 CRL: {_one_line(exc)}") from exc


def serial_number(certificate: x509.Certificate) -> int:
    """The serial number, AMD's zeros included."""
    with _serial_zero_is_known():
        return certificate.serial_number


@lru_cache(maxsize=32)
def read_crl(der: bytes) -> RevocationList:
    """What a CRL (DER) says, unverified. Raises EndorsementError."""
    crl = load_crl(der)
    try:
        partial = any(extension.critical for extension in crl.extensions)
    except UNUSABLE:
        partial = True
    with _serial_zero_is_known():
        serials = frozenset(entry.serial_number for entry in crl)
    return RevocationList(crl, crl.issuer.public_bytes(), crl.last_update_utc, crl.next_update_utc, serials, partial)


def common_name(name: x509.Name) -> str:
    """The first common name, at most 200 characters of it; an empty string where there is none."""
    found = name.get_attributes_for_oid(_OID_COMMON_NAME)
    return str(found[0].value)[:200] if found else ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _pinned(wanted: Iterable[str]) -> tuple[x509.Certificate, ...]:
    """The certificates of this package with the given fingerprints, in their order.

    Raises EndorsementError if one is missing: the installation is damaged.
    """
    by_fingerprint: dict[str, x509.Certificate] = {}
    for product in Product:
        pem = Path(__file__).with_name("roots").joinpath(f"amd_{product.lower()}.pem").read_bytes()
        for certificate in x509.load_pem_x509_certificates(pem):
            by_fingerprint[_fingerprint(certificate)] = certificate
    try:
        return tuple(by_fingerprint[fingerprint] for fingerprint in wanted)
    except KeyError as exc:
        raise EndorsementError(f"the installed AMD certificates are damaged: no certificate {exc.args[0]}") from None


def _fingerprint(certificate: x509.Certificate) -> str:
    return certificate.fingerprint(hashes.SHA256()).hex()


@cache
def pinned_roots() -> tuple[x509.Certificate, ...]:
    """AMD's root certificates (ARK-Milan, ARK-Genoa, ARK-Turin), each checked against PINNED_ROOTS."""
    return _pinned(PINNED_ROOTS)


@cache
def pinned_intermediates() -> tuple[x509.Certificate, ...]:
    """AMD's ASK and ASVK certificates, each checked against PINNED_INTERMEDIATES."""
    return _pinned(PINNED_INTERMEDIATES)


@remembered
def is_pinned_root(certificate: x509.Certificate) -> bool:
    """True for AMD's own roots, False for one that a user chose to trust."""
    return _fingerprint(certificate) in PINNED_ROOTS


def crl_url(product: Product, kind: SigningKey) -> str:
    """Where AMD's key service publishes the CRL of a chain."""
    return f"https://kdsintf.amd.com/{'vlek' if kind is SigningKey.VLEK else 'vcek'}/v1/{product}/crl"


def collect(blobs: Iterable[bytes], *, pinned: bool = True, most: int = MAX_OBJECTS) -> AmdEndorsements:
    """Certificates and CRLs out of ``blobs``, each DER or PEM (of one or several), told apart by content.

    ``pinned``: AMD's own ASK and ASVK certificates are added behind them, so that a chip certificate alone is enough.
    ``most``: how many are taken. Raises EndorsementError that names the blob (by its number, from 1) which is none of
    these, and where there are more.
    """
    certificates: dict[bytes, x509.Certificate] = {}
    crls: dict[bytes, x509.CertificateRevocationList] = {}
    for number, blob in enumerate(blobs, 1):
        what = f"endorsement {number} ({len(blob)} bytes)"
        try:
            ders, crl_ders = split_objects(blob, what)
            for der in ders:
                certificates.setdefault(der, load_certificate(der))
            for der in crl_ders:
                crls.setdefault(der, load_crl(der))
        except EvidenceFormatError as exc:
            raise EndorsementError(str(exc)) from exc
        except EndorsementError as exc:
            raise EndorsementError(f"{what}: {exc}") from exc
        if len(certificates) + len(crls) > most:
            raise EndorsementError(f"more than {most} certificates and CRLs")
    known = tuple(certificates.values())
    return AmdEndorsements(known + pinned_intermediates() if pinned else known, tuple(crls.values()))


@remembered
def names(certificate: x509.Certificate) -> Names:
    """Subject, issuer and serial number of a certificate, read once: that is slow."""
    subject, issuer = certificate.subject, certificate.issuer
    return Names(
        subject.public_bytes(),
        issuer.public_bytes(),
        common_name(subject),
        common_name(issuer),
        serial_number(certificate),
    )


def is_chip_certificate(certificate: x509.Certificate) -> bool:
    """True if the subject is that of a VCEK or VLEK; says nothing about who signed it."""
    return names(certificate).subject_cn in _CHIP_NAMES


@remembered
def parse_chip_certificate(certificate: x509.Certificate) -> ChipCertificate:
    """Read the extensions of a VCEK or VLEK certificate. Raises EndorsementError, naming what is wrong."""
    name = names(certificate).subject_cn
    kind = _CHIP_NAMES.get(name)
    if kind is None:
        raise EndorsementError(f"the certificate {name!r} is neither a VCEK nor a VLEK")
    try:
        key = certificate.public_key()
        values = {e.oid.dotted_string: e.value for e in certificate.extensions}
    except UNUSABLE as exc:
        raise EndorsementError(f"{name}: {_one_line(exc)}") from exc
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise EndorsementError(f"{name}: the key is not on the curve P-384")
    raw = {oid: value.value for oid, value in values.items() if isinstance(value, x509.UnrecognizedExtension)}
    product_name = _string(raw, _OID_PRODUCT_NAME, name)
    if product_name is None:
        raise EndorsementError(f"{name}: extension {_OID_PRODUCT_NAME} (product name) is missing")
    hwid = _hwid(raw, name)
    if kind is SigningKey.VCEK and hwid is None:
        raise EndorsementError(f"{name}: extension {_OID_HWID} (hwID) is missing")
    return ChipCertificate(
        certificate=certificate,
        kind=kind,
        serial=names(certificate).serial,
        struct_version=_integer(raw, _OID_STRUCT_VERSION, name),
        product_name=product_name,
        product=_product(product_name),
        svns=MappingProxyType({_OID_SVN[oid]: _integer(raw, oid, name) for oid in raw if oid in _OID_SVN}),
        hwid=hwid,
        csp_id=_string(raw, _OID_CSP_ID, name),
        public_key=key,
    )


def _product(name: str) -> Product | None:
    """The product of a name such as ``Milan-B0``: what stands before the stepping."""
    family = name.partition("-")[0]
    return _FAMILIES.get(family)


def _element(value: bytes, tags: tuple[int, ...]) -> bytes | None:
    """The content of ``value`` if it is one short DER element with one of the ``tags``."""
    if len(value) >= 2 and value[0] in tags and value[1] < 0x80 and value[1] == len(value) - 2:
        return value[2:]
    return None


def _integer(raw: Mapping[str, bytes], oid: str, name: str) -> int:
    """A security version number: DER INTEGER, 0 to 255."""
    content = _element(raw.get(oid, b""), (_DER_INTEGER,))
    number = int.from_bytes(content, "big", signed=True) if content else -1
    if not 0 <= number <= 255:
        raise EndorsementError(f"{name}: extension {oid} is missing or not a number from 0 to 255")
    return number


def _string(raw: Mapping[str, bytes], oid: str, name: str) -> str | None:
    if oid not in raw:
        return None
    content = _element(raw[oid], _DER_STRINGS)
    try:
        text = None if content is None else content.decode("utf-8")
    except UnicodeDecodeError:
        text = None
    if text is None or not text.isprintable():
        raise EndorsementError(f"{name}: extension {oid} is not a printable string")
    return text


def _hwid(raw: Mapping[str, bytes], name: str) -> bytes | None:
    """hwID: 64 (Turin: 8) bytes, bare or in an OCTET STRING; both forms are in use."""
    value = raw.get(_OID_HWID)
    if value is None or len(value) in _HWID_SIZES:
        return value
    content = _element(value, (_DER_OCTET_STRING,))
    if content is None or len(content) not in _HWID_SIZES:
        raise EndorsementError(f"{name}: extension {_OID_HWID} (hwID) is not 64 or 8 bytes")
    return content
