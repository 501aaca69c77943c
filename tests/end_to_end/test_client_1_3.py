"""Ours and the published 1.3.x programs, each against the other, over real TLS; snapshot files both ways."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click.testing
import pytest

from cosmian_vm.agent import first_launch
from cosmian_vm.agent.collector import Collector
from cosmian_vm.agent.config import AgentConfig, AppConfig, ServiceType
from cosmian_vm.agent.front import create_app
from cosmian_vm.agent.listener import listen
from cosmian_vm.agent.server import serve
from cosmian_vm.agent.service_log import ServiceState
from cosmian_vm.agent.storage import Storage
from cosmian_vm.agent.tls import TlsIdentity
from cosmian_vm.attester.platform import FileScope, Platform, TpmQuote
from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.evidence.tpm import parse_signature, serialise_signature
from cosmian_vm.reference import snapshot as snapshots

from .agent_1_3 import NUMBERS, Agent13
from .client_1_3 import Client13, RefusedError, UntrustedError, read_snapshot, read_table

KEYS = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"


class Service:
    """The application, as far as it can be told to start."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def restart(self) -> None:
        self.calls.append("restart")

    def stop(self) -> None:
        self.calls.append("stop")

    def state(self) -> ServiceState:
        return ServiceState(True, "running")

    def log(self, lines: int) -> list[str]:
        return [str(lines)]


class OurAgent:
    """The agent over a simulated machine, in a thread, on a real socket."""

    def __init__(self, config: AgentConfig, platform: Platform) -> None:
        self.service = Service()
        self._platform = platform
        self._ready, self._config = threading.Event(), config
        files = first_launch.prepare(config, Storage(config), preinit=True, hostname="vm", now=datetime.now(UTC))
        self._identity = TlsIdentity(files.certificate, files.key)
        self._listener = listen("127.0.0.1", 0)
        self.host, self.port = self._listener.getsockname()[:2]
        self.url = f"https://{self.host}:{self.port}"
        self._thread = threading.Thread(target=lambda: asyncio.run(self._whole()), daemon=True)
        self._thread.start()
        assert self._ready.wait(60)

    async def _whole(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        collector = Collector(self._config, self._platform, service=self.service)
        try:
            app = create_app(collector)
            await serve(app, self._identity, self._listener, on_ready=lambda *_: self._ready.set(), stop=self._stop)
        finally:
            await collector.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def vendor() -> AmdVendor:
    return AmdVendor.create(keys=VendorKeys.load(KEYS), now=datetime.now(UTC) - timedelta(days=30))


@pytest.fixture
def template() -> str:
    return "ima-ng"


@pytest.fixture
def machine(vendor: AmdVendor, template: str) -> Machine:
    machine = Machine.create(vendor, template=template)
    machine.files["/srv/caf\u00e9 with spaces"] = b"data"
    machine.run("/srv/caf\u00e9 with spaces")
    return machine


@pytest.fixture
def platform(machine: Machine, tmp_path: Path) -> Platform:
    root = tmp_path / "root"
    for path, content in machine.files.items():
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return replace(machine.platform(), scope=FileScope(root=root))


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    storage = tmp_path / "agent"
    return AgentConfig(
        data_storage=storage,
        port=0,
        ssl_certificate=storage / "data" / "cert.pem",
        ssl_private_key=storage / "data" / "key.pem",
        container=None,
        owners="anyone",
        app=AppConfig(service_type=ServiceType.STANDALONE, service_name="app", storage=storage / "data" / "app"),
    )


@pytest.fixture
def ours(config: AgentConfig, platform: Platform) -> Iterator[Callable[..., OurAgent]]:
    """``ours()`` starts our agent; ``config`` and ``platform`` may be others."""
    started: list[OurAgent] = []

    def start(*, config: AgentConfig = config, platform: Platform = platform) -> OurAgent:
        started.append(OurAgent(config, platform))
        return started[-1]

    yield start
    for agent in started:
        agent.close()


@pytest.fixture
def theirs(machine: Machine) -> Iterator[Callable[..., Agent13]]:
    """``theirs()`` starts the scripted 1.3.x agent over the same machine."""
    started: list[Agent13] = []

    def start(**how: Any) -> Agent13:
        started.append(Agent13(machine, **how))
        return started[-1]

    yield start
    for agent in started:
        agent.close()


@pytest.fixture
def cli(vendor: AmdVendor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """``cli(url, command, ...)`` runs our program; exit status and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "root.pem").write_bytes(vendor.root_pem)
    (tmp_path / "crl.der").write_bytes(vendor.crl())

    def run(url: str, *arguments: str, judged: bool = True) -> tuple[int, str]:
        from cosmian_vm.cli import main

        more = ("--trust-root", "root.pem", "--endorsements", "crl.der", "--offline") if judged else ()
        with click.testing.CliRunner().isolation() as streams:
            status = main.run(["--url", url, "--allow-insecure-tls", *arguments, *more])
            return status, streams[0].getvalue().decode() + streams[1].getvalue().decode()

    return run


# Their program, our agent


@pytest.mark.parametrize(("cloud", "template"), [(None, "ima-ng"), ("GCP", "ima-sig"), ("AWS", "ima-ng")])
def test_their_client_takes_a_snapshot_and_verifies(ours: Any, platform: Platform, cloud: str | None) -> None:
    agent = ours(platform=replace(platform, cloud=cloud))
    with Client13(agent.host, agent.port) as client:
        file = client.take_snapshot()
        assert json.loads(file)["cloud_type"] == cloud
        lines = client.verify(file)
        assert lines[0] == "[ OK ] Verifying TPM attestation"
        assert lines[1].startswith("[ OK ] Verifying VM integrity (against ")
        assert lines[2] == "[ OK ] Verifying TEE attestation"
        assert client.ima_ascii().startswith("10 ")


def test_their_client_names_what_is_new(ours: Any, machine: Machine) -> None:
    agent = ours()
    with Client13(agent.host, agent.port) as client:
        file = client.take_snapshot()
        assert machine.ima is not None
        machine.ima.violate("/var/log/messages")
        client.verify(file)  # which it lets pass
        machine.run("/usr/bin/new", b"unknown")
        with pytest.raises(UntrustedError, match=r"/usr/bin/new,.* can't be found in the snapshot"):
            client.verify(file)
        machine.reboot()
        with pytest.raises(UntrustedError, match="reset_count"):
            client.verify(file)


def test_their_client_reads_a_certificate_table_that_it_knows(ours: Any) -> None:
    agent = ours()
    with Client13(agent.host, agent.port) as client:
        assert [kind for kind, _ in read_table(client.tee_quote(bytes(32)))] == [1, 2, 3]


def test_their_client_on_a_machine_without_tpm(ours: Any, platform: Platform) -> None:
    agent = ours(platform=replace(platform, tpm=None))
    with Client13(agent.host, agent.port) as client:
        file = client.take_snapshot()
        assert client.verify(file)[1:3] == ["[ SKIP ] Verifying VM integrity", "[ SKIP ] Verifying TPM attestation"]


def test_a_file_for_azure_has_the_report_data_of_the_quote(ours: Any, platform: Platform, vendor: AmdVendor) -> None:
    """It cannot be chosen there, so their client compares it with the file's."""
    true_tee: Any = platform.tee
    quoted = true_tee.quote(bytes(range(64)))
    pem = vendor.chip.public_bytes(_pem())

    class Tee:
        kind = true_tee.kind

        def quote(self, _report_data: bytes) -> Any:
            return type(quoted)(raw=quoted.raw, endorsements=(pem,))

    agent = ours(platform=replace(platform, tee=Tee(), cloud="Azure"))
    with Client13(agent.host, agent.port) as client:
        file = client.take_snapshot()
        assert json.loads(file)["tee_policy"]["Sev"]["report_data"] == bytes(range(64)).hex()
        assert client.verify(file)[-1] == "[ OK ] Verifying TEE attestation"


def _pem() -> Any:
    from cryptography.hazmat.primitives.serialization import Encoding

    return Encoding.PEM


def test_a_tpm_that_leaves_zeros_out_of_its_signatures(ours: Any, platform: Platform) -> None:
    """R and S are integers to a TPM, and fields of 32 bytes to their client."""
    true_tpm: Any = platform.tpm

    class Tpm:
        def __getattr__(self, name: str) -> Any:
            return getattr(true_tpm, name)

        def quote(self, qualifying_data: bytes, pcrs: Any) -> TpmQuote:
            while True:
                quote: TpmQuote = true_tpm.quote(qualifying_data, pcrs)
                told = parse_signature(quote.signature)
                short = told._replace(r=told.r.lstrip(b"\0"), s=told.s.lstrip(b"\0"))
                if short != told:
                    return replace(quote, signature=serialise_signature(short))

    agent = ours(platform=replace(platform, tpm=Tpm()))
    with Client13(agent.host, agent.port) as client:
        assert client.verify(client.take_snapshot())[0] == "[ OK ] Verifying TPM attestation"


def test_their_orders(ours: Any, config: AgentConfig) -> None:
    agent = ours()
    with Client13(agent.host, agent.port) as client:
        client.app_init(b'{"secret": "\xff"}')
        assert config.app is not None
        assert (config.app.storage / "app.conf").read_bytes() == b'{"secret": "\xff"}'
        client.app_restart()
    assert agent.service.calls == ["restart", "restart"]


def test_their_orders_need_an_agent_that_takes_them_from_anyone(ours: Any, config: AgentConfig) -> None:
    agent = ours(config=replace(config, owners=None))
    with Client13(agent.host, agent.port) as client:
        for order in (client.take_snapshot, client.app_restart, lambda: client.app_init(b"x")):
            with pytest.raises(RefusedError, match="carry no proof") as refused:
                order()
            assert refused.value.status == 403
        assert client.tee_quote(bytes(32))  # reading always works
        assert client.ima_binary()


def test_their_errors(ours: Any) -> None:
    agent = ours()
    with Client13(agent.host, agent.port) as client:
        for target in ("/quote/tee?nonce=AAAA", "/quote/tpm?nonce=" + "A" * 88, "/quote/tee"):
            with pytest.raises(RefusedError, match="nonce") as refused:
                client.call("GET", target)
            assert refused.value.status == 400
    with Client13(agent.host, agent.port, version="0.4.0") as client, pytest.raises(RefusedError, match="too old"):
        client.ima_binary()


# Files both ways


def test_our_agents_snapshot_in_their_file(ours: Any, cli: Any, tmp_path: Path) -> None:
    """Their program keeps its own keys alone; ours reads the file, and warns of what it does not hold."""
    agent = ours()
    with Client13(agent.host, agent.port) as client:
        (tmp_path / "old.snapshot").write_bytes(client.take_snapshot())
    assert snapshots.load(tmp_path / "old.snapshot").version == 1
    for api in ("1", "2"):
        status, out = cli(agent.url, "verify", "--snapshot", "old.snapshot", "--api", api)
        assert status == 0, out
        assert "[ WARNING ]" in out


@pytest.mark.parametrize("api", ["1", "2"])
def test_our_file_in_their_program(ours: Any, cli: Any, tmp_path: Path, api: str) -> None:
    agent = ours()
    status, out = cli(agent.url, "snapshot", "--output", "ours.snapshot", "--api", api)
    assert status == 0, out
    file = (tmp_path / "ours.snapshot").read_bytes()
    with Client13(agent.host, agent.port) as client:
        assert client.verify(file)[0] == "[ OK ] Verifying TPM attestation"


# Our program, their agent


@pytest.mark.parametrize(("layout", "template"), list(zip(NUMBERS, ("ima-sig", "ima-ng"), strict=True)))
def test_our_client_when_told(theirs: Any, cli: Any, tmp_path: Path, layout: str) -> None:
    agent = theirs(layout=layout, polls=2)
    status, out = cli(agent.url, "snapshot", "--api", "1")
    assert status == 0, out
    quotes = [("GET", "/quote/tee"), ("GET", "/quote/tpm"), ("GET", "/ima/binary")]
    assert agent.calls[:4] == [*quotes, ("DELETE", "/snapshot")]
    assert set(agent.calls[4:-1]) == {("GET", "/snapshot")}
    assert agent.calls[-1] == ("DELETE", "/snapshot")
    assert snapshots.load(tmp_path / "cosmian_vm.snapshot").version == 1
    agent.fake.calls.clear()
    address = agent.url.removeprefix("https://")
    status, out = cli(agent.url, "verify", "-s", "cosmian_vm.snapshot", "-a", address, "--api", "1")
    assert status == 0, out
    assert agent.calls == quotes
    assert "another machine may answer" in out


def test_our_client_untold(theirs: Any, cli: Any, tmp_path: Path) -> None:
    agent = theirs()
    (tmp_path / "old.snapshot").write_bytes(agent.snapshot())
    status, out = cli(agent.url, "verify", "--snapshot", "old.snapshot")
    assert (status, "--api 1" in out) == (1, True)
    status, out = cli(agent.url, "snapshot")
    assert (status, ("DELETE", "/snapshot") in agent.calls) == (1, False)
    (tmp_path / "app.json").write_bytes(b"secret")
    status, out = cli(agent.url, "app", "init", "--conf", "app.json", "--snapshot", "old.snapshot")
    assert (status, ("POST", "/app/init") in agent.calls) == (1, False)


def test_their_file_of_a_machine_with_violations(theirs: Any, cli: Any, machine: Machine, tmp_path: Path) -> None:
    """Their agent lists each violation as a file whose digest is zeros: that is no file of the snapshot."""
    assert machine.ima is not None
    machine.ima.violate("/var/log/messages")
    agent = theirs()
    (tmp_path / "old.snapshot").write_bytes(agent.snapshot())
    status, out = cli(agent.url, "verify", "--snapshot", "old.snapshot", "--api", "1")
    assert status == 0, out
    assert "/var/log/messages" in out
    machine.ima.violate("/usr/bin/bash")
    status, out = cli(agent.url, "verify", "--snapshot", "old.snapshot", "--api", "1")
    assert (status, "perhaps changed while it ran: /usr/bin/bash" in out) == (1, True)


def test_their_file_tells_what_is_new(theirs: Any, cli: Any, machine: Machine, tmp_path: Path) -> None:
    agent = theirs()
    (tmp_path / "old.snapshot").write_bytes(agent.snapshot())
    machine.run("/usr/bin/new", b"unknown")
    status, out = cli(agent.url, "verify", "--snapshot", "old.snapshot", "--api", "1")
    assert (status, "/usr/bin/new" in out) == (1, True)


def test_their_agent_without_a_tpm(theirs: Any, cli: Any, tmp_path: Path) -> None:
    agent = theirs(device=False)
    status, out = cli(agent.url, "snapshot", "--api", "1")
    assert status == 1, out
    status, out = cli(agent.url, "snapshot", "--api", "1", "--without-tpm")
    assert status == 0, out
    read_snapshot(json.loads((tmp_path / "cosmian_vm.snapshot").read_bytes()))
    status, out = cli(agent.url, "verify", "--snapshot", "cosmian_vm.snapshot", "--api", "1")
    assert status == 0, out


def test_their_agent_is_told_to_restart(theirs: Any, cli: Any) -> None:
    agent = theirs()
    status, out = cli(agent.url, "app", "restart")
    assert (status, ("POST", "/app/restart") in agent.calls) == (1, False)
    status, out = cli(agent.url, "app", "restart", "--api", "1")
    assert status == 0, out
    call = agent.fake.calls[-1]
    assert (call.method, call.path, call.body) == ("POST", "/app/restart", b"")
    assert call.headers["user-agent"].startswith("cosmian-vm/")
