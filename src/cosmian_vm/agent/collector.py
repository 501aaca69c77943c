"""The collector: all that needs the machine's devices and files, behind the fixed vocabulary of ``orders``.

Devices are asked one call at a time in a lane, evidence is never older than the request it answers by more than
EVIDENCE_SECONDS, and orders pass owner and container before anything is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec

from cosmian_vm import wire
from cosmian_vm.agent.application import Application
from cosmian_vm.agent.audit import Audit
from cosmian_vm.agent.caller import Caller
from cosmian_vm.agent.config import AgentConfig
from cosmian_vm.agent.devices import Devices
from cosmian_vm.agent.lane import Lane
from cosmian_vm.agent.nonces import Nonces
from cosmian_vm.agent.orders import SnapshotState
from cosmian_vm.agent.owner import Owners
from cosmian_vm.agent.services import Service
from cosmian_vm.agent.snapshot_job import SnapshotJob
from cosmian_vm.agent.storage import Storage
from cosmian_vm.attester.platform import Platform
from cosmian_vm.errors import OrderError
from cosmian_vm.wire import (
    AppAnswer,
    AppLogsAnswer,
    EvidenceAnswer,
    OwnerRequest,
    OwnersAnswer,
    TpmQuoteV1,
    VersionAnswer,
)

__all__ = ["EVIDENCE_SECONDS", "Collector"]

EVIDENCE_SECONDS = 30.0
"""From the request to the last byte of evidence read."""
_ORDER_SECONDS = 110.0
_MAX_DEVICE_CALLS = 64
_MAX_ORDERS = 8
_SNAPSHOTS = (wire.SNAPSHOT_V2, wire.SNAPSHOT_V1)

_Result = TypeVar("_Result")


class Collector:
    """``orders.Orders`` over the devices of ``platform``, in this process."""

    def __init__(
        self,
        config: AgentConfig,
        platform: Platform,
        *,
        storage: Storage | None = None,
        service: Service | None = None,
        nonces: Nonces | None = None,
    ) -> None:
        self._storage = storage or Storage(config)
        self._owners = Owners(config.owners, self._storage, nonces=nonces)
        self._audit = Audit()
        self._app = Application(config, self._storage, service)
        self._devices = Devices(platform, ())  # the owners are put into evidence as it leaves: they change
        self._device_lane = Lane("devices", capacity=_MAX_DEVICE_CALLS)
        self._order_lane = Lane("application", capacity=_MAX_ORDERS)
        self._job = SnapshotJob(platform, self._devices, lambda: self._owners.names, self._device_lane)
        self._version: VersionAnswer | None = None

    async def close(self) -> None:
        """End what runs."""
        await self._job.close()
        self._device_lane.close()
        self._order_lane.close()
        self._owners.close()

    async def version(self) -> VersionAnswer:
        """What this machine has; asked once."""
        if self._version is None:
            self._version = await self._ask(self._devices.describe)
        return self._version

    async def is_owner(self, caller: Caller) -> bool:
        """See ``orders.Orders``."""
        return self._owners.is_owner(caller, "POST", (wire.EVIDENCE,))

    async def evidence(self, nonce: bytes, leaf: bytes, ima_from: int, *, first: bool = False) -> EvidenceAnswer:
        """See ``orders.Orders``."""
        answer = await self._ask(lambda: self._devices.evidence(nonce, leaf, ima_from), first=first)
        return msgspec.structs.replace(answer, owners=list(self._owners.names))

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
            with self._audit.order("snapshot", caller) as who:
                self._allow(who, caller, "GET", _SNAPSHOTS)
                self._job.order()
        return self._job.state

    async def delete_snapshot(self, caller: Caller) -> None:
        """See ``orders.Orders``."""
        with self._audit.order("delete snapshot", caller) as who:
            self._allow(who, caller, "DELETE", _SNAPSHOTS)
            self._job.delete()

    async def admit_init(self, caller: Caller) -> None:
        """See ``orders.Orders``."""
        self._storage.require_open()
        try:
            self._owners.admit(caller, "POST", (wire.APP_INIT,))
        except OrderError:
            with self._audit.order("app init", caller):
                raise

    async def init_app(self, caller: Caller, body: bytes) -> None:
        """See ``orders.Orders``."""
        with self._audit.order(f"app init ({len(body)} bytes sent)", caller) as who:
            self._allow(who, caller, "POST", (wire.APP_INIT,), body)
            await self._order_lane.call(lambda: self._app.init(body), seconds=_ORDER_SECONDS)

    async def restart_app(self, caller: Caller) -> None:
        """See ``orders.Orders``."""
        with self._audit.order("app restart", caller) as who:
            self._allow(who, caller, "POST", (wire.APP_RESTART,))
            await self._order_lane.call(self._app.restart, seconds=_ORDER_SECONDS)

    async def app_status(self, caller: Caller) -> AppAnswer:
        """See ``orders.Orders``."""
        with self._audit.order("app status", caller) as who:
            self._allow(who, caller, "GET", (wire.APP,))
            return await self._order_lane.call(self._app.status, seconds=_ORDER_SECONDS)

    async def app_logs(self, caller: Caller, lines: int) -> AppLogsAnswer:
        """See ``orders.Orders``. They may quote secrets: whoever is not known to own them does not see them."""
        with self._audit.order(f"app logs ({lines} lines)", caller) as who:
            if self._owners.open_to_anyone:
                raise OrderError('an agent with owners = "anyone" shows the application\'s log to nobody', status=403)
            self._allow(who, caller, "GET", (f"{wire.APP_LOGS}?lines={lines}",))
            return await self._order_lane.call(lambda: self._app.logs(lines), seconds=_ORDER_SECONDS)

    async def nonce(self) -> bytes:
        """See ``orders.Orders``."""
        return self._owners.nonce()

    async def owners(self) -> OwnersAnswer:
        """See ``orders.Orders``."""
        return OwnersAnswer(owners=list(self._owners.names), claimable=self._owners.claimable)

    async def claim(self, caller: Caller) -> OwnersAnswer:
        """See ``orders.Orders``."""
        with self._audit.order("claim", caller) as who:
            self._storage.require_open()
            who.append(await self._owners.claim(caller, "POST", wire.OWNER_CLAIM))
        return await self.owners()

    async def add_owner(self, caller: Caller, body: bytes) -> OwnersAnswer:
        """See ``orders.Orders``."""
        with self._audit.order("add owner", caller) as who:
            self._allow(who, caller, "POST", (wire.OWNER_ADD,), body)
            await self._owners.add(_owner_of(body))
        return await self.owners()

    async def remove_owner(self, caller: Caller, body: bytes) -> OwnersAnswer:
        """See ``orders.Orders``."""
        with self._audit.order("remove owner", caller) as who:
            self._allow(who, caller, "POST", (wire.OWNER_REMOVE,), body)
            await self._owners.remove(_owner_of(body))
        return await self.owners()

    async def _ask(self, work: Callable[[], _Result], *, first: bool = False) -> _Result:
        return await self._device_lane.call(work, seconds=EVIDENCE_SECONDS, first=first)

    def _allow(self, who: list[str], caller: Caller, method: str, targets: tuple[str, ...], body: bytes = b"") -> None:
        """Let the order pass, and put into ``who`` whose it is; or raise OrderError. ``targets``: what it is called."""
        self._storage.require_open()
        who.append(self._owners.check(caller, method, targets, body))


def _owner_of(body: bytes) -> str:
    try:
        return msgspec.json.decode(body, type=OwnerRequest).owner
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise OrderError(f"the body is not understood: {exc}", status=400) from exc
