"""What a unified kernel image makes of the PCRs, computed from its bytes. Pure.

The chain is the one of our image: UEFI firmware starts the image as the first thing that it boots; the image is
systemd's stub with a kernel, a command line and no initrd; the kernel starts systemd. Every rule below was compared
with a TPM after such a boot. Where anything is not as there (another stub, another kernel, an initrd), the PCR is left
out with the reason: a guess would be worse than no value.

PCR 4    EV_EFI_ACTION, EV_SEPARATOR, the Authenticode hash of the image, and that of the kernel inside, which the stub
         starts through the firmware (TCG PC Client Platform Firmware Profile 1.06, 3.3.4.5; Microsoft, "Windows
         Authenticode Portable Executable Signature Format")
PCR 9    the kernel's EFI stub: its load options, UTF-16 with a closing NUL (Linux, efi-stub-helper.c)
PCR 11   systemd's stub: for each section its name with a NUL, then its content; then the boot phases as words
         (systemd 252, src/boot/efi/stub.c, src/boot/pcrphase.c)
PCR 12, 13   systemd's stub, for command lines, credentials and extensions beside the image: nothing, so zero
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from hashlib import sha256

import msgspec

from cosmian_vm._reader import Reader
from cosmian_vm.errors import EvidenceFormatError

__all__ = ["PHASES", "Prediction", "Section", "image_hash", "predict", "sections"]

PHASES = ("sysinit", "ready")
"""The phases of a boot without initrd that systemd-pcrphase extends before the system is up."""

_PE32, _PE32_PLUS = 0x10B, 0x20B
_MAX_SECTIONS = 96
_CERTIFICATE_TABLE = 4
"""Index of the certificate table among the data directories."""
_MAX_MEMORY = 1 << 30

_MEASURED = (".linux", ".osrel", ".cmdline", ".initrd", ".splash", ".dtb", ".pcrpkey")
"""The order in which systemd-stub 252 measures sections: that of its enumeration, not that of the file."""
_STUB = re.compile(rb"#### LoaderInfo: systemd-stub (\d+)\b")
_KNOWN_STUB = b"252"
_KNOWN_KERNEL = b"6.1."

_ACTION = b"Calling EFI Application from Boot Option"
_SEPARATOR = bytes(4)


class Section(msgspec.Struct, frozen=True):
    """A section of a PE file: sizes and offset in bytes, as the header has them."""

    name: str
    virtual_size: int
    raw_size: int
    raw_offset: int


class _Header(msgspec.Struct, frozen=True):
    """What of a PE file's header the hash stands on. ``certificates``: offset in the header of the entry for the
    certificate table, and that table's size; None where there is no such entry.
    """

    size: int
    checksum: int
    certificates: tuple[int, int] | None
    sections: tuple[Section, ...]


class Prediction(msgspec.Struct, frozen=True):
    """``pcrs``: values that the sha256 bank will hold. ``left_out``: PCRs that are not predicted, and why."""

    pcrs: dict[int, bytes]
    left_out: tuple[tuple[str, str], ...]


def _read(raw: bytes, what: str) -> _Header:
    """The header, bounds checked (PE format: MS-DOS stub, COFF header, optional header, section table)."""
    reader = Reader(raw, what)
    if reader.take(2, "DOS signature") != b"MZ":
        raise EvidenceFormatError(what, "is no PE file: it does not begin with MZ", offset=0)
    reader.position = 0
    reader.take(0x3C, "DOS header")
    start = reader.u32("e_lfanew")
    reader.position = 0
    reader.take(start, "e_lfanew")
    if reader.take(4, "PE signature") != b"PE\0\0":
        raise EvidenceFormatError(what, "is no PE file: it has no PE signature", offset=start)
    reader.take(2, "Machine")
    count = reader.u16("NumberOfSections")
    if not 1 <= count <= _MAX_SECTIONS:
        raise reader.error(f"{count} sections", "NumberOfSections")
    reader.take(12, "COFF header")
    optional_size = reader.u16("SizeOfOptionalHeader")
    reader.take(2, "Characteristics")
    at = reader.position
    optional = Reader(reader.take(optional_size, "optional header"), f"{what}, optional header", base=at)
    magic = optional.u16("Magic")
    if magic not in (_PE32, _PE32_PLUS):
        raise optional.error(f"unknown magic {magic:#x}", "Magic")
    optional.take(58, "standard fields")
    headers = optional.u32("SizeOfHeaders")
    checksum = at + optional.position
    optional.take(4, "CheckSum")
    optional.take(24 if magic == _PE32 else 40, "sizes of stack and heap")
    directories = optional.u32("NumberOfRvaAndSizes")
    certificates: tuple[int, int] | None = None
    if directories > _CERTIFICATE_TABLE:
        optional.take(8 * _CERTIFICATE_TABLE, "data directories")
        place = at + optional.position
        optional.take(4, "certificate table")
        certificates = place, optional.u32("certificate table")
    found = tuple(_section(reader, len(raw)) for _ in range(count))
    if not reader.position <= headers <= len(raw):
        raise reader.error(f"SizeOfHeaders is {headers}", "SizeOfHeaders")
    return _Header(headers, checksum, certificates, found)


def _section(reader: Reader, end: int) -> Section:
    """IMAGE_SECTION_HEADER, 40 bytes."""
    name = reader.take(8, "section name").rstrip(b"\0").decode("latin-1")
    virtual = reader.u32("VirtualSize")
    reader.take(4, "VirtualAddress")
    size, offset = reader.u32("SizeOfRawData"), reader.u32("PointerToRawData")
    reader.take(16, "section header")
    if size and offset + size > end:
        raise reader.error(f"section {name!r} ends beyond the file", "SizeOfRawData")
    if virtual > _MAX_MEMORY:
        raise reader.error(f"section {name!r} takes {virtual} bytes", "VirtualSize")
    return Section(name, virtual, size, offset)


def image_hash(raw: bytes, what: str = "PE file") -> bytes:
    """The Authenticode hash (SHA-256) of a PE file, as firmware measures it when it loads the file.

    Raises EvidenceFormatError.
    """
    header = _read(raw, what)
    digest = sha256(raw[: header.checksum])
    after, signed = header.checksum + 4, 0
    if header.certificates is not None:
        place, signed = header.certificates
        digest.update(raw[after:place])
        after = place + 8
    digest.update(raw[after : header.size])
    done = header.size
    for section in sorted(header.sections, key=lambda section: section.raw_offset):
        if section.raw_size:
            digest.update(raw[section.raw_offset : section.raw_offset + section.raw_size])
            done += section.raw_size
    if len(raw) > done:
        if signed > len(raw) - done:
            raise EvidenceFormatError(what, f"a certificate table of {signed} bytes", field="certificate table")
        digest.update(raw[done : len(raw) - signed])
    return digest.digest()


def sections(raw: bytes, what: str = "unified kernel image") -> dict[str, bytes]:
    """The content of each section as it is in memory: cut or filled with zeros to its virtual size.

    Raises EvidenceFormatError, also where a name is there twice.
    """
    found: dict[str, bytes] = {}
    for section in _read(raw, what).sections:
        if section.name in found:
            raise EvidenceFormatError(what, f"has the section {section.name!r} twice")
        content = raw[section.raw_offset : section.raw_offset + min(section.raw_size, section.virtual_size)]
        found[section.name] = content.ljust(section.virtual_size, b"\0")
    return found


def predict(uki: bytes, *, phases: Sequence[str] | None) -> Prediction:
    """The PCRs after a boot of ``uki`` as the head of this module describes it.

    ``phases``: the words that the booted system extends into PCR 11 until it is up, None where that is not known.
    Raises EvidenceFormatError where ``uki`` is no unified kernel image.
    """
    parts = sections(uki)
    kernel = parts.get(".linux")
    if not kernel:
        raise EvidenceFormatError("unified kernel image", "has no kernel in it (section .linux)")
    pcrs: dict[int, bytes] = {}
    left_out: list[tuple[str, str]] = []
    stub = _STUB.search(parts.get(".sdmagic", b""))
    if stub is None or stub[1] != _KNOWN_STUB:
        left_out.append(("PCR 4, 9, 11, 12, 13", "the stub is not systemd's of version 252, whose way is known"))
        return Prediction(pcrs, tuple(left_out))
    loaded = [image_hash(uki, "unified kernel image"), image_hash(kernel, "kernel in the unified kernel image")]
    pcrs[4] = _extended([sha256(_ACTION).digest(), sha256(_SEPARATOR).digest(), *loaded])
    if problem := _options_problem(parts):
        left_out.append(("PCR 9", problem))
    else:
        options = parts[".cmdline"].decode("ascii").encode("utf-16-le") + b"\0\0"
        pcrs[9] = _extended([sha256(options).digest()])
    if parts.get(".initrd"):
        left_out.append(("PCR 11", "there is an initrd, and which boot phases it extends is not known"))
    elif phases is None:
        left_out.append(("PCR 11", "which boot phases the system extends is not known"))
    else:
        pcrs[11] = _extended([*_stub_measures(parts), *(sha256(phase.encode()).digest() for phase in phases)])
    pcrs[12] = pcrs[13] = bytes(32)
    return Prediction(pcrs, tuple(left_out))


def _options_problem(parts: dict[str, bytes]) -> str:
    """Why it is not known what the kernel measures of its command line; empty where it is."""
    line = parts.get(".cmdline", b"")
    if not line or not line.isascii() or not line.decode("ascii").isprintable():
        return "the command line is not plain text"
    if parts.get(".initrd"):
        return "there is an initrd, which the kernel measures too"
    if not parts.get(".uname", b"").startswith(_KNOWN_KERNEL):
        return "the kernel is not Linux 6.1, of which it is known what it measures"
    return ""


def _stub_measures(parts: dict[str, bytes]) -> Iterable[bytes]:
    for name in _MEASURED:
        if parts.get(name):
            yield sha256(name.encode() + b"\0").digest()
            yield sha256(parts[name]).digest()


def _extended(digests: Iterable[bytes]) -> bytes:
    """The PCR after these extensions, from zeros."""
    value = bytes(32)
    for digest in digests:
        value = sha256(value + digest).digest()
    return value
