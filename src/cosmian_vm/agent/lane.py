"""Blocking work, one piece at a time, beside the event loop.

Devices are neither quick nor safe to use twice at once. A lane is one thread and two bounded queues before it, of which
the first is served first: what finds its queue full, or is not done in its time, is declined with 503. The thread is a
daemon: a device that hangs does not keep the program from ending.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from cosmian_vm.errors import OrderError

__all__ = ["Lane"]

_Result = TypeVar("_Result")


class Lane:
    """``name`` says in errors what is busy; ``capacity``: how many calls of each queue may wait or run."""

    def __init__(self, name: str, *, capacity: int) -> None:
        self._name = name
        self._capacity = capacity
        self._lock = threading.Lock()
        self._occupied = [0, 0]
        self._numbers = itertools.count()
        self._jobs: queue.PriorityQueue[tuple[bool, int, Callable[[], None] | None]] = queue.PriorityQueue()
        threading.Thread(target=self._work, name=name, daemon=True).start()

    async def call(self, work: Callable[[], _Result], *, seconds: float, first: bool = False) -> _Result:
        """The result of ``work()`` (or what it raises), had within ``seconds``. ``first``: before all that is not.

        Work that is still waiting when its time is over is not begun; work that has begun goes on to its end, unheard.

        Raises OrderError (503).
        """
        with self._lock:
            if self._occupied[first] >= self._capacity:
                raise OrderError(f"{self._name}: too many calls are waiting, try again later", status=503)
            self._occupied[first] += 1
        loop = asyncio.get_running_loop()
        future: asyncio.Future[_Result] = loop.create_future()
        deadline = time.monotonic() + seconds

        def job() -> None:
            try:
                if future.cancelled() or time.monotonic() > deadline:
                    return
                result, problem = work(), None
            except BaseException as exc:
                result, problem = None, exc
            finally:
                with self._lock:
                    self._occupied[first] -= 1
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(_settle, future, result, problem)

        self._jobs.put((not first, next(self._numbers), job))
        try:
            async with asyncio.timeout(seconds):
                return await future
        except TimeoutError as exc:
            raise OrderError(f"{self._name}: not done within {seconds:g} s, try again later", status=503) from exc

    def close(self) -> None:
        """Take no more work; the thread ends after what it is doing."""
        self._jobs.put((True, next(self._numbers), None))

    def _work(self) -> None:
        while (job := self._jobs.get()[2]) is not None:
            job()


def _settle(future: asyncio.Future[Any], result: object, problem: BaseException | None) -> None:
    if future.done():
        return
    if problem is None:
        future.set_result(result)
    else:
        future.set_exception(problem)
