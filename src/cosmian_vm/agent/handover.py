"""How the collector gives the front its certificate and key: the files are root's, the front gets what they hold.

It goes over a pair of sockets that the front inherits: at its start together with all else that it needs to know, and
again whenever the files have changed. The end of that pair is the end of the front.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from cosmian_vm.agent.log import LOGGER
from cosmian_vm.agent.tls import FileWatch, Generation, Identity, load_context, warn_of
from cosmian_vm.errors import ConfigError

__all__ = ["MAX_HANDOVER", "HandedIdentity", "Handover", "Material", "MaterialFiles", "Ready", "Start"]

_MAX_FILE = 1024 * 1024

MAX_HANDOVER = 3 * _MAX_FILE

_Pem = Annotated[bytes, Meta(max_length=_MAX_FILE)]


class Material(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """Certificate chain and private key, PEM, and what their files are called."""

    certificate: _Pem
    key: _Pem
    certificate_name: str
    key_name: str

    def __repr__(self) -> str:
        return f"Material of {self.certificate_name}"  # the key is for no log


class Start(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The first that the front hears: whom to run as, where the collector takes orders, what to show."""

    user: str
    uid: int
    gid: int
    orders: str
    material: Material


class Ready(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """All that the front says: it takes connections."""


Handover = Start | Material
"""What the front hears."""


class HandedIdentity(Identity):
    """The certificate that was handed over last. Raises ConfigError where it cannot be used."""

    def __init__(self, material: Material) -> None:
        super().__init__(_context_of(material))

    def take(self, material: Material) -> None:
        """Show this from now on. Raises ConfigError where it cannot be used: the present one stays."""
        self._use(_context_of(material), Path(material.certificate_name))


class MaterialFiles:
    """The two files, read for the front. Raises ConfigError where they cannot be used."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._watch = FileWatch(self._files)
        self.present = self._read()

    def refresh(self) -> bool:
        """Whether ``present`` is another one now. What cannot be used is logged, and the present one stays."""
        if not self._watch.changed():
            return False
        try:
            fresh = self._read()
        except ConfigError as exc:
            LOGGER.warning("TLS certificate: the present one stays in use: %s", exc)
            return False
        changed = fresh != self.present
        self.present = fresh
        return changed

    def _read(self) -> Material:
        certificate, key = self._files
        material = Material(
            certificate=_content(certificate),
            key=_content(key),
            certificate_name=os.fspath(certificate),
            key_name=os.fspath(key),
        )
        warn_of(_context_of(material).leaf, certificate)
        return material


def _content(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE + 1)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    if len(content) > _MAX_FILE:
        raise ConfigError(f"{path}: larger than {_MAX_FILE} bytes, this is no certificate and no key")
    return content


def _context_of(material: Material) -> Generation:
    names = (Path(material.certificate_name), Path(material.key_name))
    # OpenSSL takes files only: these lie in memory, and are gone when it has read them.
    with _in_memory(material.certificate) as certificate, _in_memory(material.key) as key:
        return load_context(certificate, key, names)


@contextmanager
def _in_memory(content: bytes) -> Iterator[Path]:
    descriptor = os.memfd_create("tls", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
