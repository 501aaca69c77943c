"""What Intel vouches for: the pinned root, certificate chains in PEM form, PCK certificates. Pure but for the pinned
certificate, which is read from this package.

Source: Intel SGX PCK Certificate and CRL Profile Specification. Everything below the root is ECDSA P-256 with SHA-256::

    Intel SGX Root CA -> Intel SGX PCK Platform CA or PCK Processor CA -> Intel SGX PCK Certificate (one per chip, TCB)
    Intel SGX Root CA -> Intel SGX TCB Signing (signs TCB info and QE identity)
"""

from __future__ import annotations

import base64
import binascii
import re
from functools import cache, lru_cache
from importlib import resources

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from cosmian_vm.endorsements._sgx_extension import SGX_EXTENSION_OID, PckExtension, parse_sgx_extension
from cosmian_vm.endorsements.amd import _serial_zero_is_known, load_certificate, load_crl
from cosmian_vm.endorsements.remembered import remembered
from cosmian_vm.errors import EndorsementError, EvidenceFormatError

__all__ = [
    "INTEL_ROOT_SHA256",
    "PckExtension",
    "crl_of",
    "is_pinned_root",
    "p256_key",
    "parse_chain",
    "pck_extension",
    "pinned_root",
]

INTEL_ROOT_SHA256 = "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3"
"""SHA-256 of the certificate "Intel SGX Root CA" (DER). Only this is Intel's root."""

MAX_CHAIN = 4
"""More certificates in one chain are refused; real ones have two or three."""
MAX_CHAIN_SIZE = 64 * 1024
"""A longer PEM text is refused; real ones have about 4 KiB."""

_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
_BLOCK = re.compile(re.escape(_BEGIN) + rb"([A-Za-z0-9+/=\s]*)" + re.escape(_END))
_AROUND = b" \t\r\n\x00"
_UNUSABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


@cache
def pinned_root() -> x509.Certificate:
    """Intel's root certificate, checked against INTEL_ROOT_SHA256.

    Raises EndorsementError if it is damaged.
    """
    der = resources.files(__package__).joinpath("roots", "intel_sgx_root_ca.der").read_bytes()
    certificate = load_certificate(der)
    if not is_pinned_root(certificate):
        raise EndorsementError("the installed Intel root certificate is damaged")
    return certificate


@remembered
def is_pinned_root(certificate: x509.Certificate) -> bool:
    """True for Intel's own root, False for one that a user chose to trust."""
    return certificate.fingerprint(hashes.SHA256()).hex() == INTEL_ROOT_SHA256


@lru_cache(maxsize=256)
def parse_chain(pem: bytes, what: str) -> tuple[x509.Certificate, ...]:
    """The certificates of a PEM text, leaf first as it stands there; whitespace and NULs may stand around them.

    Every part of each that is needed later has been read once, so nothing raises afterwards.
    Raises EvidenceFormatError, naming ``what`` and the certificate, for anything else.
    """
    if len(pem) > MAX_CHAIN_SIZE:
        raise EvidenceFormatError(what, f"{len(pem)} bytes, more than {MAX_CHAIN_SIZE}")
    chain: list[x509.Certificate] = []
    at = 0
    for block in _BLOCK.finditer(pem):
        name = f"certificate {len(chain) + 1}"
        if pem[at : block.start()].strip(_AROUND):
            raise EvidenceFormatError(what, "other text between the certificates", offset=at, field=name)
        if len(chain) == MAX_CHAIN:
            raise EvidenceFormatError(what, f"more than {MAX_CHAIN} certificates", offset=block.start(), field=name)
        try:
            der = base64.b64decode(b"".join(block[1].split()), validate=True)
        except binascii.Error as exc:
            raise EvidenceFormatError(what, f"not base64: {exc}", offset=block.start(), field=name) from exc
        chain.append(_usable(der, what, name))
        at = block.end()
    if pem[at:].strip(_AROUND):
        raise EvidenceFormatError(what, "other text behind the certificates", offset=at, field="end")
    if not chain:
        raise EvidenceFormatError(what, "no certificate in it")
    return tuple(chain)


def _usable(der: bytes, what: str, name: str) -> x509.Certificate:
    """Load a certificate and read each of its parts that is decoded late, so that a damaged one is refused here."""
    try:
        certificate = load_certificate(der)
        with _serial_zero_is_known():  # a damaged one may warn as AMD's do; what is no serial number is refused below
            parts: list[object] = [
                certificate.public_key(),
                certificate.extensions,
                certificate.signature_algorithm_oid,
            ]
            parts += [certificate.not_valid_before_utc, certificate.not_valid_after_utc]
            parts += [certificate.subject.rfc4514_string(), certificate.issuer.rfc4514_string()]
            serial = certificate.serial_number
    except EndorsementError as exc:
        raise EvidenceFormatError(what, str(exc), field=name) from exc
    except _UNUSABLE as exc:
        raise EvidenceFormatError(what, f"not a usable X.509 certificate: {_line(exc)}", field=name) from exc
    if serial <= 0:
        raise EvidenceFormatError(what, "the serial number is not positive", field=name)
    return certificate


def crl_of(der: bytes, what: str) -> x509.CertificateRevocationList:
    """A CRL (DER), each of its late parts read once.

    Raises EvidenceFormatError, naming ``what``, where it is none.
    """
    try:
        crl = load_crl(der)
        with _serial_zero_is_known():
            parts: list[object] = [crl.extensions, crl.signature_algorithm_oid, crl.issuer.rfc4514_string()]
            parts += [(entry.serial_number, entry.revocation_date_utc) for entry in crl]
    except EndorsementError as exc:
        raise EvidenceFormatError(what, str(exc)) from exc
    except _UNUSABLE as exc:
        raise EvidenceFormatError(what, f"not a usable X.509 CRL: {_line(exc)}") from exc
    return crl


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@remembered
def p256_key(certificate: x509.Certificate) -> ec.EllipticCurvePublicKey | None:
    """The certificate's key if it is on P-256, which is all that Intel uses; None otherwise."""
    key = certificate.public_key()
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    return None


@remembered
def pck_extension(certificate: x509.Certificate) -> PckExtension:
    """What a PCK certificate says about its platform.

    Raises EvidenceFormatError where the SGX extension is missing or malformed.
    """
    for extension in certificate.extensions:
        if extension.oid.dotted_string == SGX_EXTENSION_OID and isinstance(extension.value, x509.UnrecognizedExtension):
            return parse_sgx_extension(extension.value.value)
    raise EvidenceFormatError("PCK certificate", "has no SGX extension", field=SGX_EXTENSION_OID)
