"""Sizes with units, as administrators write them. Pure."""

from __future__ import annotations

import re

from cosmian_vm.errors import InputError

__all__ = ["FIRST_SIZE", "MIN_SIZE", "parse_size", "show_size"]

MIN_SIZE = 32 * 1000 * 1000
"""Smallest container, in bytes: the integrity tags, their journal and ext4 need room of their own."""
FIRST_SIZE = -(-500_000_000 // 4096) * 4096
"""Size of the container that a first launch makes where agent.toml names no other, in bytes."""
_MAX_SIZE = 1 << 50
_SECTOR = 4096
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([kKMGT]?)(i?)([bB]?)")
_POWER = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


def parse_size(text: str) -> int:
    """Bytes, a multiple of 4096 (rounded up): ``500MB`` is 500,000,000, ``500MiB`` and ``500M`` count by 1024.

    Raises InputError for anything else, a number without unit, and sizes that cannot be.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None or not (match[2] or match[4]) or (match[3] and not match[2]):
        raise InputError(f"size {text[:40]!r}: expected is a number with a unit, as in 500MB, 2GB, 512MiB")
    base = 1000 if match[4] and not match[3] else 1024
    whole, _, fraction = match[1].partition(".")
    unit = int(base ** _POWER[match[2].upper()])
    size = int(whole) * unit + (int(fraction) * unit // 10 ** len(fraction) if fraction else 0)
    if size < MIN_SIZE:
        raise InputError(f"size {text[:40]}: a container has {show_size(MIN_SIZE)} at least")
    if size > _MAX_SIZE:
        raise InputError(f"size {text[:40]}: more than a container may have")
    return -(-size // _SECTOR) * _SECTOR


def show_size(size: int) -> str:
    """A size in units of 1000, for people."""
    value, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.4g} {unit}"
