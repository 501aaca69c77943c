"""QuoteCollateralV3: read whole or refused by member; the signed texts stay byte for byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.devkit.intel import IntelVendor
from cosmian_vm.endorsements.intel_collateral import MAX_COLLATERAL, parse_collateral, serialise_collateral
from cosmian_vm.errors import EvidenceFormatError

VENDOR = IntelVendor.create()
RAW = VENDOR.collateral()
MEMBERS: dict[str, str] = json.loads(RAW)
INFO: dict[str, Any] = json.loads(MEMBERS["tcb_info"])
IDENTITY: dict[str, Any] = json.loads(MEMBERS["qe_identity"])


def refused(raw: bytes) -> EvidenceFormatError:
    with pytest.raises(EvidenceFormatError) as caught:
        parse_collateral(raw)
    return caught.value


def test_round_trip_and_signed_texts() -> None:
    collateral = parse_collateral(RAW)
    assert json.loads(serialise_collateral(collateral)) == MEMBERS
    assert parse_collateral(serialise_collateral(collateral)).raw == collateral.raw
    assert collateral.tcb_info_text == MEMBERS["tcb_info"].encode()
    assert collateral.qe_identity_text == MEMBERS["qe_identity"].encode()
    assert collateral.tcb_info.value("fmspc").hex() == "90c06f000000"
    assert collateral.window is not None


def test_every_truncation_is_a_format_error() -> None:
    for size in range(0, len(RAW), 37):
        refused(RAW[:size])


@pytest.mark.parametrize("name", MEMBERS)
def test_every_member_is_needed_and_of_its_form(name: str) -> None:
    without = {key: value for key, value in MEMBERS.items() if key != name}
    assert refused(json.dumps(without).encode()).field == name
    assert refused(json.dumps({**MEMBERS, name: None}).encode()).field == name
    for nonsense in ("", "nonsense", "00"):
        assert name in str(refused(json.dumps({**MEMBERS, name: nonsense}).encode()))


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"version": "3"},
        {"fmspc": "90c06f"},
        {"fmspc": "zzc06f000000"},
        {"fmspc": "+0c06f000000"},
        {"pceId": ""},
        {"issueDate": "yesterday"},
        {"issueDate": "2026-01-01T00:00:00"},
        {"tcbEvaluationDataNumber": -1},
        {"tcbLevels": None},
        {"tcbLevels": [{"tcb": {"sgxtcbcomponents": [], "pcesvn": 1}, "tcbStatus": "UpToDate"}]},
        {"tcbLevels": [{"tcb": {"sgxtcbcomponents": [{"svn": 256}] * 16, "pcesvn": 1}, "tcbStatus": "UpToDate"}]},
        {"tdxModule": {"mrsigner": "00", "attributes": "00" * 8, "attributesMask": "FF" * 8}},
    ],
)
def test_tcb_info_of_another_form_is_refused(change: dict[str, Any]) -> None:
    text = json.dumps({**INFO, **change})
    assert refused(json.dumps({**MEMBERS, "tcb_info": text}).encode()).field == "tcb_info"


@pytest.mark.parametrize(
    "change", [{"version": 1}, {"mrsigner": "00"}, {"isvprodid": -1}, {"attributesMask": "F" * 31}]
)
def test_a_qe_identity_of_another_form_is_refused(change: dict[str, Any]) -> None:
    text = json.dumps({**IDENTITY, **change})
    assert refused(json.dumps({**MEMBERS, "qe_identity": text}).encode()).field == "qe_identity"


@pytest.mark.parametrize("raw", [b"[]", b"\xff", b"[" * 20_000, b'{"a":' * 20_000, b"{}", b" " * (MAX_COLLATERAL + 1)])
def test_what_is_no_collateral_is_refused(raw: bytes) -> None:
    refused(raw)


@given(st.integers(0, len(RAW) - 1), st.binary(min_size=1, max_size=3))
def test_changed_bytes_are_read_or_refused(at: int, value: bytes) -> None:
    try:
        collateral = parse_collateral(RAW[:at] + value + RAW[at + len(value) :])
    except EvidenceFormatError:
        return
    assert parse_collateral(serialise_collateral(collateral)).raw == collateral.raw


@pytest.mark.evidence
def test_real_collateral_round_trips(evidence: Path) -> None:
    found = sorted(evidence.glob("collateral/intel/*.json"))
    assert found
    for path in found:
        collateral = parse_collateral(path.read_bytes())
        assert json.loads(serialise_collateral(collateral)) == json.loads(path.read_bytes())
