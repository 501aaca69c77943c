"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import pwd
import secrets
from contextlib import suppress
from pathlib import Path

from cosmian_vm.errors import AttesterError

__all__ = ["make_folder", "user_ids", "write_atomically"]


def make_folder(path: Path) -> None:
    """Make a folder and those above it, for root alone. Nothing happens where it is there. Raises OSError."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def write_atomically(path: Path, content: bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Replace ``path`` by ``content``: written beside it, on the disk before it takes the name. ``owner``: uid and gid,
    where it is not to be ours.

    A crash at any point, or a full disk, leaves the old file. Nobody but root sees it before it has ``mode``.

    Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if owner is not None:
                os.fchown(descriptor, *owner)
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def user_ids(user: str) -> tuple[int, int] | None:
    """Uid and gid of the application's user; None where it is the one that we are.

    Raises AttesterError where there is no such user.
    """
    if user == "root":
        return None
    try:
        found = pwd.getpwnam(user)
    except KeyError as exc:
        raise AttesterError(f"[app] user: there is no user {user}; it has to be made first") from exc
    return None if found.pw_uid == os.geteuid() else (found.pw_uid, found.pw_gid)
