"""SNP evidence, acceptable or not: TCB, debugging, binding, launch values, instance."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from hashlib import sha256

import pytest

from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.evidence.snp import Product, encode_tcb
from cosmian_vm.reference.snapshot import Snapshot, TeePolicy, TpmPolicy
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.result import Status

from .snp_case import BINDING, KEYS, NONCE, NOW, Case, case_of, snapshot_of


@pytest.fixture(scope="module")
def keys() -> VendorKeys:
    return VendorKeys.load(KEYS)


@pytest.fixture(scope="module")
def other_keys() -> VendorKeys:
    return VendorKeys.load(KEYS / "other")


@pytest.fixture(scope="module")
def vendor(keys: VendorKeys) -> AmdVendor:
    return AmdVendor.create(keys=keys, now=NOW - timedelta(days=10))


@pytest.fixture
def case(vendor: AmdVendor) -> Case:
    return case_of(vendor)


# tee.tcb


@pytest.mark.parametrize("component", ["bl", "tee", "snp", "ucode"])
@pytest.mark.parametrize("difference", [-1, 1])
def test_reported_tcb_differs_from_the_certificate(case: Case, component: str, difference: int) -> None:
    tcb = {**case.vendor.tcb, component: (case.vendor.tcb[component] + difference) % 256}
    bad = case.sign(reported_tcb=encode_tcb(tcb, Product.MILAN.tcb_layout)).bad()
    assert set(bad) == {"tee.tcb"}
    assert component in bad["tee.tcb"]


@pytest.mark.parametrize("component", ["fmc", "bl", "tee", "snp", "ucode"])
def test_turins_own_layout(keys: VendorKeys, component: str) -> None:
    turin = AmdVendor.create(Product.TURIN, keys=keys, now=NOW - timedelta(days=10))
    tcb = {**turin.tcb, component: turin.tcb[component] + 1}
    assert set(case_of(turin, reported_tcb=encode_tcb(tcb, Product.TURIN.tcb_layout)).bad()) == {"tee.tcb"}


@pytest.mark.parametrize("which", ["reported_tcb", "current_tcb", "committed_tcb", "launch_tcb"])
def test_minimum_holds_for_every_tcb(case: Case, which: str) -> None:
    policy = Policy(minimum_tcb={"Milan": {"snp": case.vendor.tcb["snp"]}, "Genoa": {"snp": 255}})
    assert replace(case, policy=policy).bad() == {}
    older = encode_tcb({**case.vendor.tcb, "snp": case.vendor.tcb["snp"] - 1}, Product.MILAN.tcb_layout)
    bad = replace(case.sign(**{which: older}), policy=policy).bad()
    assert set(bad) == {"tee.tcb"}


def test_minimum_of_a_component_that_the_product_has_not(case: Case) -> None:
    assert set(replace(case, policy=Policy(minimum_tcb={"Milan": {"fmc": 0}})).bad()) == {"tee.tcb"}


def test_firmware_newer_than_reported_is_shown(case: Case) -> None:
    newer = encode_tcb({**case.vendor.tcb, "ucode": 255}, Product.MILAN.tcb_layout)
    tcb = case.sign(current_tcb=newer).appraise()[3]
    assert tcb.status is Status.OK
    assert tcb.details == ("current: bl 4 tee 0 snp 24 ucode 255",)


# tee.debug


def test_debug(case: Case) -> None:
    debuggable = case.sign(policy=0x30000 | 1 << 19)
    debuggable.reference = snapshot_of(debuggable.report)  # a snapshot of it does not excuse it
    assert "tee.debug" in debuggable.bad()
    assert set(replace(debuggable, reference=None).bad()) == {"tee.debug", "tee.measurement", "tee.instance"}


def test_migration(case: Case) -> None:
    movable = case.sign(policy=0x30000 | 1 << 18)
    assert set(movable.bad()) == {"tee.debug", "tee.measurement"}
    assert replace(movable, reference=snapshot_of(movable.report)).bad() == {}
    assert "migration" in replace(movable, reference=None).bad()["tee.debug"]


def test_vmpl(case: Case) -> None:
    assert set(case.sign(vmpl=1).bad()) == {"tee.debug", "tee.measurement"}
    inner = case.sign(vmpl=2)
    assert replace(inner, reference=snapshot_of(inner.report)).bad() == {}
    assert replace(inner, policy=Policy(vmpl=2)).bad() == {}
    assert "VMPL 2" in replace(inner, reference=None).bad()["tee.debug"]


def test_vmpl_of_an_agent_of_1_3(case: Case) -> None:
    """It asks at a level below its own; its snapshots do not say which. Ours do, and then it must be that one."""
    old = replace(case.sign(vmpl=1), policy=Policy(api=1), reference=None)
    assert "tee.debug" not in old.bad()
    assert old.appraise()[4].status is Status.WARNING
    assert "tee.debug" in replace(old, report=case.sign(vmpl=4).report).bad()
    assert "tee.debug" in replace(old, policy=Policy()).bad()
    assert "tee.debug" in replace(old, policy=Policy(api=1, vmpl=0)).bad()
    assert "tee.debug" in replace(old, reference=case.reference).bad()


def test_report_that_the_host_asked_for(case: Case) -> None:
    assert "by the host" in case.sign(vmpl=0xFFFFFFFF).bad()["tee.debug"]


# tee.report_data


def test_report_data(case: Case) -> None:
    assert "replay" in case.sign(report_data=b"\x09" * 32 + BINDING).bad()["tee.report_data"]
    assert "in between" in case.sign(report_data=NONCE + b"\x09" * 32).bad()["tee.report_data"]
    assert set(case.sign(report_data=bytes(64)).bad()) == {"tee.report_data"}
    assert replace(case, report_data=None).appraise()[5].status is Status.SKIP


# tee.measurement, tee.instance


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("measurement", b"\x01" * 48),
        ("policy", 0x20000),
        ("family_id", b"\x01" * 16),
        ("image_id", b"\x01" * 16),
        ("guest_svn", 1),
        ("id_key_digest", b"\x01" * 48),
        ("author_key_digest", b"\x01" * 48),
        ("report_id_ma", b"\x01" * 32),
        ("host_data", b"\x01" * 32),
    ],
)
def test_every_launch_value_counts(case: Case, name: str, value: int | bytes) -> None:
    bad = case.sign(**{name: value}).bad()
    assert set(bad) == {"tee.measurement"}
    assert name in bad["tee.measurement"]


def test_no_snapshot_no_comparison(case: Case) -> None:
    checks = replace(case, reference=None).appraise()
    assert [c.status for c in checks[6:]] == [Status.SKIP, Status.SKIP]


def test_what_a_snapshot_has_no_value_for_is_named(case: Case) -> None:
    assert case.reference is not None
    sev = case.reference.sev
    assert sev is not None
    old = Snapshot(tee_policy=TeePolicy(sev=sev), tpm_policy=TpmPolicy(reset_count=1, restart_count=0))
    measurement = replace(case, reference=old).appraise()[6]
    assert measurement.status is Status.WARNING
    assert "host_data, vmpl" in measurement.line


@pytest.mark.parametrize(("absent", "index"), [("measurement", 6), ("report_id", 7)])
def test_a_snapshot_without_the_value_proves_nothing(case: Case, absent: str, index: int) -> None:
    import msgspec

    assert case.reference is not None
    assert case.reference.sev is not None
    sev = msgspec.structs.replace(case.reference.sev, **{absent: None})
    reference = msgspec.structs.replace(case.reference, tee_policy=TeePolicy(sev=sev))
    assert replace(case, reference=reference).appraise()[index].status is Status.SKIP


def test_another_guest(case: Case) -> None:
    other = case.sign(report_id=sha256(b"another").digest())
    bad = other.bad()
    assert set(bad) == {"tee.instance"}
    assert "--allow-reboot" in bad["tee.instance"]
    allowed = replace(other, policy=Policy(allow_reboot=True)).appraise()[7]
    assert allowed.status is Status.WARNING
