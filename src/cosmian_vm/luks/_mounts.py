"""What is mounted where (proc_pid_mountinfo(5))."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

__all__ = ["Mount", "mounted_at", "mounted_over"]

_ESCAPES = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\"))


class Mount(NamedTuple):
    """``source``: the device as the kernel names it (``/dev/mapper/NAME``); ``kind``: the file system's type."""

    point: str
    kind: str
    source: str


def _mounts(mountinfo: Path) -> list[Mount]:
    mounts = []
    for line in mountinfo.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        fields, more = before.split(" "), after.split(" ")
        if len(fields) >= 5 and len(more) >= 2:
            mounts.append(Mount(point=_plain(fields[4]), kind=more[0], source=_plain(more[1])))
    return mounts


def _plain(text: str) -> str:
    for code, character in _ESCAPES:
        text = text.replace(code, character)
    return text


def mounted_at(folder: Path, mountinfo: Path) -> Mount | None:
    """What is seen at ``folder`` itself: the last one mounted there; None where nothing is. Raises OSError."""
    point = os.path.realpath(folder)
    here = [mount for mount in _mounts(mountinfo) if mount.point == point]
    return here[-1] if here else None


def mounted_over(folder: Path, mountinfo: Path) -> Mount | None:
    """The mount that ``folder`` lies on. Raises OSError."""
    place = os.path.realpath(folder)
    above = [
        mount for mount in _mounts(mountinfo) if place == mount.point or place.startswith(mount.point.rstrip("/") + "/")
    ]
    longest = max((len(mount.point) for mount in above), default=0)
    found = [mount for mount in above if len(mount.point) == longest]
    return found[-1] if found else None
