"""Certificates that the user names: roots to trust, endorsements that the agent did not send."""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509

from cosmian_vm.cli._common import read_file
from cosmian_vm.client import one_line
from cosmian_vm.endorsements.amd import collect, is_pinned_root, load_certificate
from cosmian_vm.errors import EndorsementError, InputError

__all__ = ["load_endorsements", "load_roots"]


def load_endorsements(paths: Sequence[str]) -> tuple[bytes, ...]:
    """The files of --endorsements. Raises InputError where one holds neither certificates nor CRLs."""
    blobs = []
    for path in paths:
        raw = read_file(path)
        try:
            collect([raw])
        except EndorsementError as exc:
            raise InputError(f"{path}: neither certificates nor revocation lists: {exc}") from exc
        blobs.append(raw)
    return tuple(blobs)


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
            notes.append(
                f"Trusting {name} from {path} (--trust-root): it is no hardware maker's root, whoever has its key can "
                "make this machine up"
            )
    return tuple(roots), tuple(notes)


def _certificates(path: str) -> list[x509.Certificate]:
    """The certificates in a file (PEM or DER), and nothing but them. Raises InputError where there is none."""
    raw = read_file(path)
    try:
        blocks = x509.load_pem_x509_certificates(raw) if b"-----BEGIN" in raw else [load_certificate(raw)]
    except (ValueError, TypeError, EndorsementError) as exc:
        raise InputError(f"{path}: no root certificate in PEM: {one_line(str(exc))}") from exc
    return blocks
