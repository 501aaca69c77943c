"""How often one client may ask, and that it is nobody else's business."""

from __future__ import annotations

import pytest

from cosmian_vm.agent import rates as module
from cosmian_vm.agent.rates import Rates
from cosmian_vm.errors import OrderError


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_then_an_even_pace() -> None:
    clock = Clock()
    rates = Rates(burst=5, each_minute=60, clock=clock)
    assert [rates.allows("192.0.2.7") for _ in range(7)] == [True] * 5 + [False] * 2
    with pytest.raises(OrderError) as caught:
        rates.take("192.0.2.7")
    assert caught.value.status == 503
    clock.now += 2
    assert [rates.allows("192.0.2.7") for _ in range(3)] == [True, True, False]
    clock.now += 1000
    assert [rates.allows("192.0.2.7") for _ in range(6)] == [True] * 5 + [False]


def test_asking_in_vain_does_not_make_it_worse() -> None:
    clock = Clock()
    rates = Rates(burst=1, each_minute=60, clock=clock)
    assert rates.allows("192.0.2.7")
    for _ in range(10):
        clock.now += 0.09
        assert not rates.allows("192.0.2.7")
    clock.now += 0.2
    assert rates.allows("192.0.2.7")


def test_each_client_has_its_own() -> None:
    rates = Rates(burst=1, each_minute=1, clock=Clock())
    assert rates.allows("192.0.2.7")
    assert not rates.allows("::ffff:192.0.2.7")
    assert rates.allows("192.0.2.8")
    assert rates.allows("2001:db8::1")
    assert not rates.allows("2001:db8::2")  # one network, one client
    assert rates.allows("2001:db8:0:1::1")
    assert rates.allows("unknown")


def test_clients_without_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_CLIENTS", 10)
    rates = Rates(burst=1, each_minute=1, clock=Clock())
    for number in range(100):
        assert rates.allows(f"192.0.2.{number}")
        assert len(rates._buckets) <= 10
    assert not rates.allows("192.0.2.99")
