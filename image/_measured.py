"""Give files of the image to the group `measured`: ``_measured.py TREE GID``.

Python's files, everything that begins with ``#!``, and the configuration in /etc and of systemd and udev. Left out: what
the running system writes by itself, and files that already have a group of their own.
"""

import os
import stat
import sys
from collections.abc import Iterator

CODE = ("usr", "etc")
CONFIGURATION = ("etc/", "usr/lib/systemd/", "usr/lib/udev/", "usr/lib/tmpfiles.d/", "usr/lib/sysctl.d/", "root/.ssh/")
WRITTEN_BY_THE_SYSTEM = frozenset(
    f"etc/{name}"
    for name in ("adjtime", "group", "hostname", "ld.so.cache", "machine-id", "passwd", "resolv.conf", ".updated")
)


def files(tree: bytes) -> Iterator[tuple[str, bytes, os.stat_result]]:
    """Path in the tree, path on this computer and status of each regular file."""
    for folder in (*CODE, "root"):
        for place, _, names in os.walk(os.path.join(tree, folder.encode())):
            for name in names:
                path = os.path.join(place, name)
                status = os.lstat(path)
                if stat.S_ISREG(status.st_mode):
                    yield os.fsdecode(os.path.relpath(path, tree)), path, status


def is_wanted(name: str, path: bytes, status: os.stat_result) -> bool:
    """Whether it is code that is read, or configuration."""
    if status.st_gid != 0 or status.st_mode & (stat.S_ISUID | stat.S_ISGID) or name in WRITTEN_BY_THE_SYSTEM:
        return False
    if name.endswith((".py", ".pyc")) or name.startswith(CONFIGURATION):
        return True
    with open(path, "rb") as file:
        return file.read(2) == b"#!"


def main() -> None:
    """Change the group, and let the group read no more than it could."""
    tree, gid = os.fsencode(sys.argv[1]), int(sys.argv[2])
    count = 0
    for name, path, status in files(tree):
        if is_wanted(name, path, status):
            os.chown(path, -1, gid)
            count += 1
    print(f"{count} files are of the group measured", file=sys.stderr)


main()
