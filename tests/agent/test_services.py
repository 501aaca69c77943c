"""The application, really started and stopped; a service manager that says yes and means no."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cosmian_vm import _run
from cosmian_vm.agent import services, standalone
from cosmian_vm.agent.config import AppConfig, ServiceType
from cosmian_vm.agent.service_log import last_lines, tail
from cosmian_vm.agent.services import Supervisor, Systemd, service_for
from cosmian_vm.agent.standalone import Standalone
from cosmian_vm.errors import AttesterError

Script = Callable[[str, str], str]


@pytest.fixture
def script(tmp_path: Path) -> Script:
    """``script(name, body)``: an executable shell script; the folder that it is in."""

    def make(name: str, body: str) -> str:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        file = folder / name
        file.write_text(f"#!/bin/sh\n{body}\n")
        file.chmod(0o755)
        return str(folder)

    return make


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Callable[[str, str], Standalone]]:
    made: list[Standalone] = []

    def make(name: str, path: str) -> Standalone:
        made.append(Standalone(name, folder=tmp_path / "app", state=tmp_path / "tmp", path=path))
        return made[-1]

    yield make
    for service in made:
        service.stop()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ended(pid: int, seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not alive(pid)


# Standalone


def test_standalone_starts_restarts_and_stops(script: Script, app: Callable[..., Standalone], tmp_path: Path) -> None:
    service = app("helloworld", script("helloworld", "pwd > where; umask >> where; exec sleep 60"))
    service.restart()
    first = service.pid
    assert first is not None
    assert alive(first)
    assert (tmp_path / "app" / "where").read_text().split() == [str(tmp_path / "app"), "0022"]
    service.restart()
    second = service.pid
    assert second is not None
    assert not alive(first)
    assert alive(second)
    service.stop()
    assert not alive(second)
    assert service.pid is None
    service.stop()


@pytest.mark.skipif(os.geteuid() != 0, reason="to start a program as another user takes root")
def test_standalone_runs_as_its_user() -> None:
    place = Path(tempfile.mkdtemp(dir="/tmp", prefix="cosmian-"))  # pytest's own folders are for root alone
    place.chmod(0o711)
    (place / "app").mkdir(mode=0o701)
    (place / "app" / "app.conf").write_text("configured\n")
    program = place / "helloworld"
    program.write_text("#!/bin/sh\nid -u; id -g; id -G; cat app.conf; exec sleep 60\n")
    program.chmod(0o755)
    service = Standalone("helloworld", folder=place / "app", state=place / "tmp", user="nobody", path=str(place))
    try:
        service.restart()
        nobody = pwd.getpwnam("nobody")
        assert service.log(10) == [
            str(nobody.pw_uid),
            str(nobody.pw_gid),
            " ".join(map(str, os.getgrouplist("nobody", nobody.pw_gid))),
            "configured",
        ]
        assert service.state().running
        service.stop()
        with pytest.raises(AttesterError, match="there is no user nosuchuser"):
            Standalone("helloworld", folder=place, state=place / "tmp", user="nosuchuser", path=str(place)).restart()
    finally:
        service.stop()
        shutil.rmtree(place)


def test_standalone_is_known_to_the_next_agent(script: Script, app: Callable[..., Standalone]) -> None:
    path = script("helloworld", "exec sleep 60")
    app("helloworld", path).restart()
    heir = app("helloworld", path)
    pid = heir.pid
    assert pid is not None
    heir.restart()
    assert not alive(pid)


def test_standalone_ends_the_whole_group(script: Script, app: Callable[..., Standalone], tmp_path: Path) -> None:
    service = app("helloworld", script("helloworld", "(trap '' TERM; sleep 60) & echo $! > child; wait"))
    service.restart()
    child = int((tmp_path / "app" / "child").read_text())
    assert alive(child)
    service.stop()
    assert ended(child)


def test_standalone_that_ignores_sigterm_is_killed(
    script: Script, app: Callable[..., Standalone], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standalone, "_STOP_SECONDS", 0.3)
    service = app("helloworld", script("helloworld", "trap '' TERM; while :; do sleep 1; done"))
    service.restart()
    pid = service.pid
    assert pid is not None
    service.stop()
    assert not alive(pid)


def test_a_recycled_pid_is_never_signalled(script: Script, app: Callable[..., Standalone], tmp_path: Path) -> None:
    """The pid file names a process that is not ours: same pid, another start time or another boot."""
    stranger = subprocess.Popen(["/bin/sleep", "60"])
    try:
        stat = Path(f"/proc/{stranger.pid}/stat").read_text()
        start = int(stat.rpartition(")")[2].split()[19])
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        service = app("helloworld", script("helloworld", "exec sleep 60"))
        pid_file = tmp_path / "tmp" / "helloworld.pid"
        pid_file.parent.mkdir()
        for record in (
            {"pid": stranger.pid, "start": start + 1, "boot": boot},
            {"pid": stranger.pid, "start": start, "boot": "another"},
        ):
            pid_file.write_text(str(record).replace("'", '"'))
            assert service.pid is None
            service.stop()
            assert stranger.poll() is None
        pid_file.write_text(str({"pid": stranger.pid, "start": start, "boot": boot}).replace("'", '"'))
        assert service.pid == stranger.pid  # the test itself can tell
    finally:
        (tmp_path / "tmp" / "helloworld.pid").unlink(missing_ok=True)
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("content", ["", "12", "{}", '{"pid": 1, "start": 0, "boot": ""}', "\udcff"])
def test_a_broken_pid_file_is_no_pid(app: Callable[..., Standalone], tmp_path: Path, content: str) -> None:
    service = app("helloworld", "/nowhere")
    (tmp_path / "tmp").mkdir()
    (tmp_path / "tmp" / "helloworld.pid").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert service.pid is None
    service.stop()


def test_standalone_that_does_not_stay_up(script: Script, app: Callable[..., Standalone], tmp_path: Path) -> None:
    """What it says may quote the secrets that it was given: the error, which a client gets, only tells where it is."""
    service = app("helloworld", script("helloworld", "echo no database for password 1234 >&2; exit 3"))
    with pytest.raises(AttesterError, match="helloworld ended at once with status 3; what it said is in") as caught:
        service.restart()
    assert "1234" not in str(caught.value)
    log = tmp_path / "tmp" / "helloworld.log"
    assert str(log) in str(caught.value)
    assert log.read_text() == "no database for password 1234\n"
    assert log.stat().st_mode & 0o777 == 0o600
    assert service.pid is None
    with pytest.raises(AttesterError, match="nothere is not installed"):
        app("nothere", "/nowhere").restart()
    with pytest.raises(AttesterError, match="cannot be started: No such file"):
        app("/nowhere/app", "/nowhere").restart()


# Service managers


def test_systemd(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "_POLL_SECONDS", 0.01)
    log = tmp_path / "log"
    path = script("systemctl", f'echo "$@" >> {log}')
    Systemd("app.service", path=path).restart()
    Systemd("app.service", path=path).stop()
    assert log.read_text().splitlines() == [
        "--no-ask-password -- restart app.service",
        *["--no-ask-password -- is-active app.service"] * services._STAYS_UP,
        "--no-ask-password -- stop app.service",
    ]
    with pytest.raises(AttesterError, match=r"systemd did not start app: Failed to restart app\."):
        Systemd("app", path=script("systemctl", "echo; echo Failed to restart app. >&2; exit 5")).restart()
    with pytest.raises(AttesterError, match="app did not stay up: systemd says failed"):
        Systemd("app", path=script("systemctl", '[ "$3" = restart ] || { echo failed; exit 3; }')).restart()
    with pytest.raises(AttesterError, match="systemctl is not installed"):
        Systemd("app", path="/nowhere").restart()


def test_supervisor(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(services, "_SETTLE_SECONDS", 0.2)
    running = '[ "$1" = status ] && echo "app                RUNNING   pid 7, uptime 0:00:01"; exit 0'
    Supervisor("app", path=script("supervisorctl", running)).restart()
    with pytest.raises(AttesterError, match="supervisor did not stop app"):
        Supervisor("app", path=script("supervisorctl", running)).stop()
    fatal = '[ "$1" = status ] && echo "app  FATAL  Exited too quickly"; exit 0'
    with pytest.raises(AttesterError, match="supervisor did not start app: it is FATAL"):
        Supervisor("app", path=script("supervisorctl", fatal)).restart()
    starting = '[ "$1" = status ] && echo "app  STARTING"'
    with pytest.raises(AttesterError, match="it is STARTING"):
        Supervisor("app", path=script("supervisorctl", starting)).restart()
    unknown = 'echo "app: ERROR (no such process)"; exit 4'
    with pytest.raises(AttesterError, match="supervisor knows no program app"):
        Supervisor("app", path=script("supervisorctl", unknown)).restart()
    stopped = '[ "$1" = status ] && echo "app  STOPPED  Not started"; exit 3'
    Supervisor("app", path=script("supervisorctl", stopped)).stop()


def test_systemd_tells(script: Script) -> None:
    path = script("systemctl", "echo activating; exit 3")
    assert Systemd("app", path=path).state() == (False, "activating")
    assert Systemd("app", path=script("systemctl", "echo active")).state() == (True, "active")
    path = script("journalctl", 'echo "$@"; printf "two\\033[2J\\n\\nthree\\n"')
    assert Systemd("app@1.service", path=path).log(3) == [
        "--quiet --no-pager --output=cat --lines=3 --unit=app@1.service",
        "two [2J",
        "three",
    ]
    with pytest.raises(AttesterError, match="journalctl has no log of app: no journal"):
        Systemd("app", path=script("journalctl", "echo no journal; exit 1")).log(5)


def test_systemd_that_dies_a_moment_later(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "_POLL_SECONDS", 0.01)
    count = f"echo >> {tmp_path}/asked; [ $(wc -l < {tmp_path}/asked) -lt 4 ] || {{ echo failed; exit 3; }}"
    path = script("systemctl", f'[ "$3" = restart ] || {{ {count}; }}')
    with pytest.raises(AttesterError, match="app did not stay up: systemd says failed"):
        Systemd("app", path=path).restart()


def test_standalone_tells(script: Script, app: Callable[..., Standalone], tmp_path: Path) -> None:
    service = app("helloworld", script("helloworld", "seq -f 'line %g' 0 4999; exec sleep 60"))
    assert service.state() == (False, "stopped")
    assert service.log(5) == []
    service.restart()
    assert service.state() == (True, f"running, pid {service.pid}")
    assert service.log(2) == ["line 4998", "line 4999"]
    assert len(service.log(1000)) == 1000
    service.stop()
    assert service.state() == (False, "stopped")
    assert service.log(1) == ["line 4999"]


@pytest.mark.parametrize(
    ("raw", "lines", "told"),
    [
        (b"", 5, []),
        (b"\n\n \n", 5, []),
        (b"a\nb\nc", 2, ["b", "c"]),
        (b"a\x00\x1b]0;x\x07\xff\xe2\x80\xa8b", 5, ["a  ]0;x \ufffd", "b"]),
        (b"x" * 5000, 1, ["x" * 1000]),
        (b"a\n", 0, []),
    ],
)
def test_last_words_are_bounded_and_printable(raw: bytes, lines: int, told: list[str]) -> None:
    assert last_lines(raw, lines) == told


def test_the_end_of_a_large_file(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"0123456789abcde\n" * 100_000)
    end = tail(tmp_path / "log")
    assert 200 * 1024 < len(end) <= 256 * 1024
    assert end.startswith(b"0123")


# The real supervisor

SUPERVISOR = """
[unix_http_server]
file={0}/s
[supervisord]
logfile={0}/supervisord.log
pidfile={0}/supervisord.pid
childlogdir={0}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{0}/s
[program:good]
command=/bin/sh -c 'echo up with $$; echo a warning >&2; exec sleep 60'
startsecs=1
[program:bad]
command=/bin/sh -c 'echo no database >&2; exit 3'
startsecs=1
startretries=1
[program:idle]
command=/bin/sleep 60
autostart=false
"""


@pytest.fixture
def supervisor(script: Script) -> Iterator[str]:
    """A folder with a supervisorctl that speaks to a supervisord of this test's own."""
    programs = Path(sys.executable).parent
    if not (programs / "supervisord").exists():
        pytest.skip("supervisor is not installed")
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="cosmian-"))  # the name of a socket has 107 bytes at most
    (folder / "conf").write_text(SUPERVISOR.format(folder))
    daemon = subprocess.Popen(
        [programs / "supervisord", "-n", "-c", folder / "conf"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    path = script("supervisorctl", f'exec {programs}/supervisorctl -c {folder}/conf "$@"')
    deadline = time.monotonic() + 60
    while not (folder / "s").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield path
    daemon.terminate()
    daemon.wait(60)
    shutil.rmtree(folder)


def test_the_real_supervisor(supervisor: str) -> None:
    good = Supervisor("good", path=supervisor)
    good.restart()
    first = good.log(10)
    assert good.state() == (True, "RUNNING")
    good.restart()
    lines = good.log(10)
    assert lines[-1] == "a warning"
    pids = [line for line in lines if line.startswith("up with ")]
    assert len(pids) == len([line for line in first if line.startswith("up with ")]) + 1
    assert len(set(pids)) == len(pids)  # a new process each time
    good.stop()
    assert good.state() == (False, "STOPPED")
    assert not alive(int(pids[-1].split()[-1]))
    good.stop()
    idle = Supervisor("idle", path=supervisor)  # never started before, nothing written
    assert idle.state() == (False, "STOPPED")
    assert idle.log(5) == []
    idle.restart()
    assert idle.state() == (True, "RUNNING")


def test_a_program_that_the_real_supervisor_cannot_keep_up(supervisor: str) -> None:
    bad = Supervisor("bad", path=supervisor)
    with pytest.raises(AttesterError, match=r"supervisor did not start bad: it is (FATAL|BACKOFF|EXITED)"):
        bad.restart()
    assert bad.log(1) == ["no database"]
    assert not bad.state().running
    for call in (Supervisor("nosuch", path=supervisor).restart, Supervisor("nosuch", path=supervisor).state):
        with pytest.raises(AttesterError, match="supervisor knows no program nosuch"):
            call()


def test_the_configuration_chooses_the_manager(tmp_path: Path) -> None:
    made = {
        kind: type(service_for(AppConfig(service_type=kind, service_name="a", storage=tmp_path), tmp_path))
        for kind in ServiceType
    }
    assert made == {
        ServiceType.SYSTEMD: Systemd,
        ServiceType.SUPERVISOR: Supervisor,
        ServiceType.STANDALONE: Standalone,
    }


# _run


def test_run_ends_what_takes_too_long_with_all_it_started(script: Script, tmp_path: Path) -> None:
    path = script("slow", f"sleep 600 & echo $! > {tmp_path}/child; wait")
    begin = time.monotonic()
    with pytest.raises(AttesterError, match=r"slow was not done within 2 s and was ended"):
        _run.run([f"{path}/slow"], seconds=2)
    assert time.monotonic() - begin < 60
    child = int((tmp_path / "child").read_text())
    assert ended(child)


def test_run_keeps_the_end_of_the_output(script: Script) -> None:
    done = _run.run([script("loud", "yes | head -c 300000; echo; echo last; exit 7") + "/loud"], seconds=20)
    assert (done.status, done.last_line) == (7, "last")
    assert len(done.output) == 64 * 1024


def test_run_does_not_wait_for_a_daemon(script: Script, tmp_path: Path) -> None:
    path = script("starter", f"sleep 600 & echo $! > {tmp_path}/child; echo started")
    begin = time.monotonic()
    assert _run.run([f"{path}/starter"], seconds=120).last_line == "started"
    assert time.monotonic() - begin < 60
    os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def test_run_names_what_cannot_start() -> None:
    with pytest.raises(AttesterError, match="/nowhere/x cannot be started: No such file"):
        _run.run(["/nowhere/x"], seconds=1)
