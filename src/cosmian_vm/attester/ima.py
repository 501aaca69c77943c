"""The kernel's lists: IMA measurements and the firmware's event logs (securityfs, and the ACPI table of a TD)."""

from __future__ import annotations

from pathlib import Path

from cosmian_vm.errors import AttesterError

__all__ = ["CCEL", "SECURITYFS", "KernelLogs"]

SECURITYFS = Path("/sys/kernel/security")
CCEL = Path("/sys/firmware/acpi/tables/data/CCEL")
"""The log area that the ACPI table CCEL points to (ACPI 6.5, 5.2.34 "CC Event Log"; Linux 6.0)."""

_IMA_BINARY = ("ima/binary_runtime_measurements", "integrity/ima/binary_runtime_measurements")
_IMA_ASCII = ("ima/ascii_runtime_measurements", "integrity/ima/ascii_runtime_measurements")
_BOOT_EVENT_LOG = ("tpm0/binary_bios_measurements",)

_CHUNK = 1 << 20
_MAX_LIST = 512 << 20
_MAX_CCEL = 16 << 20


class KernelLogs:
    """A Logs over ``base``, where securityfs is mounted. ``ccel``: the log area of a TD."""

    def __init__(self, base: Path = SECURITYFS, ccel: Path = CCEL) -> None:
        self._base = base
        self._ccel = ccel

    def ima_binary(self) -> bytes | None:
        """binary_runtime_measurements; None where the kernel has no IMA or it measures nothing at all."""
        return self._read(_IMA_BINARY)

    def ima_ascii(self) -> bytes | None:
        """ascii_runtime_measurements."""
        return self._read(_IMA_ASCII)

    def boot_event_log(self) -> bytes | None:
        """binary_bios_measurements."""
        return self._read(_BOOT_EVENT_LOG)

    def cc_event_log(self) -> bytes | None:
        """The whole log area, with what is behind its last event; None where this is no TD."""
        return self._first((self._ccel,), _MAX_CCEL)

    def _read(self, names: tuple[str, ...]) -> bytes | None:
        return self._first(tuple(self._base / name for name in names), _MAX_LIST)

    @staticmethod
    def _first(paths: tuple[Path, ...], limit: int) -> bytes | None:
        """The whole of the first file that is there, at most ``limit`` bytes. Raises AttesterError."""
        for path in paths:
            try:
                content = _read_all(path, limit)
            except FileNotFoundError:
                continue
            except OSError as exc:
                reason = exc.strerror or exc
                raise AttesterError(f"{path} cannot be read: {reason}; the agent must run as root") from exc
            return content or None
        return None


def _read_all(path: Path, limit: int) -> bytes:
    """Read to the end. The kernel tells no size, and the list grows while it is read: entries are only appended, and
    each read gives whole ones in order, so what is read is a true beginning of the list.
    """
    parts, size = [], 0
    with path.open("rb", buffering=0) as file:
        while part := file.read(_CHUNK):
            size += len(part)
            if size > limit:
                raise AttesterError(f"{path}: more than {limit} bytes")
            parts.append(part)
    return b"".join(parts)
