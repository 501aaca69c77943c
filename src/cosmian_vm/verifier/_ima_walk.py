"""One pass over a binary IMA list: every template hash recomputed, the PCR replayed, known entries recognised.

This is where a list of a hundred thousand entries costs its time, so an entry that is known is not taken apart: one
``unpack_from`` for its head, one slice for its data, and that slice is hashed twice and looked up. This is done for
runs of entries of one template, step by step, as a comprehension over many is faster than a loop over everything.
What is not like the entry before (another template, another PCR, the legacy template, a broken end) is read by
``evidence.ima``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from hashlib import sha1, sha256

import msgspec

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.ima import LEGACY_TEMPLATE, VIOLATION_HASH, ImaEntry, read_entry
from cosmian_vm.verifier._quoted import QuotedPcrs

__all__ = ["Place", "Walk", "walk"]

MAX_RUN = 1024
"""Entries that are looked at together: few enough for the processor's cache."""

MAX_ENTRIES = 2_000_000
"""Longest list that is judged. The kernel keeps all of its list in memory that cannot be swapped out: a longer one is
made up, to fill ours.
"""

_SHA256_SIZE = 32
_VIOLATION = b"\xff" * _SHA256_SIZE


class Place(msgspec.Struct, frozen=True):
    """Where an entry stands: number in what was walked over (from 0), and offset in bytes."""

    index: int
    offset: int


class Walk(msgspec.Struct):
    """What the pass found. ``total``: entries. ``matched``: how many of them the quote vouches for, None: no prefix.

    ``values``: the PCRs after these (sha256). ``strays``: PCRs of entries that the quote contradicts or does not
    cover. ``bad``: template hash and data differ. ``unknown``: what is not in the set of known entries.
    """

    total: int = 0
    matched: int | None = None
    values: dict[int, bytes] = msgspec.field(default_factory=dict)
    strays: frozenset[int] = frozenset()
    bad: list[Place] = msgspec.field(default_factory=list)
    violations: list[Place] = msgspec.field(default_factory=list)
    unknown: list[Place] = msgspec.field(default_factory=list)


class _Head(msgspec.Struct, frozen=True):
    """How the entries of a template begin, of any but the legacy one: ``named`` is its name with the length in front,
    ``size`` what stands before the data, ``unpack`` reads PCR, template hash, name (as ``named``) and size of the data.
    """

    named: bytes
    size: int
    unpack: Callable[[bytes, int], tuple[int, bytes, bytes, int]]


def _head_of(template: str) -> _Head:
    name = template.encode()
    named = len(name).to_bytes(4, "little") + name
    head = struct.Struct(f"<I20s{len(named)}sI")
    return _Head(named, head.size, head.unpack_from)


def walk(
    log: bytes,
    *,
    known: frozenset[bytes] | None,
    start: Mapping[int, bytes],
    main: int,
    quoted: QuotedPcrs,
    first: int = 0,
) -> Walk:
    """Walk over ``log``, whose first entry is number ``first`` of the whole list.

    ``known``: template data of entries that need no further look; None: none does. ``start``: PCRs before the first
    entry, zeros where absent. ``main``: the PCR that IMA extends. Raises EvidenceFormatError as parse_binary does.
    """
    walker = _Walker(log, known, quoted, main, {main: bytes(_SHA256_SIZE), **start})
    if first and quoted.matches(main, walker.value):
        walker.match()
    at = 0
    run = _head_of("ima-sig")
    while at < len(log):
        if walker.found.total > MAX_ENTRIES:
            raise EvidenceFormatError("IMA list", f"more than {MAX_ENTRIES} entries", offset=at)
        datas, claims, stop = _take_run(log, at, run, main)
        if datas:
            walker.extend_run(datas, claims, at, run.size)
            at = stop
            continue
        entry, stop = read_entry(log, at, first + walker.found.total)
        walker.extend_one(entry, at)
        if entry.template != LEGACY_TEMPLATE:
            run = _head_of(entry.template)
        at = stop
    if walker.found.matched is not None:
        walker.found.strays = walker.strays(walker.found.values)
    return walker.found


def _take_run(log: bytes, at: int, head: _Head, main: int) -> tuple[list[bytes], list[bytes], int]:
    """Template data and claimed hashes of the entries from ``at`` on that have this head and extend ``main``, as many
    as there are, at most MAX_RUN; and the offset behind them.
    """
    datas: list[bytes] = []
    claims: list[bytes] = []
    named, size, unpack = head.named, head.size, head.unpack
    add_data, add_claim = datas.append, claims.append
    end = len(log)
    with suppress(struct.error):  # fewer bytes are left than a head has
        for _ in range(MAX_RUN):
            pcr, claimed, name, length = unpack(log, at)
            begin = at + size
            stop = begin + length
            if name != named or pcr != main or stop > end:
                break
            add_data(log[begin:stop])
            add_claim(claimed)
            at = stop
    return datas, claims, at


class _Walker:
    """The state of a walk. ``value``: the main PCR."""

    def __init__(
        self, log: bytes, known: frozenset[bytes] | None, quoted: QuotedPcrs, main: int, start: Mapping[int, bytes]
    ) -> None:
        self.found = Walk()
        self.value = start[main]
        self._log = log
        self._known = known
        self._quoted = quoted
        self._main = main
        self._others = {pcr: value for pcr, value in start.items() if pcr != main}
        # Between the entry that brings the main PCR to its quoted value and the next one for it the quote was taken:
        # here all other PCRs that the list extends must come to their quoted values too.
        self._is_open = False

    def extend_run(self, datas: list[bytes], claims: list[bytes], at: int, head: int) -> None:
        """Entries for the main PCR; the first stands at ``at``, ``head`` bytes before its data."""
        extensions = [sha256(data).digest() for data in datas]
        hashed = [sha1(data, usedforsecurity=False).digest() for data in datas]
        if hashed != claims or not (self._known is None or self._known.issuperset(datas)):
            for number, data in enumerate(datas):
                if self._note(claims[number], hashed[number], data, number, at):
                    extensions[number] = _VIOLATION
                at += head + len(data)
        value = self.value
        total = self.found.total
        target, is_digest = self._target()
        for number, extension in enumerate(extensions, total + 1):
            value = sha256(value + extension).digest()
            if (sha256(value).digest() if is_digest else value) == target:
                self.value, self.found.total = value, number
                self.match()
        self.value = value
        self.found.total = total + len(datas)
        self._is_open = self._quoted.matches(self._main, value)

    def extend_one(self, entry: ImaEntry, at: int) -> None:
        """Any entry, read at ``at``."""
        hashed = sha1(entry.data, usedforsecurity=False).digest()
        violated = self._note(entry.template_hash, hashed, entry.data, 0, at)
        extension = _VIOLATION if violated else sha256(entry.data).digest()
        self.found.total += 1
        if entry.pcr == self._main:
            self.value = sha256(self.value + extension).digest()
            self._is_open = self._quoted.matches(self._main, self.value)
        else:
            before = self._others.get(entry.pcr, bytes(_SHA256_SIZE))
            self._others[entry.pcr] = sha256(before + extension).digest()
        if self._is_open:
            self.match()

    def _note(self, claimed: bytes, hashed: bytes, data: bytes, number: int, at: int) -> bool:
        """Put down what is to be said of an entry, ``number`` of those from the present one on. Is it a violation?"""
        place = Place(self.found.total + number, at)
        if claimed == VIOLATION_HASH:
            self.found.violations.append(place)
            return True
        if claimed != hashed:
            self.found.bad.append(place)
        elif self._known is not None and data not in self._known:
            self.found.unknown.append(place)
        return False

    def _target(self) -> tuple[bytes | None, bool]:
        """The quoted value of the main PCR, or its SHA-256, where version 1 gave no more, and True."""
        if self._main in self._quoted.values:
            return self._quoted.values[self._main], False
        return (self._quoted.digest if self._main == self._quoted.digest_pcr else None), True

    def match(self) -> None:
        """The main PCR has its quoted value: have the others theirs?"""
        self._is_open = True
        if not (strays := self.strays(self._others)):
            self.found.matched = self.found.total
            self.found.values = {**self._others, self._main: self.value}
        elif self.found.matched is None:
            self.found.strays = strays

    def strays(self, then: Mapping[int, bytes]) -> frozenset[int]:
        """PCRs that the quote contradicts; ``then``: as the list has them then, zeros where it had no entry yet."""
        zeros = bytes(_SHA256_SIZE)
        return frozenset(pcr for pcr in self._others if not self._quoted.matches(pcr, then.get(pcr, zeros)))
