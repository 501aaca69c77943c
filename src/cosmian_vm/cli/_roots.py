"""Root certificates that the user chose to trust."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509

from cosmian_vm.cli._common import read_file
from cosmian_vm.client import one_line
from cosmian_vm.endorsements.amd import is_pinned_root, load_certificate
from cosmian_vm.errors import EndorsementError, InputError

__all__ = ["load_roots"]


def load_roots(paths: Sequence[str]) -> tuple[tuple[x509.Certificate, ...], tuple[str, ...]]:
    """The certificates of --trust-root, and what every verdict says about them. Raises InputError."""
    roots: list[x509.Certificate] = []
    notes: list[str] = []
    for path in paths:
        for certificate in _certificates(path):
            name = certificate.subject.rfc4514_string()
            if certificate.subject != certificate.issuer:
                issuer = certificate.issuer.rfc4514_string()
                raise InputError(f"{path}: {name} is no root, {issuer} issued it; --trust-root takes roots alone")
            if is_pinned_root(certificate):
                continue
            roots.append(certificate)
            notes.append(f"Trusting the root {_called(certificate)} of {path} (--trust-root), which is no chip maker's")
    return tuple(roots), tuple(notes)


def _called(certificate: x509.Certificate) -> str:
    """Common name, and the organisation if there is one."""
    parts = {}
    for key in (x509.NameOID.COMMON_NAME, x509.NameOID.ORGANIZATION_NAME):
        parts[key] = [str(value.value) for value in certificate.subject.get_attributes_for_oid(key)]
    names, organisations = parts.values()
    name = names[0] if names else certificate.subject.rfc4514_string()
    return f"{name} ({organisations[0]})" if organisations else name


def _certificates(path: str) -> list[x509.Certificate]:
    """The certificates in a file (PEM or DER), and nothing but them. Raises InputError where there is none."""
    raw = read_file(path)
    try:
        blocks = x509.load_pem_x509_certificates(raw) if b"-----BEGIN" in raw else [load_certificate(raw)]
    except (ValueError, TypeError, EndorsementError) as exc:
        raise InputError(f"{path}: no root certificate in PEM: {one_line(str(exc))}") from exc
    return blocks
