"""Certificates and CRLs of a simulated Intel, under the names and with the extensions of the real ones.

Source: Intel SGX PCK Certificate and CRL Profile Specification.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier

from cosmian_vm.endorsements._sgx_extension import SGX_EXTENSION_OID

__all__ = ["DAY_ZERO", "Pki", "Platform", "issue", "key_usage", "sgx_extension"]

DAY_ZERO = datetime(2026, 1, 1, tzinfo=UTC)
"""When this vendor's collateral is from."""

_ROOT, _AUTHORITY = "Intel SGX Root CA", "Intel SGX PCK Platform CA"
_SIGNER, _PCK = "Intel SGX TCB Signing", "Intel SGX PCK Certificate"
_YEARS = timedelta(days=3650)
_ARC = bytes.fromhex("2a864886f84d010d01")
_CURVE = ec.SECP256R1()


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """What a PCK certificate says about its platform."""

    ppid: bytes = bytes(16)
    components: tuple[int, ...] = (4, 4, 2, 2, 4, 1, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0)
    pce_svn: int = 13
    pce_id: bytes = bytes(2)
    fmspc: bytes = bytes.fromhex("90c06f000000")


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    head = bytes([size]) if size < 0x80 else b"\x82" + size.to_bytes(2, "big")
    return bytes([tag]) + head + content


def _field(path: tuple[int, ...], tag: int, content: bytes) -> bytes:
    return _tlv(0x30, _tlv(0x06, _ARC + bytes(path)) + _tlv(tag, content))


def _integer(value: int) -> bytes:
    return value.to_bytes(value.bit_length() // 8 + 1, "big")


def sgx_extension(platform: Platform) -> bytes:
    """The value of the SGX extension, DER."""
    tcb = b"".join(_field((2, n), 0x02, _integer(svn)) for n, svn in enumerate(platform.components, 1))
    tcb += _field((2, 17), 0x02, _integer(platform.pce_svn)) + _field((2, 18), 0x04, bytes(platform.components))
    flags = b"".join(_field((7, n), 0x01, b"\xff") for n in (1, 2, 3))
    fields = _field((1,), 0x04, platform.ppid) + _field((2,), 0x30, tcb) + _field((3,), 0x04, platform.pce_id)
    fields += _field((4,), 0x04, platform.fmspc) + _field((5,), 0x0A, b"\x01") + _field((6,), 0x04, bytes(16))
    return _tlv(0x30, fields + _field((7,), 0x30, flags))


def _name(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Intel Corporation"),
            x509.NameAttribute(NameOID.COUNTRY_NAME, "US"),
        ]
    )


def key_usage(*, authority: bool, crl_sign: bool | None = None) -> x509.KeyUsage:
    """What a key may do: sign certificates and CRLs where it is an authority's, sign otherwise."""
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=not authority,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority if crl_sign is None else crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def issue(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    *,
    path_length: int | None = None,
    extension: bytes | None = None,
    usage: x509.KeyUsage | None = None,
    critical: x509.ExtensionType | None = None,
    algorithm: hashes.SHA256 | hashes.SHA384 | None = None,
) -> x509.Certificate:
    """A certificate; an authority where ``path_length`` is given, with an SGX extension where ``extension`` is.

    ``usage``, ``algorithm``: other than Intel's. ``critical``: one more extension, critical.
    """
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(DAY_ZERO - _YEARS)
        .not_valid_after(DAY_ZERO + _YEARS)
        .add_extension(x509.BasicConstraints(path_length is not None, path_length), critical=True)
        .add_extension(usage or key_usage(authority=path_length is not None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if extension is not None:
        value = x509.UnrecognizedExtension(ObjectIdentifier(SGX_EXTENSION_OID), extension)
        builder = builder.add_extension(value, critical=False)
    if critical is not None:
        builder = builder.add_extension(critical, critical=True)
    return builder.sign(issuer_key, algorithm or hashes.SHA256())


@dataclass(frozen=True, slots=True, kw_only=True)
class Pki:
    """Root, Platform CA, PCK, TCB signer, with their keys."""

    platform: Platform
    root: x509.Certificate
    authority: x509.Certificate
    pck: x509.Certificate
    signer: x509.Certificate
    root_key: ec.EllipticCurvePrivateKey = field(repr=False)
    authority_key: ec.EllipticCurvePrivateKey = field(repr=False)
    pck_key: ec.EllipticCurvePrivateKey = field(repr=False)
    signer_key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def create(cls, platform: Platform) -> Pki:
        """New keys and certificates for one platform."""
        root_key, authority_key, pck_key, signer_key = (ec.generate_private_key(_CURVE) for _ in range(4))
        root = issue(_ROOT, root_key, _name(_ROOT), root_key, path_length=1)
        authority = issue(_AUTHORITY, authority_key, root.subject, root_key, path_length=0)
        pck = issue(_PCK, pck_key, authority.subject, authority_key, extension=sgx_extension(platform))
        signer = issue(_SIGNER, signer_key, root.subject, root_key)
        return cls(
            platform=platform,
            root=root,
            authority=authority,
            pck=pck,
            signer=signer,
            root_key=root_key,
            authority_key=authority_key,
            pck_key=pck_key,
            signer_key=signer_key,
        )

    @property
    def pck_chain(self) -> bytes:
        """PCK, Platform CA, root, as a quote carries them: PEM and a zero byte."""
        chain = (self.pck, self.authority, self.root)
        return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain) + b"\x00"

    def crl(
        self, issuer: x509.Certificate, revoked: Iterable[x509.Certificate], start: datetime, end: datetime
    ) -> bytes:
        """The CRL (DER) of the root or of the Platform CA, with those of ``revoked`` that it issued."""
        key = self.root_key if issuer == self.root else self.authority_key
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(issuer.subject)
            .last_update(start)
            .next_update(end)
            .add_extension(x509.CRLNumber(1), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        )
        for certificate in revoked:
            if certificate.issuer == issuer.subject:
                entry = x509.RevokedCertificateBuilder().serial_number(certificate.serial_number)
                builder = builder.add_revoked_certificate(entry.revocation_date(start).build())
        return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)
