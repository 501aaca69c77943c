"""The programs that do the work on devices: cryptsetup, systemd-cryptenroll, mkfs, mount. Nothing else starts them.

A secret reaches a child as an anonymous file in memory (memfd) that it inherits, named ``/proc/self/fd/N``: never in
its arguments, its environment or a file with a name.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cosmian_vm._run import Completed, find_program, run
from cosmian_vm.errors import AttesterError

__all__ = ["Commands", "Machine", "Runner"]

_SECONDS = 120.0
_SLOWEST = 1 << 20  # bytes that formatting writes in a second, on the slowest disk that is waited for
_TPM_ATTEMPTS = 8
_CLOSE_ATTEMPTS = 10
_EXISTS = 5  # cryptsetup(8), RETURN CODES: device already exists or is busy
_SAID = 300
_TEMPORARY = "temporary-cryptsetup-"


class Runner(Protocol):
    """``cosmian_vm._run.run``, or what stands in for it."""

    def __call__(self, argv: Sequence[str], *, seconds: float, descriptors: Sequence[int] = ()) -> Completed:
        """Run a program and wait for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What of this machine is touched; tests give their own."""

    run: Runner = run
    find: Callable[[str], str] = find_program
    work: Path = Path("/run/cosmian_vm")
    mapper: Path = Path("/dev/mapper")
    mountinfo: Path = Path("/proc/self/mountinfo")
    pause: Callable[[float], None] = time.sleep


@contextmanager
def _in_memory(secret: bytes) -> Iterator[int]:
    descriptor = os.memfd_create("secret", os.MFD_CLOEXEC)
    try:
        os.fchmod(descriptor, 0o600)
        os.write(descriptor, secret)
        yield descriptor
    finally:
        os.close(descriptor)


class Commands:
    """Each method is one program run to its end. All raise AttesterError, with the last line of what it wrote."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.lock: int | None = None
        """Descriptor of the lock that is held: each program holds it too, in case that we are killed before it ends."""

    def format(self, container: Path, header: Path, secret: bytes, *, size: int, generated: bool) -> None:
        """Make a LUKS2 header for a file of ``size`` bytes, and write the tag of every sector.

        ``generated``: the password is 256 random bits, which no stretching makes better.
        """
        stretching = ["pbkdf2", "--pbkdf-force-iterations", "1000"] if generated else ["argon2id"]
        with _in_memory(secret) as descriptor:
            self._run(
                "cryptsetup",
                *("luksFormat", "--batch-mode", "--type", "luks2", "--cipher", "aes-xts-plain64", "--key-size", "512"),
                *("--integrity", "hmac-sha256", "--sector-size", "4096", "--hash", "sha256", "--pbkdf", *stretching),
                *("--luks2-metadata-size", "16k", "--luks2-keyslots-size", "4m", "--header", str(header)),
                *("--key-file", f"/proc/self/fd/{descriptor}", str(container)),
                seconds=_SECONDS + size / _SLOWEST,
                descriptors=[descriptor],
            )

    def enrol(self, header: Path, secret: bytes, *, tpm: str, pcrs: Sequence[int]) -> None:
        """Add a keyslot that the TPM opens while ``pcrs`` are as now; it replaces those of before."""
        with _in_memory(secret) as descriptor:
            self._run(
                "systemd-cryptenroll",
                f"--unlock-key-file=/proc/self/fd/{descriptor}",
                f"--tpm2-device={tpm}",
                f"--tpm2-pcrs={'+'.join(map(str, pcrs))}",
                "--wipe-slot=tpm2",
                str(header),
                descriptors=[descriptor],
            )

    def try_tpm(self, header: Path) -> None:
        """The TPM gives the key now; nothing is opened."""
        self._by_tpm(["open", "--test-passphrase", "--token-only", str(header)])

    def open_by_tpm(self, container: Path, header: Path, name: str) -> None:
        """Open ``container`` as ``/dev/mapper/name`` with the key that the TPM gives."""
        self._by_tpm(["open", "--type", "luks2", "--token-only", "--header", str(header), str(container), name])

    def _by_tpm(self, arguments: Sequence[str]) -> None:
        """The extension of any PCR between policy and use ends the session (TPM_RC_PCR_CHANGED): tried again."""
        for attempt in range(1, _TPM_ATTEMPTS + 1):
            done = self._try("cryptsetup", *arguments)
            if done.status == 0:
                return
            if done.status == _EXISTS or attempt == _TPM_ATTEMPTS:
                raise self._failed("cryptsetup", "open by the TPM", done)
            self._machine.pause(0.2 * attempt)

    def open_by_password(self, container: Path, header: Path, name: str, secret: bytes) -> None:
        """Open ``container`` as ``/dev/mapper/name``."""
        with _in_memory(secret) as descriptor:
            self._run(
                "cryptsetup",
                *("open", "--type", "luks2", "--key-file", f"/proc/self/fd/{descriptor}"),
                *("--header", str(header), str(container), name),
                descriptors=[descriptor],
            )

    def close(self, name: str) -> None:
        """Close a mapping; nothing happens where there is none. udev may hold it for a moment."""
        for attempt in range(1, _CLOSE_ATTEMPTS + 1):
            if not (self._machine.mapper / name).exists():
                return
            done = self._try("cryptsetup", "close", name)
            if done.status == 0:
                return
            if attempt == _CLOSE_ATTEMPTS:
                raise self._failed("cryptsetup", f"close {name}", done)
            self._machine.pause(0.2)

    def temporary_mappings(self) -> set[str]:
        """Names of what cryptsetup maps while it formats, and leaves behind when it is killed."""
        with suppress(OSError):
            return {path.name for path in self._machine.mapper.iterdir() if path.name.startswith(_TEMPORARY)}
        return set()

    def left_behind(self) -> set[str]:
        """Those of ``temporary_mappings`` whose cryptsetup is no more: their names end with its process's number."""
        numbered = {name: name.removeprefix(_TEMPORARY).partition("_")[0] for name in self.temporary_mappings()}
        return {name for name, pid in numbered.items() if pid.isdecimal() and not Path("/proc", pid).exists()}

    def drop(self, name: str) -> None:
        """Take a mapping away that cryptsetup does not know how to close: one of its temporary ones."""
        self._run("dmsetup", "remove", "--retry", name)

    def make_ext4(self, name: str) -> None:
        """A new file system on ``/dev/mapper/name``."""
        device = str(self._machine.mapper / name)
        self._run("mkfs.ext4", "-q", "-b", "4096", "-m", "0", "-L", "cosmian_vm", device, seconds=5 * _SECONDS)

    def mount(self, name: str, point: Path) -> None:
        """Mount ``/dev/mapper/name`` at ``point``: no devices, no set-user-ID programs."""
        self._run("mount", "-t", "ext4", "-o", "nodev,nosuid", str(self._machine.mapper / name), str(point))

    def unmount(self, point: Path) -> None:
        """Unmount what is at ``point``."""
        self._run("umount", str(point))

    def _run(self, program: str, *arguments: str, seconds: float = _SECONDS, descriptors: Sequence[int] = ()) -> None:
        done = self._try(program, *arguments, seconds=seconds, descriptors=descriptors)
        if done.status != 0:
            action = arguments[0] if program == "cryptsetup" else ""
            raise self._failed(program, action, done)

    def _try(
        self, program: str, *arguments: str, seconds: float = _SECONDS, descriptors: Sequence[int] = ()
    ) -> Completed:
        argv = [self._machine.find(program), *arguments]
        held = () if self.lock is None else (self.lock,)
        return self._machine.run(argv, seconds=seconds, descriptors=(*descriptors, *held))

    @staticmethod
    def _failed(program: str, action: str, done: Completed) -> AttesterError:
        lines = "".join(
            c if c.isprintable() or c == "\n" else " " for c in done.output.decode(errors="replace")
        ).splitlines()
        said = "; ".join(line.strip() for line in lines if line.strip())[-_SAID:]
        said = said or f"it ended with status {done.status} and said nothing"
        return AttesterError(f"{program}{' ' + action if action else ''} failed: {said}")
