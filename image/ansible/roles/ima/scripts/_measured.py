"""Give files of the image to the group `measured`: ``_measured.py TREE GID [UID]``.

Python's files, everything that begins with ``#!``, and the configuration in /etc and of systemd and udev. Left out:
what the running system writes by itself, and files that already have a group of their own. With a UID the files get
that owner too, for kernels whose policy cannot go by group; not the configuration that programs take from root alone.
Run again it gives what is new. Needs Python 3.11.
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
    for name in (
        *("adjtime", "group", "gshadow", "hostname", "ld.so.cache", "machine-id", "mtab", "passwd", "resolv.conf"),
        *("shadow", "subgid", "subuid", ".updated"),
    )
)
# With an owner other than root, of these only what is a script: sudo, ssh, cron, logrotate and others refuse theirs.
ROOTS_OWN = ("etc/", "root/")
NOT_ROOTS_OWN = ("etc/cosmian_vm/", "etc/ima/", "etc/supervisor/", "etc/systemd/")


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
    if status.st_mode & (stat.S_ISUID | stat.S_ISGID) or name in WRITTEN_BY_THE_SYSTEM:
        return False
    if name.endswith((".py", ".pyc")) or name.startswith(CONFIGURATION):
        return True
    with path.open("rb") as file:
        return file.read(2) == b"#!"


def may_change_owner(name: str) -> bool:
    """Whether nothing insists that the file is root's."""
    return not name.startswith(ROOTS_OWN) or name.startswith(NOT_ROOTS_OWN)


def main() -> None:
    """Change the group, and the owner if asked; say how many there are."""
    tree, gid = Path(sys.argv[1]), int(sys.argv[2])
    uid = int(sys.argv[3]) if len(sys.argv) > 3 else None
    given = 0
    for name, path, status in list(files(tree)):
        to_group = status.st_gid == 0
        to_owner = uid is not None and status.st_uid == 0 and status.st_gid in (0, gid) and may_change_owner(name)
        if (to_group or to_owner) and is_wanted(name, path, status):
            os.chown(path, uid if to_owner and uid is not None else -1, gid)
            given += 1
    print(f"{given} files given to measured", file=sys.stderr)


main()
