"""The simulated machine is trusted as it is, and each lie is found out by the check that ATTACKS names."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import pytest

from cosmian_vm.attester.platform import Platform
from cosmian_vm.certificates import spki_sha256
from cosmian_vm.devkit.amd import AmdVendor
from cosmian_vm.devkit.hostile import ATTACKS, hostile
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.endorsements.amd import collect
from cosmian_vm.errors import AttesterError
from cosmian_vm.evidence.binding import compute_binding, report_data
from cosmian_vm.evidence.bundle import V2_PCRS, Evidence, TlsPeer, TpmEvidence
from cosmian_vm.reference.snapshot import Snapshot, parse, serialise
from cosmian_vm.verifier.appraisal import appraise
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.result import Verdict

NONCE = bytes(range(32))


def judge(
    machine: Machine, evidence: Evidence, snapshot: Snapshot | None, now: datetime, nonce: bytes = NONCE
) -> Verdict:
    return appraise(
        evidence,
        collect(evidence.endorsements),
        snapshot,
        Policy(),
        nonce=nonce,
        roots=machine.roots,
        now=now,
    ).verdict


def from_platform(platform: Platform, leaf: bytes) -> Evidence:
    """What an honest agent makes of a platform, be the platform honest or not."""
    tpm = platform.tpm
    binding = compute_binding(NONCE, spki_sha256(leaf), None if tpm is None else tpm.ak_public())
    quote = None if tpm is None else tpm.quote(binding, V2_PCRS)
    tee = None if platform.tee is None else platform.tee.quote(report_data(NONCE, binding))
    return Evidence(
        api=2,
        tee=None if tee is None else tee.raw,
        tpm=None
        if quote is None
        else TpmEvidence(quote=quote.quote, signature=quote.signature, ak_public=quote.ak_public, pcrs=quote.pcrs),
        ima_log=platform.logs.ima_binary(),
        boot_event_log=platform.logs.boot_event_log(),
        tls=TlsPeer(leaf=leaf, trusted=None),
        endorsements=() if tee is None else tee.endorsements,
    )


def test_an_honest_machine_is_trusted(machine: Machine, now: datetime) -> None:
    snapshot = machine.snapshot()
    assert parse(serialise(snapshot), "snapshot") == snapshot
    machine.run("/usr/bin/bash")
    for evidence in (machine.evidence(NONCE), from_platform(machine.platform(), machine.leaf)):
        verdict = judge(machine, evidence, snapshot, now)
        assert verdict.trusted, verdict.failures


@pytest.mark.parametrize("violation_last", [False, True])
@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "forged-chain"])
def test_each_lie_is_found_out_by_its_check(machine: Machine, now: datetime, name: str, violation_last: bool) -> None:
    assert machine.ima is not None
    machine.ima.violate("/var/log/not in the snapshot")
    machine.run("/opt/app/server")
    if violation_last:
        machine.ima.violate("/var/log/another")
    snapshot = machine.snapshot()
    assert judge(machine, from_platform(machine.platform(), machine.leaf), snapshot, now).trusted
    verdict = judge(machine, from_platform(hostile(machine.platform(), name), machine.leaf), snapshot, now)
    assert not verdict.trusted
    assert ATTACKS[name].check in {check.id for check in verdict.failures}


def test_a_forged_chain_is_found_out(machine: Machine, vendor: AmdVendor, now: datetime) -> None:
    """Without the seconds that RSA-4096 takes: the attacker's keys are the vendor's, swapped."""
    assert machine.tee is not None
    attacker = AmdVendor.create(keys=replace(vendor.keys, ark=vendor.keys.ask, ask=vendor.keys.ark), now=now)
    machine.tee.vendor = attacker
    machine.tee.endorsements = None
    verdict = judge(machine, machine.evidence(NONCE), None, now)
    assert "tee.chain" in {check.id for check in verdict.failures}


def test_lies_that_need_what_is_not_there(machine: Machine) -> None:
    bare = replace(machine.platform(), tee=None, tpm=None)
    for name in ("debug", "replay-tpm", "sha1-bank"):
        with pytest.raises(AttesterError, match="this attack"):
            hostile(bare, name)
    with pytest.raises(AttesterError, match="no violation"):
        hostile(machine.platform(), "log-hidden-violation").logs.ima_binary()
    with pytest.raises(AttesterError, match="known are forged-chain"):
        hostile(bare, "nonsense")


def test_reboot_counts_and_starts_the_list_anew(machine: Machine, now: datetime) -> None:
    snapshot = machine.snapshot()
    machine.run("/opt/app/server")
    machine.reboot()
    verdict = judge(machine, machine.evidence(NONCE), snapshot, now)
    assert {check.id for check in verdict.failures} == {"tpm.clock"}
    machine.reboot(new_instance=b"second launch")
    verdict = judge(machine, machine.evidence(NONCE), snapshot, now)
    assert {check.id for check in verdict.failures} == {"tpm.clock", "tee.instance"}


def test_version_1_and_a_continued_list(machine: Machine) -> None:
    evidence = machine.evidence(NONCE, api=1)
    assert evidence.tpm is not None
    assert evidence.tee is not None
    assert len(evidence.tee) > 1184
    assert evidence.tpm.pcrs == {}
    assert evidence.tpm.quote.count(bytes.fromhex("000b03000400")) == 1  # PCR 10 alone
    whole, rest = machine.evidence(NONCE), machine.evidence(NONCE, ima_from=2)
    assert whole.ima_log is not None
    assert rest.ima_log is not None
    assert whole.ima_log.endswith(rest.ima_log)
    assert len(whole.ima_log) > len(rest.ima_log)


def test_it_can_bind_to_another_key(machine: Machine, vendor: AmdVendor, now: datetime) -> None:
    other = Machine.create(vendor, instance=b"other", now=now)
    snapshot = machine.snapshot()
    verdict = judge(machine, machine.evidence(NONCE, other.leaf), snapshot, now)
    assert {check.id for check in verdict.failures} == {"tee.report_data", "tpm.nonce"}
