"""Front and collector as two processes: what the front may, and that neither outlives the other."""

from __future__ import annotations

import base64
import contextlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cosmian_vm import wire
from cosmian_vm.agent.config import AgentConfig
from cosmian_vm.certificates import leaf_der, self_signed, spki_sha256
from cosmian_vm.client import AgentClient, owner_key
from cosmian_vm.errors import RefusedError
from cosmian_vm.evidence import snp
from cosmian_vm.evidence.binding import compute_binding, report_data

TESTS = Path(__file__).resolve().parent.parent
SOURCE = TESTS.parent / "src"
NOBODY = 65534
NONCE = bytes(range(32))
EVIDENCE_BODY = b'{"nonce":"' + base64.b64encode(NONCE) + b'"}'
EVIDENCE = b"POST /v2/evidence HTTP/1.1\nHost: vm\nContent-Length: %d" % len(EVIDENCE_BODY)
HEALTH = b"GET /health HTTP/1.1\nHost: vm"

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="to give the front a user of its own takes root")

_AGENT = f"""
import os, sys
storage, runtime, source = sys.argv[1:4]
sys.path.insert(0, source)
from datetime import UTC, datetime, timedelta
from pathlib import Path
from cosmian_vm.agent.config import AgentConfig, AppConfig, ServiceType
from cosmian_vm.agent.log import configure
from cosmian_vm.agent.serving import run
from cosmian_vm.agent.privileges import FrontUser
from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.machine import Machine

storage = Path(storage)
keys = VendorKeys.load(Path({str(TESTS / "data" / "devkit_amd")!r}))
machine = Machine.create(AmdVendor.create(keys=keys, now=datetime.now(UTC) - timedelta(days=30)))
config = AgentConfig(
    data_storage=storage, port=0, ssl_certificate=storage / "data" / "cert.pem",
    ssl_private_key=storage / "data" / "key.pem", container=None,
)
configure()

def ready(host, port):
    (storage / "port.new").write_text(str(port))
    os.rename(storage / "port.new", storage / "port")

run(config, machine.platform(), on_ready=ready, front=FrontUser("nobody", {NOBODY}, {NOBODY}, Path(runtime)))
print("ended in good order", file=sys.stderr)
"""


@dataclass
class Apart:
    collector: subprocess.Popen[bytes]
    agent: Any
    config: AgentConfig
    runtime: Path
    log: Path

    def fronts(self) -> list[int]:
        tasks = Path(f"/proc/{self.collector.pid}/task/{self.collector.pid}/children").read_text()
        return [int(pid) for pid in tasks.split()]

    def front(self) -> int:
        (pid,) = self.fronts()
        return pid

    def socket(self) -> Path:
        (path,) = self.runtime.iterdir()
        return path

    def said(self) -> str:
        return self.log.read_text()


def until(true: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.03)


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def until_gone(pid: int) -> None:
    until(lambda: gone(pid))


def healthy(agent: Any) -> bool:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return bool(agent.once(HEALTH).status == 200)
    return False


@pytest.fixture(scope="module")
def start(
    tmp_path_factory: pytest.TempPathFactory, live_at: Callable[[str, int, AgentConfig], Any]
) -> Iterator[Callable[[], Apart]]:
    """Everything of the agent lies where only root can go: its modules, its files."""
    endings: list[Callable[[], None]] = []

    def make() -> Apart:
        folder = tmp_path_factory.mktemp("apart")
        assert folder.parent.stat().st_mode & 0o077 == 0
        runtime = Path(tempfile.mkdtemp(dir="/tmp", prefix="cosmian-"))
        endings.append(lambda: shutil.rmtree(runtime))
        (folder / "src").symlink_to(SOURCE)
        storage = folder / "agent"
        storage.mkdir()
        script = folder / "agent.py"
        script.write_text(_AGENT)
        log = folder / "log"
        arguments = [sys.executable, script, storage, runtime, folder / "src"]
        with log.open("wb") as output:
            process = subprocess.Popen(list(map(str, arguments)), stderr=output)

        def end() -> None:
            process.kill()
            process.wait()

        endings.append(end)
        until(lambda: (storage / "port").exists() or process.poll() is not None, 60)
        assert process.poll() is None, log.read_text()
        config = AgentConfig(
            data_storage=storage,
            ssl_certificate=storage / "data" / "cert.pem",
            ssl_private_key=storage / "data" / "key.pem",
        )
        agent = live_at("127.0.0.1", int((storage / "port").read_text()), config)
        return Apart(process, agent, config, runtime, log)

    yield make
    for end in reversed(endings):
        end()


@pytest.fixture(scope="module")
def apart(start: Callable[[], Apart]) -> Apart:
    return start()


def bound_to(reply: Any, leaf: bytes | None) -> bool:
    assert reply.status == 200, reply.body
    assert leaf is not None
    told = msgspec.json.decode(reply.body, type=wire.EvidenceAnswer)
    assert told.tpm is not None
    assert told.tee_quote is not None
    binding = compute_binding(NONCE, spki_sha256(leaf), told.tpm.ak_public)
    return snp.parse_report(told.tee_quote).report_data == report_data(NONCE, binding)


def descriptors(pid: int) -> dict[int, str]:
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[int(entry.name)] = os.readlink(entry)
    return found


def test_the_front_has_no_rights(apart: Apart) -> None:
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{apart.front()}/status").read_text().splitlines() if ":\t" in line
    )
    assert status["Uid"].split() == [str(NOBODY)] * 4
    assert status["Gid"].split() == [str(NOBODY)] * 4
    assert status["Groups"].split() == []
    assert status["NoNewPrivs"] == "1"
    assert [int(status[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")] == [0] * 4
    assert Path(f"/proc/{apart.front()}/mem").stat().st_uid == 0  # not dumpable
    limits = Path(f"/proc/{apart.front()}/limits").read_text()
    assert "Max core file size        0                    0" in limits


def test_the_front_holds_nothing_of_the_machine(apart: Apart) -> None:
    assert apart.agent.once(EVIDENCE, EVIDENCE_BODY).status == 200
    front = apart.front()
    maps = Path(f"/proc/{front}/maps").read_text()
    assert "libtss2" not in maps
    assert "tpm2_pytss" not in maps
    opened = descriptors(front)
    assert opened[0] == "/dev/null"
    kinds = {name.partition(":")[0] for number, name in opened.items() if number > 2}
    assert kinds <= {"socket", "pipe", "anon_inode", "/dev/null"}, opened
    environment = Path(f"/proc/{front}/environ").read_bytes()
    assert b"PATH=" not in environment
    arguments = Path(f"/proc/{front}/cmdline").read_bytes()
    assert str(apart.config.data_storage).encode() not in arguments


def test_the_front_imports_no_device_and_nothing_of_the_collector() -> None:
    code = "import sys, cosmian_vm.agent.front_process; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    ours = {name.removeprefix("cosmian_vm.") for name in loaded if name.startswith("cosmian_vm.")}
    rooms = {name.partition(".")[0] for name in ours}
    assert rooms <= {"agent", "certificates", "errors", "evidence", "owner_proof", "wire", "_reader"}
    forbidden = {
        "collector",
        "owner",
        "nonces",
        "application",
        "devices",
        "storage",
        "services",
        "standalone",
        "snapshot_job",
        "first_launch",
        "main",
    }
    assert not {f"agent.{name}" for name in forbidden} & ours
    assert not {"tpm2_pytss", "cffi"} & {name.partition(".")[0] for name in loaded}


def test_who_has_become_the_front_can_open_nothing_and_not_go_back(tmp_path: Path) -> None:
    device, data = tmp_path / "tpmrm0", tmp_path / "data"
    device.touch(mode=0o660)
    data.mkdir(mode=0o700)
    (data / "key.pem").write_text("secret")
    tmp_path.chmod(0o755)
    code = f"""
import os, sys
from pathlib import Path
from cosmian_vm.agent.privileges import FrontUser, become
become(FrontUser("nobody", {NOBODY}, {NOBODY}))
for path in sys.argv[1:]:
    try:
        open(path, "rb")
    except PermissionError:
        print("refused")
for back in (lambda: os.setuid(0), lambda: os.setresgid(0, 0, 0), lambda: os.setgroups([0])):
    try:
        back()
    except PermissionError:
        print("refused")
"""
    parent = tmp_path
    changed = []
    while parent != Path("/tmp") and parent != parent.parent:  # it must not fail for the folders above
        mode = parent.stat().st_mode & 0o777
        if not mode & 0o001:
            changed.append((parent, mode))
            parent.chmod(mode | 0o011)
        parent = parent.parent
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, str(device), str(data / "key.pem")],
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        for folder, mode in changed:
            folder.chmod(mode)
    assert done.stdout.split() == ["refused"] * 5, done.stderr


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_evidence_is_bound_to_the_certificate_of_the_connection(apart: Apart, version: ssl.TLSVersion) -> None:
    with apart.agent.connect(apart.agent.context(version)) as connection:
        for _ in range(2):
            reply = apart.agent.ask(connection, EVIDENCE, EVIDENCE_BODY)
            assert bound_to(reply, connection.getpeercert(binary_form=True))


def test_answers_and_errors_are_those_of_one_process(apart: Apart) -> None:
    for head, status, words in (
        (b"GET /version HTTP/1.1\nHost: vm", 200, b'"tee_kind":"sev-snp"'),
        (b"GET /ima/ascii HTTP/1.1\nHost: vm", 200, b"10 "),
        (b"GET /quote/tpm?nonce=AAAA HTTP/1.1\nHost: vm", 200, b"pcr_value_hash_method"),
        (b"GET /quote/tee?nonce=AAAA HTTP/1.1\nHost: vm", 400, b"expected are 32"),
        (b"GET /snapshot HTTP/1.1\nHost: vm", 403, b"carry no proof"),
        (b"POST /app/restart HTTP/1.1\nHost: vm\nCosmian-Vm-Api: 2", 403, b"nobody owns this machine"),
        (b"POST /app/restart HTTP/1.1\nHost: vm\nCosmian-Vm-Proof: AAAA", 401, b"161"),
        (b"POST /v2/nonce HTTP/1.1\nHost: vm\nContent-Length: 0", 200, b"nonce"),
        (b"GET /v2/owner HTTP/1.1\nHost: vm", 200, b'"claimable":true'),
    ):
        reply = apart.agent.once(head)
        assert (reply.status, words in reply.body) == (status, True), (head, reply)


def test_orders_of_an_owner(apart: Apart, tmp_path: Path) -> None:
    """Through both processes; the owner stays the owner when the front is another one."""
    url = f"https://{apart.agent.host}:{apart.agent.port}"
    key = owner_key.create(tmp_path / "config")
    with AgentClient(url, allow_insecure_tls=True) as client:
        client.owner = key
        assert client.claim().owners == [key.fingerprint]
        with pytest.raises(RefusedError, match="no application"):
            client.app_init(os.urandom(2**20))
        client.evidence(NONCE)
    with AgentClient(url, allow_insecure_tls=True) as stranger:
        for stranger.owner in (None, owner_key.create(tmp_path / "stranger")):
            with pytest.raises(RefusedError, match=key.fingerprint):
                stranger.app_init(os.urandom(2**20))
    front = apart.front()
    os.kill(front, signal.SIGKILL)
    until_gone(front)
    until(lambda: healthy(apart.agent))
    with AgentClient(url, allow_insecure_tls=True) as client:
        client.owner = key
        with pytest.raises(RefusedError, match="no application"):
            client.app_restart()
    assert f"order: claim by {key.fingerprint} from 127.0.0.1: done" in apart.said()
    assert (apart.config.data / "owners.json").stat().st_mode & 0o777 == 0o600


def test_many_at_once(apart: Apart) -> None:
    statuses: list[int] = []

    def ask() -> None:
        with apart.agent.connect() as connection:
            statuses.extend(apart.agent.ask(connection, EVIDENCE, EVIDENCE_BODY).status for _ in range(5))

    before = len(descriptors(apart.collector.pid)), len(descriptors(apart.front()))
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 40
    # No more than the connections that are kept for the next calls.
    until(lambda: len(descriptors(apart.collector.pid)) <= before[0] + 8)
    until(lambda: len(descriptors(apart.front())) <= before[1] + 8)


def test_nobody_else_gets_in(apart: Apart) -> None:
    path = apart.socket()
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (NOBODY, 0o600)
    assert (apart.runtime.stat().st_uid, apart.runtime.stat().st_mode & 0o777) == (0, 0o710)
    code = f"""
import os, socket, sys
os.setgroups([]); os.setgid(int(sys.argv[1])); os.setuid(int(sys.argv[1]))
with socket.socket(socket.AF_UNIX) as connection:
    connection.settimeout(10)
    try:
        connection.connect({str(path)!r})
        connection.sendall(bytes.fromhex("0000000e81a474797065a756657273696f6e"))
        print("said", connection.recv(100))
    except PermissionError:
        print("refused")
    except ConnectionError:
        print("closed")
"""

    def attempt(uid: int) -> str:
        done = subprocess.run([sys.executable, "-c", code, str(uid)], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    assert attempt(NOBODY - 1) == "refused"  # by the file system
    assert attempt(NOBODY) in ("said b''", "closed")  # the right user, but not the front
    assert attempt(0) in ("said b''", "closed")
    assert apart.said().count("it is not the front") >= 2


def renew(config: AgentConfig) -> bytes:
    made = self_signed("renewed.example", now=datetime.now(UTC))
    for path, content in ((config.ssl_private_key, made.key_pem), (config.ssl_certificate, made.certificate_pem)):
        draft = path.with_suffix(".new")
        draft.write_bytes(content)
        draft.replace(path)
    return leaf_der(made.certificate_pem)


def leaf_now(agent: Any) -> bytes | None:
    with agent.connect() as connection:
        seen: bytes | None = connection.getpeercert(binary_form=True)
        return seen


def test_a_certificate_that_changes_and_a_front_that_dies(start: Callable[[], Apart]) -> None:
    apart = start()
    agent = apart.agent
    with agent.connect() as old:
        before = old.getpeercert(binary_form=True)
        assert bound_to(agent.ask(old, EVIDENCE, EVIDENCE_BODY), before)
        after = renew(apart.config)
        until(lambda: leaf_now(agent) == after)
        old.settimeout(10)
        with contextlib.suppress(OSError):
            assert old.recv(1) == b""  # closed, as it shows the old one
    with agent.connect() as fresh:
        assert bound_to(agent.ask(fresh, EVIDENCE, EVIDENCE_BODY), after)
    # What cannot be used is not handed over.
    apart.config.ssl_certificate.write_bytes(b"rubbish")
    until(lambda: "the present one stays in use" in apart.said())
    assert leaf_now(agent) == after
    # A front that is killed is started again, with the certificate of now, on the same port.
    first = apart.front()
    count = len(descriptors(apart.collector.pid))
    for _ in range(2):
        killed = apart.front()
        os.kill(killed, signal.SIGKILL)
        until_gone(killed)
        until(lambda: healthy(agent))
        assert apart.front() != killed
        assert leaf_now(agent) == after
        with agent.connect() as fresh:
            assert bound_to(agent.ask(fresh, EVIDENCE, EVIDENCE_BODY), after)
    assert gone(first)
    assert apart.said().count("the front ended by signal 9; it is started again in 0.") == 2
    assert apart.said().count("the front did not become ready") == 0
    until(lambda: len(descriptors(apart.collector.pid)) <= count)


def test_a_collector_that_is_killed_takes_the_front_with_it(start: Callable[[], Apart]) -> None:
    apart = start()
    front = apart.front()
    assert healthy(apart.agent)
    apart.collector.kill()
    apart.collector.wait()
    until(lambda: gone(front))

    def refused() -> bool:
        with socket.socket() as attempt:
            return attempt.connect_ex(("127.0.0.1", apart.agent.port)) != 0

    until(refused)  # its last thread is gone too


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_both_in_good_order(start: Callable[[], Apart], number: int) -> None:
    apart = start()
    front = apart.front()
    assert healthy(apart.agent)
    apart.collector.send_signal(number)
    assert apart.collector.wait(timeout=60) == 0
    assert gone(front)
    assert list(apart.runtime.iterdir()) == []
    assert apart.said().rstrip().endswith("ended in good order")
    assert "Traceback" not in apart.said()
    assert " ERROR " not in apart.said()


@pytest.mark.slow
def test_a_stopped_front_does_not_keep_the_collector_from_ending(start: Callable[[], Apart]) -> None:
    apart = start()
    front = apart.front()
    os.kill(front, signal.SIGSTOP)
    apart.collector.terminate()
    assert apart.collector.wait(timeout=60) == 0
    assert gone(front)
