"""The front as a process of its own: it takes its user and serves HTTPS, until the collector ends or says so.

It is started by root, which it stays only until all modules are loaded. No module of devices is among them.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

import msgspec
import uvloop

from cosmian_vm.agent.front import create_app
from cosmian_vm.agent.handover import MAX_HANDOVER, HandedIdentity, Handover, Material, Ready, Start
from cosmian_vm.agent.log import LOGGER, configure, describe
from cosmian_vm.agent.messages import LENGTH, FrameError, frame, read_body, read_length
from cosmian_vm.agent.privileges import FrontUser, become, die_with
from cosmian_vm.agent.server import serve
from cosmian_vm.agent.socket_client import RemoteOrders
from cosmian_vm.errors import ConfigError, CosmianVmError

__all__ = ["main"]

_START_SECONDS = 30.0
_END_SECONDS = 12.0

_handover = msgspec.msgpack.Decoder(Handover)


def main(control: int, listener: int, parent: int) -> int:
    """Serve on the inherited descriptors. Exit status: 0 where it ended because it was told to."""
    configure()
    try:
        die_with(parent)
        channel = socket.socket(fileno=control)
        accepting = socket.socket(fileno=listener)
        for inherited in (channel, accepting):
            inherited.set_inheritable(False)
        start = _start(channel)
        become(FrontUser(start.user, start.uid, start.gid))
        die_with(parent)
        accepting.setblocking(False)
        channel.setblocking(False)
        uvloop.run(_serve(start, channel, accepting))
    except (CosmianVmError, FrameError) as exc:
        LOGGER.error("the front cannot start: %s", exc)
        return 1
    except OSError as exc:
        LOGGER.error("the front cannot start: %s", describe(exc))
        return 1
    return 0


def _start(channel: socket.socket) -> Start:
    channel.settimeout(_START_SECONDS)
    length = LENGTH.unpack(_exactly(channel, LENGTH.size))[0]
    if length > MAX_HANDOVER:
        raise FrameError(f"a start of {length} bytes")
    start = _handover.decode(_exactly(channel, length))
    if not isinstance(start, Start):
        raise FrameError("the collector said something else first")
    return start


def _exactly(channel: socket.socket, size: int) -> bytes:
    got = bytearray()
    while len(got) < size:
        piece = channel.recv(size - len(got))
        if not piece:
            raise FrameError("the collector has ended")
        got += piece
    return bytes(got)


async def _serve(start: Start, channel: socket.socket, listener: socket.socket) -> None:
    orders = RemoteOrders(Path(start.orders))
    identity = HandedIdentity(start.material)
    reader, writer = await asyncio.open_connection(sock=channel)
    stop = asyncio.Event()
    hearing = asyncio.create_task(_hear(reader, identity, stop))

    def ready(_host: str, _port: int) -> None:
        writer.write(frame(Ready(), MAX_HANDOVER))

    try:
        await serve(create_app(orders), identity, listener, on_ready=ready, stop=stop)
    finally:
        hearing.cancel()
        orders.close()
        writer.transport.abort()


async def _hear(reader: asyncio.StreamReader, identity: HandedIdentity, stop: asyncio.Event) -> None:
    """Take what the collector hands over. When it has ended, the front ends: in good order, or else after a while."""
    try:
        while (length := await read_length(reader, MAX_HANDOVER)) is not None:
            material = _handover.decode(await read_body(reader, length))
            if isinstance(material, Material):
                try:
                    identity.take(material)
                except ConfigError as exc:
                    LOGGER.warning("TLS certificate: the present one stays in use: %s", exc)
    except (FrameError, OSError, msgspec.MsgspecError) as exc:
        LOGGER.error("the front ends: %s", describe(exc))
    finally:
        stop.set()
        end = threading.Timer(_END_SECONDS, os._exit, (1,))
        end.daemon = True
        with suppress(RuntimeError):
            end.start()
