"""Which mounts are not local file systems, and which are hidden from us: from the kernel's own lists of mounts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

__all__ = ["LOCAL_WITHOUT_DEVICE", "foreign_mounts", "hidden_paths"]

LOCAL_WITHOUT_DEVICE = frozenset(
    [b"aufs", b"bcachefs", b"btrfs", b"ecryptfs", b"overlay", b"ramfs", b"rootfs", b"tmpfs", b"ubifs", b"zfs"]
)
"""Local types whose device has no major number: some number their devices themselves, the others live in memory or lie
on another local file system."""

_ESCAPES = ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\"))


def foreign_mounts(mountinfo: bytes, root: bytes, excluded: Iterable[bytes]) -> dict[bytes, bytes]:
    """Mounts strictly below ``root`` (absolute, resolved) that are not local: path in the tree to file system type.

    Local is what lies on a block device (its device has a major number), or is named in LOCAL_WITHOUT_DEVICE: what is
    neither is the kernel's own (proc), somebody else's (nfs, 9p, virtiofs) or a program's (fuse). Of several mounts on
    one path the last is seen. What lies below an ``excluded`` path, or below another such mount, is not named.

    ``mountinfo``: proc_pid_mountinfo(5); a line of another form is passed over.
    """
    prefix = root.rstrip(b"/") + b"/"
    found: dict[bytes, bytes] = {}
    for mount in _mounts(mountinfo):
        if not mount.point.startswith(prefix) or mount.point == prefix:
            continue
        path = b"/" + mount.point[len(prefix) :]
        if mount.device.startswith(b"0:") and mount.kind not in LOCAL_WITHOUT_DEVICE:
            found[path] = mount.kind
        else:
            found.pop(path, None)
    named = frozenset(excluded)
    closed = named.union(found)
    return {path: kind for path, kind in found.items() if path not in named and not _below(path, closed)}


def hidden_paths(ours: bytes, systems: bytes, root: bytes, excluded: Iterable[bytes]) -> list[bytes]:
    """Paths in the tree below ``root`` (absolute, resolved) where ``ours`` shows something else than ``systems``, in
    order: what is mounted for the system and not for us, and what is covered for us. ``/`` alone where the root itself
    is another. What lies below an ``excluded`` path, or below another path that is named, is not named.

    Between two mount points both go down the same file system: where they agree at the mount points of both lists, they
    agree everywhere. A bind mount of a folder onto itself hides nothing, and is not named.

    Both: proc_pid_mountinfo(5) of processes that have the same root folder; a line of another form is passed over.
    """
    mine, theirs = _View(ours), _View(systems)
    prefix = root.rstrip(b"/") + b"/"
    top = root.rstrip(b"/") or b"/"
    if not _same(mine.place(top), theirs.place(top)):
        return [b"/"]
    points = {point for point in mine.points | theirs.points if point.startswith(prefix) and point != prefix}
    different = [point for point in sorted(points) if not _same(mine.place(point), theirs.place(point))]
    found = [b"/" + point[len(prefix) :] for point in different]
    named = frozenset(excluded)
    closed = named.union(found)
    return [path for path in found if path not in named and not _below(path, closed)]


def _same(one: _Place | None, other: _Place | None) -> bool:
    return one is not None and one == other


class _Mount(NamedTuple):
    """``number``, ``parent``: its own, and that of the mount that it lies on. ``root``: a folder of the file system."""

    number: bytes
    parent: bytes
    device: bytes
    root: bytes
    point: bytes
    kind: bytes


def _mounts(mountinfo: bytes) -> Iterator[_Mount]:
    for line in mountinfo.splitlines():
        fields = line.split(b" ")
        try:
            kind = fields[fields.index(b"-", 6) + 1]
        except (IndexError, ValueError):
            continue
        yield _Mount(fields[0], fields[1], fields[2], _unescaped(fields[3]), _unescaped(fields[4]), kind)


def _unescaped(path: bytes) -> bytes:
    for code, char in _ESCAPES:
        path = path.replace(code, char)
    return path


_Place = tuple[bytes, bytes]
"""Device, and path in its file system."""


class _View:
    """What a process sees where."""

    def __init__(self, mountinfo: bytes) -> None:
        mounts = list(_mounts(mountinfo))
        self._deepest = len(mounts)
        self.points = {mount.point for mount in mounts}
        self._on: dict[bytes, list[_Mount]] = defaultdict(list)
        for mount in mounts:
            if mount.number != mount.parent:
                self._on[mount.parent].append(mount)
        numbers = {mount.number for mount in mounts}
        tops = [mount for mount in mounts if mount.point == b"/" and mount.parent not in numbers - {mount.number}]
        self._top = tops[-1] if tops else None

    def place(self, path: bytes) -> _Place | None:
        """What lies at ``path``, found as the kernel does: from the root down, into each mount that is met. None where
        the list does not say.
        """
        mount = self._top
        if mount is None:
            return None
        for _ in range(self._deepest):
            met = [lower for lower in self._on[mount.number] if _at_or_below(path, lower.point)]
            if not met:
                break
            nearest = min(len(lower.point) for lower in met)
            mount = [lower for lower in met if len(lower.point) == nearest][-1]
        rest = path[len(mount.point.rstrip(b"/")) :]
        return mount.device, mount.root.rstrip(b"/") + rest


def _at_or_below(path: bytes, folder: bytes) -> bool:
    return path == folder or path.startswith(folder.rstrip(b"/") + b"/")


def _below(path: bytes, closed: frozenset[bytes]) -> bool:
    parts = path.split(b"/")
    return any(b"/".join(parts[:length]) in closed for length in range(2, len(parts)))
