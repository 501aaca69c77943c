"""Nonces: fresh, of this agent, for a while, once."""

from __future__ import annotations

import pytest

from cosmian_vm.agent import nonces as module
from cosmian_vm.agent.nonces import LIFE_SECONDS, Nonces
from cosmian_vm.errors import OrderError


class Clock:
    def __init__(self) -> None:
        self.now = 5000.0

    def __call__(self) -> float:
        return self.now


def refused(nonces: Nonces, nonce: bytes) -> str:
    with pytest.raises(OrderError) as caught:
        nonces.use(nonce)
    assert caught.value.status == 401
    return str(caught.value)


def test_once() -> None:
    nonces = Nonces()
    issued = [nonces.issue() for _ in range(1000)]
    assert len(set(issued)) == 1000
    assert {len(nonce) for nonce in issued} == {32}
    for nonce in issued:
        nonces.check(nonce)
        nonces.use(nonce)
        assert "used before" in refused(nonces, nonce)


def test_none_that_it_did_not_issue() -> None:
    clock = Clock()
    nonces = Nonces(clock=clock)
    nonce = nonces.issue()
    assert "not of this agent" in refused(nonces, Nonces(clock=clock).issue())
    for bit in range(256):
        changed = bytearray(nonce)
        changed[bit // 8] ^= 1 << bit % 8
        assert "not of this agent" in refused(nonces, bytes(changed))
    for other in (b"", nonce[:31], nonce + b"\x00", bytes(32)):
        assert "not of this agent" in refused(nonces, other)
    nonces.use(nonce)


def test_for_a_while() -> None:
    clock = Clock()
    nonces = Nonces(clock=clock)
    first, second = nonces.issue(), nonces.issue()
    clock.now += LIFE_SECONDS - 0.5
    nonces.use(first)
    clock.now += 1
    assert "older than" in refused(nonces, second)
    assert "older than" in refused(nonces, first)


def test_what_has_expired_is_forgotten_and_stays_refused() -> None:
    clock = Clock()
    nonces = Nonces(clock=clock)
    used = []
    for _ in range(20):
        used.append(nonces.issue())
        nonces.use(used[-1])
        clock.now += LIFE_SECONDS / 4
        for nonce in used:
            refused(nonces, nonce)
    assert len(nonces._used) <= 6


def test_there_is_an_end_to_what_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_USED", 3)
    clock = Clock()
    nonces = Nonces(clock=clock)
    for _ in range(3):
        nonces.use(nonces.issue())
    with pytest.raises(OrderError) as caught:
        nonces.use(nonces.issue())
    assert caught.value.status == 503
    clock.now += LIFE_SECONDS + 2
    nonces.use(nonces.issue())
