"""The cursor never reads past the end and always says where it stood."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm._reader import Reader
from cosmian_vm.errors import EvidenceFormatError


def test_reads_integers_in_both_orders() -> None:
    reader = Reader(bytes(range(1, 20)), "thing")
    assert reader.u8("a") == 0x01
    assert reader.u16("b") == 0x0302
    assert reader.u32("c") == 0x07060504
    assert reader.u64("d") == 0x0F0E0D0C0B0A0908
    assert reader.uint(2, "e", big=True) == 0x1011
    assert reader.rest() == bytes([0x12, 0x13])
    reader.end()


def test_an_error_names_structure_field_and_offset() -> None:
    reader = Reader(b"\0\1\2", "thing", base=0x100)
    reader.u16("first")
    with pytest.raises(EvidenceFormatError, match=r"^thing, second at offset 0x102: needs 4 bytes, 1 are left$") as got:
        reader.u32("second")
    assert (got.value.what, got.value.field, got.value.offset) == ("thing", "second", 0x102)


def test_reserved_bytes_and_trailing_bytes_are_refused() -> None:
    reader = Reader(b"\0\1", "thing")
    with pytest.raises(EvidenceFormatError, match="not zero"):
        reader.zeros(2, "reserved")
    with pytest.raises(EvidenceFormatError, match="2 bytes too many"):
        reader.end()


@given(st.binary(max_size=64), st.lists(st.integers(-3, 40), max_size=8))
def test_what_was_read_is_a_prefix(data: bytes, sizes: list[int]) -> None:
    reader = Reader(data, "thing")
    read = b""
    for size in sizes:
        try:
            read += reader.take(size, "field")
        except EvidenceFormatError:
            assert size < 0 or size > len(data) - len(read)
    assert data.startswith(read)
    assert reader.remaining == len(data) - len(read)
