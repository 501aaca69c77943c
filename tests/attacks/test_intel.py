"""Intel TDX and SGX: debug, other contents, other roots, old and forged collateral, logs that lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from hashlib import sha384

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cosmian_vm.devkit.amd import AmdVendor
from cosmian_vm.devkit.boot_log import BootEvent
from cosmian_vm.devkit.intel import IntelVendor, Lies, Platform
from cosmian_vm.devkit.intel_tee import SimulatedEnclave, SimulatedTd, serialise_ccel
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.endorsements.intel_collateral import parse_collateral
from cosmian_vm.evidence.bundle import TeeKind
from cosmian_vm.reference.snapshot import parse, serialise
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.reference_values import reference_from
from cosmian_vm.verifier.result import Status

from .conftest import NONCE, Judge

INTEL = IntelVendor.create()
NOW = INTEL.now
OTHER = IntelVendor.create()


@pytest.fixture
def td() -> SimulatedTd:
    return SimulatedTd(vendor=INTEL)


@pytest.fixture
def machine(vendor: AmdVendor, td: SimulatedTd) -> Machine:
    machine = Machine.create(vendor, now=NOW - timedelta(days=1))
    machine.device = td
    return machine


def judge_of(machine: Machine, tee: str = "TDX") -> Judge:
    return Judge(
        roots=(INTEL.root,), snapshot=machine.snapshot(), now=NOW, collateral=parse_collateral(INTEL.collateral(tee))
    )


@pytest.fixture
def judge(machine: Machine) -> Judge:
    return judge_of(machine)


@pytest.fixture
def enclave(vendor: AmdVendor) -> Machine:
    machine = Machine.create(vendor, now=NOW - timedelta(days=1))
    machine.tee = machine.tpm = machine.ima = None
    machine.device = SimulatedEnclave(vendor=INTEL)
    return machine


@pytest.fixture
def enclave_judge(enclave: Machine) -> Judge:
    return judge_of(enclave, "SGX")


def test_an_honest_td(machine: Machine, judge: Judge) -> None:
    verdict = judge.verdict(machine.evidence(NONCE, trusted=True))
    assert verdict.trusted, verdict.failures
    assert [c.status for c in verdict.of("tee.instance")] == [Status.WARNING]
    assert {c.status for c in verdict.checks if c.id.startswith("tee.") and c.id != "tee.instance"} == {Status.OK}


def test_a_td_of_tdx_1_5(machine: Machine, td: SimulatedTd) -> None:
    td.td_1_5 = True
    assert judge_of(machine).failed(machine.evidence(NONCE)) == set()


def test_an_honest_enclave_needs_no_tpm(enclave: Machine, enclave_judge: Judge) -> None:
    verdict = enclave_judge.verdict(enclave.evidence(NONCE))
    assert verdict.trusted, (verdict.failures, verdict.skipped_required)
    assert {c.status for c in verdict.checks if c.id.startswith(("tpm.", "ima."))} == {Status.SKIP}


def test_what_was_appraised_is_kept(machine: Machine, enclave: Machine) -> None:
    for one, tee in ((machine, "TDX"), (enclave, "SGX")):
        judge = replace(judge_of(one, tee), snapshot=None)
        evidence = one.evidence(NONCE)
        assert judge.verdict(evidence).trusted
        values = reference_from(evidence, one.snapshot(), Policy(), now=NOW, anchor="operator")
        assert values.differences == ()
        again = parse(serialise(values.snapshot), "snapshot")
        assert replace(judge, snapshot=again).failed(one.evidence(NONCE)) == set()


def test_debug(machine: Machine, td: SimulatedTd, enclave: Machine) -> None:
    td.fields["td_attributes"] = bytes.fromhex("0100001000000000")
    assert judge_of(machine).failed(machine.evidence(NONCE)) == {"tee.debug"}
    assert isinstance(enclave.device, SimulatedEnclave)
    enclave.device.fields["attributes"] = bytes.fromhex("0700000000000000e700000000000000")
    assert judge_of(enclave, "SGX").failed(enclave.evidence(NONCE)) == {"tee.debug"}


def test_a_service_td(machine: Machine, td: SimulatedTd) -> None:
    """Version 5, bound to a service TD that could migrate it away."""
    td.td_1_5 = True
    td.fields["mr_service_td"] = b"\x01" * 48
    assert judge_of(machine).failed(machine.evidence(NONCE)) == {"tee.debug"}


@pytest.mark.parametrize("name", ["mr_td", "mr_seam", "mr_config_id", "mr_owner", "mr_owner_config", "xfam", "rtmr3"])
def test_another_td(machine: Machine, td: SimulatedTd, judge: Judge, name: str) -> None:
    td.fields[name] = b"\x77" * (8 if name == "xfam" else 48)
    evidence = machine.evidence(NONCE)
    assert judge.failed(evidence) == {"tee.measurement"}
    (check,) = judge.verdict(evidence).of("tee.measurement")
    assert name.replace("rtmr3", "RTMR 3") in check.line


def test_another_kernel_is_named_by_the_log(machine: Machine, td: SimulatedTd, judge: Judge) -> None:
    td.boot.append(BootEvent(2, 0x0D, b"kernel_cmdline: init=/bin/sh\x00"))
    evidence = machine.evidence(NONCE)
    assert judge.failed(evidence) == {"tee.measurement"}
    (check,) = judge.verdict(evidence).of("tee.measurement")
    assert any("init=/bin/sh" in detail and "was not there" in detail for detail in check.details)


def test_a_log_that_does_not_replay(machine: Machine, td: SimulatedTd, judge: Judge) -> None:
    td.log = serialise_ccel(td.boot[1:])
    assert judge.failed(machine.evidence(NONCE)) == {"tee.measurement"}
    td.log = b"no log at all"
    assert judge.failed(machine.evidence(NONCE)) == {"tee.measurement"}
    td.log = b""
    assert judge.failed(machine.evidence(NONCE)) == set()


@pytest.mark.parametrize("name", ["mr_enclave", "mr_signer", "attributes", "isv_prod_id", "isv_svn"])
def test_another_enclave(enclave: Machine, enclave_judge: Judge, name: str) -> None:
    assert isinstance(enclave.device, SimulatedEnclave)
    other: dict[str, bytes | int] = {
        "mr_enclave": b"\x99" * 32,
        "mr_signer": b"\x99" * 32,
        "attributes": bytes.fromhex("0500000000000000e400000000000000"),
        "isv_prod_id": 2,
        "isv_svn": 2,
    }
    enclave.device.fields[name] = other[name]
    assert enclave_judge.failed(enclave.evidence(NONCE)) == {"tee.measurement"}


def test_a_newer_enclave_of_the_same_product_has_another_measurement_or_passes(
    enclave: Machine, enclave_judge: Judge
) -> None:
    assert isinstance(enclave.device, SimulatedEnclave)
    enclave.device.fields["isv_svn"] = 4
    assert enclave_judge.failed(enclave.evidence(NONCE)) == set()


def test_an_enclave_in_the_place_of_a_vm(machine: Machine, judge: Judge) -> None:
    """It would lift all that a TPM is asked for."""
    machine.device = SimulatedEnclave(vendor=INTEL)
    machine.tpm = machine.ima = None
    sgx = replace(judge, collateral=parse_collateral(INTEL.collateral("SGX")))
    assert sgx.failed(machine.evidence(NONCE)) == {"tee.measurement"}


def test_a_forged_enclave_does_not_lift_the_tpm(machine: Machine, judge: Judge) -> None:
    machine.device = SimulatedEnclave(vendor=OTHER)
    machine.tpm = machine.ima = None
    first = replace(judge, snapshot=None, collateral=parse_collateral(INTEL.collateral("SGX")))
    assert {"tee.chain", "tpm.ak", "tpm.signature", "ima.replay"} <= first.failed(machine.evidence(NONCE))


def test_qe_report_replaced(machine: Machine, td: SimulatedTd, judge: Judge) -> None:
    """Another enclave's report, signed by the genuine PCK: not Intel's quoting enclave."""
    td.lies = Lies(qe={"mr_signer": b"\x55" * 32})
    assert judge.failed(machine.evidence(NONCE)) == {"tee.signature"}
    td.lies = Lies(qe={"report_data": bytes(64)})
    assert judge.failed(machine.evidence(NONCE)) - {"tee.tcb"} == {"tee.signature"}
    td.lies = Lies(signer=ec.generate_private_key(ec.SECP256R1()))
    assert judge.failed(machine.evidence(NONCE)) - {"tee.tcb"} == {"tee.signature"}


def test_pck_chain_of_another_root(machine: Machine, td: SimulatedTd, judge: Judge) -> None:
    td.vendor = OTHER
    assert "tee.chain" in judge.failed(machine.evidence(NONCE))


def test_revoked_pck(machine: Machine, judge: Judge) -> None:
    revoked = parse_collateral(INTEL.collateral(revoked=[INTEL.pki.pck]))
    assert replace(judge, collateral=revoked).failed(machine.evidence(NONCE)) == {"tee.revocation"}


def _forged() -> bytes:
    return INTEL.collateral(tcb_info=INTEL.document({}, key=ec.generate_private_key(ec.SECP256R1())))


def test_tcb_info_signed_by_another_key(machine: Machine, judge: Judge) -> None:
    genuine = INTEL.tcb_info()
    forged = replace(genuine, signature=OTHER.tcb_info().signature)
    collateral = parse_collateral(INTEL.collateral(tcb_info=forged))
    assert replace(judge, collateral=collateral).failed(machine.evidence(NONCE)) == {"tee.chain"}


def test_expired_collateral(machine: Machine, judge: Judge) -> None:
    later = replace(judge, now=NOW + timedelta(days=40))
    assert "tee.chain" in later.failed(machine.evidence(NONCE))


def test_tcb_info_of_another_platform(machine: Machine, judge: Judge) -> None:
    other = replace(INTEL, pki=replace(INTEL.pki, platform=Platform(fmspc=bytes.fromhex("50806f000000"))))
    collateral = parse_collateral(INTEL.collateral(tcb_info=other.tcb_info()))
    assert replace(judge, collateral=collateral).failed(machine.evidence(NONCE)) == {"tee.tcb"}


def test_no_collateral_is_no_trust(machine: Machine, judge: Judge) -> None:
    verdict = replace(judge, collateral=None).verdict(machine.evidence(NONCE))
    assert not verdict.trusted
    assert {c.id for c in verdict.skipped_required} == {"tee.revocation", "tee.tcb"}


@pytest.mark.parametrize(
    ("status", "passes"),
    [
        ("SWHardeningNeeded", Status.WARNING),
        ("ConfigurationNeeded", Status.WARNING),
        ("OutOfDate", Status.FAIL),
        ("OutOfDateConfigurationNeeded", Status.FAIL),
        ("ConfigurationAndSWHardeningNeeded", Status.FAIL),
        ("Revoked", Status.FAIL),
    ],
)
def test_tcb_status(machine: Machine, judge: Judge, status: str, passes: Status) -> None:
    info = INTEL.tcb_info(status=status, advisories=["INTEL-SA-00001"])
    at = replace(judge, collateral=parse_collateral(INTEL.collateral(tcb_info=info)))
    (check,) = at.verdict(machine.evidence(NONCE)).of("tee.tcb")
    assert check.status is passes
    assert "INTEL-SA-00001" in check.line
    named = at.with_policy(tcb_statuses=frozenset({status, "Revoked"}))
    (check,) = named.verdict(machine.evidence(NONCE)).of("tee.tcb")
    assert check.status is (Status.FAIL if status == "Revoked" else Status.WARNING)
    wary = named.with_policy(advisories=frozenset({"INTEL-SA-00002"}))
    (check,) = wary.verdict(machine.evidence(NONCE)).of("tee.tcb")
    assert check.status is Status.FAIL
    knows = named.with_policy(advisories=frozenset({"INTEL-SA-00001"}))
    assert knows.verdict(machine.evidence(NONCE)).of("tee.tcb") == named.verdict(machine.evidence(NONCE)).of("tee.tcb")


def test_quote_for_another_connection(machine: Machine, td: SimulatedTd, judge: Judge) -> None:
    stored = td.quote(bytes(64)).raw
    assert judge.failed(replace(machine.evidence(NONCE), tee=stored)) == {"tee.report_data"}


def test_trailing_bytes_are_reported(machine: Machine, td: SimulatedTd, judge: Judge) -> None:
    td.lies = Lies(trailing=b"\x01" * 20)
    (check,) = judge.verdict(machine.evidence(NONCE)).of("tee.signature")
    assert check.status is Status.OK
    assert any("20 bytes" in detail for detail in check.details)


def test_a_kind_that_the_policy_refuses(machine: Machine, judge: Judge) -> None:
    only_snp = judge.with_policy(kinds=frozenset({TeeKind.SNP}))
    assert only_snp.failed(machine.evidence(NONCE)) == {"tee.measurement"}


@pytest.mark.parametrize("change", [lambda s: {"rtmrs": None}, lambda s: {"tdx": None}])
def test_a_snapshot_that_was_cut(machine: Machine, judge: Judge, change: Callable[[object], dict[str, object]]) -> None:
    import msgspec

    assert judge.snapshot is not None
    values = change(judge.snapshot)
    if "tdx" in values:
        policy = judge.snapshot.tdx
        assert policy is not None
        body = msgspec.structs.replace(policy.body, mr_td=None)
        cut = msgspec.structs.replace(
            judge.snapshot,
            tee_policy=msgspec.structs.replace(
                judge.snapshot.tee_policy, tdx=msgspec.structs.replace(policy, body=body)
            ),
        )
    else:
        cut = msgspec.structs.replace(judge.snapshot, rtmrs=None)
    verdict = replace(judge, snapshot=cut).verdict(machine.evidence(NONCE))
    assert not verdict.trusted
    assert {c.id for c in (*verdict.failures, *verdict.skipped_required)} == {"tee.measurement"}


def test_mrtd_is_what_it_is_said_to_be() -> None:
    assert SimulatedTd(vendor=INTEL).fields["mr_td"] == sha384(b"simulated TD").digest()
