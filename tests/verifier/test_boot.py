"""tpm.boot_pcrs: equal to the snapshot, and the event that differs is named."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.evidence.boot_log import EventType, make_log, parse, replay
from cosmian_vm.reference.snapshot import BOOT_PCRS, SevPolicy, Snapshot, TeePolicy
from cosmian_vm.verifier.boot import appraise_boot
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.result import Check, Status

Event = tuple[int, int, bytes, bytes]

BOOT: list[Event] = [
    (0, EventType.EV_S_CRTM_VERSION, b"firmware 1", b"firmware 1"),
    (4, EventType.EV_EFI_ACTION, b"Calling", b"Calling"),
    (4, EventType.EV_SEPARATOR, bytes(4), bytes(4)),
    (4, EventType.EV_IPL, b"kernel 1", b"kernel image"),
    (9, EventType.EV_IPL, b"initrd 1", b"initrd"),
    (11, EventType.EV_IPL, b"stub", b".linux"),
]
SEV = SevPolicy(
    measurement="00" * 48,
    report_data="00" * 64,
    family_id="00" * 16,
    image_id="00" * 16,
    guest_svn=0,
    id_key_digest="00" * 48,
    author_key_digest="00" * 48,
    policy=0x30000,
    report_id="00" * 32,
    report_id_ma="00" * 32,
)


def log_of(events: Sequence[Event]) -> bytes:
    return make_log(["sha256"], events)


def pcrs_after(events: Sequence[Event], **later: bytes) -> dict[int, bytes]:
    """PCR values after a boot; ``later``: what the system then extended, as pcr11=b"..."."""
    values = {pcr: bytes(32) for pcr in range(16)} | replay(parse(log_of(events)), "sha256")
    for pcr, data in later.items():
        number = int(pcr.removeprefix("pcr"))
        values[number] = sha256(values[number] + sha256(data).digest()).digest()
    return values


def snapshot(values: dict[int, bytes] | None, **changes: Any) -> Snapshot:
    boot = None if values is None else {str(pcr): values[pcr].hex() for pcr in BOOT_PCRS if pcr in values}
    return Snapshot(**{"tee_policy": TeePolicy(sev=SEV), "boot_pcrs": boot, "version": 2, **changes})


def judge(log: bytes | None, pcrs: dict[int, bytes], reference: Snapshot | None, policy: Policy | None = None) -> Check:
    (check,) = appraise_boot(log, pcrs, reference, policy or Policy())
    assert check.id == "tpm.boot_pcrs"
    assert check.line.isprintable()
    assert all(detail.isprintable() for detail in check.details)
    return check


def test_same_boot() -> None:
    values = pcrs_after(BOOT)
    assert judge(log_of(BOOT), values, snapshot(values)).status is Status.OK


def test_pcrs_that_the_system_extends_later_need_no_log() -> None:
    values = pcrs_after(BOOT, pcr11=b"ready", pcr15=b"machine-id")
    assert judge(log_of(BOOT), values, snapshot(values)).status is Status.OK


@pytest.mark.parametrize("pcr", BOOT_PCRS)
def test_each_boot_pcr_counts(pcr: int) -> None:
    values = pcrs_after(BOOT)
    check = judge(log_of(BOOT), {**values, pcr: b"\x01" * 32}, snapshot(values))
    assert check.status is Status.FAIL
    assert f"PCR {pcr} " in check.line


def test_pcr_10_does_not() -> None:
    values = pcrs_after(BOOT)
    assert judge(log_of(BOOT), {**values, 10: b"\x01" * 32}, snapshot(values)).status is Status.OK


def test_the_new_event_is_named() -> None:
    before = pcrs_after(BOOT)
    evil = (4, EventType.EV_IPL, b"bootkit", b"bootkit.efi")
    for at in range(len(BOOT) + 1):
        events = [*BOOT[:at], evil, *BOOT[at:]]
        check = judge(log_of(events), pcrs_after(events), snapshot(before))
        assert check.status is Status.FAIL
        assert any(f"event {at + 1}, EV_IPL: bootkit.efi was not there" in line for line in check.details)
        assert not any("EV_SEPARATOR" in line for line in check.details)


def test_several_new_events_at_the_end_are_named() -> None:
    before = pcrs_after(BOOT)
    events = [*BOOT, (9, EventType.EV_IPL, b"x", b"module x"), (9, EventType.EV_IPL, b"y", b"module y")]
    check = judge(log_of(events), pcrs_after(events), snapshot(before))
    assert sum("was not there at the snapshot" in line for line in check.details) == 2


def test_a_changed_event_is_among_those_listed() -> None:
    before = pcrs_after(BOOT)
    events = [*BOOT[:3], (4, EventType.EV_IPL, b"kernel 2", b"kernel image 2"), *BOOT[4:]]
    check = judge(log_of(events), pcrs_after(events), snapshot(before))
    assert any("one of these 3 events changed" in line for line in check.details)
    assert any("kernel image 2" in line for line in check.details)


def test_a_log_that_does_not_replay_fails_and_explains_nothing() -> None:
    values = pcrs_after(BOOT)
    forged = [*BOOT[:3], (4, EventType.EV_IPL, b"kernel 2", b"kernel image"), *BOOT[4:]]
    check = judge(log_of(forged), values, snapshot(values))
    assert check.status is Status.FAIL
    assert "incomplete or forged" in check.line
    changed = judge(log_of(forged), {**values, 4: bytes(32)}, snapshot(values))
    assert not any("EV_IPL" in line for line in changed.details)


def test_without_a_log_nothing_is_explained() -> None:
    values = pcrs_after(BOOT)
    assert judge(None, values, snapshot(values)).status is Status.OK
    check = judge(None, {**values, 4: bytes(32)}, snapshot(values))
    assert check.status is Status.FAIL
    assert any("does not cover it" in line for line in check.details)


@pytest.mark.parametrize("log", [b"", b"garbage" * 20, log_of(BOOT)[:-1]])
def test_a_log_that_cannot_be_read_fails(log: bytes) -> None:
    values = pcrs_after(BOOT)
    check = judge(log, values, snapshot(values))
    assert check.status is Status.FAIL
    assert "TCG event log" in check.line


def test_log_of_another_bank_explains_and_denies_nothing() -> None:
    values = pcrs_after(BOOT)
    assert judge(make_log(["sha1"], BOOT), values, snapshot(values)).status is Status.OK


def test_no_quote_fails() -> None:
    values = pcrs_after(BOOT)
    assert judge(log_of(BOOT), {}, snapshot(values)).status is Status.FAIL
    assert judge(log_of(BOOT), {}, None).status is Status.FAIL
    assert judge(None, {}, None, Policy(without_tpm=True)).status is Status.SKIP


def test_partial_quote_fails() -> None:
    values = pcrs_after(BOOT)
    partial = {pcr: value for pcr, value in values.items() if pcr != 7}
    assert judge(log_of(BOOT), partial, snapshot(values)).status is Status.FAIL


def test_while_a_snapshot_is_taken_the_log_must_replay() -> None:
    values = pcrs_after(BOOT, pcr11=b"ready")
    assert judge(log_of(BOOT), values, None).status is Status.OK
    assert judge(None, values, None).status is Status.WARNING
    assert judge(log_of(BOOT), {**values, 4: bytes(32)}, None).status is Status.FAIL
    assert judge(b"garbage", values, None).status is Status.FAIL


def test_snapshot_without_boot_pcrs_is_no_answer() -> None:
    values = pcrs_after(BOOT)
    assert judge(log_of(BOOT), values, snapshot(None)).status is Status.SKIP


def test_snapshot_with_some_boot_pcrs_only_fails() -> None:
    values = pcrs_after(BOOT)
    some = {pcr: values[pcr] for pcr in (0, 4)}
    assert judge(log_of(BOOT), values, snapshot(some)).status is Status.FAIL


def test_version_1_proves_no_boot() -> None:
    policy = Policy(api=1)
    assert judge(None, {}, snapshot(None, version=1), policy).status is Status.WARNING
    assert judge(None, {}, None, policy).status is Status.WARNING
    assert judge(None, {}, snapshot(pcrs_after(BOOT)), policy).status is Status.FAIL


@given(log=st.binary(max_size=200), pcr=st.integers(0, 23), value=st.binary(max_size=40))
def test_anything_is_one_check(log: bytes, pcr: int, value: bytes) -> None:
    values = pcrs_after(BOOT)
    judge(log, {**values, pcr: value}, snapshot(values))


@given(data=st.data())
def test_damaged_logs_never_raise(data: st.DataObject) -> None:
    raw = bytearray(log_of(BOOT))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    values = pcrs_after(BOOT)
    judge(bytes(raw), values, snapshot({**values, 4: bytes(32)}))


@pytest.mark.evidence
@pytest.mark.parametrize("name", ["uefi-tcb", "uefi-custom-plus-tcb", "uefi-coldreboot", "direct-custom-notcb"])
def test_real_boots(evidence: Path, name: str) -> None:
    folder = evidence / "vm" / name
    log = (folder / "bios.bin").read_bytes()
    text = (folder / "pcrs.yaml").read_text().split("sha256:")[1].splitlines()
    values = {int(line.split(":")[0]): bytes.fromhex(line.split("0x")[1]) for line in text if "0x" in line}
    values = {pcr: value for pcr, value in values.items() if pcr < 16 and len(value) == 32}
    assert judge(log, values, snapshot(values)).status is Status.OK
    assert judge(log, values, None).status is Status.OK
    changed = {**values, 4: b"\x01" * 32}
    assert "PCR 4 (boot loader and kernel)" in judge(log, values, snapshot(changed)).line
