"""Lists of files with their digests, as JSON holds them, and what is said of JSON that holds something else."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from typing import TypeVar

import msgspec

from cosmian_vm.errors import InputError
from cosmian_vm.reference._policies import check_hex

__all__ = ["DIGEST_SIZES", "check_digests", "check_path_bytes", "decoded", "exact_files", "file_entries", "plain"]

DIGEST_SIZES = frozenset({16, 20, 28, 32, 48, 64})
"""Sizes in bytes of the digests that IMA may print."""

_HEX = "0123456789abcdef"
_SHOWN = 400
_CHECKED_AT_ONCE = 1024
_DIGEST_LENGTHS = frozenset(2 * size for size in DIGEST_SIZES)


def check_digests(name: str, entries: tuple[tuple[str, str], ...]) -> None:
    """Every digest is lower-case hex of a known size. There may be hundreds of thousands: many at once, but no more
    than the processor's cache holds.
    """
    for start in range(0, len(entries), _CHECKED_AT_ONCE):
        digests = list(map(itemgetter(1), entries[start : start + _CHECKED_AT_ONCE]))
        joined = "".join(digests)
        with contextlib.suppress(ValueError):
            if set(map(len, digests)) <= _DIGEST_LENGTHS and bytes.fromhex(joined).hex() == joined:
                continue
        _blame(name, entries, start)


def _blame(name: str, entries: tuple[tuple[str, str], ...], start: int) -> None:
    for index, (path, digest) in enumerate(entries[start:], start):
        if len(digest) not in _DIGEST_LENGTHS or digest.strip(_HEX):
            raise ValueError(f"{name}[{index}] ({path[:200]!r}): the digest must be lower-case hex of a known length")


def check_path_bytes(exact: dict[int, str], files: tuple[tuple[str, str], ...]) -> None:
    for index, value in exact.items():
        raw = check_hex(f"path_bytes.{index}", value)
        if not 0 <= index < len(files) or raw.decode(errors="replace") != files[index][0]:
            raise ValueError(f"path_bytes.{index} does not belong to the path at filehashes[{index}]")


def file_entries(files: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[tuple[str, str], ...], dict[int, str]]:
    """``filehashes`` and ``path_bytes`` for exact paths and digests, in the order given."""
    entries = []
    exact = {}
    for index, (path, digest) in enumerate(files):
        try:
            text = path.decode()
        except UnicodeDecodeError:
            text = path.decode(errors="replace")
            exact[index] = path.hex()
        entries.append((text, digest.hex()))
    return tuple(entries), exact


def exact_files(entries: Iterable[tuple[str, str]], exact: Mapping[int, str]) -> Iterator[tuple[bytes, bytes]]:
    """The reverse of :func:`file_entries`: each file's exact path and digest."""
    for index, (path, digest) in enumerate(entries):
        raw = bytes.fromhex(exact[index]) if index in exact else path.encode()
        yield raw, bytes.fromhex(digest)


_T = TypeVar("_T")
_PLACE = r"(?P<problem>.*) - at `(?:key in )?\$\.?(?P<field>.*)`"


def decoded(decoder: msgspec.json.Decoder[_T], raw: bytes, what: str, kind: str) -> _T:
    """The value in ``raw``. ``what`` names the file in errors, ``kind`` says what it should be (with its article).

    Raises InputError naming file and field.
    """
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as exc:
        place = re.fullmatch(_PLACE, str(exc), re.DOTALL)
        problem, field = (place["problem"], place["field"]) if place else (str(exc), "")
        where = f", field {plain(field)}" if field else ""
        raise InputError(f"{what}{where}: {plain(problem)}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InputError(f"{what}: not {kind}, not even JSON: {plain(str(exc))}") from exc


def plain(problem: str) -> str:
    """One printable line of what msgspec said, which may quote a key of the file."""
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in problem[:_SHOWN])
    return " ".join(shown.replace("`", "").split())
