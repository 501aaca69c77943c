"""The application's secrets: where they are, where they are not, and who would like to have them elsewhere."""

from __future__ import annotations

import base64
import io
import os
import pwd
import resource
import shutil
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click.testing
import pytest

from cosmian_vm.agent.application import Application
from cosmian_vm.agent.config import AgentConfig, AppConfig, ServiceType, parse
from cosmian_vm.agent.service_log import ServiceState
from cosmian_vm.agent.storage import Storage
from cosmian_vm.cli import main
from cosmian_vm.client import AgentClient
from cosmian_vm.client.owner_key import create
from cosmian_vm.devkit.amd import VendorKeys
from cosmian_vm.devkit.vm import SimulatedVm
from cosmian_vm.errors import AttesterError, ConfigError, OrderError, RefusedError

KEYS = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"
SECRET = b"correct horse battery staple 4711"
MINIMAL = '[agent]\ndata_storage = "/s"\nssl_certificate = "c"\nssl_private_key = "k"\n[app]\n'
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="to give a file to another user takes root")


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    storage = tmp_path / "agent"
    return AgentConfig(data_storage=storage, ssl_certificate=storage / "c", ssl_private_key=storage / "k")


def app_in(storage: Path, user: str = "root") -> AppConfig:
    return AppConfig(service_type=ServiceType.STANDALONE, service_name="app", storage=storage, user=user)


# Where the file is written


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("supervisor", "../app"),
        ("supervisor", "a/b"),
        ("supervisor", "all"),
        ("supervisor", "-c/tmp/evil.conf"),
        ("systemd", "--root=/tmp"),
        ("systemd", "a b"),
        ("systemd", "a;reboot"),
        ("systemd", "/etc/systemd/system/a.service"),
        ("standalone", "/opt/../tmp/evil"),
        ("standalone", "../evil"),
        ("standalone", "sh -c evil"),
        ("standalone", "-evil"),
    ],
)
def test_tricks_in_the_service_name(kind: str, name: str) -> None:
    text = f'{MINIMAL}service_type = "{kind}"\nservice_name = "{name}"\napp_storage = "data/app"\n'
    with pytest.raises(ConfigError, match=r"\[app\] service_name"):
        parse(text.encode(), "agent.toml")


@pytest.mark.parametrize("storage", ["../../etc", "data/../../etc", "/var/../etc", ".."])
def test_tricks_in_the_storage_name(storage: str) -> None:
    text = f'{MINIMAL}service_type = "systemd"\nservice_name = "a"\napp_storage = "{storage}"\n'
    with pytest.raises(ConfigError, match=r"\[app\] app_storage: has '\.\.' in it"):
        parse(text.encode(), "agent.toml")


@pytest.mark.parametrize("part", ["data", "data/app"])
def test_a_link_that_leads_elsewhere(config: AgentConfig, tmp_path: Path, part: str) -> None:
    """A program of the machine puts a link where the folder will be, to read the secret in a place of its own."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    link = config.data_storage / part
    link.parent.mkdir(parents=True)
    link.symlink_to(theirs)
    with pytest.raises(AttesterError, match="a link in it is not followed"):
        Storage(config).write_app_configuration(app_in(config.data / "app"), SECRET)
    assert list(theirs.iterdir()) == []


def test_a_link_in_the_files_place_is_replaced(config: AgentConfig, tmp_path: Path) -> None:
    app = app_in(config.data / "app")
    app.storage.mkdir(parents=True)
    (tmp_path / "theirs").write_bytes(b"old")
    (app.storage / "app.conf").symlink_to(tmp_path / "theirs")
    Storage(config).write_app_configuration(app, SECRET)
    assert (tmp_path / "theirs").read_bytes() == b"old"
    assert not (app.storage / "app.conf").is_symlink()
    assert (app.storage / "app.conf").read_bytes() == SECRET


@needs_root
def test_the_services_user_alone_reads_it(config: AgentConfig) -> None:
    nobody = pwd.getpwnam("nobody")
    app = app_in(config.data / "app", "nobody")
    config.data_storage.mkdir(mode=0o700)
    before = os.umask(0o077)  # as the agent's
    try:
        Storage(config).write_app_configuration(app, SECRET)
    finally:
        os.umask(before)
    file = app.storage / "app.conf"
    seen = file.stat()
    assert (seen.st_uid, seen.st_gid, stat.S_IMODE(seen.st_mode)) == (nobody.pw_uid, nobody.pw_gid, 0o400)
    assert seen.st_nlink == 1
    for folder in (config.data_storage, config.data, app.storage):
        assert (folder.stat().st_uid, stat.S_IMODE(folder.stat().st_mode)) == (0, 0o701)  # to pass, not to list
    Storage(config).write_app_configuration(app, b"again")
    assert file.read_bytes() == b"again"
    config.data_storage.chmod(0o700)  # as a service manager does that starts the agent again
    Application(replace(config, app=app), Storage(config))
    assert stat.S_IMODE(config.data_storage.stat().st_mode) == 0o701


def test_a_user_that_there_is_not(config: AgentConfig) -> None:
    app = app_in(config.data / "app")
    Storage(config).write_app_configuration(app, b"old")
    with pytest.raises(AttesterError, match="there is no user nosuchuser"):
        Storage(config).write_app_configuration(app_in(app.storage, "nosuchuser"), SECRET)
    assert (app.storage / "app.conf").read_bytes() == b"old"
    assert (app.storage / "app.conf").stat().st_mode & 0o777 == 0o400


def test_a_disk_that_is_not_encrypted_is_said(config: AgentConfig, caplog: pytest.LogCaptureFixture) -> None:
    class Service:
        def restart(self) -> None: ...
        def stop(self) -> None: ...
        def state(self) -> ServiceState:
            return ServiceState(False, "stopped")

        def log(self, lines: int) -> list[str]:
            return []

    app = app_in(config.data / "app")
    with caplog.at_level("WARNING"):
        application = Application(replace(config, app=app), Storage(config), Service())
        body = b'{"content":"' + base64.b64encode(SECRET).rstrip(b"=") + b'"}'
        application.init(body)
    assert caplog.text.count("is not on the encrypted container") == 2  # at the start, and with each order
    told = application.status()
    assert (told.encrypted, told.configured, told.running) == (False, True, False)
    with pytest.raises(OrderError):
        application.init(b"{}")


# Where the secret is not


needs_swtpm = pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed")


class Program:
    """cosmian_vm, as somebody runs it in ``folder``."""

    def __init__(self, vm: SimulatedVm, folder: Path) -> None:
        self.vm = vm
        self.folder = folder
        self.said: list[str] = []

    def __call__(self, *arguments: str, trust: bool = True) -> tuple[int, str, str]:
        argv = ["--url", self.vm.url, "--allow-insecure-tls", *arguments]
        if trust:
            argv += ["--trust-root", str(self.vm.trust_root), "--offline"]
        with click.testing.CliRunner().isolation(input=io.BytesIO()) as streams:
            status = main.run(argv)
            out, err = streams[0].getvalue().decode(), streams[1].getvalue().decode()
        self.said += [out, err]
        return status, out, err


@pytest.fixture
def vm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedVm]:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home" / "cache"))
    monkeypatch.chdir(tmp_path / "home")
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))  # what the agent starts with, where nobody cared
    try:
        with SimulatedVm(tmp_path / "vm", keys=VendorKeys.load(KEYS)) as vm:
            vm.start()
            yield vm
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


@pytest.fixture
def program(vm: SimulatedVm, tmp_path: Path) -> Program:
    return Program(vm, tmp_path / "home")


def processes(*pids: int) -> Iterator[int]:
    """These and all that descend from them."""
    for pid in pids:
        yield pid
        for task in Path(f"/proc/{pid}/task").iterdir():
            yield from processes(*map(int, (task / "children").read_text().split()))


@pytest.mark.swtpm
@needs_swtpm
def test_the_secret_is_in_one_file_and_nowhere_else(program: Program, vm: SimulatedVm, tmp_path: Path) -> None:
    """Not in logs, core files, temporary files, arguments or environments; neither plain nor as it was sent."""
    conf = tmp_path / "app.json"
    conf.write_bytes(SECRET)
    assert program("app", "init", "--conf", str(conf), "--trust-new")[0] == 0
    assert program("app", "restart")[0] == 0
    assert program("app", "status")[0] == 0
    assert program("app", "logs")[0] == 0
    assert program("snapshot")[0] == 0
    # wrong ones too: what is refused must not be quoted
    with AgentClient(vm.url, allow_insecure_tls=True) as stranger:
        for owner in (None, create(tmp_path / "stranger")):
            stranger.owner = owner
            with pytest.raises(RefusedError):
                stranger.app_init(SECRET)
    encoded = base64.b64encode(SECRET).rstrip(b"=")
    needles = [SECRET, SECRET.hex().encode()]
    needles += [base64.b64encode(bytes(shift) + SECRET)[4 * shift // 3 + 4 : -8] for shift in range(3)] + [
        encoded[4:-4]
    ]
    found = {
        path.relative_to(tmp_path)
        for path in tmp_path.rglob("*")
        if path.is_file() and path != conf and any(needle in path.read_bytes() for needle in needles)
    }
    assert found == {Path("vm/agent/data/app/app.conf")}
    assert not any(needle in text.encode() for needle in needles for text in program.said)
    assert list((tmp_path / "scratch").rglob("*")) == []
    agent, app = vm._agent.pid, vm.agent_config.app
    assert agent is not None
    assert app is not None
    pids = list(processes(agent))
    assert len(pids) > 1, "the application runs, and is the agent's child"
    for pid in pids:
        proc = Path(f"/proc/{pid}")
        for name in ("cmdline", "environ"):
            assert not any(needle in (proc / name).read_bytes() for needle in needles)
        core = next(
            line for line in (proc / "limits").read_text().splitlines() if line.startswith("Max core file size")
        )
        assert core.split()[4] == "0"
    assert (app.storage / "app.conf").stat().st_mode & 0o777 == 0o400


@pytest.mark.swtpm
@needs_swtpm
def test_the_manuals_commands(program: Program, vm: SimulatedVm, tmp_path: Path) -> None:
    """As they are written there, for somebody who takes a snapshot first; --trust-root is for the simulated maker."""
    (program.folder / "app.json").write_bytes(SECRET)
    assert program("snapshot")[0] == 0
    assert program("verify", "--snapshot", "cosmian_vm.snapshot")[0] == 0
    status, out, err = program("app", "init", "--conf", "app.json")
    assert status == 0, out + err
    assert "whose" not in err
    assert program("app", "restart")[0] == 0
    status, out, err = program("verify", "--snapshot", "cosmian_vm.snapshot", "--verbose")
    assert status == 0, out
    assert "ed25519:" in out
    owner = create(program.folder / "config" / "cosmian_vm").fingerprint
    assert program("verify", "--snapshot", "cosmian_vm.snapshot", "--owner", owner)[0] == 0
    vm.restart_agent()
    assert program("app", "restart")[0] == 0  # still its owner
    log = (vm.folder / "agent.log").read_text()
    assert f"bytes sent) by {owner} from 127.0.0.1: done" in log


@pytest.mark.swtpm
@needs_swtpm
def test_an_app_that_does_not_come_up_tells_its_owner_why(program: Program, vm: SimulatedVm, tmp_path: Path) -> None:
    server = vm.rootfs / "opt/app/server"
    server.write_text("#!/bin/sh\necho 'no database: '\"$(cat app.conf)\" >&2\nexit 3\n")
    conf = tmp_path / "app.json"
    conf.write_bytes(SECRET)
    status, _, err = program("app", "init", "--conf", str(conf), "--trust-new")
    assert status == 3
    assert "ended at once with status 3" in err
    assert f"  | no database: {SECRET.decode()}" in err
    assert SECRET not in (vm.folder / "agent.log").read_bytes()  # the owner reads it, the agent's log does not have it
    with AgentClient(vm.url, allow_insecure_tls=True) as stranger:
        for owner in (None, create(tmp_path / "stranger")):
            stranger.owner = owner
            with pytest.raises(RefusedError) as caught:
                stranger.app_logs(5)
            assert SECRET.decode() not in str(caught.value)
