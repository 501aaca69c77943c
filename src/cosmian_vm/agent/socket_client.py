"""The front's end of the seam: ``orders.Orders`` over the collector's Unix socket.

A connection carries one order at a time; those that are free are kept for the next ones.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec.msgpack import Decoder

from cosmian_vm.agent.caller import Caller
from cosmian_vm.agent.messages import (
    MAX_ANSWER,
    MAX_ORDER,
    Activate,
    AddOwner,
    AdmitInit,
    AppLogs,
    AppStatus,
    Claim,
    DeleteSnapshot,
    Done,
    Evidence,
    Failed,
    FrameError,
    ImaAscii,
    ImaBinary,
    InitApp,
    IsOwner,
    Nonce,
    Order,
    RemoveOwner,
    RestartApp,
    ShowOwners,
    Snapshot,
    TeeQuoteV1,
    TpmQuote,
    Version,
    frame,
    raised,
    read_body,
    read_length,
)
from cosmian_vm.agent.orders import SnapshotState
from cosmian_vm.errors import OrderError
from cosmian_vm.wire import AppAnswer, AppLogsAnswer, EvidenceAnswer, OwnersAnswer, TpmQuoteV1, VersionAnswer

__all__ = ["RemoteOrders"]

_MAX_CALLS = 96
"""Orders at once: more than the collector's lanes take, fewer than its connections."""
_MAX_OTHERS = 24
"""Orders beyond that, of those that do not wait for devices."""
_MAX_IDLE = 16
_CALL_SECONDS = 140.0
"""The collector's own limits are shorter."""

_ON_DEVICES = (Evidence, Activate, TeeQuoteV1, TpmQuote, ImaAscii, ImaBinary)

_Result = TypeVar("_Result")
_Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


_VERSION: Decoder[Done[VersionAnswer] | Failed] = Decoder(Done[VersionAnswer] | Failed)
_EVIDENCE: Decoder[Done[EvidenceAnswer] | Failed] = Decoder(Done[EvidenceAnswer] | Failed)
_BYTES: Decoder[Done[bytes] | Failed] = Decoder(Done[bytes] | Failed)
_TPM_QUOTE: Decoder[Done[TpmQuoteV1] | Failed] = Decoder(Done[TpmQuoteV1] | Failed)
_SNAPSHOT: Decoder[Done[SnapshotState] | Failed] = Decoder(Done[SnapshotState] | Failed)
_OWNERS: Decoder[Done[OwnersAnswer] | Failed] = Decoder(Done[OwnersAnswer] | Failed)
_APP: Decoder[Done[AppAnswer] | Failed] = Decoder(Done[AppAnswer] | Failed)
_APP_LOGS: Decoder[Done[AppLogsAnswer] | Failed] = Decoder(Done[AppLogsAnswer] | Failed)
_TRUE: Decoder[Done[bool] | Failed] = Decoder(Done[bool] | Failed)
_NOTHING: Decoder[Done[None] | Failed] = Decoder(Done[None] | Failed)


class RemoteOrders:
    """``orders.Orders``, obeyed by the process that listens at ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._idle: list[_Connection] = []
        self._calls = 0

    def close(self) -> None:
        """Close what is free."""
        while self._idle:
            self._idle.pop()[1].close()

    async def version(self) -> VersionAnswer:
        """See ``orders.Orders``."""
        return await self._order(Version(), _VERSION)

    async def is_owner(self, caller: Caller) -> bool:
        """See ``orders.Orders``."""
        return await self._order(IsOwner(caller=caller), _TRUE)

    async def evidence(self, nonce: bytes, leaf: bytes, ima_from: int, *, first: bool = False) -> EvidenceAnswer:
        """See ``orders.Orders``."""
        return await self._order(Evidence(nonce=nonce, leaf=leaf, ima_from=ima_from, first=first), _EVIDENCE)

    async def activate(self, credential_blob: bytes, secret: bytes) -> bytes:
        """See ``orders.Orders``."""
        return await self._order(Activate(credential_blob=credential_blob, secret=secret), _BYTES)

    async def tee_quote_v1(self, nonce: bytes, leaf: bytes) -> bytes:
        """See ``orders.Orders``."""
        return await self._order(TeeQuoteV1(nonce=nonce, leaf=leaf), _BYTES)

    async def tpm_quote_v1(self, nonce: bytes) -> TpmQuoteV1:
        """See ``orders.Orders``."""
        return await self._order(TpmQuote(nonce=nonce), _TPM_QUOTE)

    async def ima_ascii(self) -> bytes:
        """See ``orders.Orders``."""
        return await self._order(ImaAscii(), _BYTES)

    async def ima_binary(self) -> bytes:
        """See ``orders.Orders``."""
        return await self._order(ImaBinary(), _BYTES)

    async def snapshot(self, caller: Caller) -> SnapshotState:
        """See ``orders.Orders``."""
        return await self._order(Snapshot(caller=caller), _SNAPSHOT)

    async def delete_snapshot(self, caller: Caller) -> None:
        """See ``orders.Orders``."""
        await self._order(DeleteSnapshot(caller=caller), _NOTHING)

    async def admit_init(self, caller: Caller) -> None:
        """See ``orders.Orders``."""
        await self._order(AdmitInit(caller=caller), _NOTHING)

    async def init_app(self, caller: Caller, body: bytes) -> None:
        """See ``orders.Orders``."""
        await self._order(InitApp(caller=caller, body=body), _NOTHING)

    async def restart_app(self, caller: Caller) -> None:
        """See ``orders.Orders``."""
        await self._order(RestartApp(caller=caller), _NOTHING)

    async def app_status(self, caller: Caller) -> AppAnswer:
        """See ``orders.Orders``."""
        return await self._order(AppStatus(caller=caller), _APP)

    async def app_logs(self, caller: Caller, lines: int) -> AppLogsAnswer:
        """See ``orders.Orders``."""
        return await self._order(AppLogs(caller=caller, lines=lines), _APP_LOGS)

    async def nonce(self) -> bytes:
        """See ``orders.Orders``."""
        return await self._order(Nonce(), _BYTES)

    async def owners(self) -> OwnersAnswer:
        """See ``orders.Orders``."""
        return await self._order(ShowOwners(), _OWNERS)

    async def claim(self, caller: Caller) -> OwnersAnswer:
        """See ``orders.Orders``."""
        return await self._order(Claim(caller=caller), _OWNERS)

    async def add_owner(self, caller: Caller, body: bytes) -> OwnersAnswer:
        """See ``orders.Orders``."""
        return await self._order(AddOwner(caller=caller, body=body), _OWNERS)

    async def remove_owner(self, caller: Caller, body: bytes) -> OwnersAnswer:
        """See ``orders.Orders``."""
        return await self._order(RemoveOwner(caller=caller, body=body), _OWNERS)

    async def _order(self, order: Order, decoder: Decoder[Done[_Result] | Failed]) -> _Result:
        """The result; raises what the collector raised, or OrderError (503) where it does not answer.

        What asks the devices may not take all places: the others are for orders, which are short or have an owner.
        """
        waits = isinstance(order, _ON_DEVICES) and not getattr(order, "first", False)
        most = _MAX_CALLS if waits else _MAX_CALLS + _MAX_OTHERS
        if self._calls >= most:
            raise OrderError("too many calls are waiting, try again later", status=503)
        self._calls += 1
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                raw = await self._exchange(frame(order, MAX_ORDER))
            answer = decoder.decode(raw)
        except (FrameError, OSError, TimeoutError, msgspec.MsgspecError) as exc:
            raise OrderError("the collector does not answer, try again later", status=503) from exc
        finally:
            self._calls -= 1
        if isinstance(answer, Failed):
            raise raised(answer)
        return answer.result

    async def _exchange(self, request: bytes) -> bytes:
        """One frame there, one back. A connection that was given up half-way is not used again."""
        reader, writer = await self._connection()
        whole = False
        try:
            writer.write(request)
            await writer.drain()
            length = await read_length(reader, MAX_ANSWER)
            if length is None:
                raise FrameError("the collector has closed the connection")
            raw = await read_body(reader, length)
            whole = True
        finally:
            if whole and len(self._idle) < _MAX_IDLE:
                self._idle.append((reader, writer))
            else:
                writer.transport.abort()
        return raw

    async def _connection(self) -> _Connection:
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.transport.abort()
        return await asyncio.open_unix_connection(self._path)
