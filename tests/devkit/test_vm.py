"""The whole simulated VM: real processes, real TLS, a software TPM. Slow steps are shared."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography import x509

from cosmian_vm.client.agent import AgentClient
from cosmian_vm.client.owner_key import create
from cosmian_vm.devkit.__main__ import main
from cosmian_vm.devkit.amd import VendorKeys
from cosmian_vm.devkit.vm import SimulatedVm
from cosmian_vm.endorsements.amd import collect
from cosmian_vm.errors import InputError
from cosmian_vm.evidence import ima
from cosmian_vm.evidence.bundle import Evidence
from cosmian_vm.evidence.tpm import parse_quote
from cosmian_vm.verifier.appraisal import appraise
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.result import Verdict

pytestmark = pytest.mark.swtpm

NONCE = bytes(range(32))


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory, keys: VendorKeys) -> Iterator[SimulatedVm]:
    if shutil.which("swtpm") is None or shutil.which("swtpm_setup") is None:
        pytest.skip("swtpm is not installed")
    with SimulatedVm(tmp_path_factory.mktemp("vm") / "folder", keys=keys) as machine:
        machine.start()
        yield machine


def evidence_of(vm: SimulatedVm, nonce: bytes = NONCE) -> Evidence:
    with AgentClient(vm.url, allow_insecure_tls=True) as client:
        return client.evidence(nonce)


def verdict_on(vm: SimulatedVm, evidence: Evidence) -> Verdict:
    roots = x509.load_pem_x509_certificates(vm.trust_root.read_bytes())
    return appraise(
        evidence,
        collect(evidence.endorsements),
        None,
        Policy(),
        nonce=NONCE,
        roots=roots,
        now=datetime.now(UTC),
    ).verdict


@contextmanager
def owners_client(vm: SimulatedVm) -> Iterator[AgentClient]:
    """Of the owner of ``vm``, who keeps the key beside it."""
    with AgentClient(vm.url, allow_insecure_tls=True) as client:
        client.owner = create(vm.folder / "owner")
        client.claim()
        yield client


def paths(evidence: Evidence) -> list[bytes | None]:
    assert evidence.ima_log is not None
    return [entry.path for entry in ima.parse_binary(evidence.ima_log)]


def report_id(evidence: Evidence) -> bytes:
    assert evidence.tee is not None
    return evidence.tee[0x140:0x160]


def reset_count(evidence: Evidence) -> int:
    assert evidence.tpm is not None
    return parse_quote(evidence.tpm.quote).reset_count


def test_it_is_genuine_and_a_snapshot_can_be_taken(vm: SimulatedVm) -> None:
    verdict = verdict_on(vm, evidence_of(vm))
    assert verdict.trusted, verdict.failures
    with owners_client(vm) as client:
        raw = client.snapshot()
    for name in (b"/usr/bin/ls", b"/usr/bin/a program with spaces", b"/usr/share/doc/caf"):
        assert name in raw
    assert b"/var/log/messages" not in raw


def test_a_program_is_measured_and_really_runs(vm: SimulatedVm) -> None:
    assert vm.run("/usr/bin/echo", ["hello", "there"]) == b"hello there\n"
    assert vm.run("/opt/new/echo", ["copied"], source=Path("/bin/echo")) == b"copied\n"
    evidence = evidence_of(vm)
    assert paths(evidence)[-2:] == [b"/usr/bin/echo", b"/opt/new/echo"]
    assert verdict_on(vm, evidence).trusted
    vm.change("/usr/bin/echo")
    assert vm.run("/usr/bin/echo", ["changed"]) == b"changed\n"
    again = evidence_of(vm)
    assert paths(again).count(b"/usr/bin/echo") == 2
    assert verdict_on(vm, again).trusted


def test_a_reboot_keeps_the_address_and_starts_the_list_anew(vm: SimulatedVm) -> None:
    vm.run("/usr/bin/cat", ["/dev/null"])
    before, url = evidence_of(vm), vm.url
    assert vm.reboot() == url
    after = evidence_of(vm)
    assert reset_count(after) == reset_count(before) + 1
    assert report_id(after) == report_id(before)
    assert b"/usr/bin/cat" not in paths(after)
    assert before.tpm is not None
    assert after.tpm is not None
    assert after.tpm.ak_public == before.tpm.ak_public
    assert after.tls.leaf == before.tls.leaf
    vm.reboot(new_instance=True)
    assert report_id(evidence_of(vm)) != report_id(before)
    assert verdict_on(vm, evidence_of(vm)).trusted


def test_an_agent_that_lies_and_an_honest_one_again(vm: SimulatedVm) -> None:
    vm.restart_agent(attack="replay-tpm")
    assert {check.id for check in verdict_on(vm, evidence_of(vm)).failures} == {"tpm.nonce"}
    vm.violate("/var/log/messages")
    vm.restart_agent(attack="log-hidden-violation")
    assert "ima.replay" in {check.id for check in verdict_on(vm, evidence_of(vm)).failures}
    vm.restart_agent()
    assert verdict_on(vm, evidence_of(vm)).trusted


def test_evidence_holds_together_while_programs_are_measured(vm: SimulatedVm) -> None:
    """swtpm serves one client at a time; quotes and measurements come from different processes."""
    stop, failures = threading.Event(), []

    def measure() -> None:
        try:
            number = 0
            while not stop.is_set():
                number += 1
                (vm.rootfs / "opt/data").write_bytes(b"%d" % number)
                vm.measure("/opt/data")
        except Exception as exc:
            failures.append(exc)

    thread = threading.Thread(target=measure)
    thread.start()
    try:
        for _ in range(8):
            verdict = verdict_on(vm, evidence_of(vm))
            assert verdict.trusted, verdict.failures
    finally:
        stop.set()
        thread.join()
    assert not failures


def test_application(vm: SimulatedVm) -> None:
    with owners_client(vm) as client:
        client.app_init(b"secret")
    assert (vm.agent_config.data_storage / "data/app/app.conf").read_bytes() == b"secret"
    pid_file = vm.agent_config.tmp / "server.pid"
    found = re.search(rb'"pid": ?(\d+)', pid_file.read_bytes())
    assert found is not None
    assert Path(f"/proc/{int(found[1])}").exists()
    vm.stop()
    stat = Path(f"/proc/{int(found[1])}/stat")
    assert not stat.exists() or stat.read_bytes().split()[2] == b"Z"
    vm.start()


def test_what_leads_out_of_the_vm_is_refused(vm: SimulatedVm) -> None:
    for path in ("usr/bin/ls", "/usr/../../etc/passwd", "/../x"):
        with pytest.raises(InputError, match="expected is an absolute path"):
            vm.run(path)
    with pytest.raises(InputError, match="/usr/bin/none"):
        vm.run("/usr/bin/none")
    with pytest.raises(InputError, match="cannot be run"):
        vm.run("/etc/hostname")


def test_command_line(tmp_path: Path, keys: VendorKeys) -> None:
    folder = tmp_path / "f"
    machine = SimulatedVm(folder, keys=keys)
    machine._create()  # with keys that are there: making new ones takes seconds
    runner, at = CliRunner(), ["--folder", str(folder)]
    for command in (["url"], ["reboot"], ["attack", "none"]):
        off = runner.invoke(main, ["vm", *command[:1], *at, *command[1:]])
        assert off.exit_code == 1
        assert "no simulated VM runs here" in off.output
    off = runner.invoke(main, ["vm", "run", *at, "/usr/bin/ls"])
    assert (off.exit_code, "is off" in off.output) == (1, True)
    try:
        started = runner.invoke(main, ["vm", "start", *at])
        assert started.exit_code == 0, started.output
        url = re.search(r"https://127\.0\.0\.1:\d+", started.output)
        assert url is not None
        assert runner.invoke(main, ["vm", "url", *at]).output.strip() == url[0]
        ran = runner.invoke(main, ["vm", "run", *at, "/usr/bin/echo", "-n", "hello"])
        assert (ran.exit_code, ran.output) == (0, "hello")
        assert runner.invoke(main, ["vm", "change", *at, "/usr/bin/true"]).exit_code == 0
        agent, tpm = machine._agent.pid, machine.tpm.pid
    finally:
        stopped = runner.invoke(main, ["vm", "stop", *at])
    assert stopped.exit_code == 0, stopped.output
    assert agent is not None
    assert tpm is not None
    for pid in (agent, tpm):
        stat = Path(f"/proc/{pid}/stat")
        assert not stat.exists() or stat.read_bytes().split()[2] == b"Z"
    assert "replay-tpm" in runner.invoke(main, ["attacks"]).output


def test_an_agent_that_cannot_start_says_why(tmp_path: Path, keys: VendorKeys) -> None:
    from cosmian_vm.errors import AttesterError

    with SimulatedVm(tmp_path, keys=keys) as machine:
        machine._create()
        (tmp_path / "agent").write_bytes(b"not a folder")
        with pytest.raises(AttesterError, match=r"agent ended at once: .*agent"):
            machine.start()
        assert not machine.running
    assert machine.tpm.pid is None
