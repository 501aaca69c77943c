"""What the commands share: files in and out, exit statuses, the agent that the global options name.

``cosmian_vm --help`` loads this module: what costs milliseconds to import is imported where it is used.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, NamedTuple

import click

from cosmian_vm.errors import CosmianVmError, InputError, NotTrustedError, PeerChangedError, TransportError

if TYPE_CHECKING:
    from datetime import datetime

    from cosmian_vm.client import AgentClient

__all__ = [
    "NOT_RUNNING",
    "NOT_TRUSTED",
    "NO_EVIDENCE",
    "TRUSTED",
    "USAGE",
    "Target",
    "check_writable",
    "exit_status",
    "moment_of",
    "read_file",
    "target_of",
    "working",
    "write_atomically",
]

TRUSTED = 0
NOT_TRUSTED = 1
USAGE = 2
NO_EVIDENCE = 3
NOT_RUNNING = 4
"""Of ``app status`` alone: the machine answered as it must, and its application is down."""

MAX_FILE = 1 << 30
"""Largest file that is read, in bytes."""


class Target(NamedTuple):
    """The agent named by the global options. ``url``: None where --url was not given."""

    url: str | None
    allow_insecure_tls: bool
    ca_file: str | None
    timeout: float

    def client(self) -> AgentClient:
        """A client for it. Raises UsageError without --url."""
        if self.url is None:
            raise click.UsageError(
                "which agent? --url is missing, and it comes before the command: "
                "cosmian_vm --url https://vm.example.com:5355 verify ..."
            )
        from cosmian_vm.client import AgentClient

        return AgentClient(
            self.url, allow_insecure_tls=self.allow_insecure_tls, ca_file=self.ca_file, timeout=self.timeout
        )


def target_of(context: click.Context) -> Target:
    """The global options."""
    target = context.find_object(Target)
    if target is None:
        raise click.UsageError("this command is part of cosmian_vm")
    return target


def exit_status(error: CosmianVmError) -> int:
    """The exit status that an error stands for."""
    if isinstance(error, TransportError):
        return NO_EVIDENCE
    return NOT_TRUSTED if isinstance(error, PeerChangedError | NotTrustedError) else USAGE


def read_file(path: str, limit: int = MAX_FILE) -> bytes:
    """A file that the user named (``-``: standard input), whole. Raises InputError."""
    from pathlib import Path

    try:
        if path == "-":
            raw = sys.stdin.buffer.read(limit + 1)
        else:
            with Path(path).open("rb") as file:
                raw = file.read(limit + 1)
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    except ValueError as exc:  # a NUL in the name
        raise InputError(f"{path!r}: cannot be read: {exc}") from exc
    if len(raw) > limit:
        raise InputError(f"{path}: larger than {limit} bytes")
    return raw


def check_writable(*paths: str | None) -> None:
    """Files that are to be written in the end can be, as far as can be told now. Raises InputError."""
    from pathlib import Path

    for path in paths:
        if path is None:
            continue
        folder = Path(path).parent
        problem = None
        try:
            if not path:
                problem = "no name of a file"
            elif not folder.is_dir():
                problem = f"there is no folder {folder}"
            elif Path(path).is_dir():
                problem = "it is a folder"
            elif not os.access(folder, os.W_OK | os.X_OK):
                problem = f"no right to write to {folder}"
        except (OSError, ValueError) as exc:
            problem = getattr(exc, "strerror", None) or str(exc)
        if problem is not None:
            raise InputError(f"{path or repr(path)}: cannot be written: {problem}")


def write_atomically(path: str, content: bytes, *, private: bool = False) -> None:
    """Write a whole file or nothing: to a temporary file beside it, then renamed. ``private``: for the user alone.

    Raises InputError.
    """
    import tempfile
    from pathlib import Path

    target = Path(path)
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o600 if private else 0o666 & ~_umask())
        Path(temporary).replace(target)
    except (OSError, ValueError) as exc:
        raise InputError(f"{path}: cannot be written: {getattr(exc, 'strerror', None) or exc}") from exc
    finally:
        if temporary is not None:
            with suppress(OSError):
                Path(temporary).unlink()


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def moment_of(at: str | None) -> datetime:
    """The instant of --at (RFC 3339), or the one reading of the clock. Raises InputError."""
    from datetime import UTC, datetime

    if at is None:
        return datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(at)
    except ValueError as exc:
        raise InputError(f"--at {at}: not a time in the form of RFC 3339, as 2025-10-02T00:00:00Z") from exc
    if moment.tzinfo is None:
        raise InputError(f"--at {at}: the offset is missing; add Z for UTC")
    try:
        return moment.astimezone(UTC)
    except OverflowError as exc:
        raise InputError(f"--at {at}: out of range") from exc


@contextmanager
def working(text: str, *, quiet: bool = False) -> Iterator[None]:
    """Show on a terminal that something is going on; say nothing in a pipe."""
    if quiet or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(text):
        yield
