"""PE files small enough to compute with: a unified kernel image as ``image/build`` makes it, of made-up contents."""

from __future__ import annotations

import struct
from collections.abc import Mapping

__all__ = ["default_uki", "make_pe"]

_DOS_SIZE = 0x80
_OPTIONAL_SIZE = 240
_ALIGNMENT = 512
_CERTIFICATE_TABLE = 4


def make_pe(parts: Mapping[str, bytes], *, certificate: bytes = b"", checksum: int = 0, tail: bytes = b"") -> bytes:
    """A PE32+ file with these sections, in order. ``certificate``: its certificate table, at the end; ``tail``: bytes
    between the last section and that.
    """
    table = _DOS_SIZE + 24 + _OPTIONAL_SIZE
    at = size_of_headers = _aligned(table + 40 * len(parts))
    headers, bodies = b"", b""
    for number, (name, content) in enumerate(parts.items(), 1):
        raw = content.ljust(_aligned(len(content)), b"\0")
        place = struct.pack("<IIII", len(content), number << 20, len(raw), at)
        headers += name.encode().ljust(8, b"\0") + place + bytes(12) + struct.pack("<I", 0x40000040)
        bodies += raw
        at += len(raw)
    directories = bytearray(16 * 8)
    struct.pack_into("<II", directories, 8 * _CERTIFICATE_TABLE, (at + len(tail)) * bool(certificate), len(certificate))
    optional = struct.pack("<H", 0x20B) + bytes(58) + struct.pack("<II", size_of_headers, checksum) + bytes(40)
    optional += struct.pack("<I", 16) + bytes(directories)
    coff = struct.pack("<HHIIIHH", 0x8664, len(parts), 0, 0, 0, len(optional), 0x22)
    dos = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", _DOS_SIZE)
    head = dos.ljust(_DOS_SIZE, b"\0") + b"PE\0\0" + coff + optional + headers
    return head.ljust(size_of_headers, b"\0") + bodies + tail + certificate


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def default_uki(**changes: bytes) -> bytes:
    """Systemd's stub, kernel and command line. ``changes``: sections (without the dot) to change or add; empty ones are
    left out.
    """
    parts = {
        "text": b"stub",
        "sdmagic": b"#### LoaderInfo: systemd-stub 252.39-1~deb12u2 ####\0",
        "osrel": b"ID=debian\n",
        "cmdline": b"root=PARTUUID=5c2d8f0e ima_policy=tcb ima_hash=sha256",
        "uname": b"6.1.0-56-cloud-amd64",
        "linux": make_pe({".text": b"kernel"}, certificate=b"signature"),
    }
    return make_pe({f".{name}": content for name, content in (parts | changes).items() if content})
