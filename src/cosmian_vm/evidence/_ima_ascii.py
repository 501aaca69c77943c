"""The ASCII form of an IMA list: ``/sys/kernel/security/ima/ascii_runtime_measurements``.

Linux ``security/integrity/ima/ima_fs.c``, ``ima_ascii_measurements_show()``; one line an entry::

    PCR (width 2) | template hash, hex | template name | one column for each field, empty where the field is

Columns are separated by one space, and names may hold spaces and line feeds: the form is ambiguous. Of all ways to
read a line, the one counts whose data hash to the template hash; where none does, the plainest.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations_with_replacement, islice, product

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence._ima_entry import MAX_PCR, VIOLATION_HASH, ImaEntry, hash_data
from cosmian_vm.evidence._ima_templates import (
    DIGEST_FIELDS,
    HASH_SIZES,
    INTEGER_SIZES,
    LEGACY,
    LEGACY_DIGEST_SIZE,
    LEGACY_NAME_SIZE,
    STRING_FIELDS,
    field_names,
    is_known_field,
    join,
    split,
)

__all__ = ["parse_ascii", "serialise_ascii"]

_WHAT = "IMA list (ASCII)"
_LINE = re.compile(rb" {0,2}([0-9]{1,2}) ([0-9a-f]{40,128}) ([!-~]{1,255}) (.*)", re.DOTALL)
_DIGEST = re.compile(rb"((?:[a-z]{1,16}:)?[A-Za-z0-9_.()-]{1,64}):((?:[0-9a-f]{2})*)")
_HEX = re.compile(rb"(?:[0-9a-f]{2})*")
_DECIMAL = re.compile(rb"0|[1-9][0-9]{0,9}")

MAX_LINE = 4 << 20
"""Longest line, in bytes: a measured buffer is printed in it, in hex."""
MAX_READINGS = 64
"""How many ways to read one ambiguous line are tried."""
MAX_JOINED = 16
"""How many lines one entry may go over (line feeds in its name)."""


def parse_ascii(raw: bytes) -> tuple[ImaEntry, ...]:
    """Parse an ASCII list; also where CR LF ends its lines.

    Raises EvidenceFormatError with line number (from 1) and offset.
    """
    if raw.count(b"\r\n") == raw.count(b"\n") != 0:
        raw = raw.replace(b"\r\n", b"\n")
    lines = raw.removesuffix(b"\n").split(b"\n") if raw else []
    entries = []
    at = offset = 0
    while at < len(lines):
        entry, used = _entry(lines, at, offset)
        entries.append(entry)
        offset += sum(len(line) + 1 for line in lines[at : at + used])
        at += used
    return tuple(entries)


def _entry(lines: Sequence[bytes], at: int, offset: int) -> tuple[ImaEntry, int]:
    """The entry that begins at line ``at``, and over how many lines it goes."""
    line = lines[at]
    entry: ImaEntry | None = None
    problem: EvidenceFormatError | None = None
    try:
        entry = _parse_line(line, at + 1, offset)
    except EvidenceFormatError as exc:
        problem = exc
    if entry is not None and entry.hash_matches and not entry.is_violation:
        return entry, 1
    # Perhaps a line feed in a name: then what follows is no line of its own, and only the joined lines hash right.
    for more in range(1, min(MAX_JOINED, len(lines) - at)):
        following = lines[at + more]
        if _LINE.fullmatch(following) or _LINE.fullmatch(line) is None:
            break
        line += b"\n" + following
        try:
            joined = _parse_line(line, at + 1, offset)
        except EvidenceFormatError:
            continue
        if joined.hash_matches and not joined.is_violation:
            return joined, more + 1
    if entry is None:
        raise problem or _error("cannot be read", at + 1, offset)
    return entry, 1


def _parse_line(line: bytes, number: int, offset: int) -> ImaEntry:
    """One line without its line feed."""
    if len(line) > MAX_LINE:
        raise _error(f"is longer than {MAX_LINE} bytes", number, offset)
    match = _LINE.fullmatch(line)
    if match is None:
        raise _error("does not begin with PCR, template hash (hex) and template name", number, offset)
    pcr, claimed, template = int(match[1]), match[2], match[3].decode("ascii")
    names = field_names(template)
    if pcr > MAX_PCR:
        raise _error(f"there is no PCR {pcr}", number, offset)
    if len(claimed) % 2:
        raise _error("the template hash has an odd number of digits", number, offset + match.start(2))
    if names is None:
        raise _error(f"unknown template {template[:64]}", number, offset + match.start(3))
    template_hash = bytes.fromhex(claimed.decode("ascii"))
    violation = template_hash == VIOLATION_HASH
    first: bytes | None = None
    for data in islice(_readings(template, names, match[4], violation=violation), MAX_READINGS):
        if violation or (hash_data(data, "sha1") == template_hash):
            return ImaEntry(pcr, template_hash, template, data)
        first = data if first is None else first
    if first is None:
        raise _error(f"the columns are not those of {template} ({', '.join(names)})", number, offset + match.start(4))
    return ImaEntry(pcr, template_hash, template, first)


def _error(problem: str, number: int, offset: int) -> EvidenceFormatError:
    return EvidenceFormatError(_WHAT, problem, offset=offset, field=f"line {number}")


def _readings(template: str, names: Sequence[str], columns: bytes, *, violation: bool) -> Iterator[bytes]:
    """Template data for every way to read the columns, the plainest first."""
    for values in _columns(names, columns):
        options = []
        for name, value in zip(names, values, strict=True):
            encoded = _legacy(name, value) if template == LEGACY else _encode(name, value, violation=violation)
            options.append(encoded)
        for fields in product(*options):
            yield join(template, dict(zip(names, fields, strict=True)))


def _columns(names: Sequence[str], text: bytes) -> Iterator[list[bytes]]:
    """Every way to cut ``text`` into one column a field: spaces may belong to strings, and to fields not known.

    Last come the ways in which empty columns at the end have lost their space (an editor, a mail program).
    """
    tokens = text.split(b" ")
    wide = [index for index, name in enumerate(names) if name in STRING_FIELDS or not is_known_field(name)]
    for missing in range(len(names) - 1):
        here = len(names) - missing
        surplus = len(tokens) - here
        places = [index for index in wide if index < here]
        if surplus < 0 or (surplus and not places):
            continue
        for choice in islice(_shares(places, surplus), MAX_READINGS):
            widths = [1] * here
            for index in choice:
                widths[index] += 1
            values = []
            at = 0
            for width in widths:
                values.append(b" ".join(tokens[at : at + width]))
                at += width
            yield values + [b""] * missing


def _shares(places: Sequence[int], surplus: int) -> Iterable[Sequence[int]]:
    """Every way to give ``surplus`` further words to the columns at ``places``."""
    return combinations_with_replacement(places, surplus) if len(places) > 1 else [[*places] * surplus]


def _legacy(name: str, value: bytes) -> list[bytes]:
    if name == "n":
        return [value] if len(value) < LEGACY_NAME_SIZE and b"\0" not in value else []
    return [bytes.fromhex(value.decode())] if len(value) == 2 * LEGACY_DIGEST_SIZE and _HEX.fullmatch(value) else []


def _encode(name: str, value: bytes, *, violation: bool) -> list[bytes]:
    """What the kernel may have had in the field that it printed as ``value``; empty where it could not print that."""
    if name in DIGEST_FIELDS:
        return _encode_digest(name, value, violation=violation)
    if name in STRING_FIELDS:
        # Every string has its NUL in the list, but xattrnames of a file that has none.
        return [value + b"\0"] if value or name != "xattrnames" else [b"", b"\0"]
    if name in INTEGER_SIZES:
        size = INTEGER_SIZES[name]
        if not value:
            return [b""]
        fits = _DECIMAL.fullmatch(value) and int(value) < 1 << 8 * size
        return [int(value).to_bytes(size, "little")] if fits else []
    found = [bytes.fromhex(value.decode())] if _HEX.fullmatch(value) else []
    return found if is_known_field(name) else [*found, value + b"\0", value]


def _encode_digest(name: str, value: bytes, *, violation: bool) -> list[bytes]:
    if not value and name == "d-modsig":
        return [b""]
    if match := _DIGEST.fullmatch(value):
        algorithm = match[1].decode().rpartition(":")[2]
        digest = bytes.fromhex(match[2].decode())
        # Violations have been written with 20 zeros whatever the algorithm.
        if not violation and len(digest) != HASH_SIZES.get(algorithm, len(digest)):
            return []
        return [match[1] + b":\0" + digest]
    return [bytes.fromhex(value.decode())] if value and _HEX.fullmatch(value) else []


def serialise_ascii(entries: Iterable[ImaEntry]) -> bytes:
    """The ASCII list, as the kernel prints it; a field that is not known is printed in hex.

    Raises EvidenceFormatError for an entry whose template is opaque or whose data do not follow it.
    """
    return b"".join(_line(index, entry) for index, entry in enumerate(entries))


def _line(index: int, entry: ImaEntry) -> bytes:
    fields = split(entry.template, entry.data)
    if fields is None:
        raise EvidenceFormatError(_WHAT, f"the template {entry.template} has no known columns", field=f"entry {index}")
    head = f"{entry.pcr:2d} {entry.template_hash.hex()} {entry.template}".encode()
    return b" ".join((head, *(_printer(name)(value) for name, value in fields.items()))) + b"\n"


def _printer(name: str) -> Callable[[bytes], bytes]:
    if name in DIGEST_FIELDS:
        return _print_digest
    if name in STRING_FIELDS:
        return lambda value: value.removesuffix(b"\0")
    if name in INTEGER_SIZES:
        return lambda value: b"%d" % int.from_bytes(value, "little") if value else b""
    return lambda value: value.hex().encode()


def _print_digest(value: bytes) -> bytes:
    prefix, separator, digest = value.partition(b":\0")
    return prefix + b":" + digest.hex().encode() if separator else value.hex().encode()
