"""The whitelist: lines of PATH DIGEST."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.errors import InputError
from cosmian_vm.reference.whitelist import MAX_WHITELIST_SIZE, Whitelist, parse_whitelist

DIGEST = "ab" * 32


def test_paths_may_hold_spaces_and_any_byte() -> None:
    text = (
        b"\xef\xbb\xbf# a comment\n"
        b"\n"
        b"/usr/bin/true " + DIGEST.encode() + b"\n"
        b"  /opt/My Program/run  it \t  \t" + b"CD" * 20 + b"\r\n"
        b"   # another one\n"
        b"/caf\xe9 " + b"01" * 48 + b"\n"
        b"/usr/bin/true " + DIGEST.encode() + b"\n"
        b"/usr/bin/true " + b"02" * 32
    )
    whitelist = parse_whitelist(text, "list")
    assert list(whitelist.files) == [
        (b"/usr/bin/true", b"\xab" * 32),
        (b"/opt/My Program/run  it", b"\xcd" * 20),
        (b"/caf\xe9", b"\x01" * 48),
        (b"/usr/bin/true", b"\x02" * 32),
    ]
    assert len(whitelist) == 4
    assert parse_whitelist(b"", "list") == Whitelist("list")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"/usr/bin/true", "one word"),
        (DIGEST.encode(), "one word"),
        (b"/usr/bin/true xyz", "not a digest"),
        (b"/usr/bin/true \xff\xff", "not a digest"),
        (b"/usr/bin/true abc", "not a digest"),
        (b"/usr/bin/true abcd", "4 hex digits"),
        (DIGEST.encode() + b" /usr/bin/true", "not a digest"),
        (b"/a\0b " + DIGEST.encode(), "zero byte"),
        (b"/a\x1b[2J", "one word"),
        (b"/a " + b"\x1b[2J" * 500, "not a digest"),
    ],
)
def test_errors_name_file_and_line(line: bytes, problem: str) -> None:
    with pytest.raises(InputError) as info:
        parse_whitelist(b"# first\n/ok " + DIGEST.encode() + b"\n" + line + b"\n", "my list")
    text = str(info.value)
    assert text.startswith("my list, line 3: ")
    assert problem in text
    assert text.isprintable()
    assert len(text) < 400


def test_a_huge_file_is_refused() -> None:
    with pytest.raises(InputError, match="my list: larger"):
        parse_whitelist(b"\n" * (MAX_WHITELIST_SIZE + 1), "my list")


@given(st.binary(max_size=200))
def test_any_bytes(raw: bytes) -> None:
    with contextlib.suppress(InputError):  # any other error fails the test
        assert all(path and digest for path, digest in parse_whitelist(raw, "list").files)
