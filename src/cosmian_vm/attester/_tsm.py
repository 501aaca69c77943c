"""configfs-tsm: the kernel's one interface to the attestation of every kind of confidential VM (Linux 6.7).

Source: Documentation/ABI/testing/configfs-tsm-report and drivers/virt/coco/tsm.c. An entry is a folder: ``inblob`` and
the options are written, ``outblob`` (and ``auxblob``, ``manifestblob``) read; ``generation`` counts the writes.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cosmian_vm.attester._places import TSM_REPORT
from cosmian_vm.errors import AttesterError

__all__ = ["Blobs", "Tsm", "TsmEntries", "TsmFiles", "provider"]

_ATTEMPTS = 8
_FIRST_PAUSE = 0.05
_MAX_BLOB = 128 * 1024
_AGAIN = (errno.EAGAIN, errno.EBUSY, errno.EINTR)

_log = logging.getLogger(__name__)


class TsmEntries(Protocol):
    """Report entries of configfs-tsm; every method raises OSError as the file system does."""

    def make(self, name: str) -> None:
        """mkdir: the kernel fills the entry with its attributes."""
        ...

    def read(self, name: str, attribute: str) -> bytes:
        """The whole of an attribute."""
        ...

    def write(self, name: str, attribute: str, value: bytes) -> None:
        """Write an attribute in one piece."""
        ...

    def remove(self, name: str) -> None:
        """Remove the entry (rmdir)."""
        ...


class TsmFiles:
    """The real ones, under ``base``."""

    def __init__(self, base: Path = TSM_REPORT) -> None:
        self._base = base

    def make(self, name: str) -> None:
        """See TsmEntries."""
        (self._base / name).mkdir(mode=0o700)

    def read(self, name: str, attribute: str) -> bytes:
        """See TsmEntries."""
        with (self._base / name / attribute).open("rb", buffering=0) as file:
            parts = []
            while part := file.read(_MAX_BLOB):
                parts.append(part)
                if sum(map(len, parts)) > _MAX_BLOB:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return b"".join(parts)

    def write(self, name: str, attribute: str, value: bytes) -> None:
        """See TsmEntries. Never makes a file: an attribute that this kernel does not have is FileNotFoundError."""
        descriptor = os.open(self._base / name / attribute, os.O_WRONLY | os.O_CLOEXEC)
        try:
            written = os.write(descriptor, value)
        finally:
            os.close(descriptor)
        if written != len(value):
            raise OSError(errno.EIO, f"{written} of {len(value)} bytes were taken")

    def remove(self, name: str) -> None:
        """See TsmEntries."""
        (self._base / name).rmdir()


@dataclass(frozen=True, slots=True, kw_only=True)
class Blobs:
    """What one entry gave. ``aux``: auxblob or manifestblob, b"" where there is none. ``floor``: privlevel_floor."""

    out: bytes
    aux: bytes
    floor: int


class Tsm:
    """Reports of one driver. ``what``: how messages call them.

    Each report has an entry of its own, and ``generation`` must have counted our own writes alone: another process that
    writes into our entry cannot have its report_data signed in the place of ours.
    """

    def __init__(
        self,
        driver: bytes,
        what: str,
        entries: TsmEntries | None = None,
        *,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._driver = driver
        self._what = what
        self._entries = TsmFiles() if entries is None else entries
        self._pause = pause

    def report(
        self, inblob: bytes, *, options: Sequence[tuple[str, bytes]] = (), aux: str = "auxblob", at_floor: bool = True
    ) -> Blobs:
        """A report over ``inblob``. ``options``: attributes to write before it. ``aux``: what is read beside outblob.
        ``at_floor``: ask for the least privilege level that we may have, where that is not 0.

        Raises AttesterError; an error of the file system itself is its cause.
        """
        last: OSError | None = None
        for attempt in range(_ATTEMPTS):
            name = _make(self._entries, self._what)
            try:
                blobs = self._attempt(name, inblob, options, aux, at_floor=at_floor)
            except OSError as exc:
                if exc.errno not in _AGAIN:
                    raise _failed(self._what, exc) from exc
                blobs, last = None, exc
            finally:
                _remove(self._entries, name)
            if blobs is not None:
                return blobs
            self._pause(_FIRST_PAUSE * 2**attempt)
        reason = "its entry was written to by another process" if last is None else last.strerror or str(last)
        raise AttesterError(f"{self._what}: none in {_ATTEMPTS} attempts over configfs-tsm: {reason}")

    def _attempt(
        self, name: str, inblob: bytes, options: Sequence[tuple[str, bytes]], aux: str, *, at_floor: bool
    ) -> Blobs | None:
        """None where somebody else wrote into the entry."""
        entries = self._entries
        driver = entries.read(name, "provider").strip()
        if driver != self._driver:
            raise AttesterError(
                f"{self._what}: configfs-tsm is served by {driver.decode('ascii', 'replace')!r}, not by "
                f"{self._driver.decode()}"
            )
        before = int(entries.read(name, "generation"))
        floor = self._privilege_floor(name)
        writes = [*options, ("inblob", inblob)]
        if floor and at_floor:
            writes.insert(0, ("privlevel", b"%d" % floor))
        for attribute, value in writes:
            entries.write(name, attribute, value)
        out = entries.read(name, "outblob")
        try:
            beside = entries.read(name, aux)
        except FileNotFoundError:
            beside = b""
        if int(entries.read(name, "generation")) != before + len(writes):
            return None
        return Blobs(out=out, aux=beside, floor=floor)

    def _privilege_floor(self, name: str) -> int:
        """Least VMPL that we may ask for: above 0 where an SVSM runs below us."""
        try:
            return int(self._entries.read(name, "privlevel_floor"))
        except FileNotFoundError:
            return 0


def provider(entries: TsmEntries) -> bytes:
    """Name of the driver behind configfs-tsm (``sev_guest``, ``tdx_guest``). Raises AttesterError."""
    name = _make(entries, "report")
    try:
        return entries.read(name, "provider").strip()
    except OSError as exc:
        raise _failed("report", exc) from exc
    finally:
        _remove(entries, name)


def _make(entries: TsmEntries, what: str) -> str:
    name = f"cosmian_vm-{secrets.token_hex(8)}"
    try:
        entries.make(name)
    except OSError as exc:
        raise _failed(what, exc) from exc
    return name


def _remove(entries: TsmEntries, name: str) -> None:
    try:
        entries.remove(name)
    except OSError as exc:
        _log.warning("configfs-tsm: the entry %s stays behind: %s", name, exc.strerror)


def _failed(what: str, exc: OSError) -> AttesterError:
    return AttesterError(f"{what}: configfs-tsm: {exc.strerror or exc}")
