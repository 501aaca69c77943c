from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.errors import InputError
from cosmian_vm.luks.sizes import MIN_SIZE, parse_size, show_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500MB", 500_002_816),
        ("500 MB", 500_002_816),
        ("512MiB", 512 << 20),
        ("512M", 512 << 20),
        ("2GB", 2_000_003_072),
        ("1.5G", 1536 << 20),
        ("1TiB", 1 << 40),
        ("32000000B", 32_002_048),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert size % 4096 == 0


@pytest.mark.parametrize(
    "text",
    ["", "500", "MB", "-5GB", "5XB", "1e9B", "500MBs", "0GB", "1MB", "9" * 40 + "GB", "999999TB", "1.GB", "٥GB", "5iB"],
)
def test_no_sizes(text: str) -> None:
    with pytest.raises(InputError, match="size"):
        parse_size(text)


@given(st.text(max_size=12))
def test_any_text(text: str) -> None:
    try:
        assert parse_size(text) >= MIN_SIZE
    except InputError:
        return


def test_shown() -> None:
    assert [show_size(size) for size in (12, 64_000_000, 1_500_000_000, 10**16)] == [
        "12 B",
        "64 MB",
        "1.5 GB",
        "1e+04 TB",
    ]
