"""A simulated machine, its agent in process, and ways to talk to it."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cosmian_vm import wire
from cosmian_vm.agent.asgi import ASGIApp, Message, Scope
from cosmian_vm.agent.collector import Collector
from cosmian_vm.agent.config import AgentConfig
from cosmian_vm.agent.front import create_app
from cosmian_vm.agent.service_log import ServiceState
from cosmian_vm.agent.services import Service
from cosmian_vm.attester.platform import FileScope, Platform
from cosmian_vm.certificates import spki_sha256
from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.owner_proof import PROOF_HEADER, Proof, encode_proof, order_message

KEYS = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


@dataclass
class Asgi:
    """Calls an ASGI application as uvicorn would, without a socket. ``leaf`` None: the connection's is not known."""

    app: ASGIApp
    leaf: bytes | None

    async def __call__(
        self,
        method: str,
        target: str,
        body: bytes | list[bytes] = b"",
        headers: dict[str, str] | None = None,
        *,
        address: str = "192.0.2.7",
    ) -> Reply:
        path, _, query = target.partition("?")
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "https",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode("latin-1"),
            "root_path": "",
            "headers": [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()],
            "client": (address, 4711),
            "server": None,
            "state": {"leaf": self.leaf},
        }
        parts = [body] if isinstance(body, bytes) else list(body)
        sent: list[Message] = []

        async def receive() -> Message:
            if not parts:
                await asyncio.sleep(3600)
            part = parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(parts)}

        async def send(message: Message) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        got = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        whole = b"".join(message.get("body", b"") for message in sent[1:])
        assert int(got["content-length"]) == len(whole)
        return Reply(sent[0]["status"], got, whole)

    async def prove(self, method: str, target: str, body: bytes, private: Ed25519PrivateKey) -> dict[str, str]:
        """The header of an order: a nonce is fetched, and all is signed."""
        told = msgspec.json.decode((await self("POST", wire.NONCE)).body, type=wire.NonceAnswer)
        assert self.leaf is not None
        hashed = sha256(body).digest()
        message = order_message(method, target, hashed, spki_sha256(self.leaf), told.nonce)
        proof = Proof(private.public_key().public_bytes_raw(), told.nonce, hashed, private.sign(message))
        return {PROOF_HEADER: encode_proof(proof)}

    async def order(
        self, method: str, target: str, body: bytes = b"", *, by: Ed25519PrivateKey, address: str = "192.0.2.7"
    ) -> Reply:
        """An order with the proof of ``by``."""
        return await self(method, target, body, await self.prove(method, target, body, by), address=address)


@dataclass
class FakeService:
    calls: list[str] = field(default_factory=list)
    problem: Exception | None = None
    lines: list[str] = field(default_factory=list)

    def restart(self) -> None:
        self.calls.append("restart")
        if self.problem is not None:
            raise self.problem

    def stop(self) -> None:
        self.calls.append("stop")

    def state(self) -> ServiceState:
        return ServiceState(bool(self.calls) and self.calls[-1] == "restart", "as told")

    def log(self, lines: int) -> list[str]:
        return self.lines[-lines:]


@pytest.fixture(scope="session")
def keys() -> VendorKeys:
    return VendorKeys.load(KEYS)


@pytest.fixture(scope="session")
def vendor(keys: VendorKeys) -> AmdVendor:
    return AmdVendor.create(keys=keys, now=datetime.now(UTC) - timedelta(days=30))


@pytest.fixture
def machine(vendor: AmdVendor) -> Machine:
    return Machine.create(vendor)


@pytest.fixture
def root(machine: Machine, tmp_path: Path) -> Path:
    """The machine's files on disk."""
    root = tmp_path / "root"
    for path, content in machine.files.items():
        file = root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return root


@pytest.fixture
def platform(machine: Machine, root: Path) -> Platform:
    return replace(machine.platform(), scope=FileScope(root=root, excluded=("/var", "/tmp")))


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    storage = tmp_path / "agent"
    return AgentConfig(
        data_storage=storage,
        port=0,
        ssl_certificate=storage / "data" / "cert.pem",
        ssl_private_key=storage / "data" / "key.pem",
        container=None,
    )


@pytest.fixture
def talk(config: AgentConfig, platform: Platform, machine: Machine) -> Callable[..., Any]:
    """``talk(scenario, ...)`` runs ``await scenario(call)`` with ``call`` an Asgi over a fresh agent."""

    def run(
        scenario: Callable[[Asgi], Awaitable[_Result]],
        *,
        config: AgentConfig = config,
        platform: Platform = platform,
        service: Service | None = None,
        leaf: bytes | None = machine.leaf,
    ) -> _Result:
        async def whole() -> _Result:
            collector = Collector(config, platform, service=service)
            try:
                return await scenario(Asgi(create_app(collector), leaf))
            finally:
                await collector.close()

        return asyncio.run(whole())

    return run


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@dataclass
class LiveAgent:
    """An agent on a real socket, in a thread."""

    host: str
    port: int
    config: AgentConfig

    def plain(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=60)

    def connect(self, context: ssl.SSLContext | None = None, session: ssl.SSLSession | None = None) -> ssl.SSLSocket:
        return (context or self.context()).wrap_socket(self.plain(), session=session)

    def ask(self, connection: ssl.SSLSocket, head: bytes, body: bytes = b"") -> Reply:
        connection.sendall(head.replace(b"\n", b"\r\n") + b"\r\n\r\n" + body)
        return read_reply(connection)

    def once(self, head: bytes, body: bytes = b"") -> Reply:
        with self.connect() as connection:
            return self.ask(connection, head, body)

    @staticmethod
    def context(maximum: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = maximum
        return context


def read_reply(connection: ssl.SSLSocket) -> Reply:
    raw = b""
    while b"\r\n\r\n" not in raw:
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError(f"closed after {raw!r}")
        raw += piece
    head, _, body = raw.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    while len(body) < int(headers["content-length"]):
        body += connection.recv(65536)
    return Reply(int(status.split()[1]), headers, body)


@pytest.fixture
def live(config: AgentConfig, platform: Platform) -> Iterator[Callable[..., LiveAgent]]:
    """``live()`` starts an agent on a free port; it is ended with the test."""
    import uvloop

    from cosmian_vm.agent import first_launch
    from cosmian_vm.agent.listener import listen
    from cosmian_vm.agent.server import serve
    from cosmian_vm.agent.storage import Storage
    from cosmian_vm.agent.tls import TlsIdentity

    endings: list[Callable[[], None]] = []

    def start(config: AgentConfig = config, platform: Platform = platform) -> LiveAgent:
        files = first_launch.prepare(
            config, Storage(config), preinit=True, hostname="vm.example", now=datetime.now(UTC)
        )
        identity = TlsIdentity(files.certificate, files.key)
        listener = listen(config.host, 0)
        ready, stopping = threading.Event(), threading.Event()
        loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

        async def whole() -> None:
            stop = asyncio.Event()
            loops.append((asyncio.get_running_loop(), stop))
            collector = Collector(config, platform)
            try:
                await serve(
                    create_app(collector), identity, listener, on_ready=lambda _host, _port: ready.set(), stop=stop
                )
            finally:
                await collector.close()
                stopping.set()

        thread = threading.Thread(target=lambda: uvloop.run(whole()), daemon=True)
        thread.start()
        host, port = listener.getsockname()[:2]
        assert ready.wait(60)

        def end() -> None:
            loop, stop = loops[0]
            loop.call_soon_threadsafe(stop.set)
            assert stopping.wait(60)
            thread.join(60)

        endings.append(end)
        return LiveAgent(host, port, config)

    yield start
    for end in endings:
        end()


@pytest.fixture(scope="session")
def live_at() -> Callable[[str, int, AgentConfig], LiveAgent]:
    """Ways to talk to an agent that was started otherwise."""
    return LiveAgent
