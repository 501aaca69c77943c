"""An image's reference values in an appraisal: alone, and beside a snapshot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.boot_log import BootEvent, default_boot, with_other_kernel
from cosmian_vm.devkit.ima import IMA_POLICY_PATH
from cosmian_vm.devkit.machine import PREDICTED_PCRS, Machine
from cosmian_vm.endorsements.amd import collect
from cosmian_vm.evidence.bundle import Evidence
from cosmian_vm.reference.build_reference import BuildReference
from cosmian_vm.reference.snapshot import BOOT_PCRS, Snapshot
from cosmian_vm.reference.whitelist import Whitelist, parse_whitelist
from cosmian_vm.verifier.appraisal import appraise, required_checks
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.result import CHECK_IDS, Check, Status, Verdict, both, fail, ok, skip, warning

KEYS = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"
NOW = datetime(2026, 6, 1, tzinfo=UTC)
NONCE = bytes(range(32))
UNPINNED = {"tee.instance", "tpm.ak", "tpm.clock", "tpm.boot_pcrs", "vm.owner"}


@pytest.fixture(scope="module")
def vendor() -> AmdVendor:
    return AmdVendor.create(keys=VendorKeys.load(KEYS), now=NOW - timedelta(days=30))


@pytest.fixture
def machine(vendor: AmdVendor) -> Machine:
    return Machine.create(vendor, now=NOW - timedelta(days=1))


@dataclass(frozen=True)
class Judge:
    machine: Machine
    build: BuildReference | None
    snapshot: Snapshot | None = None
    policy: Policy = Policy()  # noqa: RUF009 - frozen
    whitelist: Whitelist | None = None

    def verdict(self, evidence: Evidence | None = None) -> Verdict:
        given = self.machine.evidence(NONCE, trusted=True) if evidence is None else evidence
        return appraise(
            given,
            collect(given.endorsements),
            self.snapshot,
            self.policy,
            nonce=NONCE,
            roots=self.machine.roots,
            now=NOW,
            whitelist=self.whitelist,
            build=self.build,
        ).verdict

    def check(self, check_id: str, evidence: Evidence | None = None) -> Check:
        (check,) = self.verdict(evidence).of(check_id)
        return check

    def failed(self, evidence: Evidence | None = None) -> set[str]:
        verdict = self.verdict(evidence)
        assert verdict.trusted == (not verdict.failures and not verdict.skipped_required)
        return {check.id for check in (*verdict.failures, *verdict.skipped_required)}


@pytest.fixture
def alone(machine: Machine) -> Judge:
    return Judge(machine, machine.build_reference())


@pytest.fixture
def beside(machine: Machine) -> Judge:
    return Judge(machine, machine.build_reference(), machine.snapshot())


def changed(judge: Judge, **values: Any) -> Judge:
    assert judge.build is not None
    return replace(judge, build=msgspec.structs.replace(judge.build, **values))


def with_file(judge: Judge, path: str, digest: str) -> Judge:
    assert judge.build is not None
    files = {**dict(judge.build.filehashes), path: digest}
    return changed(judge, filehashes=tuple(files.items()))


# Alone


def test_a_machine_of_the_image_passes_and_every_open_question_is_said(alone: Judge) -> None:
    verdict = alone.verdict()
    assert verdict.trusted
    assert {check.id for check in verdict.checks if check.status is Status.WARNING} == UNPINNED
    assert not [check.id for check in verdict.checks if check.status is Status.SKIP]
    for check_id in UNPINNED - {"tpm.boot_pcrs"}:
        assert "snapshot pins it" in alone.check(check_id).line
    assert "not pinned" in alone.check("tee.measurement").details[0]


def test_all_that_a_snapshot_would_require_is_required(alone: Judge) -> None:
    everything = {i for i in CHECK_IDS if i.startswith(("tee.", "tpm.", "ima."))}
    assert required_checks(None, Policy(), alone.build) == everything
    assert required_checks(None, Policy(), None) < everything


def test_another_machine_of_the_same_image_passes_too(machine: Machine, alone: Judge) -> None:
    """This is what reference values cannot tell, and why the warnings are there."""
    other = Machine.create(machine.vendor, instance=b"second", now=NOW - timedelta(days=1))
    assert replace(alone, machine=other).failed() == set()
    machine.reboot(new_instance=b"again")
    assert alone.failed() == set()


def test_insecure_tls_says_that_it_may_be_anybodys(machine: Machine, alone: Judge) -> None:
    line = alone.check("tls.certificate", machine.evidence(NONCE)).line
    assert "anybody's" in line
    assert "rests on the snapshot" not in line


def test_the_owner_is_pinned_by_the_option(machine: Machine, alone: Judge) -> None:
    machine.owners = ("ed25519:abc",)
    assert alone.check("vm.owner").status is Status.WARNING
    assert replace(alone, policy=Policy(owner="ed25519:abc")).check("vm.owner").status is Status.OK
    assert replace(alone, policy=Policy(owner="ed25519:other")).failed() == {"vm.owner"}


@pytest.mark.parametrize(
    ("missing", "failing"),
    [
        ("tee", {i for i in CHECK_IDS if i.startswith("tee.")}),
        ("tpm", {i for i in CHECK_IDS if i.startswith("tpm.")} | {"ima.replay"}),
        ("ima_log", {i for i in CHECK_IDS if i.startswith("ima.")}),
    ],
)
def test_missing_evidence_fails(machine: Machine, alone: Judge, missing: str, failing: set[str]) -> None:
    evidence = replace(machine.evidence(NONCE, trusted=True), **{missing: None})  # type: ignore[arg-type]
    assert failing <= alone.failed(evidence)


def test_without_tpm_does_not_lift_it(machine: Machine, alone: Judge, beside: Judge) -> None:
    for judge in (alone, beside):
        evidence = replace(machine.evidence(NONCE, trusted=True), tpm=None, ima_log=None)
        failed = replace(judge, policy=Policy(without_tpm=True)).failed(evidence)
        assert {"tpm.boot_pcrs", "ima.files"} <= failed
    assert beside.snapshot is not None
    denied = msgspec.structs.replace(beside.snapshot, without_tpm=True, filehashes=None, tpm_policy=None)
    evidence = replace(machine.evidence(NONCE, trusted=True), tpm=None, ima_log=None)
    assert {"tpm.boot_pcrs", "ima.files"} <= replace(beside, snapshot=denied).failed(evidence)


def test_version_1_proves_no_boot(machine: Machine, alone: Judge) -> None:
    evidence = machine.evidence(NONCE, api=1, trusted=True)
    assert "tpm.boot_pcrs" in replace(alone, policy=Policy(api=1)).failed(evidence)


# Boot PCRs


@pytest.mark.parametrize("pcr", PREDICTED_PCRS)
def test_each_predicted_pcr_counts(alone: Judge, beside: Judge, pcr: int) -> None:
    assert alone.build is not None
    forged = {**alone.build.pcrs, str(pcr): "11" * 32}
    for judge in (alone, beside):
        judge = changed(judge, pcrs=forged)
        assert judge.failed() == {"tpm.boot_pcrs"}
        check = judge.check("tpm.boot_pcrs")
        assert f"PCR {pcr} (" in check.line
        assert any("the reference values have " + "11" * 32 in detail for detail in check.details)


@pytest.mark.parametrize("pcr", [pcr for pcr in BOOT_PCRS if pcr not in PREDICTED_PCRS])
def test_other_pcrs_may_be_anything_and_are_named(machine: Machine, alone: Judge, pcr: int) -> None:
    machine.reboot(boot=[*default_boot(), BootEvent(pcr, 0x0D, b"something else")])
    assert alone.failed() == set()
    line = alone.check("tpm.boot_pcrs").line
    assert "nothing is expected of PCR 0-3, 5-8, 14-15" in line
    assert "PCR 4, 9, 11-13" in line


def test_another_kernel_is_named_by_its_event(machine: Machine, alone: Judge) -> None:
    machine.reboot(boot=with_other_kernel(default_boot()))
    assert alone.failed() == {"tpm.boot_pcrs"}
    check = alone.check("tpm.boot_pcrs")
    assert "was built" in check.line
    assert any("vmlinuz" in detail for detail in check.details)
    assert not any("snapshot" in text for text in (check.line, *check.details))


def test_a_snapshot_of_another_kernel_does_not_excuse_it(machine: Machine) -> None:
    """Both must hold: the snapshot was taken after the kernel had been changed."""
    build = machine.build_reference()
    machine.reboot(boot=with_other_kernel(default_boot()))
    judge = Judge(machine, build, machine.snapshot())
    assert replace(judge, build=None).failed() == set()
    assert judge.failed() == {"tpm.boot_pcrs"}


def test_both_may_fail_and_both_are_told(machine: Machine, beside: Judge) -> None:
    machine.reboot(boot=with_other_kernel(default_boot()))
    judge = replace(beside, policy=Policy(allow_reboot=True))
    assert "tpm.boot_pcrs" in judge.failed()
    line = judge.check("tpm.boot_pcrs").line
    assert "as at the snapshot" in line
    assert "as it was built" in line


def test_no_prediction_is_no_proof(alone: Judge, beside: Judge) -> None:
    assert changed(alone, pcrs={}).failed() == {"tpm.boot_pcrs"}
    assert changed(beside, pcrs={}).failed() == set()


def test_a_log_that_does_not_replay_fails(machine: Machine, alone: Judge) -> None:
    evidence = machine.evidence(NONCE, trusted=True)
    assert alone.failed(replace(evidence, boot_event_log=b"nonsense")) == {"tpm.boot_pcrs"}
    assert alone.failed(replace(evidence, boot_event_log=None)) == set()


# Launch measurement


def test_another_launch_measurement_fails(alone: Judge, beside: Judge) -> None:
    assert alone.build is not None
    (launch,) = alone.build.launches
    other = msgspec.structs.replace(launch, measurement="11" * 48, vcpus=4)
    for judge in (alone, beside):
        assert changed(judge, launches=(other,)).failed() == {"tee.measurement"}
        assert "4 x EPYC-Milan" in str(changed(judge, launches=(other,)).check("tee.measurement"))
        assert changed(judge, launches=(other, launch)).failed() == set()


def test_a_snapshot_of_other_firmware_fails_all_the_same(beside: Judge) -> None:
    assert beside.snapshot is not None
    assert beside.snapshot.sev is not None
    sev = msgspec.structs.replace(beside.snapshot.sev, measurement="22" * 48)
    policy = msgspec.structs.replace(beside.snapshot.tee_policy, sev=sev)
    judge = replace(beside, snapshot=msgspec.structs.replace(beside.snapshot, tee_policy=policy))
    assert judge.failed() == {"tee.measurement"}


def test_no_launch_measurement_is_a_warning(alone: Judge, beside: Judge) -> None:
    check = changed(alone, launches=()).check("tee.measurement")
    assert check.status is Status.WARNING
    assert "not pinned" in check.line
    assert changed(beside, launches=()).check("tee.measurement").status is Status.OK


# Files


def test_a_program_that_is_not_of_the_image(machine: Machine, alone: Judge) -> None:
    machine.run("/usr/bin/miner", b"unknown")
    assert alone.failed() == {"ima.files"}
    line = alone.check("ima.files").line
    assert "Not in the reference values: /usr/bin/miner" in line
    assert "new: the reference values have no such file" in line
    allowed = parse_whitelist(f"/usr/bin/miner {sha256(b'unknown').hexdigest()}".encode(), "w")
    assert replace(alone, whitelist=allowed).failed() == set()


def test_a_changed_program(machine: Machine, alone: Judge) -> None:
    machine.run("/usr/bin/ls", b"backdoor")
    assert "changed: the reference values have " + sha256(b"list").hexdigest() in alone.check("ima.files").line


def test_spaces_and_names_that_are_not_utf_8(machine: Machine, alone: Judge) -> None:
    assert machine.ima is not None
    machine.run("/usr/bin/a program with spaces")
    assert alone.failed() == set()
    machine.ima.measure(b"/usr/bin/caf\xe9", b"bytes")
    assert alone.failed() == {"ima.files"}
    assert alone.build is not None
    entries = (*alone.build.filehashes, ("/usr/bin/caf\N{REPLACEMENT CHARACTER}", sha256(b"bytes").hexdigest()))
    assert changed(alone, filehashes=entries).failed() == {"ima.files"}
    exact = {len(entries) - 1: b"/usr/bin/caf\xe9".hex()}
    assert changed(alone, filehashes=entries, path_bytes=exact).failed() == set()


def test_the_snapshot_stays_the_memory_of_the_machine(machine: Machine) -> None:
    """What was installed after the build is known by the snapshot; what the image had and nobody ran is not needed."""
    build = machine.build_reference()
    machine.run("/usr/local/bin/ours", b"installed later")
    judge = Judge(machine, build, machine.snapshot())
    assert judge.failed() == set()
    assert replace(judge, snapshot=None).failed() == {"ima.files"}
    machine.run("/opt/never_there", b"unknown")
    assert judge.failed() == {"ima.files"}


def test_a_file_of_the_image_that_was_changed_before_the_snapshot(machine: Machine) -> None:
    """The snapshot trusts it; the build never made it."""
    build = machine.build_reference()
    machine.run("/opt/app/server", b"trojan")
    judge = Judge(machine, build, machine.snapshot())
    assert replace(judge, build=None).failed() == set()
    assert judge.failed() == {"ima.files"}
    line = judge.check("ima.files").line
    assert f"/opt/app/server sha256:{sha256(b'trojan').hexdigest()}" in line
    assert "changed since the image was built: the reference values have " + sha256(b"application").hexdigest() in line
    allowed = parse_whitelist(f"/opt/app/server {sha256(b'trojan').hexdigest()}".encode(), "w")
    assert replace(judge, whitelist=allowed).failed() == set()


def test_what_changed_but_never_ran_is_nothing_to_ima(machine: Machine) -> None:
    build = machine.build_reference()
    machine.files["/opt/app/server"] = b"another"  # has not run
    assert Judge(machine, build, machine.snapshot()).failed() == set()


def test_names_with_spaces_contradict_too(vendor: AmdVendor) -> None:
    files = {f"/usr/bin/{number}": b"x" for number in range(5)} | {"/opt/a b": b"built"}
    machine = Machine.create(vendor, files=files, now=NOW - timedelta(days=1))
    build = machine.build_reference()
    machine.run("/opt/a b", b"trojan")
    judge = Judge(machine, build, machine.snapshot())
    assert replace(judge, build=None).failed() == set()
    assert judge.failed() == {"ima.files"}


def test_many_contradictions_in_a_long_list(vendor: AmdVendor) -> None:
    """The quick look-up of long lists knows them as little as the careful one of short lists."""
    files = {f"/usr/bin/tool{number}": b"built" for number in range(400)}
    machine = Machine.create(vendor, files=files, now=NOW - timedelta(days=1), template="ima-sig")
    build = machine.build_reference()
    for number in range(5, 400, 7):
        machine.run(f"/usr/bin/tool{number}", b"changed")
    for path in files:
        machine.run(path)
    assert Judge(machine, None, machine.snapshot()).failed() == set()
    judge = Judge(machine, build, machine.snapshot())
    named = judge.check("ima.files").details
    assert len(named) == len(range(5, 400, 7))
    assert all("changed since the image was built" in line for line in named)


def test_a_contradiction_in_a_short_list_against_many_files(vendor: AmdVendor) -> None:
    """Where few entries meet many files, keys are made for these few only."""
    files = {f"/usr/bin/tool{number}": b"built" for number in range(2000)}
    machine = Machine.create(vendor, files=files, now=NOW - timedelta(days=1))
    build = machine.build_reference()
    machine.run("/usr/bin/tool1999", b"changed")
    judge = Judge(machine, build, machine.snapshot())
    assert replace(judge, build=None).failed() == set()
    assert [line.split()[0] for line in judge.check("ima.files").details] == ["/usr/bin/tool1999"]


# Policy and violations


def without_policy_entry(machine: Machine) -> Machine:
    assert machine.ima is not None
    fresh = {path: content for path, content in machine.files.items() if path != IMA_POLICY_PATH}
    return Machine.create(machine.vendor, files=fresh, now=NOW - timedelta(days=1))


def test_the_policy_of_the_image_must_have_been_loaded(machine: Machine, alone: Judge, beside: Judge) -> None:
    other = without_policy_entry(machine)
    for judge in (alone, beside):
        assert "ima.policy" in replace(judge, machine=other).failed()
        assert "missing" in replace(judge, machine=other).check("ima.policy").line
    agreed = replace(beside, machine=other, snapshot=other.snapshot())
    assert agreed.failed() == {"ima.policy"}  # the snapshot alone would have expected none
    assert replace(agreed, build=None).failed() == set()


@pytest.mark.parametrize("policy", [None, ()])
def test_without_a_policy_the_reference_values_prove_nothing_alone(
    alone: Judge, beside: Judge, policy: tuple[()] | None
) -> None:
    """A machine that measures nothing has a list of boot_aggregate alone, and would pass."""
    assert changed(alone, ima_policy=policy).failed() == {"ima.policy"}
    assert changed(beside, ima_policy=policy).failed() == set()


def test_without_a_prediction_for_the_kernel_the_reference_values_prove_nothing_alone(
    alone: Judge, beside: Judge
) -> None:
    """PCR 13 is zero nearly everywhere."""
    assert changed(alone, pcrs={"13": "00" * 32}).failed() == {"tpm.boot_pcrs"}
    assert changed(beside, pcrs={"13": "00" * 32}).failed() == set()


def test_violations_of_files_of_the_image_fail(machine: Machine, alone: Judge, beside: Judge) -> None:
    assert machine.ima is not None
    machine.ima.violate("/var/log/other.log")
    assert alone.failed() == beside.failed() == set()
    machine.ima.violate("/usr/bin/ls")
    assert alone.failed() == beside.failed() == {"ima.violations"}


def test_a_contradicted_file_is_still_one_of_the_snapshot_for_violations(machine: Machine) -> None:
    build = machine.build_reference()
    assert machine.ima is not None
    machine.run("/opt/app/server", b"trojan")
    judge = Judge(machine, build, machine.snapshot())
    machine.ima.violate("/opt/app/server")
    assert judge.failed() == {"ima.files", "ima.violations"}


def test_a_file_of_the_image_alone_counts_for_violations(machine: Machine) -> None:
    build = machine.build_reference()
    assert machine.ima is not None
    snapshot = machine.snapshot()
    files = tuple(entry for entry in snapshot.filehashes or () if entry[0] != "/opt/app/server")
    judge = Judge(machine, build, msgspec.structs.replace(snapshot, filehashes=files))
    machine.ima.violate("/opt/app/server")
    assert judge.failed() == {"ima.violations"}


# Reboots, with both


def test_a_reboot_with_both(machine: Machine, beside: Judge) -> None:
    machine.reboot()
    assert beside.failed() == {"tpm.clock"}
    allowed = replace(beside, policy=Policy(allow_reboot=True))
    assert allowed.failed() == set()
    forged = with_file(allowed, "/usr/bin/ls", "11" * 32)
    assert forged.failed() == {"ima.files", "tpm.clock"}  # what fails for the build excuses no reboot


# Two answers to one question


@pytest.mark.parametrize(
    ("answers", "worse"),
    [
        ((ok("a", "1"), ok("a", "2")), Status.OK),
        ((ok("a", "1"), warning("a", "2")), Status.WARNING),
        ((skip("a", "1"), warning("a", "2")), Status.SKIP),
        ((skip("a", "1"), fail("a", "2")), Status.FAIL),
        ((fail("a", "1"), fail("a", "2")), Status.FAIL),
    ],
)
def test_the_worse_answer_counts_and_both_are_kept(answers: Sequence[Check], worse: Status) -> None:
    for first, second in (answers, tuple(reversed(answers))):
        check = both(first, second)
        assert check.status is worse
        assert {"1", "2"} <= set("; ".join((check.line, *check.details)).split("; "))
