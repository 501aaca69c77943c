"""The one snapshot of this agent: ordered, computed beside everything else, kept until it is deleted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import TypeVar

import msgspec

from cosmian_vm.agent.devices import Devices, DeviceValues
from cosmian_vm.agent.lane import Lane
from cosmian_vm.agent.log import LOGGER, describe
from cosmian_vm.agent.orders import SnapshotState
from cosmian_vm.agent.snapshot_build import (
    Measured,
    SnapshotInputs,
    build,
    check_supported,
    hash_algorithm,
    measured_files,
)
from cosmian_vm.attester.platform import Platform
from cosmian_vm.errors import AttesterError, CosmianVmError, OrderError
from cosmian_vm.evidence.ima import format_path
from cosmian_vm.reference.filesystem import WalkResult, walk_and_hash
from cosmian_vm.reference.snapshot import serialise
from cosmian_vm.wire import SnapshotProgress

__all__ = ["SnapshotJob"]

_Result = TypeVar("_Result")

_DEVICE_SECONDS = 120.0
_WALK_SECONDS = 24 * 3600.0
_MOST_COMPARISONS = 4


class SnapshotJob:
    """At most one snapshot, being computed or done. Used from the event loop only.

    ``owners``: those of the moment. ``lane``: where the devices are asked, before those who only read evidence. The
    walk has a lane of its own: evidence is served meanwhile.
    """

    def __init__(self, platform: Platform, devices: Devices, owners: Callable[[], tuple[str, ...]], lane: Lane) -> None:
        self._platform = platform
        self._devices = devices
        self._owners = owners
        self._device_lane = lane
        self._walk_lane = Lane("snapshot", capacity=2)
        self._state = SnapshotState()
        self._progress = SnapshotProgress(files_done=0, bytes_done=0)
        self._cancelled = threading.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def state(self) -> SnapshotState:
        """Where the snapshot stands."""
        if self._task is not None:
            return SnapshotState(progress=self._progress)
        return self._state

    @property
    def ordered(self) -> bool:
        """Whether there is one, in whatever state."""
        return self._task is not None or self._state != SnapshotState()

    def order(self) -> None:
        """Begin one where there is none."""
        if self.ordered:
            return
        self._progress = SnapshotProgress(files_done=0, bytes_done=0)
        self._cancelled.clear()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def delete(self) -> None:
        """Forget the finished or failed one. Raises OrderError (409) while one is being computed."""
        if self._task is not None:
            raise OrderError("a snapshot is being computed; it can be deleted when it is done", status=409)
        self._state = SnapshotState()

    async def close(self) -> None:
        """End the work: the helper processes are gone when this returns."""
        self._cancelled.set()
        if self._task is not None:
            with suppress(asyncio.CancelledError):
                await self._task
        self._walk_lane.close()

    async def _run(self) -> None:
        try:
            self._state = SnapshotState(finished=await self._compute())
            LOGGER.info("snapshot: done, %d files", self._progress.files_done)
        except CosmianVmError as exc:
            LOGGER.error("snapshot: failed: %s", describe(exc))
            self._state = SnapshotState(failed=" ".join(str(exc).split()))
        except Exception as exc:
            LOGGER.error("snapshot: failed: %s", describe(exc))
            self._state = SnapshotState(failed=f"unexpected {type(exc).__name__}, see the agent's log")
        finally:
            self._task = None

    async def _compute(self) -> bytes:
        check_supported(None if self._platform.tee is None else self._platform.tee.kind)
        log = await self._on_devices(self._platform.logs.ima_binary)
        walked = None
        if log is not None and self._platform.tpm is not None:
            algorithm = hash_algorithm(log)
            walked = await self._walk_lane.call(lambda: self._walk(algorithm), seconds=_WALK_SECONDS)
        # The list is read after the walk: what ran meanwhile belongs to the snapshot too.
        told = await self._on_devices(self._devices.for_snapshot)
        measured = None
        if walked is not None and told.ima_log is not None:
            told, measured = await self._compare(told, told.ima_log, walked[1])
        return await self._walk_lane.call(lambda: self._assemble(told, walked, measured), seconds=_WALK_SECONDS)

    async def _compare(self, told: DeviceValues, log: bytes, walked: WalkResult) -> tuple[DeviceValues, Measured]:
        """What the list names, compared with the disk. A policy that measures what root reads makes an entry of a file
        that has changed when we look at it: what came to the list meanwhile is compared too, within reason.
        """
        root = self._platform.scope.root
        for _ in range(_MOST_COMPARISONS):
            seen = log
            compare = partial(measured_files, seen, root, walked.files, self._stop_if_cancelled)
            measured = await self._walk_lane.call(compare, seconds=_WALK_SECONDS)
            log = await self._on_devices(self._devices.ima_binary)
            if log == seen:
                break
        return msgspec.structs.replace(told, ima_log=seen), measured

    async def _on_devices(self, work: Callable[[], _Result]) -> _Result:
        return await self._device_lane.call(work, seconds=_DEVICE_SECONDS, first=True)

    def _walk(self, algorithm: str) -> tuple[str, WalkResult]:
        walked = walk_and_hash(self._platform.scope, algorithm, self._report, cancelled=self._cancelled.is_set)
        for path, kind in walked.left_out:
            LOGGER.info("snapshot: %s is a mount of type %s and is left out", format_path(path), kind)
        return algorithm, walked

    def _report(self, files: int, size: int, total: int | None) -> None:
        self._progress = SnapshotProgress(files_done=files, bytes_done=size, files_total=total)

    def _assemble(self, told: DeviceValues, walked: tuple[str, WalkResult] | None, measured: Measured | None) -> bytes:
        algorithm, files = walked or (None, None)
        inputs = SnapshotInputs(
            device=told,
            cloud=self._platform.cloud,
            owners=self._owners(),
            algorithm=algorithm,
            files=None if files is None else files.files,
            unreadable=[] if files is None else files.unreadable,
            measured=measured,
            now=datetime.now(UTC),
        )
        return serialise(build(inputs))

    def _stop_if_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise AttesterError("the snapshot was cancelled")
