"""The first launch: what a fresh machine needs before the agent can serve. Each step is idempotent and resumed.

A kill at any point leaves nothing half made: every file is written whole, the key before the certificate, and a key
without a certificate is certified, not replaced.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from cosmian_vm.agent.config import PREINIT_VARIABLE, AgentConfig
from cosmian_vm.agent.files import make_folder, write_atomically
from cosmian_vm.agent.log import LOGGER, describe
from cosmian_vm.agent.storage import Storage
from cosmian_vm.attester.platform import TpmDevice
from cosmian_vm.certificates import generate_key, self_signed
from cosmian_vm.errors import AttesterError, ConfigError, EndorsementError

__all__ = ["TlsFiles", "prepare", "provision_tpm"]

_THROW_AWAY = "throw-away"


class TlsFiles(NamedTuple):
    """The certificate chain and key (PEM files) to serve with."""

    certificate: Path
    key: Path


def provision_tpm(tpm: TpmDevice | None) -> None:
    """Make EK and AK where they are absent. A TPM that fails is logged: the agent serves what it can."""
    if tpm is None:
        LOGGER.info("no TPM: this machine can be verified only where that is expected (SGX, --without-tpm)")
        return
    try:
        tpm.provision()
    except AttesterError as exc:
        LOGGER.error("the TPM's attestation key could not be made: %s", describe(exc))


def prepare(config: AgentConfig, storage: Storage, *, preinit: bool, hostname: str, now: datetime) -> TlsFiles:
    """Folders and certificate.

    Where the encrypted container is locked nothing in it is recreated: a throw-away key in ``tmp`` serves.
    Raises ConfigError naming what cannot be made or is missing.
    """
    _folder(config.tmp)
    reason = storage.locked()
    if reason is not None:
        LOGGER.error("container locked: %s; serving evidence under a throw-away key, orders are declined", reason)
        files = TlsFiles(certificate=config.tmp / f"{_THROW_AWAY}.cert.pem", key=config.tmp / f"{_THROW_AWAY}.key.pem")
        for path in (files.certificate, files.key):
            path.unlink(missing_ok=True)
        _make_certificate(files, hostname, now)
        return files
    files = TlsFiles(certificate=config.ssl_certificate, key=config.ssl_private_key)
    if files.certificate.exists():
        return files
    if not preinit:
        raise ConfigError(f"{files.certificate}: is missing, and {PREINIT_VARIABLE}=0 forbids to make one")
    _make_certificate(files, hostname, now)
    LOGGER.info("a self-signed certificate for %s was made: %s", hostname, files.certificate)
    return files


def _make_certificate(files: TlsFiles, hostname: str, now: datetime) -> None:
    for path in (files.key, files.certificate):
        _folder(path.parent)
    try:
        if files.key.exists():
            key = files.key.read_bytes()
        else:
            key = generate_key()
            write_atomically(files.key, key, 0o600)
        made = self_signed(hostname, ["localhost", "127.0.0.1", "::1"], now=now, key_pem=key)
        write_atomically(files.certificate, made.certificate_pem, 0o644)
    except OSError as exc:
        raise ConfigError(f"{exc.filename or files.certificate}: cannot be written: {exc.strerror or exc}") from exc
    except EndorsementError as exc:
        raise ConfigError(f"{files.key}: {exc}") from exc


def _folder(path: Path) -> None:
    try:
        make_folder(path)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be made: {exc.strerror or exc}") from exc
