"""CBOR (RFC 8949), as much of it as evidence in certificates uses: definite lengths, no floats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from cosmian_vm._reader import Reader
from cosmian_vm.errors import EvidenceFormatError

__all__ = ["Tagged", "Value", "decode"]

_WHAT = "CBOR"
_MAX_DEPTH = 8
_UNSIGNED, _NEGATIVE, _BYTES, _TEXT, _ARRAY, _MAP, _TAG, _SIMPLE = range(8)
_SIMPLE_VALUES = {20: False, 21: True, 22: None, 23: None}

Value: TypeAlias = "int | bytes | str | bool | list[Value] | dict[int | bytes | str, Value] | Tagged | None"
"""What an item may be."""


@dataclass(frozen=True, slots=True)
class Tagged:
    """An item with a tag before it."""

    tag: int
    value: Value


def decode(raw: bytes) -> Value:
    """The one item that ``raw`` is. Raises EvidenceFormatError."""
    reader = Reader(raw, _WHAT)
    value = _item(reader, 0)
    reader.end()
    return value


def _item(reader: Reader, depth: int) -> Value:
    if depth > _MAX_DEPTH:
        raise reader.error("nested too deep", "item")
    head = reader.u8("item")
    major, argument = head >> 5, _argument(reader, head & 0x1F)
    if major == _UNSIGNED:
        return argument
    if major == _NEGATIVE:
        return -1 - argument
    if major == _BYTES:
        return reader.take(argument, "byte string")
    if major == _TEXT:
        return reader.take(argument, "text string").decode("utf-8", "replace")
    if major == _TAG:
        return Tagged(argument, _item(reader, depth + 1))
    if major == _SIMPLE:
        if argument not in _SIMPLE_VALUES:
            raise reader.error("a float or unknown simple value", "item")
        return _SIMPLE_VALUES[argument]
    if argument > reader.remaining:
        raise reader.error(f"{argument} members do not fit", "array or map")
    if major == _ARRAY:
        return [_item(reader, depth + 1) for _ in range(argument)]
    return _map(reader, argument, depth)


def _map(reader: Reader, size: int, depth: int) -> Value:
    found: dict[int | bytes | str, Value] = {}
    for _ in range(size):
        key = _item(reader, depth + 1)
        if not isinstance(key, int | bytes | str) or key in found:
            raise reader.error("a key that is repeated, or of no plain type", "map")
        found[key] = _item(reader, depth + 1)
    return found


def _argument(reader: Reader, info: int) -> int:
    if info < 24:
        return info
    if info > 27:
        raise EvidenceFormatError(_WHAT, "an indefinite length", offset=reader.offset, field="item")
    return reader.uint(1 << info - 24, "argument", big=True)
