"""The collector's end of the seam: a Unix socket that takes the orders of ``orders.Orders`` from the front's process.

Whoever connects must be that very process. It is not believed to be well: sizes, counts and times are bounded, and
what is not an order costs it the connection.
"""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from cosmian_vm.agent.answers import Budget
from cosmian_vm.agent.caller import MAX_TARGET, Caller
from cosmian_vm.agent.log import LOGGER, describe
from cosmian_vm.agent.messages import (
    MAX_ANSWER,
    MAX_ORDER,
    MAX_SMALL_ORDER,
    Activate,
    AddOwner,
    AdmitInit,
    AppLogs,
    AppStatus,
    Claim,
    DeleteSnapshot,
    Done,
    Evidence,
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
    failed,
    frame,
    read_body,
    read_length,
)
from cosmian_vm.agent.orders import Orders
from cosmian_vm.agent.privileges import FrontUser
from cosmian_vm.errors import ConfigError, CosmianVmError
from cosmian_vm.owner_proof import MAX_PROOF

__all__ = ["OrdersServer", "listen_for_orders"]

MAX_CONNECTIONS = 128
_MAX_LARGE = 4
"""Large orders that are read or obeyed at once."""
_MAX_ANSWERING = 512 * 1024 * 1024
"""Bytes of answers that wait to be taken, all together."""
_MAX_ADDRESS = 100
_MAX_LEAF = 64 * 1024
_READ_SECONDS = 30.0
_WRITE_SECONDS = 60.0
_LARGE_SECONDS = 120.0
_PIECE = 1024 * 1024
_CREDENTIALS = struct.Struct("3i")  # struct ucred, unix(7)

_Given = (
    Snapshot
    | DeleteSnapshot
    | AdmitInit
    | InitApp
    | IsOwner
    | RestartApp
    | AppStatus
    | AppLogs
    | Claim
    | AddOwner
    | RemoveOwner
)

_orders = msgspec.msgpack.Decoder(Order)


def listen_for_orders(user: FrontUser, name: str) -> tuple[socket.socket, Path]:
    """A listening socket called ``name`` in the folder ``user.runtime``, which nobody but root and ``user`` can enter.

    Raises ConfigError where there can be none.
    """
    folder = user.runtime
    path = folder / name
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        seen = folder.lstat()
        if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.geteuid():
            raise ConfigError(f"{folder}: is no folder of root's; it is for the agent alone")
        os.chown(folder, 0, user.gid)
        folder.chmod(0o710)
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(os.fspath(path))
            os.chown(path, user.uid, user.gid)
            path.chmod(0o600)
            listener.listen(MAX_CONNECTIONS)
        except BaseException:
            listener.close()
            raise
    except OSError as exc:
        raise ConfigError(f"{path}: the front's socket cannot be made: {exc.strerror or exc}") from exc
    listener.setblocking(False)
    return listener, path


class OrdersServer:
    """Obeys the process that ``is_front(uid, pid)`` knows. ``orders``: who does the work."""

    def __init__(self, orders: Orders, is_front: Callable[[int, int], bool]) -> None:
        self._do = orders
        self._is_front = is_front
        self._large = asyncio.Semaphore(_MAX_LARGE)
        self._budget = Budget(_MAX_ANSWERING)
        self._conversations: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        """Take connections; the socket belongs to the server now."""
        self._server = await asyncio.start_unix_server(self._converse, sock=listener)

    async def close(self) -> None:
        """End all conversations."""
        if self._server is not None:
            self._server.close()
        tasks = list(self._conversations)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            return
        self._conversations.add(task)
        try:
            self._check_peer(writer)
            while await self._obey_next(reader, writer):
                pass
        except (FrameError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
            LOGGER.warning("the front's socket: a connection was closed: %s", " ".join(str(exc).split()))
        except TimeoutError:
            LOGGER.warning("the front's socket: a connection was closed: it was too slow")
        except (OSError, asyncio.CancelledError):
            pass  # the front has ended, or we do
        finally:
            self._conversations.discard(task)
            writer.transport.abort()

    def _check_peer(self, writer: asyncio.StreamWriter) -> None:
        peer = writer.get_extra_info("socket")
        raw = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(raw)
        if not self._is_front(uid, pid):
            raise FrameError(f"it is not the front: process {pid} of user {uid}")
        if len(self._conversations) > MAX_CONNECTIONS:
            raise FrameError(f"more than {MAX_CONNECTIONS} connections")

    async def _obey_next(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Read one order, obey it, answer; False where there is none any more."""
        length = await read_length(reader, MAX_ORDER)
        if length is None:
            return False
        if length <= MAX_SMALL_ORDER:
            answer = await self._obeyed(await _read(reader, length), large=False)
        else:
            async with asyncio.timeout(_LARGE_SECONDS):
                await self._large.acquire()
            try:
                answer = await self._obeyed(await _read(reader, length), large=True)
            finally:
                self._large.release()
        try:
            view = memoryview(answer)
            async with asyncio.timeout(_WRITE_SECONDS):
                for at in range(0, len(view), _PIECE):
                    writer.write(view[at : at + _PIECE])
                    await writer.drain()
        finally:
            self._budget.give_back(len(answer))
        return True

    async def _obeyed(self, raw: bytes, *, large: bool) -> bytes:
        """The answer, its bytes taken from the budget."""
        order = _orders.decode(raw)
        if large and not isinstance(order, InitApp):
            raise FrameError(f"an order of {len(raw)} bytes")
        try:
            answer = frame(Done(await self._result(order)), MAX_ANSWER)
            self._budget.take(len(answer))
        except FrameError:
            raise
        except Exception as exc:
            if not isinstance(exc, CosmianVmError):
                LOGGER.error("order %s: %s", type(order).__name__, describe(exc))
            answer = frame(failed(exc), MAX_ANSWER)
            with suppress(CosmianVmError):
                self._budget.take(len(answer))
                return answer
            raise FrameError("too many answers are waiting to be taken") from exc
        return answer

    async def _result(self, order: Order) -> object:
        """What only reads; the rest is done by ``_given``."""
        match order:
            case Version():
                return await self._do.version()
            case Evidence(nonce=nonce, leaf=leaf, ima_from=ima_from, first=first):
                return await self._do.evidence(nonce, leaf, ima_from, first=first)
            case Activate(credential_blob=credential_blob, secret=secret):
                return await self._do.activate(credential_blob, secret)
            case TeeQuoteV1(nonce=nonce, leaf=leaf):
                return await self._do.tee_quote_v1(nonce, leaf)
            case TpmQuote(nonce=nonce):
                return await self._do.tpm_quote_v1(nonce)
            case ImaAscii():
                return await self._do.ima_ascii()
            case ImaBinary():
                return await self._do.ima_binary()
            case Nonce():
                return await self._do.nonce()
            case ShowOwners():
                return await self._do.owners()
            case _:
                return await self._given(order, _checked(order.caller))

    async def _given(self, order: _Given, caller: Caller) -> object:
        """An order that somebody gives."""
        match order:
            case IsOwner():
                return await self._do.is_owner(caller)
            case Snapshot():
                return await self._do.snapshot(caller)
            case DeleteSnapshot():
                await self._do.delete_snapshot(caller)
            case AdmitInit():
                await self._do.admit_init(caller)
            case InitApp(body=body):
                await self._do.init_app(caller, body)
            case RestartApp():
                await self._do.restart_app(caller)
            case AppStatus():
                return await self._do.app_status(caller)
            case AppLogs(lines=lines):
                return await self._do.app_logs(caller, lines)
            case Claim():
                return await self._do.claim(caller)
            case AddOwner(body=body):
                return await self._do.add_owner(caller, body)
            case RemoveOwner(body=body):
                return await self._do.remove_owner(caller, body)
        return None


async def _read(reader: asyncio.StreamReader, length: int) -> bytes:
    async with asyncio.timeout(_READ_SECONDS):
        return await read_body(reader, length)


def _checked(caller: Caller) -> Caller:
    """What the log will show must not look like lines of its own."""
    if len(caller.address) > _MAX_ADDRESS or not caller.address.isprintable():
        raise FrameError("the caller's address is none")
    if len(caller.target) > MAX_TARGET or len(caller.proof) > MAX_PROOF or len(caller.leaf) > _MAX_LEAF:
        raise FrameError("a caller with more than there can be")
    return caller
