"""``cosmian_vm snapshot``: what is written, and when nothing is."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cosmian_vm import wire
from cosmian_vm.certificates import self_signed
from cosmian_vm.devkit.amd import AmdVendor
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.reference import snapshot as snapshots

Run = Callable[..., Any]


@pytest.fixture
def snapshot(run: Run, agent: Any, root: Path) -> Run:
    def snapshot(*more: object) -> Any:
        return run("--url", agent.url, "--allow-insecure-tls", "snapshot", "--trust-root", root, *more)

    return snapshot


def test_written_and_verified(snapshot: Run, run: Run, agent: Any, root: Path, tmp_path: Path) -> None:
    ran = snapshot()
    assert ran.status == 0, ran
    assert ran.lines[-1] == "[ OK ] Snapshot written: cosmian_vm.snapshot (6 files)"
    written = snapshots.load(tmp_path / "cosmian_vm.snapshot")
    assert written.version == 2
    assert written.ak_name is not None
    assert written.boot_pcrs is not None
    ran = run("--url", agent.url, "--allow-insecure-tls", "verify", "-s", "cosmian_vm.snapshot", "--trust-root", root)
    assert ran.status == 0, ran


def test_output(snapshot: Run, tmp_path: Path) -> None:
    assert snapshot("--output", tmp_path / "web-1.snapshot").status == 0
    assert (tmp_path / "web-1.snapshot").is_file()
    assert not (tmp_path / "cosmian_vm.snapshot").exists()


def test_untrusted_machine_gets_no_snapshot(run: Run, agent: Any, tmp_path: Path) -> None:
    ran = run("--url", agent.url, "--allow-insecure-tls", "snapshot", "--offline")
    assert ran.status == 1
    assert "no snapshot was taken" in ran.err
    assert not (tmp_path / "cosmian_vm.snapshot").exists()
    assert [call.path for call in agent.calls] == [wire.EVIDENCE]


def test_another_machine_half_way(snapshot: Run, agent: Any, tmp_path: Path) -> None:
    """The answers to the polls come from another machine: nothing more is asked of it, nothing is written."""

    def swap(_: Any) -> Any:
        agent.use(self_signed("other", ["127.0.0.1"], now=datetime.now(UTC)))
        agent.route("GET", wire.SNAPSHOT_V2, 200, snapshots.serialise(agent.machine.snapshot()))
        return 202, msgspec.json.encode(wire.SnapshotProgress(files_done=1, bytes_done=1)), {"Connection": "close"}

    agent.routes["GET", wire.SNAPSHOT_V2] = swap
    ran = snapshot()
    assert ran.status == 1
    assert "another machine" in ran.err
    assert len(ran.err.splitlines()) == 1
    assert not (tmp_path / "cosmian_vm.snapshot").exists()


def test_snapshot_of_another_guest(snapshot: Run, agent: Any, vendor: AmdVendor, tmp_path: Path) -> None:
    """The key is the attested one, but what it hands out describes another guest."""
    other = snapshots.serialise(Machine.create(vendor, instance=b"second").snapshot())
    agent.route("GET", wire.SNAPSHOT_V2, 200, other)
    ran = snapshot()
    assert ran.status == 1
    assert "nothing was written" in ran.err
    assert not (tmp_path / "cosmian_vm.snapshot").exists()


def test_another_machine_than_the_remembered(snapshot: Run, agent: Any, vendor: AmdVendor, tmp_path: Path) -> None:
    assert snapshot().status == 0
    before, owners = (tmp_path / "cosmian_vm.snapshot").read_bytes(), agent.machine.owners
    agent.machine = Machine.create(vendor, instance=b"second")
    agent.machine.owners = owners
    agent.use(agent.machine.tls)
    agent.calls.clear()
    ran = snapshot()
    assert ran.status == 1
    assert "ak_name was" in ran.err
    assert "report_id was" in ran.err
    assert (tmp_path / "cosmian_vm.snapshot").read_bytes() == before
    assert [call.path for call in agent.calls] == [wire.EVIDENCE]


def test_it_claims_remembers_and_names_the_owner(snapshot: Run, agent: Any, tmp_path: Path) -> None:
    ran = snapshot()
    assert ran.status == 0, ran
    (owner,) = agent.machine.owners
    assert f"[ OK ] You own this machine now: {owner}" in ran.lines
    assert any(line.startswith(f"[ OK ] Remembered as {agent.url}") for line in ran.lines)
    assert snapshots.load(tmp_path / "cosmian_vm.snapshot").owners == (owner,)
    again = snapshot()
    assert again.status == 0
    assert "You own" not in again.out
    assert "Remembered" not in again.out


@pytest.mark.parametrize("body", [b"null", b"{}", b"\xff", b'{"tee_policy":{"Sev":{}}}'])
def test_agent_that_talks_nonsense(snapshot: Run, agent: Any, tmp_path: Path, body: bytes) -> None:
    agent.route("GET", wire.SNAPSHOT_V2, 200, body)
    ran = snapshot()
    assert ran.status == 3
    assert "the agent's snapshot" in ran.err
    assert len(ran.err.splitlines()) == 1
    assert not (tmp_path / "cosmian_vm.snapshot").exists()


def test_warns_of_what_is_not_covered(snapshot: Run, agent: Any) -> None:
    draft = agent.machine.snapshot()
    digest = "00" * 32
    draft = msgspec.structs.replace(
        draft,
        unreadable=(("/etc/odd\x1b[2J", "Permission denied"),),
        not_on_disk=(("/usr/bin/gone", digest),),
        filehashes=(*draft.filehashes, ("/usr/bin/gone", digest)),
    )
    agent.route("GET", wire.SNAPSHOT_V2, 200, snapshots.serialise(draft))
    ran = snapshot()
    assert ran.status == 0
    assert r"[ WARNING ] /etc/odd\x1b[2J could not be read (Permission denied): it is not covered" in ran.lines
    assert any("/usr/bin/gone" in line and "will be trusted" in line for line in ran.lines)


def test_no_file_half_written(snapshot: Run, tmp_path: Path) -> None:
    ran = snapshot("--output", tmp_path / "no" / "folder.snapshot")
    assert ran.status == 2
    assert "folder.snapshot: cannot be written" in ran.err


def test_old_file_is_replaced_whole_or_not_at_all(snapshot: Run, agent: Any, tmp_path: Path) -> None:
    path = tmp_path / "cosmian_vm.snapshot"
    path.write_text("old")
    agent.route("GET", wire.SNAPSHOT_V2, 500, b"error 3")
    assert snapshot().status == 3
    assert path.read_text() == "old"
    agent.routes["GET", wire.SNAPSHOT_V2] = lambda _: (200, snapshots.serialise(agent.machine.snapshot()))
    assert snapshot().status == 0
    assert json.loads(path.read_text())["version"] == 2


def test_machine_without_tpm(run: Run, snapshot: Run, agent: Any, root: Path, tmp_path: Path) -> None:
    agent.machine.tpm = agent.machine.ima = None
    assert snapshot().status == 1
    ran = snapshot("--without-tpm")
    assert ran.status == 0, ran
    assert snapshots.load(tmp_path / "cosmian_vm.snapshot").without_tpm
    ran = run("--url", agent.url, "--allow-insecure-tls", "verify", "-s", "cosmian_vm.snapshot", "--trust-root", root)
    assert ran.status == 0, ran
    assert "[ WARNING ] No files hash in the snapshot" in ran.lines
    assert "[ SKIP ] Verifying VM integrity" in ran.lines
    assert "[ SKIP ] Verifying TPM attestation" in ran.lines


def test_interrupted(snapshot: Run, agent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cosmian_vm.client.AgentClient.snapshot", interrupt)
    ran = snapshot()
    assert ran.status == 130
    assert ran.err.strip() == "cosmian_vm: interrupted"
    assert not any(path.suffix in (".snapshot", ".part") for path in tmp_path.iterdir())
