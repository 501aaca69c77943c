"""LUKS2 headers made of any JSON, with checksums that fit: what a forger writes onto the disk."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

__all__ = ["METADATA_SIZE", "header_file"]

METADATA_SIZE = 16384
"""Size of each of the two copies of the header, in bytes."""

_CHECKSUM = slice(448, 512)
_UUID = "3f0c5d2e-8f5a-4d3b-9a55-0c6a6cf0a001"


def header_file(
    document: dict[str, Any] | bytes,
    second: dict[str, Any] | bytes | None = None,
    *,
    keyslots_size: int = 802816,
    sequence: int = 3,
    second_sequence: int | None = None,
) -> bytes:
    """A detached header file; ``second``: another JSON for the second copy. The areas of the keyslots are zeros."""
    copies = (
        _copy(document, 0, b"LUKS\xba\xbe", sequence),
        _copy(
            document if second is None else second,
            METADATA_SIZE,
            b"SKUL\xba\xbe",
            sequence if second_sequence is None else second_sequence,
        ),
    )
    return b"".join(copies) + bytes(keyslots_size)


def _copy(document: dict[str, Any] | bytes, offset: int, magic: bytes, sequence: int) -> bytes:
    """LUKS2 On-Disk Format Specification 1.1, section 2.1."""
    text = document if isinstance(document, bytes) else json.dumps(document, separators=(",", ":")).encode()
    binary = (
        magic
        + (2).to_bytes(2, "big")
        + METADATA_SIZE.to_bytes(8, "big")
        + sequence.to_bytes(8, "big")
        + bytes(48)
        + b"sha256".ljust(32, b"\0")
        + bytes(64)
        + _UUID.encode().ljust(40, b"\0")
        + bytes(48)
        + offset.to_bytes(8, "big")
    )
    whole = bytearray(binary.ljust(4096, b"\0") + text.ljust(METADATA_SIZE - 4096, b"\0"))
    whole[_CHECKSUM] = sha256(whole).digest().ljust(64, b"\0")
    return bytes(whole)
