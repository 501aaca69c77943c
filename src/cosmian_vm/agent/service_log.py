"""What is told of an application: whether it runs, and its last words, bounded and printable whatever it wrote."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

__all__ = ["ServiceState", "last_lines", "tail"]

_MAX_LINE = 1000
_MAX_TAIL = 256 * 1024


class ServiceState(NamedTuple):
    """``text``: in the words of whoever keeps it, one printable line."""

    running: bool
    text: str


def last_lines(raw: bytes, lines: int) -> list[str]:
    """The last ``lines`` lines that are not empty, oldest first, each printable and of 1000 characters at most."""
    if lines < 1:
        return []
    found = [line for line in raw.decode(errors="replace").splitlines() if line.strip()][-lines:]
    return ["".join(c if c.isprintable() else " " for c in line[:_MAX_LINE]).rstrip() for line in found]


def tail(path: Path) -> bytes:
    """The end of a file: 256 KiB at most, from the start of a line on. Raises OSError."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - _MAX_TAIL))
        raw = file.read(_MAX_TAIL)
    return raw if size <= _MAX_TAIL else raw.partition(b"\n")[2]
