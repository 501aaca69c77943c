"""The machine that nobody touched is trusted: otherwise no failure below would mean anything."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.endorsements.amd import Product
from cosmian_vm.evidence.bundle import ApplicationPeer
from cosmian_vm.verifier.result import CHECK_IDS, Status

from .conftest import NONCE, NOW, Judge


def test_an_honest_machine_is_trusted(machine: Machine, judge: Judge) -> None:
    verdict = judge.verdict(machine.evidence(NONCE, trusted=True))
    assert judge.failed(machine.evidence(NONCE, trusted=True)) == set()
    assert verdict.trusted
    warned = {c.id for c in verdict.checks if c.status is Status.WARNING}
    assert warned == {"tpm.ak", "vm.owner"}  # the operator's vTPM, and no owner yet: both are always said


def test_every_check_is_in_the_verdict_in_its_order(machine: Machine, judge: Judge) -> None:
    application = ApplicationPeer(address="app:443", leaf=machine.leaf)
    verdict = judge.verdict(machine.evidence(NONCE, trusted=True, applications=[application]))
    assert tuple(c.id for c in verdict.checks) == CHECK_IDS
    required = {c.id for c in verdict.checks if c.required}
    assert required == {i for i in CHECK_IDS if i.startswith(("tee.", "tpm.", "ima."))} | {"vm.owner"}


def test_without_a_snapshot_only_what_compares_with_one_is_skipped(machine: Machine, judge: Judge) -> None:
    verdict = replace(judge, snapshot=None).verdict(machine.evidence(NONCE, trusted=True))
    assert verdict.trusted
    skipped = {c.id for c in verdict.checks if c.status is Status.SKIP}
    assert skipped <= {"tee.measurement", "tee.instance", "ima.files", "ima.policy", "tpm.boot_pcrs"}
    assert "tee.measurement" in skipped


@pytest.mark.parametrize("product", list(Product))
@pytest.mark.parametrize("vlek", [False, True])
def test_every_product_with_both_kinds_of_chip_key(keys: VendorKeys, product: Product, vlek: bool) -> None:
    vendor = AmdVendor.create(product, vlek=vlek, keys=keys, now=NOW - timedelta(days=1))
    machine = Machine.create(vendor, now=NOW)
    assert Judge(roots=machine.roots, snapshot=machine.snapshot()).failed(machine.evidence(NONCE)) == set()


def test_no_empty_evidence_is_trusted(machine: Machine, judge: Judge) -> None:
    evidence = machine.evidence(NONCE)
    nothing = replace(evidence, tee=None, tpm=None, ima_log=None, boot_event_log=None, endorsements=())
    failed = judge.failed(nothing)
    assert {i for i in CHECK_IDS if i.startswith(("tee.", "tpm."))} <= failed
    assert "ima.replay" in failed


def test_untrusted_roots_by_default(machine: Machine, judge: Judge) -> None:
    from cosmian_vm.endorsements.amd import pinned_roots

    assert "tee.chain" in replace(judge, roots=pinned_roots()).failed(machine.evidence(NONCE))


def test_owner_and_strictness_do_not_hurt_the_honest(machine: Machine, judge: Judge) -> None:
    machine.owners = ("ed25519:abc",)
    judge = replace(judge, snapshot=machine.snapshot()).with_policy(owner="ed25519:abc", strict=True)
    verdict = judge.verdict(machine.evidence(NONCE))
    assert verdict.trusted
    assert verdict.of("vm.owner")[0].status is Status.OK
