"""Walk a file system and hash its files: what a snapshot says of them.

The work is done by a helper process (``_hasher``, niced) and the workers that it forks: the caller's threads and event
loop go on meanwhile, and no process holds more than a buffer of any file. Call it from a thread: it blocks until all
is done.

Only regular files are hashed, never through a symbolic link, on local file systems only. What could not be read, what
changed while it was read, what is hidden from this process and which mounts were not entered is part of the result:
nothing is dropped in silence, and a helper that dies is an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cosmian_vm.errors import AttesterError
from cosmian_vm.reference import _hasher
from cosmian_vm.reference._mounts import foreign_mounts, hidden_paths

__all__ = ["Progress", "Scope", "WalkResult", "walk_and_hash"]

Progress = Callable[[int, int, int | None], None]
"""Told files done, bytes done, and files in all (None while they are still being counted)."""

_HASHLIB_NAMES = {
    "rmd160": "ripemd160",
    "sha3-256": "sha3_256",
    "sha3-384": "sha3_384",
    "sha3-512": "sha3_512",
    "sm3-256": "sm3",
    "wp512": "whirlpool",
}
"""The kernel's names (crypto/hash_info.c) where hashlib has others."""

_POLL_INTERVAL = 0.2  # seconds between two questions whether to go on
_READ_SIZE = 64 * 1024
_STDERR_SHOWN = 500
_HIDDEN = "hidden from the agent by its own mounts, see Protect...=, Private...= and the like in its unit"
_REASONS = {
    _hasher.CHANGED: "changed while it was read",
    _hasher.NOT_REGULAR: "is no longer a regular file",
}


class Scope(Protocol):
    """Which files: ``root`` stands for ``/``, ``excluded`` are paths in it of directories that are not entered."""

    @property
    def root(self) -> Path:
        """Top of the tree."""
        ...

    @property
    def excluded(self) -> tuple[str, ...]:
        """Directories left out on purpose, with a leading slash."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WalkResult:
    """What the walk found; every path begins with a slash and is relative to the root.

    ``files``: path and digest, directory by directory, names in order. ``unreadable``: path and reason of each file
    or directory that could not be read as a whole, in order. ``left_out``: path and type of each mount that is not
    local and was not entered. ``bytes_read``: how much was hashed.
    """

    files: list[tuple[bytes, bytes]]
    unreadable: list[tuple[bytes, str]]
    left_out: list[tuple[bytes, str]]
    bytes_read: int


def walk_and_hash(
    scope: Scope,
    algorithm: str = "sha256",
    progress: Progress | None = None,
    workers: int | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> WalkResult:
    """Hash every regular file of ``scope`` with ``algorithm`` (the kernel's name for it).

    ``workers``: processes that hash, None for one a core, and more where the disk keeps them waiting. ``progress`` is
    called from this thread; an exception in it ends the helpers and comes out here. ``cancelled`` is asked several
    times a second.

    Raises AttesterError where the algorithm is unknown, the root cannot be entered, a helper fails or the work was
    cancelled.
    """
    name = _HASHLIB_NAMES.get(algorithm, algorithm)
    try:
        size = hashlib.new(name, usedforsecurity=False).digest_size
    except ValueError:
        size = 0
    if not size:  # the SHAKE functions have none either
        raise AttesterError(f"the hash algorithm {algorithm!r} is not available here; set another with ima_hash=")
    command: list[bytes] = [
        os.fsencode(sys.executable),
        b"-B",
        b"-I",
        b"-S",
        os.fsencode(_hasher.__file__),
        name.encode(),
    ]
    root = os.path.realpath(os.fsencode(scope.root))
    excluded = [b"/" + os.fsencode(path).strip(b"/") for path in scope.excluded]
    ours = _mountinfo()
    mounts = foreign_mounts(ours, root, excluded)
    hidden = _hidden(ours, root, excluded)
    closed = mounts.keys() | {path for path, _ in hidden}
    command += [str(workers or 0).encode(), root, *excluded, b"", *sorted(closed - {b"/"})]
    answers = _Answers(size, progress, hidden)
    helper = _Process(command)
    try:
        for kind, payload in helper.frames(cancelled):
            answers.take(kind, payload)
        named = dict(hidden)
        return answers.result([(p, kind.decode(errors="replace")) for p, kind in mounts.items() if p not in named])
    except _IncompleteError as exc:
        raise AttesterError(f"hashing the files failed: {str(exc) or helper.last_words()}") from exc
    finally:
        helper.end()


def _mountinfo() -> bytes:
    try:
        return Path("/proc/self/mountinfo").read_bytes()
    except OSError as exc:
        raise AttesterError(f"cannot tell which file systems are local: /proc/self/mountinfo: {exc.strerror}") from exc


def _system_mountinfo() -> bytes:
    return Path("/proc/1/mountinfo").read_bytes()


def _hidden(ours: bytes, root: bytes, excluded: list[bytes]) -> list[tuple[bytes, str]]:
    """Path and reason of what a mount namespace of our own (a sandbox) keeps from us, or shows us in place of what the
    system has there: not to be hashed, and not to be dropped in silence.
    """
    try:
        systems = _system_mountinfo()
    except OSError as exc:
        return [(b"/", f"cannot tell what is hidden from the agent: /proc/1/mountinfo: {exc.strerror}")]
    return [(path, _HIDDEN) for path in hidden_paths(ours, systems, root, excluded)]


class _IncompleteError(Exception):
    """The helper did not say all; empty where it said nothing about that either."""


class _Process:
    """The helper: leader of a process group of its own, so that it and its workers end together."""

    def __init__(self, command: list[bytes]) -> None:
        with contextlib.ExitStack() as opened, contextlib.ExitStack() as theirs:
            # A file in memory: a pipe that nobody reads could fill up.
            self._stderr = _kept(opened, os.memfd_create("cosmian-vm-hasher"))
            stdin, ours = os.pipe()  # open as long as the answers are wanted
            _kept(theirs, stdin)
            _kept(opened, ours)
            self._answers, stdout = os.pipe()
            _kept(theirs, stdout)
            _kept(opened, self._answers)
            environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=self._stderr,
                    start_new_session=True,
                    env=environment,
                    cwd="/",
                )
            except OSError as exc:
                raise AttesterError(f"the process that hashes files cannot be started: {exc}") from exc
            self._opened = opened.pop_all()

    def frames(self, cancelled: Callable[[], bool] | None) -> Iterator[tuple[bytes, bytes]]:
        """Kind and payload of each frame, until the helper closes its output."""
        poll = select.poll()
        poll.register(self._answers, select.POLLIN)
        buffer = bytearray()
        while True:
            while not poll.poll(1000 * _POLL_INTERVAL):
                _stop_if(cancelled)
            _stop_if(cancelled)
            data = os.read(self._answers, _READ_SIZE)
            if not data:
                return
            buffer += data
            start = 0
            while len(buffer) >= start + 5:
                end = start + 5 + int.from_bytes(buffer[start + 1 : start + 5], "little")
                if end > len(buffer):
                    break
                yield bytes(buffer[start : start + 1]), bytes(buffer[start + 5 : end])
                start = end
            del buffer[:start]

    def last_words(self) -> str:
        """The end of what the helper wrote to its standard error, on one line."""
        text = os.pread(self._stderr, 1 << 20, 0).decode(errors="replace")
        return " ".join(text.split())[-_STDERR_SHOWN:] or "the helper process ended early"

    def end(self) -> None:
        """End what still runs. The group cannot be anybody else's before its leader has been waited for."""
        try:
            if self._process.returncode is None:
                os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        finally:
            self._process.wait()
            self._opened.close()


def _kept(stack: contextlib.ExitStack, fd: int) -> int:
    stack.callback(os.close, fd)
    return fd


def _stop_if(cancelled: Callable[[], bool] | None) -> None:
    if cancelled is not None and cancelled():
        raise AttesterError("hashing the files was cancelled")


class _Answers:
    """Puts the helper's frames together."""

    def __init__(self, digest_size: int, progress: Progress | None, unreadable: list[tuple[bytes, str]]) -> None:
        self._size = digest_size
        self._progress = progress
        self._batches: dict[int, list[tuple[bytes, bytes]]] = {}
        self._unreadable = unreadable.copy()
        self._files = self._bytes = 0
        self._total: int | None = None
        self._promised: int | None = None

    def take(self, kind: bytes, payload: bytes) -> None:
        """One frame."""
        if kind == b"R":
            self._batch(payload)
        elif kind == b"U":
            self._unreadable.append((payload[1:], _reason(payload[0])))
        elif kind == b"T":
            self._total = int.from_bytes(payload, "little")
        elif kind == b"D":
            self._promised = int.from_bytes(payload, "little")
        elif kind == b"E":
            raise _IncompleteError(payload.decode(errors="replace"))
        if self._progress is not None:
            self._progress(self._files, self._bytes, self._total)

    def _batch(self, payload: bytes) -> None:
        number = int.from_bytes(payload[:4], "little")
        paths_end = 16 + int.from_bytes(payload[12:16], "little")
        paths = payload[16:paths_end].split(b"\0")
        statuses = payload[paths_end : paths_end + len(paths)]
        digests = payload[paths_end + len(paths) :]
        if len(statuses) != len(paths) or len(digests) != self._size * statuses.count(0):
            raise _IncompleteError("the helper process gave an answer of the wrong size")
        if any(statuses):
            self._unreadable += [(path, _reason(code)) for path, code in zip(paths, statuses, strict=True) if code]
            paths = [path for path, code in zip(paths, statuses, strict=True) if not code]
        step = self._size
        pieces = [digests[at : at + step] for at in range(0, len(digests), step)]
        self._batches[number] = list(zip(paths, pieces, strict=True))
        self._files += len(statuses)
        self._bytes += int.from_bytes(payload[4:12], "little")

    def result(self, left_out: list[tuple[bytes, str]]) -> WalkResult:
        """All of it. Raises _IncompleteError where a frame is missing."""
        if self._promised is None or len(self._batches) != self._promised or self._files != self._total:
            raise _IncompleteError
        files: list[tuple[bytes, bytes]] = []
        for number in range(self._promised):
            files += self._batches.pop(number)
        return WalkResult(
            files=files,
            unreadable=sorted(self._unreadable),
            left_out=sorted(left_out),
            bytes_read=self._bytes,
        )


def _reason(code: int) -> str:
    return _REASONS.get(code) or os.strerror(code)
