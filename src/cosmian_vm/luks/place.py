"""Where a container is: its file, its header beside it, its folder; and how these files are read and written."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cosmian_vm.errors import AttesterError, InputError
from cosmian_vm.luks.header import MAX_HEADER_SIZE
from cosmian_vm.luks.sizes import show_size

__all__ = ["Place", "allocate", "read_header", "sync_folder", "write_new"]

_SPARE = 16 << 20
_PASSWORD = "container.password"  # noqa: S105 - a file's name


@dataclass(frozen=True, slots=True)
class Place:
    """``location``: the container's file. ``mount``: the folder where its file system appears. Both absolute."""

    location: Path
    mount: Path

    @classmethod
    def at(cls, location: Path, mount: Path) -> Place:
        """With the paths resolved, so that one container has one name. Raises InputError."""
        try:
            folder = location.parent.resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as exc:
            raise InputError(f"{location}: its folder is not there; make it first, or mount its disk") from exc
        if location.name in ("", ".", ".."):
            raise InputError(f"{location}: expected is the name of a file")
        return cls(folder / location.name, Path(os.path.realpath(mount)))

    @property
    def header(self) -> Path:
        """The detached LUKS2 header."""
        return self.location.with_name(f"{self.location.name}.header")

    @property
    def unfinished(self) -> Path:
        """The container's file while it is made."""
        return self.location.with_name(f"{self.location.name}.part")

    @property
    def next_header(self) -> Path:
        """The header that takes the header's place as soon as the TPM knows it."""
        return self.location.with_name(f"{self.location.name}.header.part")

    @property
    def digest(self) -> bytes:
        """How the TPM's record names this place: SHA-256 of the container's path."""
        return sha256(os.fsencode(self.location)).digest()

    @property
    def name(self) -> str:
        """Of the mapping, below /dev/mapper."""
        return f"cosmian_vm_{self.digest.hex()[:8]}"

    @property
    def password(self) -> Path:
        """The generated password, inside the container."""
        return self.mount / _PASSWORD


def read_header(path: Path) -> bytes | None:
    """The whole file, None where there is none. Raises AttesterError for what is no file, or too large for a header."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise AttesterError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    with os.fdopen(descriptor, "rb") as file:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > MAX_HEADER_SIZE:
            raise AttesterError(f"{path}: is no header: expected is a file of {MAX_HEADER_SIZE} bytes at most")
        try:
            return file.read(MAX_HEADER_SIZE)
        except OSError as exc:
            raise AttesterError(f"{path}: cannot be read: {exc.strerror or exc}") from exc


def is_file(path: Path) -> bool:
    """A regular file, not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def allocate(path: Path, size: int) -> None:
    """A new file of ``size`` bytes that has all its room on the disk. Raises InputError where there is not enough."""
    try:
        free = shutil.disk_usage(path.parent).free
        if free < size + _SPARE:
            raise InputError(
                f"{path.parent}: {show_size(free)} are free, {show_size(size + _SPARE)} are needed; choose a smaller "
                "--size or another disk with --location"
            )
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, size)
        finally:
            os.close(descriptor)
    except OSError as exc:
        raise InputError(f"{path}: cannot be made with {show_size(size)}: {exc.strerror or exc}") from exc


def write_new(path: Path, content: bytes, mode: int = 0o600) -> None:
    """A file that was not there, on the disk when this returns. Raises AttesterError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        sync_folder(path.parent)
    except OSError as exc:
        raise AttesterError(f"{path}: cannot be written: {exc.strerror or exc}") from exc


def sync_folder(folder: Path) -> None:
    """Names of files are on the disk when this returns. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def working_folder(work: Path, mountinfo: Path) -> Iterator[tuple[Path, int]]:
    """A folder in memory that is ours alone while the block runs, one container's affairs at a time; and the descriptor
    of the lock that says so, which programs that are started have to have too.

    It is empty at the beginning and at the end. Raises AttesterError where it is on a disk, which somebody else may
    read and write, or where another process does not give it up within two minutes.
    """
    from cosmian_vm.luks._lock import locked
    from cosmian_vm.luks._mounts import mounted_over

    try:
        work.mkdir(mode=0o700, parents=True, exist_ok=True)
        mount = mounted_over(work, mountinfo)
        if mount is None or mount.kind not in ("tmpfs", "ramfs"):
            raise AttesterError(
                f"{work}: is not in memory (a tmpfs); a header is opened from nowhere else. Where /run is on the disk: "
                f"mount -t tmpfs -o mode=0700,nosuid,nodev,noexec tmpfs {work}"
            )
        with locked(work / "lock") as lock:
            folder = work / "header"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
            try:
                yield folder, lock
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError as exc:
        raise AttesterError(f"{exc.filename or work}: {exc.strerror or exc}") from exc
