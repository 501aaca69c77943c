"""``cosmian_vm app``: no secret leaves for a machine that is not trusted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cosmian_vm import wire
from cosmian_vm.certificates import self_signed, spki_sha256
from cosmian_vm.cli._machines import Machines, identity_of
from cosmian_vm.client import owner_key
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.evidence.snp import parse_report
from cosmian_vm.evidence.tpm import name as tpm_name
from cosmian_vm.owner_proof import PROOF_HEADER, order_message, parse_proof
from cosmian_vm.reference import snapshot as snapshots

Run = Callable[..., Any]
SECRET = b'{"password": "hunter2"}'


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    path = tmp_path / "app.json"
    path.write_bytes(SECRET)
    return path


@pytest.fixture
def init(run: Run, agent: Any, root: Path, conf: Path) -> Run:
    def init(*more: object, option: str = "--conf") -> Any:
        return run("--url", agent.url, "--allow-insecure-tls", "app", "init", option, conf, "--trust-root", root, *more)

    return init


@pytest.fixture
def certificate(machine: Machine, tmp_path: Path) -> Path:
    """For --ca-file: the agent's own."""
    path = tmp_path / "agent.pem"
    path.write_bytes(machine.tls.certificate_pem)
    return path


def sent(agent: Any) -> list[bytes]:
    bodies = [json.loads(call.body)["content"] for call in agent.calls if call.path == wire.APP_INIT]
    return [wire.decode_base64_unpadded(body, "content") for body in bodies]


@pytest.mark.parametrize("option", ["--conf", "-c", "--configuration"])
def test_to_the_machine_of_the_snapshot(init: Run, agent: Any, taken: Path, option: str) -> None:
    ran = init("--snapshot", taken, option=option)
    assert ran.status == 0, ran
    assert sent(agent) == [SECRET]
    assert "hunter2" not in ran.out + ran.err


def orders(agent: Any) -> list[str]:
    """What was ordered, beside the questions."""
    return [call.path for call in agent.calls if call.path not in (wire.EVIDENCE, wire.OWNER, wire.NONCE, wire.APP)]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Somebody sits at a terminal."""
    return lambda: monkeypatch.setattr("cosmian_vm.cli._orders._on_a_terminal", lambda: True)


def test_a_machine_that_is_new_is_shown_and_asked_about_once(
    init: Run, run: Run, agent: Any, machine: Machine, root: Path, conf: Path, answers: Callable[[], None]
) -> None:
    answers()
    arguments = ("--url", agent.url, "--allow-insecure-tls", "app", "init", "-c", conf, "--trust-root", root)
    ran = run(*arguments, stdin=b"y\n")
    assert ran.status == 0, ran
    assert sent(agent) == [SECRET]
    evidence = machine.evidence(bytes(32))
    assert evidence.tee is not None
    assert evidence.tpm is not None
    for value in (parse_report(evidence.tee).report_id, parse_report(evidence.tee).measurement):
        assert value.hex() in ran.out
    assert tpm_name(evidence.tpm.ak_public).hex() in ran.out
    assert "anchor       operator" in ran.out
    assert ran.err.count("Is it yours") == 1
    ran = run(*arguments)  # remembered: nobody is asked
    assert ran.status == 0, ran
    assert "Is it yours" not in ran.err
    assert sent(agent) == [SECRET, SECRET]


def test_whoever_says_no_sends_nothing(
    run: Run, agent: Any, root: Path, conf: Path, answers: Callable[[], None], tmp_path: Path
) -> None:
    answers()
    ran = run("--url", agent.url, "--allow-insecure-tls", "app", "init", "-c", conf, "--trust-root", root, stdin=b"n\n")
    assert ran.status == 1
    assert "nothing was sent" in ran.err
    assert orders(agent) == []
    assert not (tmp_path / "config" / "cosmian_vm" / "known_machines.json").exists()


def test_a_script_has_to_say_trust_new(init: Run, agent: Any) -> None:
    ran = init()
    assert ran.status == 2
    assert "--trust-new" in ran.err
    assert orders(agent) == []
    assert init("--trust-new").status == 0
    assert sent(agent) == [SECRET]
    assert init().status == 0  # remembered


def test_a_snapshot_makes_it_remembered(init: Run, run: Run, agent: Any, root: Path) -> None:
    ran = run("--url", agent.url, "--allow-insecure-tls", "snapshot", "--trust-root", root)
    assert ran.status == 0, ran
    ran = init()
    assert ran.status == 0, ran
    assert sent(agent) == [SECRET]


def test_another_genuine_machine_at_the_same_url(init: Run, agent: Any, machine: Machine, vendor: Any) -> None:
    """The operator's own: as genuine as ours, of the same image."""
    assert init("--trust-new").status == 0
    agent.machine = Machine.create(vendor, instance=b"second")
    agent.machine.owners = machine.owners
    agent.use(agent.machine.tls)
    ran = init("--trust-new")
    assert ran.status == 1
    for instance in (b"first", b"second"):
        evidence = Machine.create(vendor, instance=instance).evidence(bytes(32))
        assert evidence.tee is not None
        assert parse_report(evidence.tee).report_id.hex() in ran.err
    assert f"cosmian_vm known remove {agent.url}" in ran.err
    assert sent(agent) == [SECRET]


def test_forgotten_and_met_again(init: Run, run: Run, agent: Any, vendor: Any, machine: Machine) -> None:
    assert init("--trust-new").status == 0
    assert agent.url in run("known", "list").out
    agent.machine = Machine.create(vendor, instance=b"second")
    agent.use(agent.machine.tls)
    assert run("known", "remove", agent.url + "/").status == 0
    assert run("known", "remove", agent.url).status == 2
    assert init("--trust-new").status == 0


def test_launched_anew(init: Run, agent: Any, machine: Machine, taken: Path) -> None:
    """Stopped and started again by the cloud: another report_id, the same TPM."""
    assert init("--trust-new").status == 0
    machine.reboot(new_instance=b"relaunched")
    ran = init("--trust-new")
    assert ran.status == 1
    assert "report_id was" in ran.err
    assert "--allow-reboot" in ran.err
    ran = init("--allow-reboot")
    assert ran.status == 0, ran
    assert init().status == 0


def test_a_snapshot_of_what_was_launched_anew(run: Run, agent: Any, machine: Machine, root: Path) -> None:
    """Its snapshot has to be taken anew, and so has what is remembered."""
    snapshot = ("--url", agent.url, "--allow-insecure-tls", "snapshot", "--trust-root", root)
    assert run(*snapshot).status == 0
    machine.reboot(new_instance=b"relaunched")
    ran = run(*snapshot)
    assert ran.status == 1
    assert "known remove" in ran.err
    assert "--allow-reboot" in ran.err
    ran = run(*snapshot, "--allow-reboot")
    assert ran.status == 0
    assert "Launched anew" in ran.out
    assert run(*snapshot).status == 0


def test_what_is_remembered_cannot_be_read(init: Run, agent: Any, tmp_path: Path) -> None:
    """Then nothing is new: everything would be."""
    folder = tmp_path / "config" / "cosmian_vm"
    folder.mkdir(parents=True, mode=0o700)
    (folder / "known_machines.json").write_text("{")
    ran = init("--trust-new")
    assert ran.status == 2
    assert "known_machines.json" in ran.err
    assert orders(agent) == []


# Owners


def key_of(tmp_path: Path) -> owner_key.OwnerKey:
    key = owner_key.load(tmp_path / "config" / "cosmian_vm")
    assert key is not None
    return key


def test_the_first_order_claims(init: Run, agent: Any, taken: Path, tmp_path: Path) -> None:
    ran = init("--snapshot", taken)
    assert ran.status == 0, ran
    assert orders(agent) == [wire.OWNER_CLAIM, wire.APP_INIT]
    key = key_of(tmp_path)
    assert f"[ OK ] You own this machine now: {key.fingerprint}" in ran.lines
    assert str(key.path) in ran.out
    assert "owner export" in ran.out
    assert key.path.stat().st_mode & 0o777 == 0o600
    assert key.path.parent.stat().st_mode & 0o777 == 0o700
    assert "PRIVATE" not in ran.out + ran.err


def test_each_order_has_a_proof_for_this_connection_and_body(init: Run, agent: Any, taken: Path) -> None:
    assert init("--snapshot", taken).status == 0
    call = next(call for call in agent.calls if call.path == wire.APP_INIT)
    proof = parse_proof(call.headers[PROOF_HEADER])
    assert proof.body_sha256 == sha256(call.body).digest()
    message = order_message("POST", wire.APP_INIT, proof.body_sha256, spki_sha256(call.leaf), bytes(32))
    Ed25519PublicKey.from_public_bytes(proof.key).verify(proof.signature, message)


def test_a_snapshot_of_before_the_claim(
    init: Run, run: Run, agent: Any, taken: Path, root: Path, tmp_path: Path
) -> None:
    """It names nobody: that it is we who own the machine now is no surprise; anybody else is."""
    for _ in range(2):
        ran = init("--snapshot", taken)
        assert ran.status == 0, ran
    verify = ("--url", agent.url, "--allow-insecure-tls", "verify", "-s", taken, "--trust-root", root)
    ran = run(*verify)
    assert ran.status == 1
    assert "--owner, or take a new snapshot" in ran.out
    assert run(*verify, "--owner", key_of(tmp_path).fingerprint).status == 0
    agent.machine.owners = (owner_key.create(tmp_path / "theirs").fingerprint,)
    before = sent(agent)
    assert init("--snapshot", taken).status == 1
    agent.machine.owners = (key_of(tmp_path).fingerprint, agent.machine.owners[0])
    assert init("--snapshot", taken).status == 1
    assert sent(agent) == before


def test_somebody_vouches_for_the_key_now(
    init: Run, agent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is no other machine, and is remembered; that nobody does any more, is refused."""
    assert init("--trust-new").status == 0
    book = Machines(tmp_path / "config" / "cosmian_vm")
    known = book.known()[agent.url]
    assert known.anchor == "operator"
    true = identity_of
    monkeypatch.setattr("cosmian_vm.cli._orders.identity_of", lambda evidence, _: true(evidence, "certificate"))
    assert init().status == 0
    assert book.known()[agent.url].anchor == "certificate"
    assert init().status == 0
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    ran = init()
    assert ran.status == 1
    assert "anchor was certificate, is operator" in ran.err


def test_owned_by_somebody_else(init: Run, run: Run, agent: Any, root: Path, tmp_path: Path) -> None:
    agent.machine.owners = (owner_key.create(tmp_path / "theirs").fingerprint,)
    for ran in (
        init("--trust-new"),
        run("--url", agent.url, "--allow-insecure-tls", "app", "restart", "--trust-root", root),
        run("--url", agent.url, "--allow-insecure-tls", "snapshot", "--trust-root", root),
    ):
        assert ran.status == 1
        assert agent.machine.owners[0] in ran.err
        assert "nothing was sent" in ran.err
    assert orders(agent) == []


def test_somebody_else_is_faster(init: Run, agent: Any) -> None:
    agent.route("POST", wire.OWNER_CLAIM, 409, b"this machine is owned by ed25519:theirs")
    ran = init("--trust-new")
    assert ran.status == 1
    assert "ed25519:theirs" in ran.err
    assert sent(agent) == []


def test_an_agent_that_obeys_anyone(init: Run, agent: Any, tmp_path: Path) -> None:
    agent.machine.owners = ("anyone",)
    ran = init("--trust-new")
    assert ran.status == 0, ran
    assert "takes orders from anyone" in ran.out
    assert sent(agent) == [SECRET]
    assert not (tmp_path / "config" / "cosmian_vm" / "owner.key").exists()


def test_no_claim_of_a_machine_that_is_not_trusted(run: Run, agent: Any, conf: Path, tmp_path: Path) -> None:
    for command in (("app", "init", "-c", conf, "--trust-new"), ("app", "restart"), ("snapshot",), ("app", "logs")):
        assert run("--url", agent.url, "--allow-insecure-tls", *command, "--offline").status == 1
    assert orders(agent) == []
    assert not (tmp_path / "config" / "cosmian_vm" / "owner.key").exists()


def test_a_key_that_others_can_read_is_not_used(init: Run, agent: Any, taken: Path, tmp_path: Path) -> None:
    assert init("--trust-new").status == 0
    key_of(tmp_path).path.chmod(0o640)
    before = len(agent.calls)
    ran = init()
    assert ran.status == 2
    assert "chmod 600" in ran.err
    assert len(agent.calls) == before


# Without verifying


def test_no_verify_says_what_it_risks(
    run: Run, agent: Any, machine: Machine, certificate: Path, conf: Path, tmp_path: Path
) -> None:
    agent.machine.owners = (owner_key.create(tmp_path / "config" / "cosmian_vm").fingerprint,)
    ran = run("--url", agent.url, "--ca-file", certificate, "app", "init", "-c", conf, "--no-verify")
    assert ran.status == 0, ran
    assert "[ WARNING ] --no-verify: nothing shows" in ran.out
    assert sent(agent) == [SECRET]
    assert wire.EVIDENCE not in [call.path for call in agent.calls]


def test_no_verify_needs_a_certificate(run: Run, agent: Any, conf: Path, tmp_path: Path) -> None:
    agent.machine.owners = (owner_key.create(tmp_path / "config" / "cosmian_vm").fingerprint,)
    ran = run("--url", agent.url, "--allow-insecure-tls", "app", "init", "-c", conf, "--no-verify")
    assert ran.status == 2
    assert "--allow-insecure-tls" in ran.err
    ran = run("--url", agent.url, "app", "init", "-c", conf, "--no-verify")
    assert ran.status == 1
    assert orders(agent) == []


def test_no_verify_never_claims(run: Run, agent: Any, certificate: Path, conf: Path) -> None:
    ran = run("--url", agent.url, "--ca-file", certificate, "app", "init", "-c", conf, "--no-verify")
    assert ran.status == 1
    assert "nobody owns this machine" in ran.err
    assert orders(agent) == []


def test_no_verify_compares_with_nothing(run: Run, agent: Any, certificate: Path, conf: Path, taken: Path) -> None:
    for more in (("--snapshot", taken), ("--trust-new",)):
        ran = run("--url", agent.url, "--ca-file", certificate, "app", "init", "-c", conf, "--no-verify", *more)
        assert ran.status == 2
    assert agent.connections == 0


def test_not_to_a_changed_machine(init: Run, agent: Any, machine: Machine, taken: Path) -> None:
    machine.run("/usr/bin/intruder", b"unknown")
    ran = init("--snapshot", taken)
    assert ran.status == 1
    assert sent(agent) == []
    assert "nothing was sent" in ran.err


def test_not_to_fake_hardware(run: Run, agent: Any, conf: Path, certificate: Path) -> None:
    ran = run("--url", agent.url, "--ca-file", certificate, "app", "init", "-c", conf, "--offline")
    assert ran.status == 1
    assert sent(agent) == []


def test_not_to_another_machine_after_the_verdict(init: Run, agent: Any, taken: Path) -> None:
    honest = agent.routes["POST", wire.EVIDENCE]

    def then_swap(call: Any) -> Any:
        told = honest(call)
        agent.use(self_signed("other", ["127.0.0.1"], now=datetime.now(UTC)))
        return *told, {"Connection": "close"}

    agent.routes["POST", wire.EVIDENCE] = then_swap
    ran = init("--snapshot", taken)
    assert ran.status == 1
    assert sent(agent) == []
    assert "another machine" in ran.err


def test_never_over_version_1(init: Run, agent: Any, machine: Machine, taken: Path) -> None:
    del agent.routes["POST", wire.EVIDENCE]
    body = json.dumps(list(machine.evidence(bytes(32), api=1).tee or b"")).encode()
    agent.route("GET", wire.QUOTE_TEE, 200, body)
    assert init("--snapshot", taken, "--offline").status == 1
    assert sent(agent) == []
    assert init("--api", "1").status == 2


def test_refused(init: Run, agent: Any, taken: Path) -> None:
    agent.route("POST", wire.APP_INIT, 404, b"no [app] section in the agent's configuration")
    ran = init("--snapshot", taken)
    assert ran.status == 3
    assert "404 no [app] section" in ran.err


def test_conf_that_is_absent(run: Run, agent: Any, tmp_path: Path) -> None:
    ran = run("--url", agent.url, "app", "init", "--conf", tmp_path / "none.json")
    assert ran.status == 2
    assert "none.json: cannot be read" in ran.err
    assert agent.connections == 0


def test_conf_that_is_too_large(run: Run, agent: Any, conf: Path) -> None:
    with conf.open("wb") as file:
        file.truncate(wire.MAX_APP_CONFIGURATION + 1)
    ran = run("--url", agent.url, "app", "init", "--conf", conf)
    assert ran.status == 2
    assert "app.json: larger than 16777216 bytes" in ran.err
    assert agent.connections == 0


def test_an_app_that_does_not_come_up(init: Run, agent: Any, taken: Path) -> None:
    agent.route("POST", wire.APP_INIT, 500, b"app did not stay up (error 1)")
    told = wire.AppLogsAnswer(lines=["no database\x1b[2J", "giving up"])
    agent.route("GET", wire.APP_LOGS, 200, msgspec.json.encode(told))
    ran = init("--snapshot", taken)
    assert ran.status == 3
    assert "app did not stay up" in ran.err
    assert "  | giving up" in ran.err
    assert "\x1b" not in ran.err


def test_a_disk_that_is_not_encrypted_is_said_before(init: Run, agent: Any, taken: Path) -> None:
    status = msgspec.json.decode(agent.routes["GET", wire.APP](None)[1], type=wire.AppAnswer)
    plain = msgspec.json.encode(msgspec.structs.replace(status, encrypted=False))
    agent.route("GET", wire.APP, 200, plain)
    ran = init("--snapshot", taken)
    assert ran.status == 0
    assert "not kept on the machine's encrypted container" in ran.out
    assert [call.path for call in agent.calls].index(wire.APP) < [call.path for call in agent.calls].index(
        wire.APP_INIT
    )


def test_a_machine_without_an_application_gets_no_secret(init: Run, agent: Any, taken: Path) -> None:
    agent.route("GET", wire.APP, 404, b"this machine has no application")
    assert init("--snapshot", taken).status == 3
    assert sent(agent) == []


def test_restart(run: Run, agent: Any, root: Path) -> None:
    ran = run("--url", agent.url, "--allow-insecure-tls", "app", "restart", "--trust-root", root)
    assert ran.status == 0, ran
    assert ran.lines[-1] == "[ OK ] The application was restarted"
    assert orders(agent) == [wire.OWNER_CLAIM, wire.APP_RESTART]


def test_restart_verifies(run: Run, agent: Any, root: Path) -> None:
    ran = run("--url", agent.url, "app", "restart", "--trust-root", root)
    assert ran.status == 1
    assert "--allow-insecure-tls" in ran.out
    assert run("--url", agent.url, "--allow-insecure-tls", "app", "restart", "--offline").status == 1
    assert orders(agent) == []


def test_restart_of_another_machine_than_the_remembered(
    init: Run, run: Run, agent: Any, root: Path, vendor: Any
) -> None:
    assert init("--trust-new").status == 0
    owners = agent.machine.owners
    agent.machine = Machine.create(vendor, instance=b"second")
    agent.machine.owners = owners
    agent.use(agent.machine.tls)
    ran = run("--url", agent.url, "--allow-insecure-tls", "app", "restart", "--trust-root", root)
    assert ran.status == 1
    assert wire.APP_RESTART not in orders(agent)


def test_status_and_logs(run: Run, agent: Any, root: Path) -> None:
    call = ("--url", agent.url, "--allow-insecure-tls", "app")
    ran = run(*call, "status", "--trust-root", root)
    assert ran.status == 0, ran
    assert "[ OK ] app (supervisor): RUNNING" in ran.lines
    told = msgspec.json.decode(agent.routes["GET", wire.APP](None)[1], type=wire.AppAnswer)
    down = msgspec.structs.replace(told, running=False, state="FATAL")
    agent.route("GET", wire.APP, 200, msgspec.json.encode(down))
    ran = run(*call, "status", "--trust-root", root)
    assert ran.status == 4, ran
    assert "[ WARNING ] app (supervisor): FATAL" in ran.lines
    agent.route("GET", wire.APP_LOGS, 200, msgspec.json.encode(wire.AppLogsAnswer(lines=["one", "two"])))
    ran = run(*call, "logs", "--lines", "2", "--trust-root", root)
    assert ran.status == 0, ran
    assert ran.lines[-2:] == ["one", "two"]
    assert agent.calls[-1].query == "lines=2"
    for number in ("0", "1001", "x"):
        assert run(*call, "logs", "--lines", number).status == 2


# What cannot tell one genuine machine from another is no reason to send a secret unasked.


def test_reference_values_tell_no_machine_from_another(
    init: Run, agent: Any, machine: Machine, vendor: Any, tmp_path: Path
) -> None:
    """Somebody's own machine, that booted the same image (or has a TPM of his own that says so)."""
    from cosmian_vm.reference import build_reference

    built = tmp_path / "built.reference.json"
    built.write_bytes(build_reference.serialise(machine.build_reference()))
    agent.machine = Machine.create(vendor, instance=b"somebody's own")
    agent.use(agent.machine.tls)
    ran = init("--reference", built)
    assert (ran.status, sent(agent)) == (2, [])
    assert "--trust-new" in ran.err
    assert init("--reference", built, "--trust-new").status == 0
    assert init("--reference", built).status == 0  # remembered


def test_a_reboot_excuses_nothing_where_no_tpm_tells_machines_apart(init: Run, agent: Any, vendor: Any) -> None:
    agent.machine.tpm = agent.machine.ima = None
    assert init("--without-tpm", "--trust-new").status == 0
    owners = agent.machine.owners
    agent.machine = Machine.create(vendor, instance=b"somebody's own")
    agent.machine.owners = owners
    agent.machine.tpm = agent.machine.ima = None
    agent.use(agent.machine.tls)
    ran = init("--without-tpm", "--allow-reboot")
    assert (ran.status, len(sent(agent))) == (1, 1)
    assert "if it was stopped" not in ran.err


def test_a_td_without_tpm_is_asked_about_each_time(init: Run, agent: Any, machine: Machine, tmp_path: Path) -> None:
    """Intel's quotes tell no TD from another of the same firmware."""
    from cryptography.hazmat.primitives.serialization import Encoding

    from cosmian_vm.devkit.intel import IntelVendor
    from cosmian_vm.devkit.intel_tee import SimulatedTd

    intel = replace(IntelVendor.create(), issued=datetime.now(UTC))
    root, collateral = tmp_path / "intel.pem", tmp_path / "collateral.json"
    root.write_bytes(intel.root.public_bytes(Encoding.PEM))
    collateral.write_bytes(intel.collateral("TDX"))
    td = SimulatedTd(vendor=intel)
    td.fields["td_attributes"] = bytes(8)
    machine.device = td
    machine.tpm = machine.ima = None
    given = ("--without-tpm", "--trust-root", root, "--endorsements", collateral, "--offline")
    assert init(*given).status == 2
    assert init(*given, "--trust-new").status == 0
    ran = init(*given)
    assert (ran.status, len(sent(agent))) == (2, 1), ran
    assert "--trust-new" in ran.err
    taken = tmp_path / "td.snapshot"  # tells no more: the file system of such a machine is measured by nothing
    taken.write_bytes(snapshots.serialise(machine.snapshot()))
    ran = init("--snapshot", taken, *given[1:])
    assert (ran.status, len(sent(agent))) == (2, 1), ran
