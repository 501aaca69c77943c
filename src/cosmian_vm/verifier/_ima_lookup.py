"""How the entries of one list are looked up among the known files: whichever way costs less."""

from __future__ import annotations

from collections.abc import Container, Iterator

import msgspec

from cosmian_vm.evidence.ima import ImaFields
from cosmian_vm.verifier._ima_known import KnownFiles, text_of

__all__ = ["Lookup", "prepare_lookup"]

_MEAN_ENTRY = 128
"""Bytes of an ordinary entry: only to guess how many there are."""
_RATIO = 16
"""Taking one entry apart costs as much as preparing the keys of so many files."""
_BEGINNING = 64 * 1024
"""Bytes of a list that tell which template most of it is written in."""


class Lookup(msgspec.Struct, frozen=True):
    """``fast``: template data that need no further look; None: nothing does. ``full``: keys with ``tail`` behind each,
    of all files; None: they are made for the entries that are left over, few against many files.
    """

    known: KnownFiles
    fast: frozenset[bytes] | None
    full: Container[bytes] | None
    tail: bytes = b""

    def recognised(self, fields: list[ImaFields]) -> Iterator[bool]:
        """For each entry's fields, whether snapshot or whitelist have the file with that digest."""
        full = self.full
        if full is None:
            full = self.known.keys_of({text_of(item.path) for item in fields}, self.tail)
        for item in fields:
            yield any(key + self.tail in full for key in self.known.candidates(item))


def prepare_lookup(log: bytes, known: KnownFiles) -> Lookup:
    """Decide by the sizes of list and snapshot. ``log`` may be anything."""
    if not known.has_files:
        return Lookup(known, None, frozenset())
    beginning = log[:_BEGINNING]
    signed = beginning.count(b"\7\0\0\0ima-sig") >= beginning.count(b"\6\0\0\0ima-ng")
    tail = bytes(4) if signed else b""
    if not known.has_keys(tail) and len(log) // _MEAN_ENTRY * _RATIO < len(known):
        return Lookup(known, frozenset(), None)
    prepared = known.keys(tail)
    return Lookup(known, prepared.others, prepared, tail)
