"""``cosmian_vm app``: no secret leaves for a machine that is not trusted."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cosmian_vm import wire
from cosmian_vm.certificates import self_signed
from cosmian_vm.devkit.machine import Machine

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


def test_without_snapshot_it_says_what_that_means(
    run: Run, agent: Any, certificate: Path, root: Path, conf: Path
) -> None:
    ran = run("--url", agent.url, "--ca-file", certificate, "app", "init", "-c", conf, "--trust-root", root)
    assert ran.status == 0, ran
    assert sent(agent) == [SECRET]
    assert "[ WARNING ] Without --snapshot it may be anybody's genuine machine" in ran.lines


def test_not_to_a_changed_machine(init: Run, agent: Any, machine: Machine, taken: Path) -> None:
    machine.run("/usr/bin/intruder", b"unknown")
    ran = init("--snapshot", taken)
    assert ran.status == 1
    assert sent(agent) == []
    assert "nothing was sent" in ran.err


def test_not_where_neither_name_nor_snapshot_tells_whose_machine_it_is(init: Run, agent: Any) -> None:
    """The operator, in between, has a genuine machine too: it would answer, be found genuine, and get the secrets."""
    ran = init()
    assert ran.status == 2
    assert "give --snapshot" in " ".join(ran.err.split())
    assert agent.connections == 0


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


def test_restart(run: Run, agent: Any) -> None:
    ran = run("--url", agent.url, "--allow-insecure-tls", "app", "restart")
    assert (ran.status, ran.out) == (0, "[ OK ] The application was restarted\n")


def test_restart_asks_the_ca(run: Run, agent: Any) -> None:
    ran = run("--url", agent.url, "app", "restart")
    assert ran.status == 1
    assert "--allow-insecure-tls" in ran.err
    assert agent.calls == []
