"""The first launch: what a fresh machine needs before the agent can serve. Each step is idempotent and resumed.

The order, the same at every start:

1. The encrypted container is opened, or made where there never was one; all that follows lives in it.
2. The TPM's endorsement and attestation keys. After the container, and not before there is one: a TPM without
   attestation key is what tells a new machine from one whose container somebody has deleted.
3. The certificate.

A kill at any point leaves nothing half made: every file is written whole, the key before the certificate, and a key
without a certificate is certified, not replaced. Nothing is made anew for a container that is lost or locked.
"""

from __future__ import annotations

import errno
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cosmian_vm.agent.config import PREINIT_VARIABLE, AgentConfig
from cosmian_vm.agent.files import make_folder, write_atomically
from cosmian_vm.agent.log import LOGGER, describe
from cosmian_vm.agent.storage import Storage
from cosmian_vm.attester.platform import TpmDevice
from cosmian_vm.certificates import generate_key, self_signed
from cosmian_vm.errors import ConfigError, CosmianVmError, EndorsementError

if TYPE_CHECKING:
    from cosmian_vm.luks.first import Machine

__all__ = ["TlsFiles", "certify", "open_container", "open_storage", "prepare", "provision_tpm"]

_THROW_AWAY = "throw-away"
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


class TlsFiles(NamedTuple):
    """The certificate chain and key (PEM files) to serve with."""

    certificate: Path
    key: Path


def open_storage(config: AgentConfig, tpm: TpmDevice | None, *, preinit: bool) -> Storage:
    """Steps 1 and 2, and where the agent keeps its files from then on. ``preinit`` False: nothing is made.

    What fails is logged, and the storage says why (``Storage.why``).
    """
    why = open_container(config, tpm, preinit=preinit)
    if preinit:
        provision_tpm(config, tpm, why)
    return Storage(config, why=why)


def certify(config: AgentConfig, storage: Storage, *, preinit: bool) -> TlsFiles:
    """Step 3 for this machine, now. Raises ConfigError."""
    return prepare(config, storage, preinit=preinit, hostname=os.uname().nodename, now=datetime.now(UTC))


def open_container(
    config: AgentConfig, tpm: TpmDevice | None, *, preinit: bool, machine: Machine | None = None
) -> str | None:
    """Open the container, or make it on a new machine: step 1. Why it is locked, in one line; None where it is open.

    ``preinit`` False: nothing is opened or made, it is only found out why. ``machine``: what of this machine is
    touched; None: all that is real.
    """
    if config.container is None:
        return None
    if config.tpm_device is None or tpm is None:
        missing = "agent.toml names no tpm_device" if config.tpm_device is None else f"{config.tpm_device} is not there"
        return (
            f'only a TPM opens {config.container}, and {missing} (a machine without container says container = "none")'
        )
    try:
        from cosmian_vm.luks import first
        from cosmian_vm.luks.place import Place

        place = Place.at(config.container, config.data)
        if not preinit:
            return first.look(place, config.tpm_device, pcrs=config.container_pcrs, machine=machine)
        made = first.provide(
            place,
            config.tpm_device,
            new_machine=not tpm.provisioned(),
            size=config.container_size,
            pcrs=config.container_pcrs,
            machine=machine,
        )
    except ImportError as exc:
        return f"the TPM's libraries cannot be loaded: {exc}"
    except CosmianVmError as exc:
        return " ".join(str(exc).split())
    LOGGER.info("the encrypted container %s %s", config.container, "was made" if made else "is open")
    return None


def provision_tpm(config: AgentConfig, tpm: TpmDevice | None, locked: str | None = None) -> None:
    """Make EK and AK where they are absent: step 2. A TPM that fails is logged: the agent serves what it can.

    ``locked``: what step 1 gave. Where the container could not be made, the keys are not made either: the next start is
    then still the first.
    """
    if tpm is None:
        LOGGER.info("no TPM: this machine can be verified only where that is expected (SGX, --without-tpm)")
        return
    try:
        if locked is not None and not tpm.provisioned() and not _has_container(config):
            LOGGER.error("the TPM's attestation key is made when the container is; until then verifications will fail")
            return
        tpm.provision()
    except CosmianVmError as exc:
        LOGGER.error("the TPM's attestation key could not be made, verifications will fail: %s", describe(exc))


def _has_container(config: AgentConfig) -> bool:
    """Raises AttesterError, InputError."""
    from cosmian_vm.luks import first
    from cosmian_vm.luks.place import Place

    if config.container is None or config.tpm_device is None:
        return False
    return first.is_there(Place.at(config.container, config.data), config.tpm_device)


def prepare(config: AgentConfig, storage: Storage, *, preinit: bool, hostname: str, now: datetime) -> TlsFiles:
    """Folders and certificate: step 3.

    Where the encrypted container is locked, or the disk is full, nothing is recreated: a throw-away key in ``tmp``
    serves. Raises ConfigError naming what cannot be made or is missing.
    """
    _folder(config.tmp)
    reason = storage.locked()
    if reason is not None:
        LOGGER.error("container locked: %s; serving evidence under a throw-away key, orders are declined", reason)
        return _throw_away(config, hostname, now)
    files = TlsFiles(certificate=config.ssl_certificate, key=config.ssl_private_key)
    if files.certificate.exists():
        return files
    if not preinit:
        raise ConfigError(f"{files.certificate}: is missing, and {PREINIT_VARIABLE}=0 forbids to make one")
    try:
        _make_certificate(files, hostname, now)
    except OSError as exc:
        place = exc.filename or files.certificate
        if exc.errno not in _NO_ROOM:
            raise ConfigError(f"{place}: cannot be written: {exc.strerror or exc}") from exc
        LOGGER.error("%s: cannot be written: %s; serving evidence under a throw-away key", place, exc.strerror)
        return _throw_away(config, hostname, now)
    LOGGER.info("a self-signed certificate for %s was made: %s", hostname, files.certificate)
    return files


def _throw_away(config: AgentConfig, hostname: str, now: datetime) -> TlsFiles:
    files = TlsFiles(certificate=config.tmp / f"{_THROW_AWAY}.cert.pem", key=config.tmp / f"{_THROW_AWAY}.key.pem")
    try:
        for path in (files.certificate, files.key):
            path.unlink(missing_ok=True)
        _make_certificate(files, hostname, now)
    except OSError as exc:
        raise ConfigError(f"{exc.filename or files.certificate}: cannot be written: {exc.strerror or exc}") from exc
    return files


def _make_certificate(files: TlsFiles, hostname: str, now: datetime) -> None:
    """Raises ConfigError, OSError."""
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
    except EndorsementError as exc:
        raise ConfigError(f"{files.key}: {exc}") from exc


def _folder(path: Path) -> None:
    try:
        make_folder(path)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be made: {exc.strerror or exc}") from exc
