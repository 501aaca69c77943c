"""Which PCRs a container is sealed to. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from cosmian_vm.errors import InputError

__all__ = ["DEFAULT_PCRS", "check_pcrs", "parse_pcrs", "show_pcrs"]

DEFAULT_PCRS = (4, 7, 8, 9, 12, 14)
"""Boot loader and kernel, Secure Boot, GRUB's commands, files it read, command line and credentials, MOK."""

_STATIC_PCRS = range(16)


def check_pcrs(pcrs: tuple[int, ...]) -> tuple[int, ...]:
    """Ascending, each once. Raises InputError for none, and for those that a running system can set back (16-23)."""
    chosen = tuple(sorted(set(pcrs)))
    if not chosen or any(pcr not in _STATIC_PCRS for pcr in chosen):
        raise InputError("PCRs: expected are some of 0 to 15, as in 4+7+8+9+12+14 (16-23 can be reset by anyone)")
    if 10 in chosen:
        raise InputError("PCR 10: IMA extends it with each program that runs, the container would never open again")
    return chosen


def parse_pcrs(text: str) -> tuple[int, ...]:
    """``4+7+9`` or ``4,7,9``, checked. Raises InputError."""
    parts = text.replace(",", "+").split("+")
    if not all(part.isascii() and part.isdecimal() and len(part) <= 2 for part in parts):
        raise InputError(f"PCRs {text[:40]!r}: expected are numbers, as in {show_pcrs(DEFAULT_PCRS)}")
    return check_pcrs(tuple(int(part) for part in parts))


def show_pcrs(pcrs: Sequence[int]) -> str:
    """``4+7+9``."""
    return "+".join(map(str, pcrs))
