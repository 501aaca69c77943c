"""Whoever wants to give orders to a machine of somebody else's, and what they come upon."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cosmian_vm import wire
from cosmian_vm.agent import front, requests
from cosmian_vm.agent.asgi import ASGIApp, Message, Scope
from cosmian_vm.agent.caller import Caller
from cosmian_vm.agent.collector import Collector
from cosmian_vm.agent.config import AgentConfig, AppConfig, ServiceType
from cosmian_vm.agent.front import create_app
from cosmian_vm.agent.nonces import LIFE_SECONDS, Nonces
from cosmian_vm.agent.rates import Rates
from cosmian_vm.agent.service_log import ServiceState
from cosmian_vm.certificates import leaf_der, self_signed, spki_sha256
from cosmian_vm.client import AgentClient
from cosmian_vm.client.owner_key import create
from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.errors import OrderError, RefusedError, TransportError
from cosmian_vm.owner_proof import PROOF_HEADER, Proof, encode_proof, fingerprint, order_message, parse_proof

_Result = TypeVar("_Result")
CONFIGURATION = b'{"content":"c2VjcmV0"}'
ORDERS = [
    ("POST", "/app/restart", b""),
    ("POST", "/app/init", CONFIGURATION),
    ("GET", "/v2/snapshot", b""),
    ("GET", "/snapshot", b""),
    ("DELETE", "/v2/snapshot", b""),
    ("GET", "/v2/app", b""),
    ("GET", "/v2/app/logs?lines=5", b""),
    ("POST", "/v2/owner/add", b'{"owner":"x"}'),
    ("POST", "/v2/owner/remove", b'{"owner":"x"}'),
]


class Service:
    """An application that only counts what is done to it."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def restart(self) -> None:
        self.calls.append("restart")

    def stop(self) -> None:
        self.calls.append("stop")

    def state(self) -> ServiceState:
        return ServiceState(True, "running")

    def log(self, lines: int) -> list[str]:
        return ["a word"] * lines


@dataclass
class Clock:
    """The agent's monotonic clock."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Agent:
    """An agent in this process. ``leaf``: certificate of the connection that requests come over."""

    app: ASGIApp
    collector: Collector
    leaf: bytes
    clock: Clock
    service: Service
    config: AgentConfig

    async def __call__(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        proof: str | None = None,
        *,
        leaf: bytes | None = None,
        address: str = "192.0.2.7",
        receive: Callable[[], Awaitable[Message]] | None = None,
    ) -> tuple[int, bytes]:
        path, _, query = target.partition("?")
        sent: list[Message] = []
        parts = [body]

        async def whole() -> Message:
            if not parts:
                await asyncio.sleep(3600)
            return {"type": "http.request", "body": parts.pop(), "more_body": False}

        async def send(message: Message) -> None:
            sent.append(message)

        scope: Scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": [] if proof is None else [(PROOF_HEADER.encode(), proof.encode())],
            "client": (address, 4711),
            "state": {"leaf": self.leaf if leaf is None else leaf},
        }
        await self.app(scope, receive or whole, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])

    async def nonce(self) -> bytes:
        status, body = await self("POST", wire.NONCE)
        assert status == 200
        return msgspec.json.decode(body, type=wire.NonceAnswer).nonce

    async def proof(self, method: str, target: str, body: bytes, private: Ed25519PrivateKey) -> str:
        return prove(method, target, body, private, self.leaf, await self.nonce())

    async def claim(self, private: Ed25519PrivateKey) -> tuple[int, bytes]:
        return await self("POST", wire.OWNER_CLAIM, b"", await self.proof("POST", wire.OWNER_CLAIM, b"", private))

    @property
    def untouched(self) -> bool:
        """Nothing has been done."""
        assert self.config.app is not None
        return self.service.calls == [] and not self.config.app.storage.exists()


def prove(method: str, target: str, body: bytes, private: Ed25519PrivateKey, leaf: bytes, nonce: bytes) -> str:
    hashed = sha256(body).digest()
    message = order_message(method, target, hashed, spki_sha256(leaf), nonce)
    return encode_proof(Proof(private.public_key().public_bytes_raw(), nonce, hashed, private.sign(message)))


def name_of(private: Ed25519PrivateKey) -> str:
    return fingerprint(private.public_key().public_bytes_raw())


@pytest.fixture
def simulated(keys: VendorKeys) -> Machine:
    return Machine.create(AmdVendor.create(keys=keys, now=datetime.now(UTC) - timedelta(days=30)))


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    storage = tmp_path / "agent"
    return AgentConfig(
        data_storage=storage,
        ssl_certificate=storage / "cert.pem",
        ssl_private_key=storage / "key.pem",
        app=AppConfig(service_type=ServiceType.STANDALONE, service_name="app", storage=storage / "data" / "app"),
    )


@pytest.fixture
def talk(simulated: Machine, config: AgentConfig) -> Callable[..., Any]:
    def run(scene: Callable[[Agent], Awaitable[_Result]], *, config: AgentConfig = config) -> _Result:
        async def whole() -> _Result:
            clock, service = Clock(), Service()
            collector = Collector(config, simulated.platform(), service=service, nonces=Nonces(clock=clock))
            try:
                return await scene(Agent(create_app(collector), collector, simulated.leaf, clock, service, config))
            finally:
                await collector.close()

        return asyncio.run(whole())

    return run


MINE, THEIRS = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()


def test_the_owner_is_obeyed(talk: Any) -> None:
    """What the attacks below are measured against."""

    async def scene(agent: Agent) -> None:
        assert (await agent.claim(MINE))[0] == 200
        for method, target, body in ORDERS[:-2]:
            status, told = await agent(method, target, body, await agent.proof(method, target, body, MINE))
            assert status in (200, 202, 409), (target, told)  # 409: the snapshot is still being computed
        assert agent.service.calls == ["restart", "restart"]

    talk(scene)


@pytest.mark.parametrize(("method", "target", "body"), ORDERS)
def test_an_order_without_proof(talk: Any, method: str, target: str, body: bytes) -> None:
    async def scene(agent: Agent) -> None:
        assert (await agent(method, target, body))[0] == 403  # nobody's machine
        assert (await agent.claim(MINE))[0] == 200
        status, told = await agent(method, target, body)
        assert (status, name_of(MINE).encode() in told) == (401, True)
        assert agent.untouched

    talk(scene)


@pytest.mark.parametrize(("method", "target", "body"), ORDERS)
def test_an_order_with_somebody_elses_proof(talk: Any, method: str, target: str, body: bytes) -> None:
    async def scene(agent: Agent) -> None:
        assert (await agent.claim(MINE))[0] == 200
        status, told = await agent(method, target, body, await agent.proof(method, target, body, THEIRS))
        assert (status, name_of(MINE).encode() in told) == (403, True)
        assert agent.untouched

    talk(scene)


def test_their_signature_under_my_name(talk: Any) -> None:
    async def scene(agent: Agent) -> None:
        assert (await agent.claim(MINE))[0] == 200
        proof = parse_proof(await agent.proof("POST", "/app/restart", b"", THEIRS))
        forged = encode_proof(proof._replace(key=MINE.public_key().public_bytes_raw()))
        assert (await agent("POST", "/app/restart", b"", forged))[0] == 401
        assert agent.untouched

    talk(scene)


def test_a_proof_that_is_replayed(talk: Any) -> None:
    async def scene(agent: Agent) -> None:
        assert (await agent.claim(MINE))[0] == 200
        proof = await agent.proof("POST", "/app/restart", b"", MINE)
        assert (await agent("POST", "/app/restart", b"", proof))[0] == 200
        status, told = await agent("POST", "/app/restart", b"", proof)
        assert (status, b"used before" in told) == (401, True)
        agent.clock.now += LIFE_SECONDS + 5
        assert (await agent("POST", "/app/restart", b"", proof))[0] == 401
        assert agent.service.calls == ["restart"]

    talk(scene)


def test_a_replay_at_the_same_moment(talk: Any) -> None:
    async def scene(agent: Agent) -> None:
        assert (await agent.claim(MINE))[0] == 200
        proof = await agent.proof("POST", "/app/restart", b"", MINE)
        told = await asyncio.gather(*(agent("POST", "/app/restart", b"", proof) for _ in range(10)))
        assert sorted(status for status, _ in told) == [200] + [401] * 9
        assert agent.service.calls == ["restart"]

    talk(scene)


def test_a_proof_for_another_body(talk: Any) -> None:
    async def scene(agent: Agent) -> None:
        assert (await agent.claim(MINE))[0] == 200
        proof = await agent.proof("POST", "/app/init", CONFIGURATION, MINE)
        other = CONFIGURATION.replace(b"c2VjcmV0", b"ZXZpbGV2")
        assert (await agent("POST", "/app/init", other, proof))[0] == 401
        rehashed = encode_proof(parse_proof(proof)._replace(body_sha256=sha256(other).digest()))
        assert (await agent("POST", "/app/init", other, rehashed))[0] == 401
        assert agent.untouched

    talk(scene)


def test_a_proof_for_another_call(talk: Any) -> None:
    """Path, query or method: none carries over."""

    async def scene(agent: Agent) -> None:
        assert (await agent.claim(MINE))[0] == 200
        for signed, used in (
            (("GET", "/v2/app", b""), ("POST", "/app/restart", b"")),
            (("POST", "/v2/owner/claim", b""), ("POST", "/app/restart", b"")),
            (("GET", "/v2/snapshot", b""), ("DELETE", "/v2/snapshot", b"")),
            (("GET", "/v2/app/logs?lines=1", b""), ("GET", "/v2/app/logs?lines=100", b"")),
            (("POST", "/app/restart?x=1", b""), ("POST", "/app/restart", b"")),
            (("POST", "/app/restart", b""), ("POST", "/app/restart?x=1", b"")),
            (("POST", "/v2/owner/add", ORDERS[-1][2]), ("POST", "/v2/owner/remove", ORDERS[-1][2])),
        ):
            status, _ = await agent(*used, await agent.proof(*signed, MINE))
            assert status == 401, (signed, used)
        assert agent.untouched

    talk(scene)


def test_a_front_that_lies(simulated: Machine, config: AgentConfig) -> None:
    """Whoever has taken the front over has the owner's proofs as they come, and gives other orders with them."""

    async def scene() -> None:
        service = Service()
        collector = Collector(config, simulated.platform(), service=service)

        async def caller(method: str, target: str, body: bytes = b"") -> Caller:
            proof = prove(method, target, body, MINE, simulated.leaf, await collector.nonce())
            return Caller(api=2, address="192.0.2.7", proof=proof, target=target, leaf=simulated.leaf)

        await collector.claim(await caller("POST", wire.OWNER_CLAIM))
        other = CONFIGURATION.replace(b"c2VjcmV0", b"ZXZpbGV2")
        for order in (
            collector.restart_app(await caller("POST", wire.OWNER_CLAIM)),
            collector.restart_app(await caller("GET", wire.APP)),
            collector.restart_app(await caller("GET", wire.APP_RESTART)),
            collector.restart_app(await caller("POST", wire.APP_RESTART, b"body")),
            collector.init_app(await caller("POST", wire.APP_INIT, CONFIGURATION), other),
            collector.init_app(await caller("POST", wire.OWNER_ADD, CONFIGURATION), CONFIGURATION),
            collector.app_logs(await caller("GET", f"{wire.APP_LOGS}?lines=1"), 1000),
            collector.delete_snapshot(await caller("GET", wire.SNAPSHOT_V2)),
        ):
            with pytest.raises(OrderError) as caught:
                await order
            assert caught.value.status == 401
        assert service.calls == []
        await collector.restart_app(await caller("POST", wire.APP_RESTART))
        assert service.calls == ["restart"]
        await collector.close()

    asyncio.run(scene())


def test_anyone_may_not_read_the_applications_words(talk: Any, config: AgentConfig) -> None:
    async def scene(agent: Agent) -> None:
        assert (await agent("GET", wire.APP))[0] == 200
        target = f"{wire.APP_LOGS}?lines=5"
        for proof in (None, await agent.proof("GET", target, b"", MINE)):
            status, told = await agent("GET", target, b"", proof)
            assert (status, b"a word" in told) == (403, False)

    talk(scene, config=replace(config, owners="anyone"))


def test_a_proof_for_another_agent(talk: Any) -> None:
    """The owner talks to a machine in between, which hands on our nonce: the proof names the other's TLS key."""
    between = leaf_der(self_signed("between", ["127.0.0.1"], now=datetime.now(UTC)).certificate_pem)

    async def scene(agent: Agent) -> None:
        assert (await agent.claim(MINE))[0] == 200
        proof = prove("POST", "/app/restart", b"", MINE, between, await agent.nonce())
        assert (await agent("POST", "/app/restart", b"", proof))[0] == 401
        assert agent.untouched

    talk(scene)


def test_a_nonce_of_another_agent(talk: Any, simulated: Machine) -> None:
    async def scene(agent: Agent) -> None:
        assert (await agent.claim(MINE))[0] == 200
        for nonce in (Nonces(clock=agent.clock).issue(), bytes(32), b"\xff" * 32):
            proof = prove("POST", "/app/restart", b"", MINE, agent.leaf, nonce)
            assert (await agent("POST", "/app/restart", b"", proof))[0] == 401
        assert agent.untouched

    talk(scene)


def test_a_proof_of_another_time(talk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time is the monotonic clock's; what the wall clock says is the operator's to choose."""

    async def scene(agent: Agent) -> None:
        assert (await agent.claim(MINE))[0] == 200
        early = await agent.proof("POST", "/app/restart", b"", MINE)
        late = await agent.proof("POST", "/app/restart", b"", MINE)
        agent.clock.now += LIFE_SECONDS - 1
        monkeypatch.setattr(time, "time", lambda: 0.0)
        assert (await agent("POST", "/app/restart", b"", early))[0] == 200
        agent.clock.now += 2
        status, told = await agent("POST", "/app/restart", b"", late)
        assert (status, b"older than" in told) == (401, True)
        stamped = parse_proof(await agent.proof("POST", "/app/restart", b"", MINE))
        later = (2**62).to_bytes(8, "big") + stamped.nonce[8:]
        forged = prove("POST", "/app/restart", b"", MINE, agent.leaf, later)
        assert (await agent("POST", "/app/restart", b"", forged))[0] == 401
        assert agent.service.calls == ["restart"]

    talk(scene)


@pytest.mark.parametrize("proof", ["", "A", "A" * 214, "A" * 215, "A" * 216, "=" * 10, "é", "a,b", "A" * 100_000])
def test_what_is_no_proof(talk: Any, proof: str) -> None:
    async def scene(agent: Agent) -> None:
        assert (await agent.claim(MINE))[0] == 200
        assert (await agent("POST", "/app/restart", b"", proof))[0] == 401
        assert agent.untouched

    talk(scene)


def test_a_key_that_anybody_can_sign_with(talk: Any) -> None:
    """The neutral point as a key, and a signature that OpenSSL finds good for every message."""
    neutral = (1).to_bytes(32, "little")

    async def scene(agent: Agent) -> None:
        proof = encode_proof(Proof(neutral, await agent.nonce(), sha256(b"").digest(), neutral + bytes(32)))
        assert (await agent("POST", wire.OWNER_CLAIM, b"", proof))[0] == 401
        assert (await agent.claim(MINE))[0] == 200
        body = json.dumps({"owner": fingerprint(neutral)}).encode()
        status, _ = await agent("POST", wire.OWNER_ADD, body, await agent.proof("POST", wire.OWNER_ADD, body, MINE))
        assert status == 400

    talk(scene)


# Claims


def test_two_claims_at_once(talk: Any, config: AgentConfig) -> None:
    async def scene(agent: Agent) -> None:
        claimants = [Ed25519PrivateKey.generate() for _ in range(6)]
        proofs = [await agent.proof("POST", wire.OWNER_CLAIM, b"", private) for private in claimants]
        told = await asyncio.gather(*(agent("POST", wire.OWNER_CLAIM, b"", proof) for proof in proofs))
        statuses = [status for status, _ in told]
        assert sorted(statuses) == [200] + [409] * 5
        winner = name_of(claimants[statuses.index(200)])
        assert all(winner.encode() in body for _, body in told)
        assert json.loads((config.data / "owners.json").read_bytes())["owners"] == [winner]

    talk(scene)


def test_an_owned_machine_stays_owned(talk: Any, config: AgentConfig) -> None:
    """Over the agent's restarts too; whoever owns it may claim again."""

    async def claimed(agent: Agent) -> None:
        assert (await agent.claim(MINE))[0] == 200

    async def scene(agent: Agent) -> None:
        status, told = await agent.claim(THEIRS)
        assert (status, name_of(MINE).encode() in told) == (409, True)
        assert (await agent.claim(MINE))[0] == 200
        proof = await agent.proof("POST", "/app/restart", b"", MINE)
        assert (await agent("POST", "/app/restart", b"", proof))[0] == 200

    talk(claimed)
    assert (config.data / "owners.json").stat().st_mode & 0o777 == 0o600
    talk(scene)


def test_a_claim_by_a_client_that_never_verified(talk: Any) -> None:
    """It proves a key like everybody else, and the true owner is told whose it is before anything is sent; where
    owners are set beforehand there is nothing to be claimed.
    """

    async def first(agent: Agent) -> None:
        assert (await agent("POST", wire.OWNER_CLAIM))[0] == 401
        assert (await agent.claim(THEIRS))[0] == 200
        asked = msgspec.json.encode(wire.EvidenceRequest(nonce=bytes(32)))
        status, body = await agent("POST", wire.EVIDENCE, asked)
        assert status == 200
        assert msgspec.json.decode(body, type=wire.EvidenceAnswer).owners == [name_of(THEIRS)]

    talk(first)


@pytest.mark.parametrize("owners", ["anyone", (name_of(MINE),)])
def test_a_claim_that_the_configuration_forbids(talk: Any, config: AgentConfig, owners: Any) -> None:
    async def scene(agent: Agent) -> None:
        assert (await agent.claim(THEIRS))[0] == 403
        proof = await agent.proof("POST", "/app/restart", b"", MINE)
        assert (await agent("POST", "/app/restart", b"", proof))[0] == 200
        body = json.dumps({"owner": name_of(THEIRS)}).encode()
        proof = await agent.proof("POST", wire.OWNER_ADD, body, MINE)
        assert (await agent("POST", wire.OWNER_ADD, body, proof))[0] == 403

    talk(scene, config=replace(config, owners=owners))
    assert not (config.data / "owners.json").exists()


def test_owners_come_and_go_but_the_last(talk: Any) -> None:
    async def scene(agent: Agent) -> None:
        async def change(target: str, who: Ed25519PrivateKey, by: Ed25519PrivateKey) -> int:
            body = json.dumps({"owner": name_of(who)}).encode()
            return (await agent("POST", target, body, await agent.proof("POST", target, body, by)))[0]

        assert (await agent.claim(MINE))[0] == 200
        assert await change(wire.OWNER_REMOVE, MINE, MINE) == 409
        assert await change(wire.OWNER_ADD, THEIRS, THEIRS) == 403
        assert await change(wire.OWNER_ADD, THEIRS, MINE) == 200
        assert await change(wire.OWNER_REMOVE, MINE, THEIRS) == 200
        assert await change(wire.OWNER_REMOVE, MINE, THEIRS) == 404
        assert await change(wire.OWNER_REMOVE, THEIRS, THEIRS) == 409
        proof = await agent.proof("POST", "/app/restart", b"", MINE)
        assert (await agent("POST", "/app/restart", b"", proof))[0] == 403

    talk(scene)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b'{"version":1,"owners":[]}',
        b'{"version":2,"owners":["%s"]}' % name_of(MINE).encode(),
        b'{"version":1,"owners":["anyone"]}',
        b'{"version":1,"owners":["%s","%s"]}' % ((name_of(MINE).encode(),) * 2),
        b"\xff" * 70_000,
    ],
    ids=["empty", "object", "nobody", "version 2", "anyone", "twice", "huge"],  # keys differ from run to run
)
def test_a_file_of_owners_that_is_broken_is_no_invitation(talk: Any, config: AgentConfig, content: bytes) -> None:
    config.data.mkdir(parents=True)
    (config.data / "owners.json").write_bytes(content)
    (config.data / "owners.json").chmod(0o600)

    async def scene(agent: Agent) -> None:
        assert (await agent.claim(THEIRS))[0] == 503
        for method, target, body in ORDERS:
            proof = await agent.proof(method, target, body, MINE)
            assert (await agent(method, target, body, proof))[0] == 503
        assert json.loads((await agent("GET", wire.OWNER))[1]) == {"owners": ["unknown"], "claimable": False}
        assert agent.untouched

    talk(scene)


def test_a_file_of_owners_that_others_may_write(talk: Any, config: AgentConfig) -> None:
    config.data.mkdir(parents=True)
    file = config.data / "owners.json"
    file.write_bytes(b'{"version":1,"owners":["%s"]}' % name_of(THEIRS).encode())
    file.chmod(0o666)

    async def scene(agent: Agent) -> int:
        return (await agent("POST", "/app/restart", b"", await agent.proof("POST", "/app/restart", b"", THEIRS)))[0]

    assert talk(scene) == 503
    file.chmod(0o600)
    assert talk(scene) == 200  # the test itself can tell
    file.rename(config.data / "elsewhere")
    file.symlink_to(config.data / "elsewhere")
    assert talk(scene) == 503


def test_a_locked_container_has_no_owners_and_takes_no_claim(talk: Any, config: AgentConfig) -> None:
    async def scene(agent: Agent) -> None:
        status, told = await agent.claim(THEIRS)
        assert (status, told.startswith(b"container locked")) == (503, True)
        asked = msgspec.json.encode(wire.EvidenceRequest(nonce=bytes(32)))
        _, body = await agent("POST", wire.EVIDENCE, asked)
        assert msgspec.json.decode(body, type=wire.EvidenceAnswer).owners == ["unknown"]

    talk(scene, config=replace(config, container=config.data_storage / "container"))
    assert not config.data.exists()


# Bodies


def test_a_strangers_large_body_is_not_read(talk: Any) -> None:
    """17 MiB, or one that comes a byte at a time for ever: without a proof nobody waits for it."""

    async def never() -> Message:
        raise AssertionError("the body was read")

    async def scene(agent: Agent) -> None:
        assert (await agent.claim(MINE))[0] == 200
        for proof in (None, await agent.proof("POST", "/app/init", CONFIGURATION, THEIRS)):
            status, _ = await agent("POST", "/app/init", b"", proof, receive=never)
            assert status in (401, 403)
        assert agent.untouched

    talk(scene)


def test_17_mib_of_an_owner(talk: Any) -> None:
    body = b'{"content":"' + base64.b64encode(bytes(17 * 2**20)).rstrip(b"=") + b'"}'

    async def scene(agent: Agent) -> None:
        assert (await agent.claim(MINE))[0] == 200
        status, _ = await agent("POST", "/app/init", body, await agent.proof("POST", "/app/init", body, MINE))
        assert status == 413
        assert agent.untouched

    talk(scene)


def test_a_slow_body_of_an_owner(talk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_APP_BODY_SECONDS", 0.3)

    async def trickle() -> Message:
        await asyncio.sleep(0.05)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def scene(agent: Agent) -> None:
        assert (await agent.claim(MINE))[0] == 200
        proof = await agent.proof("POST", "/app/init", CONFIGURATION, MINE)
        status, told = await agent("POST", "/app/init", b"", proof, receive=trickle)
        assert (status, b"did not arrive" in told) == (400, True)
        assert agent.untouched

    talk(scene)


# Floods


def test_a_million_nonces_take_nobody_elses_place(talk: Any) -> None:
    """None is kept until it is used."""

    async def scene(agent: Agent) -> None:
        assert (await agent.claim(MINE))[0] == 200
        proof = await agent.proof("POST", "/app/restart", b"", MINE)
        for number in range(3000):
            await agent("POST", wire.NONCE, address=f"198.51.{number % 250}.{number // 250}")
        assert (await agent("POST", "/app/restart", b"", proof))[0] == 200

    talk(scene)


def test_reading_has_its_limit_for_each_address(talk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "Rates", partial(Rates, clock=lambda: 0.0))  # two a second are free again
    asked = msgspec.json.encode(wire.EvidenceRequest(nonce=bytes(32)))

    async def scene(agent: Agent) -> None:
        assert (await agent.claim(MINE))[0] == 200
        statuses = [(await agent("POST", wire.EVIDENCE, asked, address="198.51.100.1"))[0] for _ in range(200)]
        assert set(statuses) == {200, 503}
        assert statuses[:60] == [200] * 60
        assert (await agent("POST", wire.EVIDENCE, asked, address="192.0.2.7"))[0] == 200
        # whoever proves to be an owner is not kept waiting by a neighbour
        proof = await agent.proof("POST", wire.EVIDENCE, asked, MINE)
        assert (await agent("POST", wire.EVIDENCE, asked, proof, address="198.51.100.1"))[0] == 200
        stranger = await agent.proof("POST", wire.EVIDENCE, asked, THEIRS)
        assert (await agent("POST", wire.EVIDENCE, asked, stranger, address="198.51.100.1"))[0] == 503

    talk(scene)


def test_an_owner_does_not_wait_for_the_devices(talk: Any, simulated: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert simulated.tpm is not None
    quote, gate = simulated.tpm.quote, threading.Event()

    def slow(*arguments: Any) -> Any:
        assert gate.wait(60)
        time.sleep(0.01)
        return quote(*arguments)

    monkeypatch.setattr(simulated.tpm, "quote", slow)
    asked = msgspec.json.encode(wire.EvidenceRequest(nonce=bytes(32)))

    async def scene(agent: Agent) -> None:
        assert (await agent.claim(MINE))[0] == 200
        done: list[str] = []

        async def ask(who: str, proof: str | None, address: str) -> int:
            status, _ = await agent("POST", wire.EVIDENCE, asked, proof, address=address)
            done.append(who)
            return status

        crowd = [asyncio.create_task(ask("stranger", None, f"198.51.100.{n // 8}")) for n in range(100)]
        waiting = agent.collector._device_lane._occupied
        while waiting[False] < 64:
            await asyncio.sleep(0.01)
        proof = await agent.proof("POST", wire.EVIDENCE, asked, MINE)
        mine = asyncio.create_task(ask("owner", proof, "192.0.2.7"))
        while not waiting[True]:
            await asyncio.sleep(0.01)
        gate.set()
        assert await mine == 200
        assert set(await asyncio.gather(*crowd)) == {200, 503}
        assert "owner" in done[: 100 - 64 + 3]  # the refused, those that were underway, and then the owner

    talk(scene)


def test_an_owner_is_heard_while_strangers_take_no_answer(
    talk: Any, simulated: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large answers that stand half sent fill what there is for all of them, but not what orders need."""
    simulated.forged_ima_log = bytes(1024 * 1024)
    monkeypatch.setattr(front, "_MAX_UNDERWAY", 1)  # one that is underway is too much for any other
    asked = msgspec.json.encode(wire.EvidenceRequest(nonce=bytes(32)))

    async def scene(agent: Agent) -> None:
        assert (await agent.claim(MINE))[0] == 200
        statuses: list[int] = []
        taking = asyncio.Event()

        async def take_nothing(address: str) -> None:
            parts = [asked]

            async def receive() -> Message:
                return {"type": "http.request", "body": parts.pop() if parts else b"", "more_body": False}

            async def send(message: Message) -> None:
                if message["type"] == "http.response.start":
                    statuses.append(message["status"])
                    await taking.wait()

            scope: Scope = {
                "type": "http",
                "method": "POST",
                "path": wire.EVIDENCE,
                "query_string": b"",
                "headers": [],
                "client": (address, 4711),
                "state": {"leaf": agent.leaf},
            }
            await agent.app(scope, receive, send)

        crowd = [asyncio.create_task(take_nothing(f"198.51.100.{number // 8}")) for number in range(10)]
        while len(statuses) < len(crowd):
            await asyncio.sleep(0.05)
        assert set(statuses) == {200, 503}
        for method, target, body in ORDERS[:3]:
            status, told = await agent(method, target, body, await agent.proof(method, target, body, MINE))
            assert status in (200, 202), told
        assert agent.service.calls == ["restart", "restart"]
        taking.set()
        await asyncio.gather(*crowd)

    talk(scene)


# Audit


def test_each_order_is_a_line_and_never_its_content(talk: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(agent: Agent) -> None:
        assert (await agent.claim(MINE))[0] == 200
        proof = await agent.proof("POST", "/app/init", CONFIGURATION, MINE)
        assert (await agent("POST", "/app/init", CONFIGURATION, proof))[0] == 200
        assert (await agent("POST", "/app/restart"))[0] == 401
        for _ in range(200):
            await agent("POST", "/app/restart", address="198.51.100.9")

    with caplog.at_level("INFO"):
        talk(scene)
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("order: ")]
    assert lines[0] == f"order: claim by {name_of(MINE)} from 192.0.2.7: done"
    assert lines[1] == f"order: app init ({len(CONFIGURATION)} bytes sent) by {name_of(MINE)} from 192.0.2.7: done"
    assert lines[2].startswith("order: app restart by nobody known from 192.0.2.7: refused (401): ")
    assert 50 < len(lines) < 80
    assert "c2VjcmV0" not in caplog.text
    assert "secret" not in caplog.text


# A thousand connections


@pytest.fixture
def live(simulated: Machine, config: AgentConfig) -> Iterator[tuple[str, int]]:
    """The agent on a real socket, in a thread."""
    import uvloop

    from cosmian_vm.agent import first_launch
    from cosmian_vm.agent.listener import listen
    from cosmian_vm.agent.server import serve
    from cosmian_vm.agent.storage import Storage
    from cosmian_vm.agent.tls import TlsIdentity

    files = first_launch.prepare(config, Storage(config), preinit=True, hostname="vm", now=datetime.now(UTC))
    listener = listen("127.0.0.1", 0)
    host, port = listener.getsockname()[:2]
    ready = threading.Event()
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def whole() -> None:
        stop = asyncio.Event()
        loops.append((asyncio.get_running_loop(), stop))
        collector = Collector(config, simulated.platform(), service=Service())
        try:
            identity = TlsIdentity(files.certificate, files.key)
            await serve(create_app(collector), identity, listener, on_ready=lambda *_: ready.set(), stop=stop)
        finally:
            await collector.close()

    thread = threading.Thread(target=lambda: uvloop.run(whole()), daemon=True)
    thread.start()
    assert ready.wait(60)
    yield host, port
    loop, stop = loops[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize("silent", [False, True])
def test_a_thousand_connections_while_the_owner_works(live: tuple[str, int], tmp_path: Path, silent: bool) -> None:
    """Strangers of a dozen addresses take every place there is; the owner comes later, and orders all the same.

    ``silent``: they do not even speak TLS.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    crowd: list[socket.socket] = []
    stop = threading.Event()

    def come(address: str, count: int) -> None:
        for _ in range(count):
            if stop.is_set():
                return
            try:
                plain = socket.create_connection(live, timeout=20, source_address=(address, 0))
                crowd.append(plain if silent else context.wrap_socket(plain))
            except OSError:
                continue

    threads = [threading.Thread(target=come, args=(f"127.0.1.{number}", 115)) for number in range(1, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    try:
        assert len(crowd) > 1000
        key = create(tmp_path / "config")
        with AgentClient(f"https://{live[0]}:{live[1]}", allow_insecure_tls=True) as client:
            client.owner = key
            assert client.claim().owners == [key.fingerprint]
            client.app_restart()
            client.app_init(b"secret")
            assert client.app_status().configured
            client.evidence(bytes(32))
    finally:
        stop.set()
        for connection in crowd:
            connection.close()


def test_an_order_over_a_connection_that_was_lost_is_not_given_twice(live: tuple[str, int], tmp_path: Path) -> None:
    """The same request again, as a client sends it whose answer was lost: its proof has been used."""
    with AgentClient(f"https://{live[0]}:{live[1]}", allow_insecure_tls=True) as client:
        client.owner = create(tmp_path / "config")
        client.claim()
        nonce = msgspec.json.decode(client._channel.call("POST", wire.NONCE).body, type=wire.NonceAnswer).nonce
        leaf = client.connect().leaf
        proof = client.owner.prove("POST", wire.APP_RESTART, b"", leaf, nonce)
        client._channel.call("POST", wire.APP_RESTART, headers={PROOF_HEADER: proof})
        with pytest.raises(RefusedError, match="used before"):
            client._channel.call("POST", wire.APP_RESTART, headers={PROOF_HEADER: proof})
    with (
        AgentClient(f"https://{live[0]}:{live[1]}", allow_insecure_tls=True) as other,
        pytest.raises(TransportError),
    ):
        other.app_restart()


def test_strangers_claims_use_up_no_nonces(talk: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered of used nonces is the owner's: a stranger who goes on claiming an owned machine fills nothing
    up, and stands in no queue that an owner waits in.
    """
    monkeypatch.setattr("cosmian_vm.agent.nonces._MAX_USED", 8)

    async def scene(agent: Agent) -> None:
        assert (await agent.claim(MINE))[0] == 200
        told = await asyncio.gather(*(agent.claim(THEIRS) for _ in range(12)))
        assert {status for status, _ in told} == {409}
        proof = await agent.proof("POST", "/app/restart", b"", MINE)
        assert (await agent("POST", "/app/restart", b"", proof))[0] == 200
        assert (await agent.claim(MINE))[0] == 200

    talk(scene)
