"""The collector: all that needs the machine's devices and files, behind the fixed vocabulary of ``orders``.

Devices are asked one call at a time in a lane, evidence is never older than the request it answers by more than
EVIDENCE_SECONDS, and orders pass owner and container before anything is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from cosmian_vm.agent.config import AgentConfig, AppConfig
from cosmian_vm.agent.devices import Devices
from cosmian_vm.agent.lane import Lane
from cosmian_vm.agent.log import LOGGER
from cosmian_vm.agent.orders import SnapshotState
from cosmian_vm.agent.owner import Caller, Owners
from cosmian_vm.agent.services import Service, service_for
from cosmian_vm.agent.snapshot_job import SnapshotJob
from cosmian_vm.agent.storage import Storage
from cosmian_vm.attester.platform import Platform
from cosmian_vm.errors import NotAvailableError
from cosmian_vm.wire import EvidenceAnswer, TpmQuoteV1, VersionAnswer

__all__ = ["EVIDENCE_SECONDS", "Collector"]

EVIDENCE_SECONDS = 30.0
"""From the request to the last byte of evidence read."""
_ORDER_SECONDS = 110.0
_MAX_DEVICE_CALLS = 64
_MAX_ORDERS = 4

_Result = TypeVar("_Result")


class Collector:
    """``orders.Orders`` over the devices of ``platform``, in this process."""

    def __init__(
        self, config: AgentConfig, platform: Platform, *, storage: Storage | None = None, service: Service | None = None
    ) -> None:
        self._owners = Owners(config.owners)
        self._storage = storage or Storage(config)
        self._app = config.app
        self._service = service
        if service is None and config.app is not None:
            self._service = service_for(config.app, config.tmp)
        self._devices = Devices(platform, self._owners.names)
        self._device_lane = Lane("devices", capacity=_MAX_DEVICE_CALLS)
        self._order_lane = Lane("application", capacity=_MAX_ORDERS)
        self._job = SnapshotJob(platform, self._devices, self._owners.names, self._device_lane)
        self._version: VersionAnswer | None = None

    async def close(self) -> None:
        """End what runs."""
        await self._job.close()
        self._device_lane.close()
        self._order_lane.close()

    async def version(self) -> VersionAnswer:
        """What this machine has; asked once."""
        if self._version is None:
            self._version = await self._ask(self._devices.describe)
        return self._version

    async def evidence(self, nonce: bytes, leaf: bytes, ima_from: int) -> EvidenceAnswer:
        """See ``orders.Orders``."""
        return await self._ask(lambda: self._devices.evidence(nonce, leaf, ima_from))

    async def activate(self, credential_blob: bytes, secret: bytes) -> bytes:
        """See ``orders.Orders``."""
        return await self._ask(lambda: self._devices.activate(credential_blob, secret))

    async def tee_quote_v1(self, nonce: bytes, leaf: bytes) -> bytes:
        """See ``orders.Orders``."""
        return await self._ask(lambda: self._devices.tee_quote_v1(nonce, leaf))

    async def tpm_quote_v1(self, nonce: bytes) -> TpmQuoteV1:
        """See ``orders.Orders``."""
        return await self._ask(lambda: self._devices.tpm_quote_v1(nonce))

    async def ima_ascii(self) -> bytes:
        """See ``orders.Orders``."""
        return await self._ask(self._devices.ima_ascii)

    async def ima_binary(self) -> bytes:
        """See ``orders.Orders``."""
        return await self._ask(self._devices.ima_binary)

    async def snapshot(self, caller: Caller) -> SnapshotState:
        """See ``orders.Orders``. Reading the state needs no right; ordering one does."""
        if not self._job.ordered:
            self._allow(caller, "snapshot")
            self._job.order()
        return self._job.state

    async def delete_snapshot(self, caller: Caller) -> None:
        """See ``orders.Orders``."""
        self._allow(caller, "delete snapshot")
        self._job.delete()

    async def init_app(self, caller: Caller, configuration: bytes) -> None:
        """See ``orders.Orders``."""
        app, service = self._application()
        self._allow(caller, "app init")

        def work() -> None:
            self._storage.write_app_configuration(app, configuration)
            service.restart()

        await self._order_lane.call(work, seconds=_ORDER_SECONDS)
        LOGGER.info("order: app init from %s: done", caller.address)

    async def restart_app(self, caller: Caller) -> None:
        """See ``orders.Orders``."""
        _, service = self._application()
        self._allow(caller, "app restart")
        await self._order_lane.call(service.restart, seconds=_ORDER_SECONDS)
        LOGGER.info("order: app restart from %s: done", caller.address)

    async def _ask(self, work: Callable[[], _Result]) -> _Result:
        return await self._device_lane.call(work, seconds=EVIDENCE_SECONDS)

    def _allow(self, caller: Caller, order: str) -> None:
        self._owners.check(caller)
        self._storage.require_open()
        LOGGER.info("order: %s from %s (API version %d)", order, caller.address, caller.api)

    def _application(self) -> tuple[AppConfig, Service]:
        if self._app is None or self._service is None:
            raise NotAvailableError("this machine has no application (agent.toml has no section [app])")
        return self._app, self._service
