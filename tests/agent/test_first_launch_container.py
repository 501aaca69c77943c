"""The first launch's container: made once, opened at each start, never made anew; and what the agent says while it is
locked. The TPM is a real software TPM; that the device mapper does its work too is shown in the booted machine.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cosmian_vm.agent import first_launch, main, serving
from cosmian_vm.agent.config import AgentConfig
from cosmian_vm.agent.files import write_atomically
from cosmian_vm.agent.first_launch import open_container, provision_tpm
from cosmian_vm.agent.storage import Storage
from cosmian_vm.attester.ima import KernelLogs
from cosmian_vm.attester.platform import Platform
from cosmian_vm.attester.tpm import EsapiTpm
from cosmian_vm.devkit.swtpm import Swtpm
from cosmian_vm.errors import AttesterError, InputError
from cosmian_vm.luks import first
from cosmian_vm.luks.container import Container
from cosmian_vm.luks.pcrs import DEFAULT_PCRS

pytestmark = pytest.mark.swtpm


@dataclass
class Disk:
    """Containers that are only remembered: which there are, and why the next call fails."""

    there: bool = False
    problem: Exception | None = None
    made: int = 0
    opened: int = 0
    size: int = 0


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()

    def fail() -> None:
        if disk.problem:
            raise disk.problem

    def create(_self: Container, size: int) -> None:
        fail()
        disk.there, disk.made, disk.size = True, disk.made + 1, size

    def open_(_self: Container) -> None:
        fail()
        disk.opened += 1

    monkeypatch.setattr(Container, "exists", lambda _self: disk.there)
    monkeypatch.setattr(Container, "create", create)
    monkeypatch.setattr(Container, "open", open_)
    return disk


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[EsapiTpm]:
    swtpm = Swtpm(tmp_path / "tpm")
    swtpm.start()
    device = EsapiTpm(swtpm.tcti, keep_open=False)
    try:
        yield device
    finally:
        device.close()
        swtpm.stop()


@pytest.fixture
def encrypted(config: AgentConfig) -> AgentConfig:
    config.data_storage.mkdir(parents=True, exist_ok=True)
    return replace(config, container=config.data_storage / "container", tpm_device="/dev/tpmrm0")


def test_made_at_the_first_launch_and_opened_at_the_next(encrypted: AgentConfig, tpm: EsapiTpm, disk: Disk) -> None:
    encrypted = replace(encrypted, container_size=64 << 20)
    assert open_container(encrypted, tpm, preinit=True) is None
    assert disk.size == 64 << 20
    tpm.provision()
    assert open_container(encrypted, tpm, preinit=True) is None
    assert (disk.made, disk.opened) == (1, 1)


def test_killed_before_the_keys_were_made(encrypted: AgentConfig, tpm: EsapiTpm, disk: Disk) -> None:
    """The TPM has no attestation key yet: still a new machine, whose container is there already or is made now."""
    assert open_container(encrypted, tpm, preinit=True) is None
    assert open_container(encrypted, tpm, preinit=True) is None
    assert (disk.made, disk.opened) == (1, 1)


def test_a_container_that_somebody_deleted_is_never_made_anew(
    encrypted: AgentConfig, tpm: EsapiTpm, disk: Disk
) -> None:
    tpm.provision()
    reason = open_container(encrypted, tpm, preinit=True)
    assert reason is not None
    assert "there is no container, yet this machine has been set up before" in reason
    assert (disk.there, disk.made) == (False, 0)


@pytest.mark.parametrize(
    "problem", [AttesterError("the TPM does not\nopen it"), InputError("4 MB are free, 516 MB are needed")]
)
def test_why_it_is_locked_is_what_orders_are_told(
    encrypted: AgentConfig, tpm: EsapiTpm, disk: Disk, problem: Exception
) -> None:
    disk.problem = problem
    reason = open_container(encrypted, tpm, preinit=True)
    assert reason == str(problem).replace("\n", " ")
    assert Storage(encrypted, why=reason).locked() == reason


def test_where_the_container_could_not_be_made_the_next_start_is_still_the_first(
    encrypted: AgentConfig, tpm: EsapiTpm, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    disk.problem = InputError("4 MB are free, 516 MB are needed")
    provision_tpm(encrypted, tpm, open_container(encrypted, tpm, preinit=True))
    assert not tpm.provisioned()
    assert "the attestation key is made when the container is" in caplog.text.replace("TPM's ", "")
    disk.problem = None
    why = open_container(encrypted, tpm, preinit=True)
    provision_tpm(encrypted, tpm, why)
    assert (why, disk.made, tpm.provisioned()) == (None, 1, True)


def test_where_a_container_is_locked_there_are_keys_all_the_same(
    encrypted: AgentConfig, tpm: EsapiTpm, disk: Disk
) -> None:
    """Another TPM, say: what runs here can be verified, and is told from the machine of the snapshot."""
    disk.there, disk.problem = True, AttesterError("the TPM has no record of this container")
    provision_tpm(encrypted, tpm, open_container(encrypted, tpm, preinit=True))
    assert tpm.provisioned()
    assert disk.made == 0


def test_without_a_tpm_nothing_opens_it(encrypted: AgentConfig, disk: Disk) -> None:
    assert "/dev/tpmrm0 is not there" in (open_container(encrypted, None, preinit=True) or "")
    unnamed = replace(encrypted, tpm_device=None)
    assert "agent.toml names no tpm_device" in (open_container(unnamed, None, preinit=True) or "")
    assert disk.made == 0


def test_its_disk_is_not_there(encrypted: AgentConfig, tpm: EsapiTpm, disk: Disk) -> None:
    elsewhere = replace(encrypted, container=Path("/no/such/disk/container"))
    assert "its folder is not there" in (open_container(elsewhere, tpm, preinit=True) or "")


def test_a_tpm_that_does_not_answer_makes_no_new_machine(encrypted: AgentConfig, tmp_path: Path, disk: Disk) -> None:
    gone = EsapiTpm(f"swtpm:path={tmp_path / 'nobody'}")
    assert "cannot be opened" in (open_container(encrypted, gone, preinit=True) or "")
    assert disk.made == 0


def test_no_container_by_configuration(config: AgentConfig, disk: Disk) -> None:
    assert open_container(config, None, preinit=True) is None
    assert (disk.made, disk.opened) == (0, 0)


def test_without_preinit_it_is_only_looked_at(
    encrypted: AgentConfig, tpm: EsapiTpm, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, ...]] = []

    def look(_place: object, _tpm: str, *, pcrs: tuple[int, ...], machine: object) -> str | None:
        assert machine is None
        asked.append(pcrs)
        return "the header was swapped"

    monkeypatch.setattr(first, "look", look)
    assert open_container(encrypted, tpm, preinit=False) == "the header was swapped"
    assert (asked, disk.made, disk.opened) == ([DEFAULT_PCRS], 0, 0)


def test_the_agent_starts_over_when_the_container_is_opened(
    encrypted: AgentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was locked at the start: whoever opens it later need not restart the agent."""
    locked = iter(["why", "why", None])
    storage = Storage(encrypted)
    monkeypatch.setattr(storage, "locked", lambda: next(locked))
    monkeypatch.setattr(serving, "_LOOK_SECONDS", 0.01)

    class Collector:
        closed = False

        async def version(self) -> None:
            return None

        async def close(self) -> None:
            self.closed = True

    async def serve_until(_orders: object, stop: asyncio.Event) -> None:
        async with asyncio.timeout(10):
            await stop.wait()

    collector = Collector()
    assert asyncio.run(serving._serve(collector, storage, serve_until)) is True  # type: ignore[arg-type]
    assert collector.closed


def test_the_agent_does_not_start_over_when_it_is_told_to_end(
    encrypted: AgentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Storage(encrypted)
    assert storage.locked()
    before = threading.active_count()

    class Collector:
        async def version(self) -> None:
            return None

        async def close(self) -> None:
            return None

    async def serve_until(_orders: object, stop: asyncio.Event) -> None:
        stop.set()  # as the handler of SIGTERM does

    assert asyncio.run(serving._serve(Collector(), storage, serve_until)) is False  # type: ignore[arg-type]
    assert threading.active_count() == before


def test_a_full_disk_is_served_under_a_throw_away_key(
    config: AgentConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(path: Path, content: bytes, mode: int) -> None:
        if path.parent != config.tmp:
            raise OSError(28, "No space left on device", str(path))
        write_atomically(path, content, mode)

    monkeypatch.setattr(first_launch, "write_atomically", full)
    files = first_launch.prepare(config, Storage(config), preinit=True, hostname="vm", now=datetime.now(UTC))
    assert files.certificate.parent == config.tmp
    assert f"{config.ssl_private_key}: cannot be written: No space left on device" in caplog.text


def test_the_devices_are_looked_for_again_when_the_agent_starts_over(
    encrypted: AgentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A TPM that appeared after the start is served without a restart."""
    served: list[object] = []

    def serve_once(_config: object, platform: object, **_more: object) -> bool:
        served.append(platform)
        return len(served) < 3

    monkeypatch.setattr(serving, "_serve_once", serve_once)
    found: Any = iter(["second", "third"])
    serving.run(encrypted, "first", find_again=lambda: next(found))  # type: ignore[arg-type] # never looked into
    assert served == ["first", "second", "third"]
    served.clear()
    serving.run(encrypted, "first")  # type: ignore[arg-type] # never looked into
    assert served == ["first", "first", "first"]


def test_a_first_launch_beside_the_agent_leaves_its_throw_away_key_alone(
    encrypted: AgentConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The unit tries again while the container is locked; whoever talks to the agent must not see new keys."""
    monkeypatch.setattr(first_launch, "open_container", lambda *_args, **_more: "sealed for another boot")
    monkeypatch.setattr(first_launch, "provision_tpm", lambda *_args: None)
    served = first_launch.prepare(
        encrypted, Storage(encrypted, why="sealed"), preinit=True, hostname="vm", now=datetime.now(UTC)
    )
    before = served.certificate.read_bytes(), served.key.read_bytes()
    platform = Platform(tee=None, tpm=None, logs=KernelLogs(Path("/nowhere")))
    assert main._launch_only(encrypted, platform) == 1
    assert (served.certificate.read_bytes(), served.key.read_bytes()) == before
    assert "container locked: " in caplog.text
