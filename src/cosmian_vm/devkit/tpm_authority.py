"""A simulated authority for TPM keys: a root and an intermediate below it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID, ObjectIdentifier

__all__ = ["TpmAuthority"]

_EK_CERTIFICATE = ObjectIdentifier("2.23.133.8.1")  # TCG EK Credential Profile, tcg-kp-EKCertificate
_YEARS = timedelta(days=3650)


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmAuthority:
    """``root``: what a verifier trusts. ``key``: of ``authority``, the intermediate that certifies."""

    root: x509.Certificate
    authority: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def create(cls, name: str, *, now: datetime) -> TpmAuthority:
        """A new maker with new keys, certificates from ``now`` on."""
        root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
        root = _issue(_name(f"{name} Root"), root_key.public_key(), None, root_key, now=now)
        authority = _issue(_name(f"{name} CA"), key.public_key(), root, root_key, now=now)
        return cls(root=root, authority=authority, key=key)

    @property
    def chain(self) -> tuple[bytes, ...]:
        """The intermediate, DER."""
        return (self.authority.public_bytes(Encoding.DER),)

    def certify(self, key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey, name: str, *, now: datetime) -> bytes:
        """A certificate (DER) of a TPM's key, valid from ``now`` on for ten years."""
        issued = _issue(_name(name), key, self.authority, self.key, now=now, authority=False)
        return issued.public_bytes(Encoding.DER)


def _issue(
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey,
    issuer: x509.Certificate | None,
    signer: ec.EllipticCurvePrivateKey,
    *,
    now: datetime,
    authority: bool = True,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + _YEARS)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if not authority:
        builder = builder.add_extension(x509.ExtendedKeyUsage([_EK_CERTIFICATE]), critical=False)
    return builder.sign(signer, hashes.SHA256())
