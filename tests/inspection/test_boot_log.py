"""inspect for boot event logs."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.devkit.soft_tpm import SoftTpm
from cosmian_vm.evidence.boot_log import EventType, make_log, parse, replay
from cosmian_vm.inspection import boot_log as module
from cosmian_vm.inspection.model import Item, Material, PcrValues, Roots, is_authentic
from cosmian_vm.verifier.result import Check

(KIND,) = module.KINDS
EVENTS = [
    (0, int(EventType.EV_S_CRTM_VERSION), b"v1", b"v1"),
    (4, int(EventType.EV_SEPARATOR), bytes(4), bytes(4)),
    (11, int(EventType.EV_IPL), b"stub", b".linux"),
]
LOG = make_log(["sha1", "sha256"], EVENTS)


def verify(raw: bytes, material: Material = Material()) -> tuple[dict[str, Check], bool]:  # noqa: B008 - immutable
    checks = KIND.verify(raw, material, datetime(2026, 1, 1, tzinfo=UTC), Roots())
    assert all(check.line.isprintable() for check in checks)
    return {check.id: check for check in checks}, is_authentic(checks)


def values(**changes: bytes) -> dict[int, bytes]:
    found = {pcr: bytes(32) for pcr in range(16)} | replay(parse(LOG), "sha256")
    return found | {int(pcr.removeprefix("pcr")): value for pcr, value in changes.items()}


def beside(**changes: bytes) -> Material:
    return Material(pcrs=(PcrValues("pcrs.yaml", {"sha256": values(**changes)}),))


def quoted(**changes: bytes) -> Material:
    device = SoftTpm()
    device.pcrs["sha256"] |= values()
    quote = Item("tpm-quote", "quote.msg", device.quote(b"nonce", range(16)).quote)
    return Material((quote,), beside(**changes).pcrs)


def test_alone() -> None:
    checks, authentic = verify(LOG)
    assert authentic
    assert str(checks["tpm.boot_pcrs"].status) == "skip"


@pytest.mark.parametrize("material", [beside(), quoted()])
def test_beside_the_right_values(material: Material) -> None:
    checks, authentic = verify(LOG, material)
    assert authentic
    assert "PCR 0, 4, 11" in checks["tpm.boot_pcrs"].line
    facts = KIND.facts(LOG, material)
    assert facts["replayed_pcrs_equal_quoted"] == [0, 4, 11]
    assert facts["replayed_pcrs_differ"] == []


def test_pcr_11_may_go_on_and_pcr_4_may_not() -> None:
    assert verify(LOG, beside(pcr11=b"\x01" * 32))[1]
    checks, authentic = verify(LOG, beside(pcr4=b"\x01" * 32))
    assert not authentic
    assert "does not replay to PCR 4" in checks["tpm.boot_pcrs"].line


def test_values_that_are_not_those_of_the_quote() -> None:
    checks, authentic = verify(LOG, quoted(pcr4=b"\x01" * 32))
    assert not authentic
    assert str(checks["pcr_digest"].status) == "fail"


def test_facts() -> None:
    facts = KIND.facts(LOG, Material())
    assert json.loads(json.dumps(facts)) == facts
    assert facts["events"] == 4
    assert facts["banks"] == ["sha1", "sha256"]
    assert "replayed_pcrs_equal_quoted" not in facts


def test_text_that_is_not_what_was_hashed() -> None:
    lying = make_log(["sha256"], [(4, EventType.EV_EFI_ACTION, b"one", b"another")])
    checks, _ = verify(lying)
    assert "another" in checks["event_digests"].details[0]


def test_what_is_an_event_log() -> None:
    assert KIND.matches(LOG)
    assert KIND.matches(LOG[:80])
    legacy = b"\0\0\0\0\x08\0\0\0" + b"\x01" * 20 + b"\x02\0\0\0v1"
    assert KIND.matches(legacy)
    assert KIND.facts(legacy, Material())["format"] == "sha1"
    for other in (b"", bytes(100), b"\xff" * 100, b"bogus\ninvalid\nevent\nlog\nfile\nhere\n", legacy[:-1]):
        assert not KIND.matches(other)


@given(data=st.data())
def test_damaged_logs_never_raise(data: st.DataObject) -> None:
    raw = bytearray(LOG)
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    KIND.matches(bytes(raw))
    verify(bytes(raw), quoted())
