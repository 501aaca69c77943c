"""A simulated machine behind a scripted agent, and the program run in this process."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click.testing
import msgspec
import pytest

from cosmian_vm import wire
from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.owner_proof import PROOF_HEADER, fingerprint, parse_proof
from cosmian_vm.reference import snapshot as snapshots

TESTS = Path(__file__).resolve().parent.parent


def _fake_agent() -> Any:
    spec = importlib.util.spec_from_file_location("cli_fake_agent", TESTS / "client" / "fake_agent.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass
class Ran:
    """``status``: exit status. ``out``, ``err``: what was printed."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Run one command line as the program does, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def run(*arguments: object, stdin: bytes = b"") -> Ran:
        from cosmian_vm.cli import main

        runner = click.testing.CliRunner()
        with runner.isolation(input=stdin) as streams:
            status = main.run([str(argument) for argument in arguments])
            out, err = streams[0].getvalue().decode(), streams[1].getvalue().decode()
        return Ran(status, out, err)

    return run


@pytest.fixture(scope="session")
def vendor() -> AmdVendor:
    return AmdVendor.create(keys=VendorKeys.load(TESTS / "data" / "devkit_amd"), now=datetime.now(UTC))


@pytest.fixture
def machine(vendor: AmdVendor) -> Machine:
    return Machine.create(vendor)


@pytest.fixture
def agent(machine: Machine) -> Iterator[Any]:
    """The machine's agent; ``agent.machine`` may be swapped. It can be claimed, and believes whoever gives orders."""
    agent = _fake_agent().FakeAgent(machine.tls)
    agent.machine = machine
    agent.route("DELETE", wire.SNAPSHOT_V2)
    agent.route("POST", wire.APP_INIT)
    agent.route("POST", wire.APP_RESTART)
    agent.route("POST", wire.NONCE, 200, msgspec.json.encode(wire.NonceAnswer(nonce=bytes(32))))
    status = wire.AppAnswer(
        service_type="supervisor",
        service_name="app",
        running=True,
        state="RUNNING",
        configured=True,
        encrypted=True,
    )
    agent.route("GET", wire.APP, 200, msgspec.json.encode(status))

    def owners(_: Any) -> tuple[int, bytes]:
        owned = list(agent.machine.owners)
        return 200, msgspec.json.encode(wire.OwnersAnswer(owners=owned, claimable=not owned))

    def claim(call: Any) -> tuple[int, bytes]:
        agent.machine.owners = (fingerprint(parse_proof(call.headers[PROOF_HEADER]).key),)
        return owners(call)

    agent.routes["GET", wire.OWNER] = owners
    agent.routes["POST", wire.OWNER_CLAIM] = claim

    def evidence(call: Any) -> tuple[int, bytes]:
        nonce = msgspec.json.decode(call.body, type=wire.EvidenceRequest).nonce
        return 200, answer(agent.machine, nonce)

    agent.routes["POST", wire.EVIDENCE] = evidence
    agent.routes["GET", wire.SNAPSHOT_V2] = lambda _: (200, snapshots.serialise(agent.machine.snapshot()))
    yield agent
    agent.close()


def answer(machine: Machine, nonce: bytes) -> bytes:
    told = machine.evidence(nonce)
    tpm = None
    if told.tpm is not None:
        tpm = wire.TpmAnswer(
            quote=told.tpm.quote,
            signature=told.tpm.signature,
            ak_public=told.tpm.ak_public,
            pcrs=[told.tpm.pcrs[i] for i in range(16)],
        )
    return msgspec.json.encode(
        wire.EvidenceAnswer(
            api=2,
            agent_version="devkit",
            tee_kind="sev-snp",
            tee_quote=told.tee,
            endorsements=list(told.endorsements),
            tpm=tpm,
            boot_event_log=told.boot_event_log,
            ima_log=told.ima_log,
            ima_from=0,
            owners=list(told.owners),
            cloud=None,
        )
    )


@pytest.fixture
def root(vendor: AmdVendor, tmp_path: Path) -> Path:
    path = tmp_path / "root.pem"
    path.write_bytes(vendor.root_pem)
    return path


@pytest.fixture
def taken(machine: Machine, tmp_path: Path) -> Path:
    """A snapshot of the machine."""
    path = tmp_path / "taken.snapshot"
    path.write_bytes(snapshots.serialise(machine.snapshot()))
    return path
