"""Which mounts below a root are not local file systems, from the kernel's own list of mounts."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["LOCAL_WITHOUT_DEVICE", "foreign_mounts"]

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
    for line in mountinfo.splitlines():
        fields = line.split(b" ")
        try:
            device, point = fields[2], fields[4]
            kind = fields[fields.index(b"-", 6) + 1]
        except (IndexError, ValueError):
            continue
        for code, char in _ESCAPES:
            point = point.replace(code, char)
        if not point.startswith(prefix) or point == prefix:
            continue
        path = b"/" + point[len(prefix) :]
        if device.startswith(b"0:") and kind not in LOCAL_WITHOUT_DEVICE:
            found[path] = kind
        else:
            found.pop(path, None)
    named = frozenset(excluded)
    closed = named.union(found)
    return {path: kind for path, kind in found.items() if path not in named and not _below(path, closed)}


def _below(path: bytes, closed: frozenset[bytes]) -> bool:
    parts = path.split(b"/")
    return any(b"/".join(parts[:length]) in closed for length in range(2, len(parts)))
