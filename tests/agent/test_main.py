"""The program as a process: start, serve, end; what it says when it cannot; and what a call may not touch."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cosmian_vm.agent import serving
from cosmian_vm.agent.config import AgentConfig
from cosmian_vm.attester.platform import Platform
from cosmian_vm.client import AgentClient
from cosmian_vm.client.owner_key import create
from cosmian_vm.errors import RefusedError

TESTS = Path(__file__).resolve().parent.parent
SOURCE = TESTS.parent / "src"

_AGENT = f"""
import os, sys
sys.path.insert(0, {str(SOURCE)!r})
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cosmian_vm.agent.config import AgentConfig, AppConfig, ServiceType
from cosmian_vm.agent.log import configure
from cosmian_vm.agent.serving import run
from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.machine import Machine

storage, watch = Path(sys.argv[1]), sys.argv[2] == "watch"
keys = VendorKeys.load(Path({str(TESTS / "data" / "devkit_amd")!r}))
machine = Machine.create(AmdVendor.create(keys=keys, now=datetime.now(UTC) - timedelta(days=30)))
app = AppConfig(service_type=ServiceType.STANDALONE, service_name="x", storage=storage / "data" / "app")
config = AgentConfig(
    data_storage=storage, port=0, ssl_certificate=storage / "c.pem", ssl_private_key=storage / "k.pem",
    container=None, app=app,
)
configure()

def ready(host, port):
    Path(storage / "port.new").write_text(str(port))
    os.rename(storage / "port.new", storage / "port")

def hook(event, arguments):
    if event in ("open", "import", "exec", "compile", "subprocess.Popen", "os.exec", "ctypes.dlopen"):
        what = str(arguments[0])
        if what not in (str(config.ssl_certificate), str(config.ssl_private_key)):
            os.write(2, f"TOUCHED {{event}} {{what}}\\n".encode())

platform = machine.platform()
if watch:
    def ready_and_watch(host, port):
        ready(host, port)
        sys.addaudithook(hook)
    run(config, platform, on_ready=ready_and_watch)
else:
    run(config, platform, on_ready=ready)
print("ended in good order", file=sys.stderr)
"""

Start = Callable[[str], tuple[subprocess.Popen[bytes], int]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def make(mode: str) -> tuple[subprocess.Popen[bytes], int]:
        storage = tmp_path / "agent"
        storage.mkdir()
        script = tmp_path / "agent.py"
        script.write_text(_AGENT)
        process = subprocess.Popen([sys.executable, str(script), str(storage), mode], stderr=subprocess.PIPE)
        started.append(process)
        deadline = time.monotonic() + 60
        while not (storage / "port").exists():
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return process, int((storage / "port").read_text())

    yield make
    for process in started:
        process.kill()
        process.communicate()


def request(port: int, raw: bytes) -> int:
    import socket

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port), timeout=60) as plain,
        context.wrap_socket(plain) as connection,
    ):
        connection.sendall(raw)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return int(answer.split(b" ")[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order(start: Start, number: int) -> None:
    process, port = start("plain")
    assert request(port, b"GET /health HTTP/1.1\r\nConnection: close\r\n\r\n") == 200
    process.send_signal(number)
    errors = process.communicate(timeout=60)[1].decode()
    assert process.returncode == 0, errors
    assert "ended in good order" in errors
    assert "Traceback" not in errors


def test_serving_a_call_loads_and_runs_no_file(start: Start, tmp_path: Path) -> None:
    """A published 1.3.x client has no rule for what is measured after the quote: a call must leave no new trace."""
    process, port = start("watch")
    nonce = b"A" * 43
    body = b'{"nonce":"' + nonce + b'="}'
    calls: list[tuple[bytes, bytes, int]] = [
        (b"GET /health", b"", 200),
        (b"GET /version", b"", 200),
        (b"GET /openapi.json", b"", 200),
        (b"GET /ima/ascii", b"", 200),
        (b"GET /ima/binary", b"", 200),
        (b"GET /quote/tee?nonce=" + nonce, b"", 200),
        (b"GET /quote/tpm?nonce=" + nonce, b"", 200),
        (b"GET /quote/tee?nonce=%2B+%ff", b"", 400),
        (b"POST /v2/evidence", body, 200),
        (b"POST /v2/evidence", b"\xff{", 400),
        (b"POST /v2/evidence", b"[" * 3000, 400),
        (b"POST /v2/evidence", bytes(100_000), 413),
        (b"GET /nope", b"", 404),
        (b"PUT /health", b"", 405),
        (b"\xff\xff", b"", 400),
        (b"POST /v2/nonce", b"", 200),
        (b"GET /v2/owner", b"", 200),
        (b"GET /snapshot", b"", 403),
        (b"POST /app/restart", b"", 403),
        (b"POST /app/init", b'{"content":"AA"}', 403),
        (b"GET /" + b"%C3%A9" * 20, b"", 404),
    ]
    for line, content, status in calls:
        for more in (b"", b"Accept-Encoding: zstd\r\n", b"User-Agent: cli-version/1.3.5\r\n"):
            head = line + b" HTTP/1.1\r\nConnection: close\r\n" + more
            head += b"Content-Length: %d\r\n\r\n" % len(content)
            assert request(port, head + content) == status, line
    with AgentClient(f"https://127.0.0.1:{port}", allow_insecure_tls=True) as client:
        client.owner = create(tmp_path / "config")
        with pytest.raises(RefusedError, match="403 this machine has no owner yet"):
            client.app_restart()
    process.terminate()
    errors = process.communicate(timeout=60)[1].decode()
    serving = errors.partition("ended in good order")[0]
    assert [line for line in serving.splitlines() if line.startswith("TOUCHED")] == []


# The real detection asks a cloud's metadata service: not from a test.
_PROGRAM = """
import sys

def offline(event, arguments):
    if event == "socket.connect" and isinstance(arguments[1], tuple) and not arguments[1][0].startswith("127."):
        print("STAYED HERE", arguments[1][0], file=sys.stderr)
        raise OSError("a test does not leave this machine")

sys.addaudithook(offline)
FIRST
from cosmian_vm.agent.program import main
sys.argv[0] = "cosmian_vm_agent"
main()
"""


def run_program(*arguments: str, **environment: str) -> tuple[int, str]:
    return run_code("pass", *arguments, **environment)


def run_code(first: str, *arguments: str, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM.replace("FIRST", first), *arguments],
        env={**os.environ, "PYTHONPATH": str(SOURCE), **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("package", ["httptools", "uvicorn", "uvloop"])
def test_without_the_extra_it_is_named(package: str) -> None:
    status, text = run_code(f"sys.modules['{package}'] = None", "--help")
    assert status == 2
    assert text == (
        f"cosmian_vm_agent: {package} is not installed: the agent needs the extra [agent]: "
        "pip install '.[agent]' in its source folder\n"
    )


def test_what_is_missing_of_our_own_is_a_bug_and_shown_as_one() -> None:
    status, text = run_code("sys.modules['cosmian_vm.agent.first_launch'] = None", "--help")
    assert status == 1
    assert "Traceback" in text


def test_help_and_version() -> None:
    status, text = run_program("--help")
    assert status == 0
    assert "COSMIAN_VM_AGENT_CONF" in text
    assert run_program("--version")[0] == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        (b"[agent", "not TOML"),
        (b"[agent]\nport = 1\n", "data_storage: is missing"),
        (b'[agent]\ndata_storage="/s"\nssl_certificate="c"\nssl_private_key="k"\nhost="192.0.2.1"\n', "192.0.2.1"),
    ],
)
def test_a_wrong_configuration_is_one_line_and_status_2(tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "agent.toml"
    if content is not None:
        file.write_bytes(content)
    status, text = run_program(COSMIAN_VM_AGENT_CONF=str(file))
    assert status == 2, text
    last = text.strip().splitlines()[-1]
    assert last.startswith("cosmian_vm_agent: ")
    assert words in last
    assert "Traceback" not in text
    assert run_program("--config", str(file))[0] == 2


def test_wrong_usage_is_status_2() -> None:
    assert run_program("--no-such-option")[0] == 2


def test_limits_of_the_process() -> None:
    code = (
        "import resource as r; from cosmian_vm.agent import main as m;"
        "r.setrlimit(r.RLIMIT_NOFILE, (256, r.getrlimit(r.RLIMIT_NOFILE)[1])); m.set_limits();"
        "print(r.getrlimit(r.RLIMIT_CORE)[0], *r.getrlimit(r.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    core, soft, hard = map(int, done.stdout.split())
    assert core == 0
    assert soft == (16384 if hard == -1 else min(16384, hard))


def test_errors_in_the_log_quote_no_source(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback as Python prints it reads source files, which IMA would then measure."""
    import linecache

    from cosmian_vm.agent import log

    def read(*_: Any) -> list[str]:
        raise AssertionError("a source file was read")

    monkeypatch.setattr(linecache, "updatecache", read)
    try:
        try:
            raise ValueError("inner\nline")
        except ValueError as exc:
            raise KeyError("outer") from exc
    except KeyError as exc:
        text = log.describe(exc)
    assert text.startswith("KeyError: 'outer' [test_main.py:")
    assert "ValueError: inner line" in text
    assert "\n" not in text


@pytest.mark.parametrize(("owners", "times"), [("anyone", 1), (None, 0), (("ed25519:x",), 0)])
def test_an_agent_that_obeys_anyone_says_so_at_every_start(
    config: AgentConfig,
    platform: Platform,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    owners: Any,
    times: int,
) -> None:
    monkeypatch.setattr(serving, "_serve_once", lambda *_, **__: False)
    with caplog.at_level("WARNING"):
        serving.run(replace(config, owners=owners), platform)
    assert caplog.text.count('owners = "anyone": every client') == times
