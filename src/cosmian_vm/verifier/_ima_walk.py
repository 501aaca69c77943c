"""One pass over a binary IMA list: every template hash recomputed, the PCR replayed, known entries recognised.

This is where a list of a hundred thousand entries costs its time, so an entry that is known is not taken apart: one
``unpack_from`` for its head, one slice for its data, and that slice is hashed twice and looked up. Everything else
(an entry of another template than the one before, the last one, a broken one) is read by ``evidence.ima``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field
from hashlib import sha1, sha256

from cosmian_vm.evidence.ima import LEGACY_TEMPLATE, MAX_PCR, VIOLATION_HASH, read_entry
from cosmian_vm.verifier._quoted import QuotedPcrs

__all__ = ["Place", "Walk", "walk"]

_SHA256_SIZE = 32
_VIOLATION = b"\xff" * _SHA256_SIZE


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entry stands: number in what was walked over (from 0), and offset in bytes."""

    index: int
    offset: int


@dataclass(slots=True)
class Walk:
    """What the pass found. ``total``: entries. ``matched``: how many of them the quote vouches for, None: no prefix.

    ``values``: the PCRs after these (sha256). ``strays``: PCRs of entries that the quote contradicts or does not
    cover. ``bad``: template hash and data differ. ``unknown``: what is not in the set of known entries.
    """

    total: int = 0
    matched: int | None = None
    values: dict[int, bytes] = field(default_factory=dict)
    strays: frozenset[int] = frozenset()
    bad: list[Place] = field(default_factory=list)
    violations: list[Place] = field(default_factory=list)
    unknown: list[Place] = field(default_factory=list)


@dataclass(slots=True)
class _Window:
    """Between the entry that brings the main PCR to its quoted value and the next one for it: here the quote was
    taken, and here all other PCRs that the list extends must come to their quoted values too.
    """

    quoted: QuotedPcrs
    others: dict[int, bytes]
    open: bool = False

    def extend(self, pcr: int, extension: bytes) -> None:
        self.others[pcr] = sha256(self.others.get(pcr, bytes(_SHA256_SIZE)) + extension).digest()

    def settled(self) -> bool:
        return all(self.quoted.matches(pcr, value) for pcr, value in self.others.items())

    def strays(self, then: Mapping[int, bytes]) -> frozenset[int]:
        """PCRs that the quote contradicts; ``then``: as the list has them then, zeros where it had no entry yet."""
        zeros = bytes(_SHA256_SIZE)
        return frozenset(pcr for pcr in self.others if not self.quoted.matches(pcr, then.get(pcr, zeros)))


def _head_of(template: str) -> tuple[bytes, int, Callable[[bytes, int], tuple[int, bytes, bytes, int]]]:
    """How to read entries of a template, of any but the legacy one: its name with the length in front, the size of
    what stands before the data, and the function that reads PCR, template hash, name and size of the data.
    """
    name = template.encode()
    named = len(name).to_bytes(4, "little") + name
    head = struct.Struct(f"<I20s{len(named)}sI")
    return named, head.size, head.unpack_from


def walk(
    log: bytes,
    *,
    known: Container[bytes],
    watched: Container[bytes] = frozenset(),
    start: Mapping[int, bytes],
    main: int,
    quoted: QuotedPcrs,
    first: int = 0,
) -> Walk:
    """Walk over ``log``, whose first entry is number ``first`` of the whole list.

    ``known``: template data of entries that need no further look, but for those ``watched``. ``start``: PCRs before
    the first entry, zeros where absent. ``main``: the PCR that IMA extends. Raises EvidenceFormatError as parse_binary.
    """
    found = Walk()
    window = _Window(quoted, {pcr: value for pcr, value in start.items() if pcr != main})
    value = start.get(main, bytes(_SHA256_SIZE))
    window.open = bool(first) and quoted.matches(main, value)
    if window.open:
        _match(found, window, 0, main, value)
    target, is_digest = _target(quoted, main)
    template, head, unpack = _head_of("ima-sig")
    at = index = 0
    while at < len(log):
        try:
            pcr, claimed, named, size = unpack(log, at)
        except struct.error:
            named = b""
        if named == template and (stop := at + head + size) <= len(log):
            data = log[at + head : stop]
        else:
            entry, stop = read_entry(log, at, first + index)
            pcr, claimed, name, data = entry
            if name != LEGACY_TEMPLATE:
                template, head, unpack = _head_of(name)
        extension = sha256(data).digest()
        if sha1(data, usedforsecurity=False).digest() != claimed:
            if claimed == VIOLATION_HASH:
                extension = _VIOLATION
                found.violations.append(Place(index, at))
            else:
                found.bad.append(Place(index, at))
        elif data not in known or data in watched:
            found.unknown.append(Place(index, at))
        index += 1
        if pcr == main:
            value = sha256(value + extension).digest()
            window.open = (sha256(value).digest() if is_digest else value) == target
        else:
            if pcr > MAX_PCR:
                read_entry(log, at, first + index - 1)  # raises: there is no such PCR
            window.extend(pcr, extension)
        if window.open:
            _match(found, window, index, main, value)
        at = stop
    found.total = index
    if found.matched is not None:
        found.strays = window.strays(found.values)
    return found


def _target(quoted: QuotedPcrs, pcr: int) -> tuple[bytes | None, bool]:
    """The quoted value of a PCR, or its SHA-256, where version 1 gave no more, and True."""
    if pcr in quoted.values:
        return quoted.values[pcr], False
    return (quoted.digest if pcr == quoted.digest_pcr else None), True


def _match(found: Walk, window: _Window, matched: int, main: int, value: bytes) -> None:
    """The main PCR has its quoted value after ``matched`` entries: do the others?"""
    if window.settled():
        found.matched = matched
        found.values = {**window.others, main: value}
    elif found.matched is None:
        found.strays = window.strays(window.others)
