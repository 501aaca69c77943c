"""A simulated Intel in a folder: what a simulated VM's agent and its verifier find there again."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from cosmian_vm.devkit._intel_certificates import Pki, Platform
from cosmian_vm.devkit.intel import IntelVendor

__all__ = ["load_vendor", "save_vendor"]

_CERTIFICATES = ("root", "authority", "pck", "signer")


def save_vendor(vendor: IntelVendor, folder: Path) -> None:
    """Write keys (mode 0600) and certificates into ``folder``. The platform must be the default one."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in _CERTIFICATES:
        certificate: x509.Certificate = getattr(vendor.pki, name)
        (folder / f"{name}.pem").write_bytes(certificate.public_bytes(Encoding.PEM))
        _write_key(folder / f"{name}_key.pem", getattr(vendor.pki, f"{name}_key"))
    _write_key(folder / "attestation_key.pem", vendor.attestation_key)


def load_vendor(folder: Path) -> IntelVendor:
    """What ``save_vendor`` wrote; its collateral is of today."""
    root, authority, pck, signer = (
        x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes()) for name in _CERTIFICATES
    )
    root_key, authority_key, pck_key, signer_key = (_read_key(folder / f"{name}_key.pem") for name in _CERTIFICATES)
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return IntelVendor(
        pki=Pki(
            platform=Platform(),
            root=root,
            authority=authority,
            pck=pck,
            signer=signer,
            root_key=root_key,
            authority_key=authority_key,
            pck_key=pck_key,
            signer_key=signer_key,
        ),
        attestation_key=_read_key(folder / "attestation_key.pem"),
        issued=today,
    )


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(pem)


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(path.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise TypeError(f"{path} is not an elliptic curve key")
    return key
