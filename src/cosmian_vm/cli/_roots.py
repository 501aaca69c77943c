"""Root certificates that the user chose to trust."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cryptography import x509

from cosmian_vm.cli._common import read_file
from cosmian_vm.cli._given import load_endorsements
from cosmian_vm.cli._options import Chosen
from cosmian_vm.cli._session import Setup
from cosmian_vm.endorsements.amd import is_pinned_root, load_certificate
from cosmian_vm.errors import EndorsementError, InputError
from cosmian_vm.verifier._tpm_certificates import TpmRoots
from cosmian_vm.verifier.policy_file import MAX_POLICY_SIZE, PolicyFile, parse_policy

__all__ = ["check_roots", "load_roots", "load_setup"]

_KEY = "roots in the policy file"


def load_setup(chosen: Chosen) -> Setup:
    """Policy file, roots and endorsements that the options name. Raises InputError."""
    file, folder = PolicyFile(), Path()
    if chosen.policy is not None:
        file = parse_policy(read_file(chosen.policy, MAX_POLICY_SIZE), chosen.policy)
        folder = Path(chosen.policy).parent

    blobs, unused = load_endorsements(chosen.endorsements)
    roots, notes = load_roots(chosen.trust_roots)
    more, told = load_roots(_beside(folder, file.roots), _KEY)
    makers = _tpm_roots((*chosen.tpm_roots, *_beside(folder, file.tpm_roots)))
    return Setup(
        policy=file.policy,
        roots=(*roots, *more),
        tpm_roots=TpmRoots(makers, _tpm_roots(_beside(folder, file.operator_roots))),
        endorsements=blobs,
        offline=chosen.offline,
        pccs=chosen.pccs or file.pccs,
        notes=(*notes, *told, *unused),
    )


def check_roots(file: PolicyFile, folder: Path) -> None:
    """Whether the certificates that a policy file in ``folder`` names can be read, and the hardware's are roots.

    Raises InputError.
    """
    load_roots(_beside(folder, file.roots), _KEY)
    _tpm_roots(_beside(folder, (*file.tpm_roots, *file.operator_roots)))


def _beside(folder: Path, names: Sequence[str]) -> tuple[str, ...]:
    return tuple(str(folder / name) for name in names)


def _tpm_roots(paths: Sequence[str]) -> tuple[x509.Certificate, ...]:
    return tuple(certificate for path in paths for certificate in _certificates(path))


def load_roots(
    paths: Sequence[str], named_by: str = "--trust-root"
) -> tuple[tuple[x509.Certificate, ...], tuple[str, ...]]:
    """The certificates of --trust-root, or of what else they are ``named_by``, and what every verdict says about them.

    Raises InputError.
    """
    roots: list[x509.Certificate] = []
    notes: list[str] = []
    for path in paths:
        for certificate in _certificates(path):
            name = certificate.subject.rfc4514_string()
            if certificate.subject != certificate.issuer:
                issuer = certificate.issuer.rfc4514_string()
                raise InputError(f"{path}: {name} is no root, {issuer} issued it; {named_by} takes roots alone")
            if is_pinned_root(certificate):
                continue
            roots.append(certificate)
            notes.append(f"Trusting the root {_called(certificate)} of {path} ({named_by}), which is no chip maker's")
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
        kind = "PEM has no certificate that can be read" if b"-----BEGIN" in raw else "neither PEM nor DER"
        raise InputError(f"{path}: no root certificate: {kind}") from exc
    return blocks
