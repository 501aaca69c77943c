"""Logs of run-time measurement registers: CCEL, dstack's JSON list."""

from __future__ import annotations

import json
from hashlib import sha384
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence import boot_log
from cosmian_vm.evidence.cc_event_log import (
    MAX_RTMR_LOG,
    extend,
    is_ccel,
    parse_ccel,
    parse_rtmr_log,
    replay_ccel,
    replay_rtmrs,
    serialise_rtmr_log,
)

SEPARATOR = 4


def entry(imr: int = 0, **members: Any) -> dict[str, Any]:
    digest = sha384(b"\x01\x00\x00\x08:app-id:\xab\xcd").hexdigest() if imr == 3 else "11" * 48
    whole = {"imr": imr, "event_type": 0x08000001, "digest": digest, "event": "app-id", "event_payload": "abcd"}
    return {**whole, **members}


def rtmr_log(*entries: object) -> bytes:
    return json.dumps(entries).encode()


def ccel(*registers: int) -> bytes:
    """A log with one separator in each register."""
    return boot_log.make_log(["sha384"], [(r, SEPARATOR, b"\x00" * 4, b"\x00" * 4) for r in registers])


def test_replay_of_a_list() -> None:
    log = parse_rtmr_log(rtmr_log(entry(0), entry(3), entry(0)))
    once = sha384(bytes(48) + b"\x11" * 48).digest()
    assert replay_rtmrs(log)[0] == sha384(once + b"\x11" * 48).digest()
    assert replay_rtmrs(log)[1:3] == (bytes(48), bytes(48))
    assert replay_rtmrs(log)[3] == extend(bytes(48), log.events[1].named_digest)
    assert parse_rtmr_log(serialise_rtmr_log(log)) == log


def test_names_are_bound_by_digests_in_rtmr_3_only() -> None:
    events = parse_rtmr_log(rtmr_log(entry(0), entry(3), entry(3, event="app"), entry(3, event_payload="ab"))).events
    assert [event.holds for event in events] == [True, True, False, False]
    assert not parse_rtmr_log(rtmr_log(entry(3, event_type=5))).events[0].holds


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"imr": 4}, "imr"),
        ({"imr": -1}, "imr"),
        ({"imr": True}, "imr"),
        ({"imr": "0"}, "imr"),
        ({"event_type": 1 << 32}, "event_type"),
        ({"event_type": None}, "event_type"),
        ({"digest": "11" * 47}, "digest"),
        ({"digest": ""}, "digest"),
        ({"digest": "zz" * 48}, "digest"),
        ({"digest": None}, "digest"),
        ({"event": None}, "event"),
        ({"event_payload": "a"}, "event_payload"),
        ({"event_payload": 5}, "event_payload"),
    ],
)
def test_errors_name_entry_and_member(members: dict[str, Any], field: str) -> None:
    with pytest.raises(EvidenceFormatError) as caught:
        parse_rtmr_log(rtmr_log(entry(), entry(**members)))
    assert caught.value.field == f"event 1.{field}"


@pytest.mark.parametrize("raw", [b"", b"{}", b"[5]", b"\xff", b"[" * 20_000, b"[" + b"9" * 5000 + b"]", b"[{}]"])
def test_what_is_no_list_of_events_is_refused(raw: bytes) -> None:
    with pytest.raises(EvidenceFormatError):
        parse_rtmr_log(raw)


def test_a_huge_list_is_refused() -> None:
    with pytest.raises(EvidenceFormatError, match="more than"):
        parse_rtmr_log(b" " * (MAX_RTMR_LOG + 1))


def test_a_lone_surrogate_in_a_name_is_hashed_not_raised() -> None:
    log = parse_rtmr_log(b"[" + json.dumps(entry(3, event="\ud800")).encode() + b"]")
    assert not log.events[0].holds


@given(st.integers(0, 400), st.binary(min_size=1, max_size=3))
def test_changed_bytes_are_read_or_refused(at: int, value: bytes) -> None:
    raw = rtmr_log(entry(0), entry(3))
    changed = raw[:at] + value + raw[at + len(value) :]
    try:
        log = parse_rtmr_log(changed)
    except EvidenceFormatError:
        return
    assert parse_rtmr_log(serialise_rtmr_log(log)) == log


def test_every_truncation_of_a_list_is_a_format_error() -> None:
    raw = rtmr_log(entry(0), entry(3))
    for size in range(len(raw)):
        with pytest.raises(EvidenceFormatError):
            parse_rtmr_log(raw[:size])


def test_register_n_of_a_ccel_is_rtmr_n_minus_1() -> None:
    values = replay_ccel(parse_ccel(ccel(1, 3, 3)))
    assert values[0] != bytes(48)
    assert values[1] == bytes(48)
    assert values[2] not in (bytes(48), values[0])
    assert values[3] == bytes(48)


def test_a_tpm_log_is_no_ccel() -> None:
    assert is_ccel(boot_log.parse(ccel(0, 1, 4)))
    assert not is_ccel(boot_log.parse(ccel(1, 7)))
    assert not is_ccel(boot_log.parse(ccel()))
    with pytest.raises(EvidenceFormatError):
        parse_ccel(boot_log.make_log(["sha256"], [(1, SEPARATOR, b"\x00" * 4, b"\x00" * 4)]))


@pytest.mark.evidence
def test_real_lists_round_trip(evidence: Path) -> None:
    found = sorted(evidence.glob("tdx/*/event_log.json"))
    assert found
    for path in found:
        log = parse_rtmr_log(path.read_bytes())
        assert all(event.holds for event in log.events)
        assert parse_rtmr_log(serialise_rtmr_log(log)) == log
