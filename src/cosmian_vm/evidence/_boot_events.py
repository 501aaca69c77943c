"""Event types of TCG logs, and one line for people about what an event's data says.

Source: TCG PC Client Platform Firmware Profile 1.06, section 10.4.1 (types) and 10.2 (data structures). Nothing here
raises for any data: what cannot be read is described by its size.
"""

from __future__ import annotations

from enum import IntEnum

from cosmian_vm._reader import Reader
from cosmian_vm.errors import EvidenceFormatError

__all__ = ["EventType", "describe_data", "format_guid", "printable", "type_name"]

_MAX_LINE = 200


class EventType(IntEnum):
    """TCG event types."""

    EV_PREBOOT_CERT = 0x00000000
    EV_POST_CODE = 0x00000001
    EV_UNUSED = 0x00000002
    EV_NO_ACTION = 0x00000003
    EV_SEPARATOR = 0x00000004
    EV_ACTION = 0x00000005
    EV_EVENT_TAG = 0x00000006
    EV_S_CRTM_CONTENTS = 0x00000007
    EV_S_CRTM_VERSION = 0x00000008
    EV_CPU_MICROCODE = 0x00000009
    EV_PLATFORM_CONFIG_FLAGS = 0x0000000A
    EV_TABLE_OF_DEVICES = 0x0000000B
    EV_COMPACT_HASH = 0x0000000C
    EV_IPL = 0x0000000D
    EV_IPL_PARTITION_DATA = 0x0000000E
    EV_NONHOST_CODE = 0x0000000F
    EV_NONHOST_CONFIG = 0x00000010
    EV_NONHOST_INFO = 0x00000011
    EV_OMIT_BOOT_DEVICE_EVENTS = 0x00000012
    EV_POST_CODE2 = 0x00000013
    EV_EFI_VARIABLE_DRIVER_CONFIG = 0x80000001
    EV_EFI_VARIABLE_BOOT = 0x80000002
    EV_EFI_BOOT_SERVICES_APPLICATION = 0x80000003
    EV_EFI_BOOT_SERVICES_DRIVER = 0x80000004
    EV_EFI_RUNTIME_SERVICES_DRIVER = 0x80000005
    EV_EFI_GPT_EVENT = 0x80000006
    EV_EFI_ACTION = 0x80000007
    EV_EFI_PLATFORM_FIRMWARE_BLOB = 0x80000008
    EV_EFI_HANDOFF_TABLES = 0x80000009
    EV_EFI_PLATFORM_FIRMWARE_BLOB2 = 0x8000000A
    EV_EFI_HANDOFF_TABLES2 = 0x8000000B
    EV_EFI_VARIABLE_BOOT2 = 0x8000000C
    EV_EFI_GPT_EVENT2 = 0x8000000D
    EV_EFI_HCRTM_EVENT = 0x80000010
    EV_EFI_VARIABLE_AUTHORITY = 0x800000E0
    EV_EFI_SPDM_FIRMWARE_BLOB = 0x800000E1
    EV_EFI_SPDM_FIRMWARE_CONFIG = 0x800000E2
    EV_EFI_SPDM_DEVICE_POLICY = 0x800000E3
    EV_EFI_SPDM_DEVICE_AUTHORITY = 0x800000E4


_NAMES = {int(kind): kind.name for kind in EventType}


def type_name(kind: int) -> str:
    """``EV_SEPARATOR``; the number in hex where the specification has no name for it."""
    return _NAMES.get(kind, f"{kind:#010x}")


def printable(text: str) -> str:
    """Text that cannot do anything to a terminal: every other character becomes U+FFFD; at most 200 characters."""
    clean = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[: _MAX_LINE + 1])
    return clean if len(clean) <= _MAX_LINE else clean[: _MAX_LINE - 1] + "…"


def format_guid(raw: bytes) -> str:
    """An EFI_GUID (16 bytes: u32, u16, u16 little-endian, 8 bytes) as it is usually written."""
    parts = raw[3::-1], raw[5:3:-1], raw[7:5:-1], raw[8:10], raw[10:16]
    return "-".join(part.hex() for part in parts)


def describe_data(kind: int, data: bytes) -> str:
    """One printable line about an event's data."""
    try:
        return printable(_describe(kind, data))
    except EvidenceFormatError:
        return f"{len(data)} bytes that do not have the form of {type_name(kind)}"


def _describe(kind: int, data: bytes) -> str:
    match kind:
        case EventType.EV_SEPARATOR:
            meaning = {b"\0\0\0\0": "end of the firmware's part", b"\xff\xff\xff\xff": "end of the firmware's part"}
            return f"separator {data[:8].hex()} ({meaning.get(data, 'an error was recorded')})"
        case EventType.EV_NO_ACTION:
            return _text(data[:16]) or f"{len(data)} bytes"
        case (
            EventType.EV_EFI_VARIABLE_DRIVER_CONFIG
            | EventType.EV_EFI_VARIABLE_BOOT
            | EventType.EV_EFI_VARIABLE_BOOT2
            | EventType.EV_EFI_VARIABLE_AUTHORITY
        ):
            return _variable(data)
        case (
            EventType.EV_EFI_BOOT_SERVICES_APPLICATION
            | EventType.EV_EFI_BOOT_SERVICES_DRIVER
            | EventType.EV_EFI_RUNTIME_SERVICES_DRIVER
        ):
            return _image(data)
        case EventType.EV_EFI_GPT_EVENT | EventType.EV_EFI_GPT_EVENT2:
            return _partitions(data)
        case EventType.EV_EFI_PLATFORM_FIRMWARE_BLOB:
            reader = Reader(data, "firmware blob")
            return f"firmware at {reader.u64('base'):#x}, {reader.u64('length')} bytes"
        case EventType.EV_EFI_PLATFORM_FIRMWARE_BLOB2:
            reader = Reader(data, "firmware blob")
            label = _text(reader.take(reader.u8("size"), "description"))
            return f"firmware {label} at {reader.u64('base'):#x}, {reader.u64('length')} bytes"
        case EventType.EV_EVENT_TAG:
            reader = Reader(data, "tagged event")
            tag = reader.u32("taggedEventID")
            return f"tag {tag:#010x}: {_text(reader.take(reader.u32('size'), 'data'))}"
        case _:
            return _text(data) or f"{len(data)} bytes"


def _text(data: bytes) -> str:
    """The data as text (ASCII, UTF-8 or UTF-16), empty where it is none."""
    if len(data) >= 2 and len(data) % 2 == 0 and not any(data[1::2]):
        text = data.decode("utf-16-le", errors="replace")
    else:
        text = data.decode("utf-8", errors="replace")
    text = text.rstrip("\0")
    return text if text and all(c.isprintable() or c in "\t\n\r" for c in text) else ""


def _variable(data: bytes) -> str:
    """UEFI_VARIABLE_DATA: GUID, u64 characters of the name, u64 bytes of the data, name (UTF-16), data."""
    reader = Reader(data, "UEFI variable")
    guid = format_guid(reader.take(16, "VariableName"))
    characters, size = reader.u64("UnicodeNameLength"), reader.u64("VariableDataLength")
    name = reader.take(2 * characters, "UnicodeName").decode("utf-16-le", errors="replace")
    value = reader.take(size, "VariableData")
    shown = f" = {value.hex()}" if 1 <= len(value) <= 8 else ""
    return f"UEFI variable {name} of {guid}, {size} bytes{shown}"


def _image(data: bytes) -> str:
    """UEFI_IMAGE_LOAD_EVENT: u64 location, length, link time address, length of the device path; device path."""
    reader = Reader(data, "UEFI image")
    location, length = reader.u64("ImageLocationInMemory"), reader.u64("ImageLengthInMemory")
    reader.u64("ImageLinkTimeAddress")
    path = _device_path(reader.take(reader.u64("LengthOfDevicePath"), "DevicePath"))
    return f"program {path or f'at {location:#x}'}, {length} bytes"


def _device_path(raw: bytes) -> str:
    """File, firmware file and partition of an EFI_DEVICE_PATH_PROTOCOL (UEFI 2.10, section 10.3)."""
    reader = Reader(raw, "device path")
    parts = []
    while reader.remaining >= 4:
        kind, subtype, length = reader.u8("type"), reader.u8("subtype"), reader.u16("length")
        if kind == 0x7F or length < 4:
            break
        body = reader.take(length - 4, "node")
        if (kind, subtype) == (4, 4):  # media, file path
            parts.append(body.decode("utf-16-le", errors="replace").rstrip("\0"))
        elif (kind, subtype) in ((4, 6), (4, 7)) and len(body) == 16:  # firmware file, firmware volume
            parts.append(f"firmware {'file' if subtype == 6 else 'volume'} {format_guid(body)}")
        elif (kind, subtype) == (4, 1) and len(body) == 38:  # media, hard drive: partition number, ..., signature
            parts.append(f"partition {int.from_bytes(body[:4], 'little')} ({format_guid(body[20:36])})")
    return " ".join(parts)


def _partitions(data: bytes) -> str:
    """UEFI_GPT_DATA: EFI_PARTITION_TABLE_HEADER (92 bytes, disk GUID at 56), u64 count, entries of 128 bytes."""
    reader = Reader(data, "GPT")
    header = reader.take(92, "UEFIPartitionHeader")
    count = reader.u64("NumberOfPartitions")
    names = []
    for _ in range(min(count, 128)):
        entry = reader.take(128, "partition")
        label = entry[56:].decode("utf-16-le", errors="replace").split("\0", 1)[0]
        names.append(label or format_guid(entry[16:32]))
    return f"partition table of disk {format_guid(header[56:72])}: {', '.join(names) or 'no partitions'}"
