"""The kernel's lists in securityfs: IMA measurements and the firmware's event log."""

from __future__ import annotations

from pathlib import Path

from cosmian_vm.errors import AttesterError

__all__ = ["SECURITYFS", "KernelLogs"]

SECURITYFS = Path("/sys/kernel/security")

_IMA_BINARY = ("ima/binary_runtime_measurements", "integrity/ima/binary_runtime_measurements")
_IMA_ASCII = ("ima/ascii_runtime_measurements", "integrity/ima/ascii_runtime_measurements")
_BOOT_EVENT_LOG = ("tpm0/binary_bios_measurements",)

_CHUNK = 1 << 20
_MAX_LIST = 512 << 20


class KernelLogs:
    """A Logs over ``base``, where securityfs is mounted."""

    def __init__(self, base: Path = SECURITYFS) -> None:
        self._base = base

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
        """None: the ACPI table CCEL is not read yet."""
        return None

    def _read(self, names: tuple[str, ...]) -> bytes | None:
        """The whole of the first file that is there. Raises AttesterError."""
        for name in names:
            path = self._base / name
            try:
                content = _read_all(path)
            except FileNotFoundError:
                continue
            except OSError as exc:
                reason = exc.strerror or exc
                raise AttesterError(f"{path} cannot be read: {reason}; the agent must run as root") from exc
            return content or None
        return None


def _read_all(path: Path) -> bytes:
    """Read to the end. The kernel tells no size, and the list grows while it is read: entries are only appended, and
    each read gives whole ones in order, so what is read is a true beginning of the list.
    """
    parts, size = [], 0
    with path.open("rb", buffering=0) as file:
        while part := file.read(_CHUNK):
            size += len(part)
            if size > _MAX_LIST:
                raise AttesterError(f"{path}: more than {_MAX_LIST} bytes")
            parts.append(part)
    return b"".join(parts)
