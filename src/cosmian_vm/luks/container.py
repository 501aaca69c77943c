"""The encrypted container: made, opened, closed, sealed anew, given up. The order of the steps is the safety.

Made under temporary names; it exists from the moment when its record is in the TPM, and a crash after that is finished
by the next call. Whatever ends the work before, an error or a signal, leaves nothing behind; a power cut leaves files
named ``.part``, which the next call deletes.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cosmian_vm.errors import AttesterError, CosmianVmError, InputError
from cosmian_vm.luks._commands import Commands, Machine
from cosmian_vm.luks._label import give_label, label_of
from cosmian_vm.luks._mounts import mounted_at
from cosmian_vm.luks._undo import Undo, undoing
from cosmian_vm.luks.nv_index import TpmRecords
from cosmian_vm.luks.pcrs import DEFAULT_PCRS, check_pcrs, show_pcrs
from cosmian_vm.luks.place import (
    Place,
    allocate,
    is_file,
    read_header,
    sync_folder,
    working_folder,
    write_new,
)
from cosmian_vm.luks.trust import check_header, check_state, exists, known_header

__all__ = ["Container", "Status", "check_password"]

_MIN_PASSWORD = 12
_MAX_PASSWORD = 512
_UNSET = (bytes(32), b"\xff" * 32)


@dataclass(frozen=True, slots=True)
class Status:
    """``open``: mounted where it should be. ``line``: how it is, or why it is locked, in one line."""

    open: bool
    line: str


class Container:
    """The container at ``place``, sealed to ``pcrs`` of the TPM at ``tpm``.

    ``tpm``: a device (``/dev/tpmrm0``) or what the TSS calls a TCTI (``swtpm:path=...``). Raises InputError for PCRs
    that seal nothing.
    """

    def __init__(
        self, place: Place, tpm: str, *, pcrs: Sequence[int] = DEFAULT_PCRS, machine: Machine | None = None
    ) -> None:
        self._place = place
        self._tpm = tpm
        self._pcrs = check_pcrs(tuple(pcrs))
        self._machine = machine or Machine()
        self._commands = Commands(self._machine)
        self._records = TpmRecords(f"device:{tpm}" if tpm.startswith("/") else tpm)

    def exists(self) -> bool:
        """Whether there is a container here, or was one: file, header or record in the TPM. Raises AttesterError."""
        return exists(self._place, self._records)

    def create(self, size: int, password: str | None = None) -> None:
        """Make the container with ``size`` bytes, and leave it open and mounted.

        ``password`` None: a generated one is kept inside the container, readable by root. Nothing is overwritten.
        Raises InputError, AttesterError; EndedBySignal when a signal ended it. Nothing is left behind then.
        """
        place = self._place
        generated = password is None
        secret = secrets.token_urlsafe(32).encode() if password is None else check_password(password).encode()
        with self._working() as work, undoing() as undo:
            self._refuse_existing()
            self._refuse_unmeasured()
            self._drop(self._commands.left_behind())
            for path in (place.next_header, place.unfinished):
                path.unlink(missing_ok=True)  # of a power cut: no record in the TPM, so it never existed
                undo.add(path.unlink, missing_ok=True)
            header = work / "new"
            allocate(place.unfinished, size)
            undo.add(self._close_temporary, self._commands.temporary_mappings())
            self._commands.format(place.unfinished, header, secret, size=size, generated=generated)
            self._seal(header, secret)
            self._fill(header, secret, undo, keep_password=generated)
            raw = read_header(header) or b""
            write_new(place.next_header, raw)
            undo.hold()
            self._records.write(place.digest, sha256(raw).digest(), self._pcrs)
            undo.done()
            known_header(place, self._records)  # which finishes: the files take their names

    def open(self) -> None:
        """Open and mount it with the key that the TPM gives. Nothing happens where it is open.

        Raises AttesterError saying why it stays locked; InputError where there is none.
        """
        place = self._place
        with self._working() as work:
            if self._is_open():
                return
            trusted = known_header(place, self._records)
            if trusted is None:
                raise AttesterError(
                    f"{place.location}: the TPM has no record of this container: refused (another machine's disk, a "
                    "cleared TPM, or somebody's forgery); if it is yours, `cosmian_fstool reseal` with its password"
                )
            check_state(place, trusted.found, self._pcrs)
            check_header(place, trusted.raw, self._pcrs)
            with undoing() as undo:
                copy = work / "copy"
                write_new(copy, trusted.raw)
                undo.add(self._commands.close, place.name)
                if not (self._machine.mapper / place.name).exists():
                    self._commands.open_by_tpm(place.location, copy, place.name)
                self._mount()
                undo.done()

    def close(self) -> None:
        """Unmount and close it. Nothing happens where it is closed. Raises AttesterError, also while it is in use."""
        place = self._place
        with self._working():
            self._close()
            if (self._machine.mapper / place.name).exists():
                raise AttesterError(f"{self._machine.mapper / place.name}: is still there; what uses it?")

    def reseal(self, password: str | None = None) -> None:
        """Seal it to the present values of the PCRs, after an update of what is booted.

        ``password`` None: the generated one, read from the open container. Raises InputError where that is not to be
        had, AttesterError; on any of them the container is as before.
        """
        place = self._place
        with self._working() as work:
            trusted = known_header(place, self._records)
            raw = read_header(place.header) if trusted is None else trusted.raw
            if raw is None or not is_file(place.location):
                raise AttesterError(f"{place.location}: container or header is gone; nothing to seal")
            check_header(place, raw, None)
            self._refuse_unmeasured()
            secret = self._own_password() if password is None else password.encode()
            with undoing() as undo:
                header = work / "new"
                write_new(header, raw)
                try:
                    self._seal(header, secret)
                except AttesterError as exc:
                    raise AttesterError(f"{place.location}: not sealed anew, is the password right? {exc}") from exc
                place.next_header.unlink(missing_ok=True)
                undo.add(place.next_header.unlink, missing_ok=True)
                new = read_header(header) or b""
                write_new(place.next_header, new)
                undo.hold()
                index = self._records.write(place.digest, sha256(new).digest(), self._pcrs)
                undo.done()
                self._records.remove(place.digest, keep=index)
                known_header(place, self._records)

    def remove(self) -> None:
        """Give it up: close it, delete its files and the TPM's record. Raises AttesterError, InputError."""
        place = self._place
        with self._working():
            if not self.exists():
                raise InputError(f"{place.location}: there is no container")
            self._close()
            with undoing() as undo:
                undo.hold()
                for path in (place.header, place.next_header, place.location, place.unfinished):
                    path.unlink(missing_ok=True)
                sync_folder(place.location.parent)
                self._records.remove(place.digest)

    def status(self) -> Status:
        """How it is; nothing is opened."""
        place = self._place
        with self._working():
            try:
                is_open = self._is_open()
                trusted = known_header(place, self._records)
                if trusted is None:
                    raise AttesterError(f"{place.location}: the TPM has no record of this container")
                check_state(place, trusted.found, self._pcrs)
                header = check_header(place, trusted.raw, self._pcrs)
            except CosmianVmError as exc:
                return Status(open=False, line=str(exc))
        state = f"open, mounted at {place.mount}" if is_open else "closed; this TPM opens it in the present boot"
        sealed = show_pcrs(self._pcrs)
        return Status(
            open=is_open,
            line=f"{place.location}: {state} (PCRs {sealed}, TPM record {trusted.found.index:#010x}, {header.uuid})",
        )

    def _refuse_existing(self) -> None:
        place = self._place
        for path in (place.location, place.header):
            if path.is_symlink() or path.exists():
                raise InputError(
                    f"{path}: is there already and is never overwritten; `cosmian_fstool open` opens it, "
                    "`cosmian_fstool remove` gives it up with all that is in it"
                )
        if self._records.find(place.digest):
            with suppress(AttesterError):
                known_header(place, self._records)  # it may only have lost its last step
            raise InputError(
                f"{place.location}: the TPM knows of a container here; `cosmian_fstool open` opens it, "
                "`cosmian_fstool remove` forgets it"
            )
        self._close()  # of a kill between the first mount and the record: it never existed
        mount = mounted_at(place.mount, self._machine.mountinfo)
        if mount is not None:
            raise InputError(f"{place.mount}: {mount.source} is mounted there; unmount it first")
        if place.mount.is_dir() and any(place.mount.iterdir()):
            raise InputError(f"{place.mount}: is not empty, and the container would hide what is there; move it away")

    def _refuse_unmeasured(self) -> None:
        values = self._records.pcr_values(self._pcrs)
        if all(value in _UNSET for value in values.values()):
            raise AttesterError(
                f"TPM: nothing was measured into the PCRs {show_pcrs(self._pcrs)}, they seal nothing; boot by "
                "UEFI with the TPM, or name others with --tpm2-pcrs"
            )

    def _seal(self, header: Path, secret: bytes) -> None:
        """The TPM opens ``header`` in this state; and the whole header is one that we would open."""
        self._commands.enrol(header, secret, tpm=self._tpm, pcrs=self._pcrs)
        check_header(self._place, read_header(header) or b"", self._pcrs)
        self._commands.try_tpm(header)

    def _fill(self, header: Path, secret: bytes, undo: Undo, *, keep_password: bool) -> None:
        """Open it for the first time, make the file system in it, mount it."""
        place = self._place
        if not place.mount.exists():
            undo.add(place.mount.rmdir)
        undo.add(self._close)
        self._commands.open_by_password(place.unfinished, header, place.name, secret)
        self._commands.make_ext4(place.name)
        self._make_folder()
        label = label_of(place.mount)
        self._mount()
        if label is not None:
            give_label(place.mount, label)
        place.mount.chmod(0o700)
        if keep_password:
            write_new(place.password, secret, 0o400)
        os.sync()

    def _mount(self) -> None:
        place = self._place
        mount = mounted_at(place.mount, self._machine.mountinfo)
        if mount is not None:
            raise AttesterError(f"{place.mount}: {mount.source} is mounted there; unmount it first")
        self._make_folder()
        self._commands.mount(place.name, place.mount)

    def _make_folder(self) -> None:
        self._place.mount.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _is_open(self) -> bool:
        mount = mounted_at(self._place.mount, self._machine.mountinfo)
        return mount is not None and mount.source == str(self._machine.mapper / self._place.name)

    def _close(self) -> None:
        if self._is_open():
            self._commands.unmount(self._place.mount)
        self._commands.close(self._place.name)

    def _close_temporary(self, before: set[str]) -> None:
        self._drop(self._commands.temporary_mappings() - before)

    def _drop(self, names: set[str]) -> None:
        for name in sorted(names):  # NAME lies upon NAME_dif, so it goes first
            with suppress(AttesterError):
                self._commands.drop(name)

    @contextmanager
    def _working(self) -> Iterator[Path]:
        """``working_folder``; the programs that are started meanwhile hold its lock too."""
        with working_folder(self._machine.work, self._machine.mountinfo) as (folder, self._commands.lock):
            try:
                yield folder
            finally:
                self._commands.lock = None

    def _own_password(self) -> bytes:
        if self._is_open():
            with suppress(OSError):
                return self._place.password.read_bytes()
        raise InputError(
            f"{self._place.location}: the password is needed: the container is locked, or none was generated; "
            "give it with --password"
        )


def check_password(password: str) -> str:
    """Raises InputError for a password that protects nothing, or that no keyboard could give again."""
    if not _MIN_PASSWORD <= len(password.encode()) <= _MAX_PASSWORD:
        raise InputError(
            f"password: expected are {_MIN_PASSWORD} to {_MAX_PASSWORD} bytes; whoever has the disk can try as many as "
            "they like"
        )
    if not password.isprintable():
        raise InputError("password: expected are printable characters")
    return password
