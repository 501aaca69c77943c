"""TPMS_ATTEST of a certification: round trip, truncation, mutation."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.tpm_certify import TpmCertifyInfo, parse_certify, serialise_certify

INFO = TpmCertifyInfo(
    b"\x00\x0b" + b"\x01" * 32, b"\x02" * 32, 123456, 3, 1, True, 0x20191023, b"\x00\x0b" * 17, b"\x03"
)
RAW = serialise_certify(INFO)

_names = st.binary(max_size=66)
_infos = st.builds(
    TpmCertifyInfo,
    qualified_signer=_names,
    extra_data=_names,
    clock=st.integers(0, 2**64 - 1),
    reset_count=st.integers(0, 2**32 - 1),
    restart_count=st.integers(0, 2**32 - 1),
    safe=st.booleans(),
    firmware_version=st.integers(0, 2**64 - 1),
    name=_names,
    qualified_name=_names,
)


@given(_infos)
def test_round_trip(info: TpmCertifyInfo) -> None:
    assert parse_certify(serialise_certify(info)) == info


@pytest.mark.parametrize("size", range(len(RAW)))
def test_every_truncation(size: int) -> None:
    with pytest.raises(EvidenceFormatError):
        parse_certify(RAW[:size])


def test_trailing_bytes() -> None:
    with pytest.raises(EvidenceFormatError, match="too many"):
        parse_certify(RAW + b"\0")


@pytest.mark.parametrize(
    ("at", "value", "field"), [(0, 0, "magic"), (5, 0x18, "type"), (6, 1, "qualifiedSigner"), (92, 2, "safe")]
)
def test_what_it_is_not(at: int, value: int, field: str) -> None:
    raw = bytearray(RAW)
    raw[at] = value
    with pytest.raises(EvidenceFormatError) as caught:
        parse_certify(bytes(raw))
    assert caught.value.field == field


@given(st.binary(max_size=300))
def test_anything_else_is_a_format_error(raw: bytes) -> None:
    with suppress(EvidenceFormatError):
        assert serialise_certify(parse_certify(raw)) == raw
