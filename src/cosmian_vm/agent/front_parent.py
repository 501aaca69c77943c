"""The collector's side of the front's process: started, given its certificate, watched, started anew, and ended."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from cosmian_vm.agent.handover import MAX_HANDOVER, MaterialFiles, Ready, Start
from cosmian_vm.agent.log import LOGGER, describe
from cosmian_vm.agent.messages import FrameError, frame, read_body, read_length
from cosmian_vm.agent.orders import Orders
from cosmian_vm.agent.privileges import FrontUser
from cosmian_vm.agent.selinux import executing_the_front
from cosmian_vm.agent.socket_server import OrdersServer, listen_for_orders

__all__ = ["serve_apart"]

_PROGRAM = Path(__file__).with_name("front_start.py")
_ENVIRONMENT = ("LANG", "LC_ALL", "LC_CTYPE", "TZ")
_REFRESH_SECONDS = 1.0
_READY_SECONDS = 60.0
_GOODBYE_SECONDS = 13.0
"""A little more than the server takes for its own goodbye."""
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 30.0
_RAN_WELL_SECONDS = 60.0
"""A front that ran this long did not die of its start."""

_ready = msgspec.msgpack.Decoder(Ready)


async def serve_apart(
    orders: Orders,
    material: MaterialFiles,
    listener: socket.socket,
    user: FrontUser,
    on_ready: Callable[[str, int], None] | None,
    *,
    stop: asyncio.Event,
) -> None:
    """Serve ``orders`` through a front that runs as ``user``, until SIGTERM or SIGINT, which set ``stop``, or until
    somebody else does.

    Raises ConfigError where the runtime folder cannot be used.
    """
    host, port = listener.getsockname()[:2]
    accepting, path = listen_for_orders(user, f"{host}_{port}.sock")
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    announce = (lambda: None) if on_ready is None else (lambda: on_ready(host, port))
    front = _Front(user, path, material, listener, announce)
    server = OrdersServer(orders, front.is_it)
    try:
        await server.start(accepting)
        await front.keep(stop)
    finally:
        await server.close()
        accepting.close()
        path.unlink(missing_ok=True)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


class _Front:
    """The process, or the one after it."""

    def __init__(
        self,
        user: FrontUser,
        orders: Path,
        material: MaterialFiles,
        listener: socket.socket,
        on_ready: Callable[[], None],
    ) -> None:
        self._user = user
        self._orders = orders
        self._material = material
        self._listener = listener
        self._on_ready: Callable[[], None] | None = on_ready
        self._pid: int | None = None

    def is_it(self, uid: int, pid: int) -> bool:
        """Whether this is the front as it runs now."""
        return uid == self._user.uid and pid == self._pid

    async def keep(self, stop: asyncio.Event) -> None:
        """See that there is a front, until ``stop``."""
        pause = _FIRST_PAUSE
        while not stop.is_set():
            began = time.monotonic()
            status = await self._run(stop)
            if stop.is_set():
                break
            if time.monotonic() - began > _RAN_WELL_SECONDS:
                pause = _FIRST_PAUSE
            how = f"by signal {-status}" if status < 0 else f"with status {status}"
            LOGGER.error("the front ended %s; it is started again in %g s", how, pause)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await stop.wait()
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _run(self, stop: asyncio.Event) -> int:
        """One front, from its start to its end; its exit status, negative for a signal."""
        ours, theirs = socket.socketpair()
        with ours:
            try:
                process = self._spawn(theirs)
            finally:
                theirs.close()
            self._pid = process.pid
            ours.setblocking(False)
            try:
                async with _ended(process) as ended:
                    reader, writer = await asyncio.open_connection(sock=ours)
                    tasks = [
                        asyncio.create_task(self._listen_to(reader, process)),
                        asyncio.create_task(self._hand_over(writer)),
                    ]
                    try:
                        await _first_of(ended, stop)
                        if stop.is_set():
                            self._listener.close()  # nobody new is to wait for an answer
                    finally:
                        for task in tasks:
                            task.cancel()
                        await asyncio.gather(*tasks, return_exceptions=True)
                        writer.transport.abort()  # which tells the front to end
                    with suppress(TimeoutError):
                        async with asyncio.timeout(_GOODBYE_SECONDS):
                            await ended.wait()
            finally:
                self._pid = None
                _signal(process, signal.SIGKILL)
            return process.wait()

    def _spawn(self, control: socket.socket) -> subprocess.Popen[bytes]:
        flags = ["-IS"] + (["-B"] if sys.dont_write_bytecode else [])
        modules = os.pathsep.join(path for path in sys.path if Path(path).is_absolute())
        numbers = (control.fileno(), self._listener.fileno())
        with executing_the_front():
            return subprocess.Popen(
                [sys.executable, *flags, os.fspath(_PROGRAM), *map(str, (*numbers, os.getpid())), modules],
                stdin=subprocess.DEVNULL,
                pass_fds=numbers,
                env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                cwd="/",
            )

    async def _listen_to(self, reader: asyncio.StreamReader, process: subprocess.Popen[bytes]) -> None:
        """The front says once that it is ready. One that says something else, or nothing in time, is ended."""
        try:
            async with asyncio.timeout(_READY_SECONDS):
                length = await read_length(reader, MAX_HANDOVER)
                if length is None:
                    return
                _ready.decode(await read_body(reader, length))
        except (TimeoutError, FrameError, OSError, msgspec.MsgspecError) as exc:
            LOGGER.error("the front did not become ready: %s", describe(exc))
            _signal(process, signal.SIGKILL)
            return
        if self._on_ready is not None:
            self._on_ready()
            self._on_ready = None

    async def _hand_over(self, writer: asyncio.StreamWriter) -> None:
        """All that the front needs to start, then the certificate again whenever its files have changed."""
        user = self._user
        handed = self._material.present
        start = Start(user=user.name, uid=user.uid, gid=user.gid, orders=os.fspath(self._orders), material=handed)
        with suppress(OSError):  # it has ended
            writer.write(frame(start, MAX_HANDOVER))
            while True:
                await writer.drain()
                await asyncio.sleep(_REFRESH_SECONDS)
                self._material.refresh()
                if self._material.present != handed:
                    handed = self._material.present
                    writer.write(frame(handed, MAX_HANDOVER))


@asynccontextmanager
async def _ended(process: subprocess.Popen[bytes]) -> AsyncIterator[asyncio.Event]:
    """An event that is set when the process has ended."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    descriptor = os.pidfd_open(process.pid)
    loop.add_reader(descriptor, event.set)
    try:
        yield event
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)


async def _first_of(*events: asyncio.Event) -> None:
    tasks = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Without CAP_KILL it is not heard; the end of the pair of sockets is."""
    with suppress(PermissionError):
        process.send_signal(number)
