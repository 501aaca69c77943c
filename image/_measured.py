"""Give files of the image to the group `measured`: ``_measured.py TREE GID``.

Python's files, everything that begins with ``#!``, and the configuration in /etc and of systemd and udev. Left out:
what the running system writes by itself, and files that already have a group of their own.
"""

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("usr", "etc", "root")
CONFIGURATION = ("etc/", "usr/lib/systemd/", "usr/lib/udev/", "usr/lib/tmpfiles.d/", "usr/lib/sysctl.d/", "root/.ssh/")
WRITTEN_BY_THE_SYSTEM = frozenset(
    f"etc/{name}"
    for name in ("adjtime", "group", "hostname", "ld.so.cache", "machine-id", "passwd", "resolv.conf", ".updated")
)


def files(tree: Path) -> Iterator[tuple[str, Path, os.stat_result]]:
    """Path in the tree, path on this computer and status of each regular file."""
    for top in FOLDERS:
        for folder, _, names in os.walk(tree / top):
            for name in names:
                path = Path(folder, name)
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    yield str(path.relative_to(tree)), path, status


def is_wanted(name: str, path: Path, status: os.stat_result) -> bool:
    """Whether it is code that is read, or configuration."""
    if status.st_gid != 0 or status.st_mode & (stat.S_ISUID | stat.S_ISGID) or name in WRITTEN_BY_THE_SYSTEM:
        return False
    if name.endswith((".py", ".pyc")) or name.startswith(CONFIGURATION):
        return True
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def main() -> None:
    """Change the group; say how many there are."""
    tree, gid = Path(sys.argv[1]), int(sys.argv[2])
    wanted = [path for name, path, status in files(tree) if is_wanted(name, path, status)]
    for path in wanted:
        os.chown(path, -1, gid)
    print(f"{len(wanted)} files are of the group measured", file=sys.stderr)


main()
