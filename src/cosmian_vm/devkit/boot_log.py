"""The boot of a machine that never booted: TCG events in the real format, and the PCRs that they extend.

Source: TCG PC Client Platform Firmware Profile 1.05, section 10 (event logging); crypto-agile form, banks sha1 and
sha256, little-endian. The digests are those of the event data where the profile says so, else of made-up contents.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import new as new_hash

from cosmian_vm.devkit.pcrs import BANKS, PcrBanks, extend_data

__all__ = ["PHASES", "BootEvent", "default_boot", "extend_boot", "serialise_boot", "with_other_kernel"]

_TPM_ALG = {"sha1": 0x0004, "sha256": 0x000B}

# Event types: TCG PFP 1.05, 10.4.1.
_EV_NO_ACTION = 0x03
_EV_SEPARATOR = 0x04
_EV_S_CRTM_VERSION = 0x08
_EV_IPL = 0x0D
_EV_EFI_VARIABLE_DRIVER_CONFIG = 0x80000001
_EV_EFI_VARIABLE_BOOT = 0x80000002
_EV_EFI_BOOT_SERVICES_APPLICATION = 0x80000003
_EV_EFI_GPT_EVENT = 0x80000006
_EV_EFI_ACTION = 0x80000007
_EV_EFI_PLATFORM_FIRMWARE_BLOB = 0x80000008
_EV_EFI_VARIABLE_AUTHORITY = 0x800000E0

_EFI_GLOBAL_VARIABLE = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
_EFI_IMAGE_SECURITY_DATABASE = bytes.fromhex("cbb219d73a3d9645a3bcdad00e67656f")

PHASES = ("enter-initrd", "leave-initrd", "sysinit", "ready")
"""What systemd-pcrphase extends into PCR 11 after boot, without any log."""


@dataclass(frozen=True, slots=True)
class BootEvent:
    """One TCG_PCR_EVENT2. ``measured``: what is hashed, the event data itself where None."""

    pcr: int
    type: int
    data: bytes
    measured: bytes | None = None

    def digest(self, bank: str) -> bytes:
        """What ``bank`` is extended with."""
        return new_hash(bank, self.data if self.measured is None else self.measured).digest()


def _variable(name: str, data: bytes, *, guid: bytes = _EFI_GLOBAL_VARIABLE) -> bytes:
    """UEFI_VARIABLE_DATA: GUID, name length in characters, data length, name in UTF-16, data."""
    return guid + struct.pack("<QQ", len(name), len(data)) + name.encode("utf-16-le") + data


def _image(path: str) -> bytes:
    """UEFI_IMAGE_LOAD_EVENT with a device path of one file and the end."""
    text = path.encode("utf-16-le") + b"\x00\x00"
    device_path = struct.pack("<BBH", 4, 4, 4 + len(text)) + text + b"\x7f\xff\x04\x00"
    return struct.pack("<QQQQ", 0x7E000000, 0x100000, 0, len(device_path)) + device_path


def default_boot(
    command_line: str = "root=/dev/vda1 ro ima_policy=tcb", kernel: bytes = b"kernel 6.1"
) -> list[BootEvent]:
    """A UEFI boot with Secure Boot, shim, GRUB and a Linux kernel: PCRs 0-9 and 14."""
    separators = [BootEvent(pcr, _EV_SEPARATOR, bytes(4)) for pcr in range(8)]
    return [
        BootEvent(0, _EV_NO_ACTION, b"StartupLocality\x00\x00"),
        BootEvent(0, _EV_S_CRTM_VERSION, "Simulated firmware 1.0\x00".encode("utf-16-le")),
        BootEvent(0, _EV_EFI_PLATFORM_FIRMWARE_BLOB, struct.pack("<QQ", 0xFFC00000, 0x400000), b"firmware volume"),
        BootEvent(7, _EV_EFI_VARIABLE_DRIVER_CONFIG, _variable("SecureBoot", b"\x01")),
        BootEvent(7, _EV_EFI_VARIABLE_DRIVER_CONFIG, _variable("PK", b"simulated platform key")),
        BootEvent(7, _EV_EFI_VARIABLE_DRIVER_CONFIG, _variable("KEK", b"simulated key exchange key")),
        BootEvent(7, _EV_EFI_VARIABLE_DRIVER_CONFIG, _variable("db", b"allowed", guid=_EFI_IMAGE_SECURITY_DATABASE)),
        BootEvent(7, _EV_EFI_VARIABLE_DRIVER_CONFIG, _variable("dbx", b"", guid=_EFI_IMAGE_SECURITY_DATABASE)),
        BootEvent(1, _EV_EFI_VARIABLE_BOOT, _variable("BootOrder", b"\x00\x00")),
        BootEvent(2, _EV_EFI_BOOT_SERVICES_APPLICATION, _image("\\option.rom"), b"option ROM"),
        *separators,
        BootEvent(5, _EV_EFI_GPT_EVENT, b"EFI PART" + bytes(92), b"partition table"),
        BootEvent(7, _EV_EFI_VARIABLE_AUTHORITY, _variable("db", b"signer", guid=_EFI_IMAGE_SECURITY_DATABASE)),
        BootEvent(4, _EV_EFI_BOOT_SERVICES_APPLICATION, _image("\\EFI\\debian\\shimx64.efi"), b"shim"),
        BootEvent(14, _EV_IPL, b"MokList\x00", b"machine owner keys"),
        BootEvent(4, _EV_EFI_BOOT_SERVICES_APPLICATION, _image("\\EFI\\debian\\grubx64.efi"), b"grub"),
        BootEvent(8, _EV_IPL, f"kernel_cmdline: /boot/vmlinuz {command_line}\x00".encode()),
        BootEvent(9, _EV_IPL, b"/boot/vmlinuz\x00", kernel),
        BootEvent(9, _EV_IPL, b"/boot/initrd.img\x00", b"initrd"),
        BootEvent(4, _EV_EFI_BOOT_SERVICES_APPLICATION, _image("\\boot\\vmlinuz"), kernel),
        BootEvent(5, _EV_EFI_ACTION, b"Exit Boot Services Invocation"),
        BootEvent(5, _EV_EFI_ACTION, b"Exit Boot Services Returned with Success"),
    ]


def extend_boot(events: Sequence[BootEvent], pcrs: PcrBanks) -> None:
    """What firmware, boot loader and systemd do: every event into its PCR, then the boot phases into PCR 11."""
    for event in events:
        if event.type != _EV_NO_ACTION:
            pcrs.extend(event.pcr, {bank: event.digest(bank) for bank in BANKS})
    for phase in PHASES:
        extend_data(pcrs, 11, phase.encode())


def serialise_boot(events: Sequence[BootEvent]) -> bytes:
    """The binary log as the kernel shows it: Spec ID event in the SHA-1 form, then TCG_PCR_EVENT2 entries."""
    algorithms = b"".join(struct.pack("<HH", _TPM_ALG[bank], size) for bank, size in BANKS.items())
    # TCG_EfiSpecIDEventStruct: signature, platformClass, minor, major, errata, uintnSize (2: 64 bit), algorithms.
    spec_id = b"Spec ID Event03\x00" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, len(BANKS)) + algorithms + b"\x00"
    parts = [struct.pack("<II20sI", 0, _EV_NO_ACTION, bytes(20), len(spec_id)), spec_id]
    for event in events:
        parts.append(struct.pack("<III", event.pcr, event.type, len(BANKS)))
        for bank, size in BANKS.items():
            digest = bytes(size) if event.type == _EV_NO_ACTION else event.digest(bank)
            parts.append(struct.pack("<H", _TPM_ALG[bank]) + digest)
        parts.append(struct.pack("<I", len(event.data)) + event.data)
    return b"".join(parts)


def with_other_kernel(events: Sequence[BootEvent], kernel: bytes = b"a kernel of the operator's") -> list[BootEvent]:
    """The same boot with another kernel: PCRs 4 and 9 differ, and the log says so."""
    return [replace(event, measured=kernel) if event.measured == b"kernel 6.1" else event for event in events]
