"""One client that wants to keep the agent from everybody else."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cosmian_vm import wire
from cosmian_vm.agent.asgi import ASGIApp, Message, Scope
from cosmian_vm.agent.collector import Collector
from cosmian_vm.agent.config import AgentConfig, load
from cosmian_vm.agent.front import create_app
from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.machine import Machine

from .conftest import NONCE

_ASKED = msgspec.json.encode(wire.EvidenceRequest(nonce=NONCE))


async def _evidence(app: ASGIApp, leaf: bytes, address: str, *, taking: asyncio.Event | None = None) -> int:
    """The status of the answer to one request. ``taking``: the client takes the answer's body only when it is set."""
    statuses: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": _ASKED, "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])
        elif taking is not None:
            await taking.wait()

    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": wire.EVIDENCE,
        "query_string": b"",
        "headers": [],
        "client": (address, 4711),
        "state": {"leaf": leaf},
    }
    await app(scope, receive, send)
    return statuses[0]


@pytest.fixture
def config(tmp_path: Path) -> AgentConfig:
    file = tmp_path / "agent.toml"
    file.write_text(
        f'[agent]\ndata_storage = "{tmp_path}"\ncontainer = "none"\nhost = "127.0.0.1"\nport = 5355\n'
        'ssl_certificate = "cert.pem"\nssl_private_key = "key.pem"\n'
    )
    return load(file)


@pytest.fixture
def slow(keys: VendorKeys, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A TPM that takes its time, as they do."""
    machine = Machine.create(AmdVendor.create(keys=keys, now=datetime.now(UTC) - timedelta(days=30)))
    assert machine.tpm is not None
    quote = machine.tpm.quote

    def taking_time(*arguments: Any) -> Any:
        time.sleep(0.1)
        return quote(*arguments)

    monkeypatch.setattr(machine.tpm, "quote", taking_time)
    return machine


@pytest.mark.parametrize(
    ("attacker", "owner"),
    [
        (["198.51.100.1"], "192.0.2.7"),
        (["::ffff:198.51.100.1"], "::ffff:192.0.2.7"),
        ([f"2001:db8:bad:1::{number:x}" for number in range(100)], "2001:db8:900d:1::1"),
    ],
)
def test_one_client_that_asks_for_all_there_is(
    slow: Machine, config: AgentConfig, attacker: list[str], owner: str
) -> None:
    async def scene() -> tuple[list[int], int]:
        collector = Collector(config, slow.platform())
        app = create_app(collector)
        flood = [
            asyncio.create_task(_evidence(app, slow.leaf, attacker[number % len(attacker)])) for number in range(100)
        ]
        await asyncio.sleep(0.02)
        status = await _evidence(app, slow.leaf, owner)
        statuses = await asyncio.gather(*flood)
        again = await _evidence(app, slow.leaf, attacker[0])
        await collector.close()
        assert again == 200
        return statuses, status

    flood, owners = asyncio.run(scene())
    assert owners == 200
    assert set(flood) == {200, 503}


def test_one_client_that_takes_no_answer(slow: Machine, config: AgentConfig) -> None:
    """Large answers that stand half sent fill what there is for all of them."""
    slow.forged_ima_log = bytes(6 * 1024 * 1024)

    async def scene() -> int:
        collector = Collector(config, slow.platform())
        app = create_app(collector)
        taking = asyncio.Event()
        flood = [asyncio.create_task(_evidence(app, slow.leaf, "198.51.100.1", taking=taking)) for _ in range(60)]
        await asyncio.sleep(2)
        status = await _evidence(app, slow.leaf, "192.0.2.7")
        taking.set()
        await asyncio.gather(*flood)
        await collector.close()
        return status

    assert asyncio.run(scene()) == 200
