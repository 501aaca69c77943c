"""One piece of blocking work at a time, bounded in number and time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest

from cosmian_vm.agent.lane import Lane
from cosmian_vm.errors import OrderError


def with_lane(scenario: Callable[[Lane], Awaitable[None]], capacity: int = 3) -> None:
    async def whole() -> None:
        lane = Lane("devices", capacity=capacity)
        try:
            await scenario(lane)
        finally:
            lane.close()

    asyncio.run(whole())


def test_results_and_errors_come_back() -> None:
    async def scenario(lane: Lane) -> None:
        assert await lane.call(lambda: 5, seconds=60) == 5
        with pytest.raises(ZeroDivisionError):
            await lane.call(lambda: 1 // 0, seconds=60)
        assert await lane.call(threading.get_ident, seconds=60) != threading.get_ident()

    with_lane(scenario)


def test_the_loop_goes_on_meanwhile() -> None:
    async def scenario(lane: Lane) -> None:
        go_on = threading.Event()
        work = asyncio.ensure_future(lane.call(go_on.wait, seconds=60))
        for _ in range(10):
            await asyncio.sleep(0.01)
            assert not work.done()
        go_on.set()
        assert await work

    with_lane(scenario)


def test_a_full_queue_is_declined_at_once_and_recovers() -> None:
    async def scenario(lane: Lane) -> None:
        go_on = threading.Event()
        calls = [asyncio.ensure_future(lane.call(go_on.wait, seconds=60)) for _ in range(3)]
        await asyncio.sleep(0.05)
        with pytest.raises(OrderError, match="devices: too many calls are waiting") as caught:
            await lane.call(lambda: 1, seconds=60)
        assert caught.value.status == 503
        go_on.set()
        assert await asyncio.gather(*calls) == [True] * 3
        assert await lane.call(lambda: 1, seconds=60) == 1

    with_lane(scenario)


def test_time_is_limited_and_late_work_is_not_begun() -> None:
    begun: list[int] = []

    async def scenario(lane: Lane) -> None:
        go_on = threading.Event()
        slow = asyncio.ensure_future(lane.call(go_on.wait, seconds=0.1))
        late = asyncio.ensure_future(lane.call(lambda: begun.append(1), seconds=0.1))
        for call in (slow, late):
            with pytest.raises(OrderError, match=r"not done within 0\.1 s"):
                await call
        go_on.set()
        assert await lane.call(lambda: 2, seconds=60) == 2
        assert begun == []

    with_lane(scenario)


def test_a_cancelled_call_frees_its_place() -> None:
    async def scenario(lane: Lane) -> None:
        for _ in range(5):
            go_on = threading.Event()
            call = asyncio.ensure_future(lane.call(go_on.wait, seconds=60))
            await asyncio.sleep(0)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            go_on.set()
            while lane._occupied[0]:
                await asyncio.sleep(0.01)
        assert await lane.call(lambda: 1, seconds=60) == 1

    with_lane(scenario, capacity=1)


def test_the_first_queue_is_served_first_and_has_its_own_places() -> None:
    async def scenario() -> None:
        lane = Lane("devices", capacity=3)
        gate, begun = threading.Event(), threading.Event()
        done: list[str] = []

        def hold() -> None:
            begun.set()
            assert gate.wait(60)

        def work(name: str) -> Callable[[], None]:
            return lambda: done.append(name)

        held = asyncio.create_task(lane.call(hold, seconds=60))
        await asyncio.to_thread(begun.wait, 60)
        others = [asyncio.create_task(lane.call(work(f"other {n}"), seconds=60)) for n in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(OrderError, match="too many calls"):
            await lane.call(work("one too many"), seconds=60)
        owners = [asyncio.create_task(lane.call(work(f"owner {n}"), seconds=60, first=True)) for n in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(OrderError, match="too many calls"):
            await lane.call(work("one too many"), seconds=60, first=True)
        gate.set()
        await asyncio.gather(held, *others, *owners)
        assert done == ["owner 0", "owner 1", "owner 2", "other 0", "other 1"]
        lane.close()

    asyncio.run(scenario())
