"""Forged, replayed and borrowed TPM quotes; reboots; other boot chains."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import msgspec
import pytest

from cosmian_vm.devkit.amd import AmdVendor
from cosmian_vm.devkit.boot_log import default_boot
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.devkit.soft_tpm import SoftTpm
from cosmian_vm.evidence.tpm import ObjectAttributes
from cosmian_vm.verifier.result import CHECK_IDS, Status

from .conftest import NONCE, NOW, Judge


def _tpm(machine: Machine) -> SoftTpm:
    assert machine.tpm is not None
    return machine.tpm


def test_replayed_tpm_quote(machine: Machine, judge: Judge) -> None:
    yesterday = machine.evidence(bytes(32)).tpm
    assert judge.failed(replace(machine.evidence(NONCE), tpm=yesterday)) == {"tpm.nonce"}


@pytest.mark.parametrize(
    "missing", [ObjectAttributes.RESTRICTED, ObjectAttributes.FIXED_TPM, ObjectAttributes.FIXED_PARENT]
)
def test_ak_that_could_sign_anything(machine: Machine, judge: Judge, missing: ObjectAttributes) -> None:
    """Without a snapshot, so that only the rule itself can refuse it."""
    _tpm(machine).attributes &= ~missing
    assert replace(judge, snapshot=None).failed(machine.evidence(NONCE)) == {"tpm.ak"}


def test_ak_that_may_decrypt(machine: Machine, judge: Judge) -> None:
    _tpm(machine).attributes |= ObjectAttributes.DECRYPT
    assert replace(judge, snapshot=None).failed(machine.evidence(NONCE)) == {"tpm.ak"}


def test_another_ak_than_the_snapshot_s(machine: Machine, judge: Judge) -> None:
    _tpm(machine).seed = b"another TPM"
    assert judge.failed(machine.evidence(NONCE)) == {"tpm.ak"}


def test_ak_that_is_not_the_one_in_report_data(machine: Machine, judge: Judge) -> None:
    """A quote that another TPM made, for the very binding of this connection: the TEE vouched for another AK."""
    evidence = machine.evidence(NONCE)
    assert evidence.tpm is not None
    stranger = SoftTpm(seed=b"another TPM", pcrs=_tpm(machine).pcrs)
    from cosmian_vm.evidence.tpm import parse_quote

    quote = stranger.quote(parse_quote(evidence.tpm.quote).extra_data, range(16))
    forged = replace(evidence.tpm, quote=quote.quote, signature=quote.signature, ak_public=quote.ak_public)
    failed = replace(judge, snapshot=None).failed(replace(evidence, tpm=forged))
    assert failed == {"tee.report_data", "tpm.nonce"}


def test_bit_flips_in_the_quote_and_its_signature(machine: Machine, judge: Judge) -> None:
    evidence = machine.evidence(NONCE)
    assert evidence.tpm is not None
    for part in ("quote", "signature"):
        raw = getattr(evidence.tpm, part)
        for position in range(0, len(raw), 3):
            flipped = bytearray(raw)
            flipped[position] ^= 1 << (position % 8)
            raw_part = bytes(flipped)
            forged = (
                replace(evidence.tpm, quote=raw_part) if part == "quote" else replace(evidence.tpm, signature=raw_part)
            )
            assert "tpm.signature" in judge.failed(replace(evidence, tpm=forged)), (part, position)


def test_quote_over_other_pcrs(machine: Machine, judge: Judge) -> None:
    _tpm(machine).selection = tuple(range(10))
    failed = judge.failed(machine.evidence(NONCE))
    assert "tpm.pcr_selection" in failed
    assert failed <= {"tpm.pcr_selection", "tpm.boot_pcrs", "ima.replay", "ima.boot_aggregate", "ima.policy"}


def test_quote_over_one_pcr_too_many(machine: Machine, judge: Judge) -> None:
    _tpm(machine).selection = tuple(range(17))
    assert "tpm.pcr_selection" in judge.failed(machine.evidence(NONCE))


def test_quote_over_the_sha1_bank(machine: Machine, judge: Judge) -> None:
    _tpm(machine).bank = "sha1"
    failed = judge.failed(machine.evidence(NONCE))
    assert "tpm.pcr_selection" in failed


def test_quote_over_a_resettable_pcr(machine: Machine, judge: Judge) -> None:
    """PCR 16 (debug) and 23 (application) can be reset by whoever wants to, and extended to anything."""
    _tpm(machine).selection = (*range(10), *range(11, 16), 16)
    assert "tpm.pcr_selection" in judge.failed(machine.evidence(NONCE))


def test_claimed_pcr_values_that_were_not_quoted(machine: Machine, judge: Judge) -> None:
    evidence = machine.evidence(NONCE)
    assert evidence.tpm is not None
    forged = replace(evidence.tpm, pcrs={**evidence.tpm.pcrs, 4: bytes(32)})
    failed = judge.failed(replace(evidence, tpm=forged))
    assert "tpm.pcr_selection" in failed


def test_a_reboot(machine: Machine, judge: Judge) -> None:
    machine.reboot()
    assert judge.failed(machine.evidence(NONCE)) == {"tpm.clock"}
    assert judge.with_policy(allow_reboot=True).failed(machine.evidence(NONCE)) == set()


def test_a_reboot_that_launches_the_guest_anew(machine: Machine, judge: Judge) -> None:
    machine.reboot(new_instance=b"again")
    assert judge.failed(machine.evidence(NONCE)) == {"tee.instance", "tpm.clock"}
    allowed = judge.with_policy(allow_reboot=True).verdict(machine.evidence(NONCE))
    assert allowed.trusted
    assert {allowed.of(i)[0].status for i in ("tee.instance", "tpm.clock")} == {Status.WARNING}


def test_allow_reboot_excuses_nothing_else(machine: Machine, judge: Judge) -> None:
    """A reboot into another kernel, or after which something unknown ran, is no reboot that was allowed."""
    machine.reboot(boot=default_boot(kernel=b"the operator's kernel"))
    failed = judge.with_policy(allow_reboot=True).failed(machine.evidence(NONCE))
    assert failed == {"tpm.clock", "tpm.boot_pcrs"}


def test_allow_reboot_with_an_unknown_program(machine: Machine, judge: Judge) -> None:
    machine.reboot()
    machine.run("/usr/bin/new", b"unknown")
    assert judge.with_policy(allow_reboot=True).failed(machine.evidence(NONCE)) == {"tpm.clock", "ima.files"}


def test_allow_reboot_on_another_machine(machine: Machine, judge: Judge) -> None:
    machine.reboot(new_instance=b"second")
    _tpm(machine).seed = b"second"
    failed = judge.with_policy(allow_reboot=True).failed(machine.evidence(NONCE))
    assert failed == {"tpm.ak", "tpm.clock", "tee.instance"}


@pytest.mark.parametrize("lacking", [{"ak_name": None}, {"boot_pcrs": None}, {"ak_name": None, "boot_pcrs": None}])
def test_allow_reboot_with_a_snapshot_that_cannot_tell_a_swap(
    vendor: AmdVendor, judge: Judge, lacking: dict[str, None]
) -> None:
    """A snapshot of 1.3.x names neither AK nor boot PCRs: to it, any genuine machine with the same files is the one
    that was rebooted. The operator owns plenty.
    """
    swapped = Machine.create(vendor, instance=b"the operator's own", now=NOW - timedelta(days=1))
    swapped.reboot()
    assert judge.snapshot is not None
    old = msgspec.structs.replace(judge.snapshot, version=1, clock=None, ima_policy=None, **lacking)
    allowing = replace(judge, snapshot=old).with_policy(allow_reboot=True)
    assert {"tpm.clock", "tee.instance"} <= allowing.failed(swapped.evidence(NONCE))


def test_rolled_back_tpm_clock(machine: Machine, judge: Judge) -> None:
    """An old copy of the TPM's state: same counters, but it has lived less long than it had."""
    _tpm(machine).clock -= 500_000
    assert judge.failed(machine.evidence(NONCE)) == {"tpm.clock"}


def test_rolled_back_tpm_is_no_reboot_that_could_be_allowed(machine: Machine, judge: Judge) -> None:
    _tpm(machine).clock -= 500_000
    assert judge.with_policy(allow_reboot=True).failed(machine.evidence(NONCE)) == {"tpm.clock"}


def test_reset_count_that_went_down(machine: Machine, judge: Judge) -> None:
    _tpm(machine).reset_count -= 1
    assert judge.failed(machine.evidence(NONCE)) == {"tpm.clock"}
    assert judge.with_policy(allow_reboot=True).failed(machine.evidence(NONCE)) == {"tpm.clock"}


def test_clock_that_is_not_safe(machine: Machine, judge: Judge) -> None:
    _tpm(machine).safe = False
    assert judge.failed(machine.evidence(NONCE)) == {"tpm.clock"}


def test_boot_pcrs_changed(machine: Machine, judge: Judge) -> None:
    """Another kernel, honestly logged; boot counters as before, so that only the PCRs tell."""
    machine.reboot(boot=default_boot(kernel=b"the operator's kernel"))
    _tpm(machine).reset_count -= 1
    assert judge.failed(machine.evidence(NONCE)) == {"tpm.boot_pcrs"}
    check = judge.verdict(machine.evidence(NONCE)).of("tpm.boot_pcrs")[0]
    assert any("vmlinuz" in line for line in (check.line, *check.details)), check


def test_command_line_changed(machine: Machine, judge: Judge) -> None:
    machine.reboot(boot=default_boot(command_line="root=/dev/vda1 rw ima_policy=none init=/bin/sh"))
    _tpm(machine).reset_count -= 1
    check = judge.verdict(machine.evidence(NONCE)).of("tpm.boot_pcrs")[0]
    assert check.status is Status.FAIL
    assert any("init=/bin/sh" in line for line in (check.line, *check.details)), check


@pytest.mark.parametrize("pcr", [11, 12, 13, 14, 15])
def test_a_pcr_without_a_log_changed(machine: Machine, judge: Judge, pcr: int) -> None:
    _tpm(machine).extend(pcr, {"sha256": bytes(32)})
    assert judge.failed(machine.evidence(NONCE)) == {"tpm.boot_pcrs"}


def test_event_log_that_does_not_replay(machine: Machine, judge: Judge) -> None:
    from cosmian_vm.devkit.boot_log import serialise_boot

    machine.forged_boot_log = serialise_boot(default_boot(kernel=b"another story"))
    assert judge.failed(machine.evidence(NONCE)) == {"tpm.boot_pcrs"}


@pytest.mark.parametrize("garbage", [b"\0", b"\xff" * 40])
def test_event_log_that_is_garbage(machine: Machine, judge: Judge, garbage: bytes) -> None:
    machine.forged_boot_log = garbage
    assert judge.failed(machine.evidence(NONCE)) == {"tpm.boot_pcrs"}


def test_an_agent_that_denies_having_a_tpm(machine: Machine, judge: Judge) -> None:
    """Its binding is honest: it names no AK. It is its word that counts for nothing."""
    machine.tpm = None
    machine.ima = None
    failed = judge.failed(machine.evidence(NONCE))
    assert {i for i in CHECK_IDS if i.startswith("tpm.")} <= failed
    assert {i for i in failed if i.startswith("tee.")} == set()


def test_an_agent_that_denies_it_while_the_snapshot_is_taken(machine: Machine, judge: Judge) -> None:
    machine.tpm = None
    machine.ima = None
    judge = replace(judge, snapshot=None)
    assert {i for i in CHECK_IDS if i.startswith("tpm.")} <= judge.failed(machine.evidence(NONCE))
    assert judge.with_policy(without_tpm=True).failed(machine.evidence(NONCE)) == set()


def test_without_tpm_is_kept_in_the_snapshot(machine: Machine, judge: Judge) -> None:
    machine.tpm = None
    machine.ima = None
    honest = replace(judge, snapshot=machine.snapshot())
    assert honest.failed(machine.evidence(NONCE)) == set()


def test_a_snapshot_stripped_of_its_tpm_values_gives_no_trust(machine: Machine, judge: Judge) -> None:
    """Not an attack on a snapshot (it is the administrator's), but a half of one must not pass as a whole."""
    assert judge.snapshot is not None
    for name in ("ak_name", "boot_pcrs", "clock", "vmpl", "host_data", "reported_tcb", "platform_info", "anchor"):
        stripped = msgspec.structs.replace(judge.snapshot, **{name: None})
        verdict = replace(judge, snapshot=stripped).verdict(machine.evidence(NONCE))
        assert not verdict.trusted, name
