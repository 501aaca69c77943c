"""The seam as a socket: every order and every error comes through as it is in one process; rubbish does not."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import struct
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.agent import messages, socket_client, socket_server
from cosmian_vm.agent.caller import Caller
from cosmian_vm.agent.messages import Failed, failed, raised
from cosmian_vm.agent.orders import SnapshotState
from cosmian_vm.agent.socket_client import RemoteOrders
from cosmian_vm.agent.socket_server import OrdersServer
from cosmian_vm.errors import AttesterError, EvidenceFormatError, NotAvailableError, OrderError
from cosmian_vm.owner_proof import MAX_PROOF
from cosmian_vm.wire import (
    MAX_APP_BODY,
    AppAnswer,
    AppLogsAnswer,
    EvidenceAnswer,
    OwnersAnswer,
    SnapshotProgress,
    TpmAnswer,
    TpmQuoteV1,
    VersionAnswer,
)

NONCE, LEAF = bytes(range(32)), b"leaf"
CALLER = Caller(api=2, address="192.0.2.7", proof="p" * MAX_PROOF, target="/v2/app", leaf=LEAF)
APP = AppAnswer(
    service_type="systemd", service_name="app", running=True, state="active", configured=True, encrypted=False
)
OWNERS = OwnersAnswer(owners=["ed25519:a"], claimable=False)
VERSION = VersionAnswer(agent_version="2", api_versions=[1, 2], tee_kind="snp", tpm=True, ima=True)
EVIDENCE = EvidenceAnswer(
    api=2,
    agent_version="2",
    tee_kind="snp",
    tee_quote=b"\x00quote",
    endorsements=[b"one"],
    tpm=TpmAnswer(quote=b"q", signature=b"s", ak_public=b"a", pcrs=[bytes(32)] * 16),
    boot_event_log=None,
    ima_log=bytes(300_000),
    ima_from=7,
    owners=["anyone"],
    cloud=None,
)
TPM_QUOTE = TpmQuoteV1(pcr_value_hash_method="Sha256", quote="q", signature="s", public_key="p")


class Recorder:
    """Obeys everything at once, and keeps what it was told. ``problem`` is raised instead."""

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.problem: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.waiting = 0
        self.state = SnapshotState(progress=SnapshotProgress(files_done=1, bytes_done=2))

    async def _do(self, *told: Any) -> None:
        self.told.append(told)
        if self.gate is not None:
            self.waiting += 1
            await self.gate.wait()
        if self.problem is not None:
            raise self.problem

    async def version(self) -> VersionAnswer:
        await self._do("version")
        return VERSION

    async def is_owner(self, caller: Caller) -> bool:
        await self._do("is_owner", caller)
        return True

    async def evidence(self, nonce: bytes, leaf: bytes, ima_from: int, *, first: bool = False) -> EvidenceAnswer:
        await self._do("evidence", nonce, leaf, ima_from, first)
        return EVIDENCE

    async def activate(self, credential_blob: bytes, secret: bytes) -> bytes:
        await self._do("activate", credential_blob, secret)
        return b"credential"

    async def tee_quote_v1(self, nonce: bytes, leaf: bytes) -> bytes:
        await self._do("tee_quote_v1", nonce, leaf)
        return b"quote"

    async def tpm_quote_v1(self, nonce: bytes) -> TpmQuoteV1:
        await self._do("tpm_quote_v1", nonce)
        return TPM_QUOTE

    async def ima_ascii(self) -> bytes:
        await self._do("ima_ascii")
        return b"10 \xff"

    async def ima_binary(self) -> bytes:
        await self._do("ima_binary")
        return bytes(5 * 2**20)

    async def snapshot(self, caller: Caller) -> SnapshotState:
        await self._do("snapshot", caller)
        return self.state

    async def delete_snapshot(self, caller: Caller) -> None:
        await self._do("delete_snapshot", caller)

    async def admit_init(self, caller: Caller) -> None:
        await self._do("admit_init", caller)

    async def init_app(self, caller: Caller, body: bytes) -> None:
        await self._do("init_app", caller, body)

    async def restart_app(self, caller: Caller) -> None:
        await self._do("restart_app", caller)

    async def app_status(self, caller: Caller) -> AppAnswer:
        await self._do("app_status", caller)
        return APP

    async def app_logs(self, caller: Caller, lines: int) -> AppLogsAnswer:
        await self._do("app_logs", caller, lines)
        return AppLogsAnswer(lines=["last", "words"])

    async def nonce(self) -> bytes:
        await self._do("nonce")
        return NONCE

    async def owners(self) -> OwnersAnswer:
        await self._do("owners")
        return OWNERS

    async def claim(self, caller: Caller) -> OwnersAnswer:
        await self._do("claim", caller)
        return OWNERS

    async def add_owner(self, caller: Caller, body: bytes) -> OwnersAnswer:
        await self._do("add_owner", caller, body)
        return OWNERS

    async def remove_owner(self, caller: Caller, body: bytes) -> OwnersAnswer:
        await self._do("remove_owner", caller, body)
        return OWNERS


Scenario = Callable[[RemoteOrders, Recorder, OrdersServer, Path], Awaitable[None]]


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(dir="/tmp", prefix="cosmian-"))  # the name of a socket has 107 bytes at most
    yield path
    shutil.rmtree(path)


@pytest.fixture
def through(folder: Path) -> Callable[..., None]:
    def run(scenario: Scenario, is_front: Callable[[int, int], bool] | None = None) -> None:
        async def whole() -> None:
            path = folder / "s"
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(os.fspath(path))
            recorder = Recorder()
            server = OrdersServer(recorder, is_front or (lambda uid, pid: (uid, pid) == (os.getuid(), os.getpid())))
            await server.start(listener)
            orders = RemoteOrders(path)
            try:
                async with asyncio.timeout(30):
                    await scenario(orders, recorder, server, path)
            finally:
                orders.close()
                await server.close()

        import uvloop

        uvloop.run(whole())

    return run


def test_every_order_and_its_result(through: Callable[..., None]) -> None:
    body = os.urandom(MAX_APP_BODY)

    async def scenario(orders: RemoteOrders, recorder: Recorder, *_: Any) -> None:
        assert await orders.version() == VERSION
        assert await orders.is_owner(CALLER) is True
        assert await orders.evidence(NONCE, LEAF, 7) == EVIDENCE
        assert await orders.evidence(NONCE, LEAF, 7, first=True) == EVIDENCE
        assert await orders.activate(b"blob", b"") == b"credential"
        assert await orders.tee_quote_v1(NONCE, LEAF) == b"quote"
        assert await orders.tpm_quote_v1(b"") == TPM_QUOTE
        assert await orders.ima_ascii() == b"10 \xff"
        assert await orders.ima_binary() == bytes(5 * 2**20)
        for state in (recorder.state, SnapshotState(finished=b"{}"), SnapshotState(failed="why"), SnapshotState()):
            recorder.state = state
            assert await orders.snapshot(CALLER) == state
        await orders.delete_snapshot(CALLER)
        await orders.admit_init(CALLER)
        await orders.init_app(CALLER, body)
        await orders.restart_app(CALLER)
        assert await orders.app_status(CALLER) == APP
        assert (await orders.app_logs(CALLER, 2)).lines == ["last", "words"]
        assert await orders.nonce() == NONCE
        assert await orders.owners() == OWNERS
        assert await orders.claim(CALLER) == OWNERS
        assert await orders.add_owner(CALLER, b"1") == OWNERS
        assert await orders.remove_owner(CALLER, b"2") == OWNERS
        assert recorder.told == [
            ("version",),
            ("is_owner", CALLER),
            ("evidence", NONCE, LEAF, 7, False),
            ("evidence", NONCE, LEAF, 7, True),
            ("activate", b"blob", b""),
            ("tee_quote_v1", NONCE, LEAF),
            ("tpm_quote_v1", b""),
            ("ima_ascii",),
            ("ima_binary",),
            *[("snapshot", CALLER)] * 4,
            ("delete_snapshot", CALLER),
            ("admit_init", CALLER),
            ("init_app", CALLER, body),
            ("restart_app", CALLER),
            ("app_status", CALLER),
            ("app_logs", CALLER, 2),
            ("nonce",),
            ("owners",),
            ("claim", CALLER),
            ("add_owner", CALLER, b"1"),
            ("remove_owner", CALLER, b"2"),
        ]

    through(scenario)


@pytest.mark.parametrize(
    "problem",
    [OrderError("locked: \u00e9\udcff why", status=status) for status in (400, 401, 403, 404, 409, 413, 503)]
    + [NotAvailableError("no such device"), AttesterError("the TPM is busy")],
)
def test_errors_keep_kind_text_and_status(through: Callable[..., None], problem: Exception) -> None:
    async def scenario(orders: RemoteOrders, recorder: Recorder, *_: Any) -> None:
        recorder.problem = problem
        for _attempt in range(3):  # an error is an answer: its connection goes on
            with pytest.raises(type(problem)) as caught:
                await orders.version()
            assert type(caught.value) is type(problem)
            assert str(caught.value) == str(problem).replace("\udcff", "?")
            assert getattr(caught.value, "status", None) == getattr(problem, "status", None)
            assert "test_orders_socket.py" in str(caught.value.__cause__)  # where it happened, for the log

    through(scenario)


@pytest.mark.parametrize("problem", [ValueError("a secret of the collector"), EvidenceFormatError("x", "a secret")])
def test_other_errors_say_nothing_to_clients(
    through: Callable[..., None], problem: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(orders: RemoteOrders, recorder: Recorder, *_: Any) -> None:
        recorder.problem = problem
        with pytest.raises(RuntimeError, match=r"^internal error$") as caught:
            await orders.ima_ascii()
        assert "a secret" in str(caught.value.__cause__)

    through(scenario)


def test_calls_run_side_by_side_and_are_counted(through: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(orders: RemoteOrders, recorder: Recorder, *_: Any) -> None:
        before = len(os.listdir("/proc/self/fd"))
        for _round in range(3):
            recorder.gate, recorder.waiting = asyncio.Event(), 0
            calls = [asyncio.create_task(orders.tpm_quote_v1(b"")) for _ in range(socket_client._MAX_CALLS)]
            while recorder.waiting < len(calls):
                await asyncio.sleep(0.01)
            for refused in (orders.tpm_quote_v1(b""), orders.evidence(NONCE, LEAF, 0), orders.ima_binary()):
                with pytest.raises(OrderError, match="too many calls") as caught:
                    await refused
                assert caught.value.status == 503
            # orders, and an owner's evidence, have places of their own
            more = [asyncio.create_task(orders.restart_app(CALLER)) for _ in range(socket_client._MAX_OTHERS - 1)]
            first = asyncio.create_task(orders.evidence(NONCE, LEAF, 0, first=True))
            while recorder.waiting < socket_client._MAX_CALLS + socket_client._MAX_OTHERS:
                await asyncio.sleep(0.01)
            with pytest.raises(OrderError, match="too many calls"):
                await orders.version()
            recorder.gate.set()
            assert await asyncio.gather(*calls) == [TPM_QUOTE] * len(calls)
            await asyncio.gather(*more)
            assert await first == EVIDENCE
        recorder.gate = None
        assert await orders.version() == VERSION
        while len(os.listdir("/proc/self/fd")) > before + 2 * socket_client._MAX_IDLE:
            await asyncio.sleep(0.05)  # what is kept for later, both ends of it; nothing else

    through(scenario)


def test_a_call_that_is_given_up_costs_its_connection_only(through: Callable[..., None]) -> None:
    async def scenario(orders: RemoteOrders, recorder: Recorder, *_: Any) -> None:
        recorder.gate = asyncio.Event()
        call = asyncio.create_task(orders.tpm_quote_v1(b"1"))
        while not recorder.waiting:
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        recorder.gate.set()
        assert await orders.version() == VERSION  # not the quote

    through(scenario)


@pytest.mark.parametrize(("other_uid", "other_pid"), [(1, 0), (0, 1)])
def test_only_the_front_is_obeyed(
    through: Callable[..., None], caplog: pytest.LogCaptureFixture, other_uid: int, other_pid: int
) -> None:
    async def scenario(orders: RemoteOrders, recorder: Recorder, *_: Any) -> None:
        with pytest.raises(OrderError, match="does not answer") as caught:
            await orders.version()
        assert caught.value.status == 503
        assert recorder.told == []

    through(scenario, lambda uid, pid: (uid, pid) == (os.getuid() + other_uid, os.getpid() + other_pid))
    assert f"it is not the front: process {os.getpid()} of user {os.getuid()}" in caplog.text


def framed(message: object) -> bytes:
    return messages.frame(message, 2**31)


def order(name: str, **fields: Any) -> bytes:
    return framed({"type": name, **fields})


GOOD_CALLER = {"api": 2, "address": "192.0.2.7"}


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00\x00\x00\x00",
        b"\xff\xff\xff\xff",
        struct.pack(">I", messages.MAX_ORDER + 1),
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">I", 4) + b"\xc1\xc1\xc1\xc1",
        framed(None),
        framed([]),
        framed({"nonce": NONCE}),
        order("Reboot"),
        order("Version", more=1),
        order("Evidence", nonce=NONCE[:31], leaf=LEAF, ima_from=0),
        order("Evidence", nonce=NONCE, leaf=LEAF, ima_from=-1),
        order("Evidence", nonce=NONCE, leaf=LEAF, ima_from=2**63),
        order("Evidence", nonce=NONCE, leaf=bytes(64 * 1024 + 1), ima_from=0),
        order("Evidence", nonce=NONCE, leaf=b"", ima_from=0),
        order("Evidence", nonce=NONCE, leaf=LEAF, ima_from="0"),
        order("TpmQuote", nonce=bytes(65)),
        order("Snapshot"),
        order("Snapshot", caller={"api": "2", "address": "x"}),
        order("Snapshot", caller={"api": 2, "address": "two\nlines"}),
        order("RestartApp", caller={"api": 2, "address": "a" * 101}),
        order("RestartApp", caller={"api": 2, "address": "a" * 200_000}),
        order("InitApp", caller=GOOD_CALLER, body=3),
        order("InitApp", caller=GOOD_CALLER, body=bytes(MAX_APP_BODY + 1)),
        order("InitApp", caller=GOOD_CALLER, body=b"", path="/etc/passwd"),
    ],
)
def test_rubbish_costs_the_connection_and_nothing_is_done(through: Callable[..., None], raw: bytes) -> None:
    async def scenario(orders: RemoteOrders, recorder: Recorder, _server: OrdersServer, path: Path) -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(raw)
        with contextlib.suppress(OSError):
            assert await reader.read() == b""
        assert recorder.told == []
        writer.transport.abort()
        assert await orders.version() == VERSION

    through(scenario)


@given(raw=st.binary(max_size=200))
def test_no_bytes_are_an_order_by_chance(raw: bytes) -> None:
    try:
        known = socket_server._orders.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return
    assert type(known).__name__ in {kind.__name__ for kind in messages.Order.__args__}


def test_who_is_slow_loses_its_connection(through: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(orders: RemoteOrders, recorder: Recorder, server: OrdersServer, path: Path) -> None:
        with monkeypatch.context() as short:
            short.setattr(socket_server, "_READ_SECONDS", 0.3)
            short.setattr(socket_server, "_WRITE_SECONDS", 0.3)
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(struct.pack(">I", 100) + b"half")
            assert await reader.read() == b""
            writer.transport.abort()
            # and who does not take its answer
            with socket.socket(socket.AF_UNIX) as deaf:
                deaf.setblocking(False)
                deaf.connect(os.fspath(path))
                deaf.send(framed(messages.ImaBinary()))
                while server._conversations:
                    await asyncio.sleep(0.05)
        assert server._budget._used == 0
        assert await orders.version() == VERSION

    through(scenario)


def test_connections_and_answers_have_a_limit(through: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_server, "MAX_CONNECTIONS", 3)
    monkeypatch.setattr(socket_server, "_MAX_ANSWERING", 6 * 2**20)

    async def scenario(orders: RemoteOrders, recorder: Recorder, server: OrdersServer, path: Path) -> None:
        deaf = []
        for _ in range(2):
            connection = socket.socket(socket.AF_UNIX)
            connection.setblocking(False)
            connection.connect(os.fspath(path))
            deaf.append(connection)
        deaf[0].send(framed(messages.ImaBinary()))
        while not server._budget._used:
            await asyncio.sleep(0.01)
        with pytest.raises(OrderError, match="too much is being sent") as caught:
            await orders.ima_binary()
        assert caught.value.status == 503
        with pytest.raises(OrderError, match="does not answer"):
            await asyncio.gather(orders.version(), orders.version())  # one of them is the fourth
        for connection in deaf:
            connection.close()
        while len(server._conversations) > 1:
            await asyncio.sleep(0.01)
        assert await orders.ima_binary() == bytes(5 * 2**20)

    through(scenario)


def test_no_collector_is_said_so(folder: Path) -> None:
    async def ask() -> None:
        await RemoteOrders(folder / "nobody").version()

    with pytest.raises(OrderError, match="the collector does not answer") as caught:
        asyncio.run(ask())
    assert caught.value.status == 503


@given(text=st.text(max_size=50), kind=st.sampled_from(["order", "absent", "device", "internal"]))
def test_failures_are_stable(text: str, kind: Any) -> None:
    once = failed(raised(Failed(kind=kind, text=text, detail="d", status=503)))
    assert (once.kind, once.status) == (kind, 503 if kind == "order" else 500)
    assert kind == "internal" or once.text == text
