"""The kernel's lists of a simulated VM, as files of its folder."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from cosmian_vm.evidence.ima import parse_binary, serialise_ascii

__all__ = ["FolderLogs", "NoLogs", "read"]


def read(path: Path) -> bytes | None:
    """The file's content, None where there is none."""
    with suppress(FileNotFoundError):
        return path.read_bytes()
    return None


class FolderLogs:
    """The kernel's lists, kept in files of the VM's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def ima_binary(self) -> bytes | None:
        """binary_runtime_measurements."""
        return read(self._folder / "ima.bin")

    def ima_ascii(self) -> bytes | None:
        """ascii_runtime_measurements."""
        raw = self.ima_binary()
        return None if raw is None else serialise_ascii(parse_binary(raw))

    def boot_event_log(self) -> bytes | None:
        """binary_bios_measurements."""
        return read(self._folder / "boot.bin")

    def cc_event_log(self) -> bytes | None:
        """The CCEL of a TD."""
        return read(self._folder / "ccel.bin")


class NoLogs:
    """Of an enclave: it has no kernel of its own."""

    def ima_binary(self) -> bytes | None:
        """None."""
        return None

    def ima_ascii(self) -> bytes | None:
        """None."""
        return None

    def boot_event_log(self) -> bytes | None:
        """None."""
        return None

    def cc_event_log(self) -> bytes | None:
        """None."""
        return None
