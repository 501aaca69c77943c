"""A strict look at decoded JSON: every key is known, every value has the one type that it may have.

``Table`` hands out each key of an object once; ``end`` then refuses what nobody asked for. Every method raises
EvidenceFormatError naming the path of the value.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Collection, Iterator
from typing import Any, NoReturn

from cosmian_vm.errors import EvidenceFormatError

__all__ = ["Table", "decode"]

_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")
_ID = re.compile(r"0|[1-9][0-9]?")


class _WrongError(ValueError):
    """What the standard library would let pass."""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise _WrongError("a key occurs twice in one object")
    return table


def _no_constant(name: str) -> NoReturn:
    raise _WrongError(f"{name[:20]} is no JSON")


def decode(raw: bytes, what: str) -> Table:
    """The object that ``raw`` (ASCII) is, whole. Duplicate keys, which parsers read differently, are refused."""
    try:
        value = json.loads(raw.decode("ascii"), object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as exc:
        problem = str(exc) if isinstance(exc, _WrongError) else "not JSON in ASCII"
        raise EvidenceFormatError(what, problem, field="JSON") from exc
    return Table(value, what, "JSON")


class Table:
    """One JSON object at ``path``."""

    def __init__(self, value: object, what: str, path: str) -> None:
        self._what = what
        self.path = path
        self._known: set[str] = set()
        if not isinstance(value, dict):
            raise EvidenceFormatError(what, "expected is an object", field=path)
        self._values: dict[str, Any] = value

    def wrong(self, problem: str, key: str | None = None) -> NoReturn:
        """Raise EvidenceFormatError about ``key``, or about the whole object."""
        raise EvidenceFormatError(self._what, problem, field=self.path if key is None else f"{self.path}.{key}")

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def _get(self, key: str) -> object:
        self._known.add(key)
        if key not in self._values:
            self.wrong("is missing", key)
        return self._values[key]

    def end(self) -> None:
        """Whatever was not asked for is refused."""
        for key in self._values:
            if key not in self._known:
                self.wrong(f"unknown key {key[:40]!r}")

    def table(self, key: str) -> Table:
        """A member that is an object."""
        return Table(self._get(key), self._what, f"{self.path}.{key}")

    def numbered(self, key: str, limit: int) -> Iterator[tuple[int, Table]]:
        """The members of an object whose keys are numbers below ``limit``, as text without leading zeros."""
        members = self.table(key)
        for name, value in members._values.items():
            if not _ID.fullmatch(name) or int(name) >= limit:
                members.wrong(f"{name[:40]!r} is no number below {limit}")
            yield int(name), Table(value, self._what, f"{members.path}.{name}")

    def one_of(self, key: str, allowed: Collection[str]) -> str:
        """A string of an allowlist."""
        value = self._get(key)
        if not isinstance(value, str) or value not in allowed:
            shown = repr(value)[:60] if isinstance(value, str) else "no string"
            self.wrong(f"is {shown}; allowed is {', '.join(sorted(allowed))}", key)
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        """A JSON number, whole, within limits (inclusive)."""
        value = self._get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            self.wrong(f"expected is a whole number from {low} to {high}", key)
        return value

    def decimal(self, key: str) -> int:
        """A number of 64 bits that stands in a string."""
        value = self._get(key)
        if not isinstance(value, str) or not _DECIMAL.fullmatch(value):
            self.wrong("expected is a decimal number in a string", key)
        return int(value)

    def false(self, key: str) -> None:
        """The constant false."""
        if self._get(key) is not False:
            self.wrong("expected is false", key)

    def base64(self, key: str, low: int, high: int) -> bytes:
        """Bytes in base64, their number within limits (inclusive)."""
        value = self._get(key)
        try:
            raw = base64.b64decode(value, validate=True) if isinstance(value, str) else b""
        except (binascii.Error, ValueError):
            raw = b""
        if not low <= len(raw) <= high:
            self.wrong(f"expected is base64 of {low} to {high} bytes", key)
        return raw

    def ids(self, key: str) -> list[int]:
        """A list of different numbers, each as text."""
        value = self._get(key)
        if not isinstance(value, list) or not all(isinstance(one, str) and _ID.fullmatch(one) for one in value):
            self.wrong("expected is a list of numbers in strings", key)
        return self._distinct(key, [int(one) for one in value])

    def integers(self, key: str, low: int, high: int) -> list[int]:
        """A list of different JSON numbers within limits (inclusive)."""
        value = self._get(key)
        if not isinstance(value, list) or not all(
            isinstance(one, int) and not isinstance(one, bool) and low <= one <= high for one in value
        ):
            self.wrong(f"expected is a list of numbers from {low} to {high}", key)
        return self._distinct(key, value)

    def hexadecimal(self, key: str, size: int) -> bytes:
        """``size`` bytes in lower-case hex."""
        value = self._get(key)
        if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{2 * size}}}", value):
            self.wrong(f"expected are {size} bytes in hex", key)
        return bytes.fromhex(value)

    def _distinct(self, key: str, numbers: list[int]) -> list[int]:
        if len(set(numbers)) != len(numbers):
            self.wrong("a number occurs twice", key)
        return numbers
