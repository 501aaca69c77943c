"""A simulated maker of TPMs: certificates for EKs and for a cloud's platform AKs, written into a TPM's NV.

Certificates are as the TCG's "EK Credential Profile" 2.5, section 3, has them: no subject, the TPM's maker in a
critical subjectAltName, a key purpose of the TCG's. Only the root is not a real maker's.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key
from cryptography.x509.oid import NameOID
from tpm2_pytss import (
    ESAPI,
    ESYS_TR,
    TPM2_ALG,
    TPM2B_NV_PUBLIC,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMA_NV,
    TPMS_NV_PUBLIC,
    TPMT_PUBLIC,
    TSS2_Exception,
)

from cosmian_vm.errors import AttesterError

__all__ = ["TpmMaker", "give_platform_ak", "nv_store", "platform_ak_template"]

DAY_ZERO = datetime(2026, 1, 1, tzinfo=UTC)
_YEAR = timedelta(days=365)

_EK_CERTIFICATE = x509.ObjectIdentifier("2.23.133.8.1")  # tcg-kp-EKCertificate
_AK_CERTIFICATE = x509.ObjectIdentifier("2.23.133.8.3")  # tcg-kp-AIKCertificate
_MAKER = x509.Name(
    [
        x509.NameAttribute(x509.ObjectIdentifier("2.23.133.2.1"), "id:44564B54"),  # tcg-at-tpmManufacturer: "DVKT"
        x509.NameAttribute(x509.ObjectIdentifier("2.23.133.2.2"), "devkit"),  # tcg-at-tpmModel
        x509.NameAttribute(x509.ObjectIdentifier("2.23.133.2.3"), "id:00010000"),  # tcg-at-tpmVersion
    ]
)
_NV_CHUNK = 512
_AK_ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign"

_PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmMaker:
    """A root and an intermediate that signs."""

    root: x509.Certificate
    issuer: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, name: str = "Devkit TPM") -> TpmMaker:
        """A new maker with new keys; what it signs holds for ten years from DAY_ZERO."""
        root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        root = _authority(f"{name} Root CA", root_key.public_key(), f"{name} Root CA", root_key, path=1)
        issuer = _authority(f"{name} EK CA", key.public_key(), f"{name} Root CA", root_key, path=0)
        return cls(root=root, issuer=issuer, key=key)

    @property
    def chain(self) -> tuple[bytes, ...]:
        """DER: the issuer, then the root."""
        return tuple(certificate.public_bytes(Encoding.DER) for certificate in (self.issuer, self.root))

    def ek_certificate(self, public: bytes) -> bytes:
        """DER, for a TPMT_PUBLIC."""
        return self._certificate(public, _EK_CERTIFICATE, encipherment=True)

    def ak_certificate(self, public: bytes) -> bytes:
        """DER, for a TPMT_PUBLIC."""
        return self._certificate(public, _AK_CERTIFICATE, encipherment=False)

    def _certificate(self, public: bytes, purpose: x509.ObjectIdentifier, *, encipherment: bool) -> bytes:
        area, _ = TPMT_PUBLIC.unmarshal(public)
        key = load_der_public_key(area.to_der())
        if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
            raise AttesterError("a TPM's key is neither RSA nor ECC")
        rsa_key = isinstance(key, rsa.RSAPublicKey)
        usage = _usage(
            digital_signature=not encipherment,
            key_encipherment=encipherment and rsa_key,
            key_agreement=encipherment and not rsa_key,
        )
        certificate = (
            _builder(x509.Name([]), key, self.issuer.subject)
            .add_extension(x509.SubjectAlternativeName([x509.DirectoryName(_MAKER)]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(Encoding.DER)


def _builder(subject: x509.Name, key: _PublicKey, issuer: x509.Name) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(DAY_ZERO)
        .not_valid_after(DAY_ZERO + 10 * _YEAR)
    )


def _authority(
    name: str, key: _PublicKey, issuer: str, issuer_key: ec.EllipticCurvePrivateKey, *, path: int
) -> x509.Certificate:
    subject, signer = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (name, issuer))
    return (
        _builder(subject, key, signer)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path), critical=True)
        .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )


def _usage(**given: bool) -> x509.KeyUsage:
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    rest = ("key_cert_sign", "crl_sign", "encipher_only", "decipher_only")
    return x509.KeyUsage(**{**dict.fromkeys((*names, *rest), False), **given})


def nv_store(tcti: str, index: int, content: bytes, *, size: int | None = None) -> None:
    """Define an NV index that everybody may read, and write ``content`` into it; a former one is removed.

    ``size``: of the index, where it is larger. Raises AttesterError.
    """
    attributes = TPMA_NV.OWNERWRITE | TPMA_NV.OWNERREAD | TPMA_NV.AUTHREAD | TPMA_NV.NO_DA
    whole = content.ljust(size or 0, b"\xff")
    public = TPM2B_NV_PUBLIC(
        nvPublic=TPMS_NV_PUBLIC(nvIndex=index, nameAlg=TPM2_ALG.SHA256, attributes=attributes, dataSize=len(whole))
    )
    try:
        with ESAPI(tcti) as esys:
            with suppress(TSS2_Exception):  # there was none
                esys.nv_undefine_space(esys.tr_from_tpmpublic(index), auth_handle=ESYS_TR.OWNER)
            handle = esys.nv_define_space(None, public)
            for at in range(0, len(whole), _NV_CHUNK):
                esys.nv_write(handle, whole[at : at + _NV_CHUNK], at, auth_handle=ESYS_TR.OWNER)
    except TSS2_Exception as exc:
        raise AttesterError(f"NV index {index:#010x} cannot be written: {exc}") from exc


def platform_ak_template(algorithm: str = "ecc256:ecdsa-sha256:null") -> bytes:
    """TPMT_PUBLIC of a restricted signing key, as Google's NV templates have it (``rsa2048:rsassa-sha256:null``)."""
    return bytes(TPMT_PUBLIC.parse(algorithm, objectAttributes=_AK_ATTRIBUTES, nameAlg="sha256").marshal())


def give_platform_ak(
    tcti: str, maker: TpmMaker, indices: Sequence[int], algorithm: str = "ecc256:ecdsa-sha256:null"
) -> bytes:
    """What a cloud does before a machine first boots: the template and the certificate of a platform AK in NV.

    ``indices``: of certificate and template. Gives the key's TPMT_PUBLIC. Raises AttesterError.
    """
    template = platform_ak_template(algorithm)
    area, _ = TPMT_PUBLIC.unmarshal(template)
    try:
        with ESAPI(tcti) as esys:
            handle, public, *_ = esys.create_primary(
                TPM2B_SENSITIVE_CREATE(), TPM2B_PUBLIC(publicArea=area), ESYS_TR.ENDORSEMENT
            )
            made = bytes(public.publicArea.marshal())
            esys.flush_context(handle)
    except TSS2_Exception as exc:
        raise AttesterError(f"no platform AK can be made: {exc}") from exc
    certificate_index, template_index = indices
    nv_store(tcti, certificate_index, maker.ak_certificate(made))
    nv_store(tcti, template_index, template)
    return made
