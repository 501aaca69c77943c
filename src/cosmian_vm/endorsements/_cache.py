"""What vendors answered, on disk. Public data, verified again each time that it is used; but a cache that others may
write would let them choose among genuine answers, so folder and files are the user's alone.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from cosmian_vm.endorsements._fetch import Answer

__all__ = ["Cache"]

_MAX_ENTRY = 8 << 20
_POLL = 0.05


class _Entry(msgspec.Struct, frozen=True):
    """A file: ``body`` (base64) and ``header`` as they came from ``url``."""

    url: str
    body: bytes
    header: str


class Cache:
    """Answers by address. ``folder``: made where it is missing; None keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def _path(self, url: str, suffix: str) -> Path | None:
        name = hashlib.sha256(url.encode()).hexdigest()
        return None if self.folder is None else self.folder / f"{name}{suffix}"

    def read(self, url: str) -> Answer | None:
        """What ``url`` answered before; None where there is nothing, or nothing that can be read."""
        path = self._path(url, ".json")
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                entry = msgspec.json.decode(file.read(_MAX_ENTRY), type=_Entry)
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        return Answer(body=entry.body, header=entry.header) if entry.url == url else None

    def write(self, url: str, answer: Answer) -> None:
        """Keep an answer, whole or not at all; a cache that cannot be written is no reason to fail."""
        path = self._path(url, ".json")
        if path is None:
            return
        import tempfile

        temporary: str | None = None
        try:
            _make(path.parent)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".part")  # mode 0600
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.encode(_Entry(url, answer.body, answer.header)))
            Path(temporary).replace(path)
            temporary = None
        except OSError:
            pass
        finally:
            if temporary is not None:
                with suppress(OSError):
                    Path(temporary).unlink()

    @contextmanager
    def alone(self, url: str, seconds: float) -> Iterator[None]:
        """Keep other processes from asking ``url`` too, for as long as they wait at most ``seconds``.

        The kernel takes the lock from a process that dies. Where there are no locks, two processes ask twice.
        """
        file = self._lock_file(url)
        if file is None:
            yield
            return
        with file:
            _lock(file, seconds)
            yield

    def _lock_file(self, url: str) -> BinaryIO | None:
        path = self._path(url, ".lock")
        if path is None:
            return None
        try:
            _make(path.parent)
            return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
        except OSError:
            return None


def _make(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
        return
    if folder.stat().st_mode & 0o077:
        folder.chmod(0o700)


def _lock(file: BinaryIO, seconds: float) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    end = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                return
            time.sleep(_POLL)
        except OSError:
            return
        else:
            return
