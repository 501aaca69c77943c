"""Rules of a policy for SNP guests and hosts, each broken once; PLATFORM_INFO against the snapshot."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest

from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.evidence.snp import parse_report
from cosmian_vm.reference.snapshot import Snapshot
from cosmian_vm.verifier.appraisal import appraise
from cosmian_vm.verifier.policy import Policy, SnpRules

NONCE = bytes(range(32))
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
KEYS = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"
MUST_BE_ONE = 1 << 17


@pytest.fixture(scope="module")
def vendor() -> AmdVendor:
    return AmdVendor.create(keys=VendorKeys.load(KEYS), now=NOW - timedelta(days=30))


@pytest.fixture
def machine(vendor: AmdVendor) -> Machine:
    return Machine.create(vendor, now=NOW - timedelta(days=1))


def failed(machine: Machine, rules: SnpRules, snapshot: Snapshot | None = None) -> set[str]:
    evidence = machine.evidence(NONCE)
    verdict = appraise(
        evidence,
        machine.endorsements(evidence),
        snapshot,
        Policy(snp=rules),
        nonce=NONCE,
        roots=machine.roots,
        now=NOW,
    ).verdict
    return {check.id for check in verdict.failures}


@pytest.mark.parametrize(
    ("rules", "good", "bad"),
    [
        (SnpRules(minimum_abi=(1, 55)), {"policy": MUST_BE_ONE | 0x0137}, {"policy": MUST_BE_ONE | 0x0136}),
        (SnpRules(smt=False), {"policy": MUST_BE_ONE}, {"policy": MUST_BE_ONE | 1 << 16}),
        (SnpRules(single_socket=True), {"policy": MUST_BE_ONE | 1 << 20}, {"policy": MUST_BE_ONE}),
        (SnpRules(host_data=b"\x01" * 32), {"host_data": b"\x01" * 32}, {"host_data": b"\x02" * 32}),
        (
            SnpRules(id_key_digests=frozenset({b"\x01" * 48, b"\x02" * 48})),
            {"id_key_digest": b"\x02" * 48},
            {"id_key_digest": b"\x03" * 48},
        ),
        (
            SnpRules(author_key_digests=frozenset({b"\x01" * 48})),
            {"author_key_digest": b"\x01" * 48, "flags": 1},
            {"author_key_digest": b"\x01" * 48, "flags": 0},
        ),
        (
            SnpRules(author_key_digests=frozenset({b"\x01" * 48})),
            {"author_key_digest": b"\x01" * 48, "flags": 1},
            {"author_key_digest": b"\x02" * 48, "flags": 1},
        ),
    ],
)
def test_launch(machine: Machine, rules: SnpRules, good: dict[str, int | bytes], bad: dict[str, int | bytes]) -> None:
    assert machine.tee is not None
    machine.tee.fields |= good
    assert failed(machine, rules) == set()
    machine.tee.fields |= bad
    assert failed(machine, SnpRules()) == set()
    assert failed(machine, rules) == {"tee.measurement"}
    assert failed(machine, rules, machine.snapshot()) == {"tee.measurement"}


@pytest.mark.parametrize(
    ("rules", "good", "bad"),
    [
        (SnpRules(platform_set=frozenset({"ecc_en"})), 0b100, 0b011),
        (SnpRules(platform_clear=frozenset({"smt_en"})), 0b100, 0b001),
    ],
)
def test_platform(machine: Machine, rules: SnpRules, good: int, bad: int) -> None:
    assert machine.tee is not None
    machine.tee.fields["platform_info"] = good
    assert failed(machine, rules) == set()
    machine.tee.fields["platform_info"] = bad
    assert failed(machine, rules) == {"tee.tcb"}


def test_a_host_that_was_set_up_otherwise_since_the_snapshot(machine: Machine) -> None:
    assert machine.tee is not None
    snapshot = machine.snapshot()
    assert failed(machine, SnpRules(), snapshot) == set()
    now = parse_report(machine.tee.quote(bytes(64)).raw).platform_info
    machine.tee.fields["platform_info"] = now ^ 1
    assert failed(machine, SnpRules(), snapshot) == {"tee.tcb"}
    other = msgspec.structs.replace(snapshot, platform_info=now ^ 1)
    assert failed(machine, SnpRules(), other) == set()
