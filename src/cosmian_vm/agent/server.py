"""The front's serving: TLS, HTTP, and an end in good order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from cosmian_vm.agent._uvicorn import Config, Server
from cosmian_vm.agent.asgi import ASGIApp
from cosmian_vm.agent.http_protocol import MAX_CONNECTIONS, _Protocol, make_protocol
from cosmian_vm.agent.listener import BACKLOG
from cosmian_vm.agent.log import LOGGER, describe
from cosmian_vm.agent.tls import Identity

__all__ = ["serve"]

_KEEP_ALIVE_SECONDS = 20
_GOODBYE_SECONDS = 10
_REFRESH_SECONDS = 1.0


async def serve(
    app: ASGIApp,
    identity: Identity,
    listener: socket.socket,
    *,
    on_ready: Callable[[str, int], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT (in the main thread), or until ``stop`` is set."""
    config = Config(
        app,
        http=make_protocol(identity),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=_GOODBYE_SECONDS,
    )
    config.load()
    config.ssl = identity.context
    address = listener.getsockname()
    server = _Server(config, lambda: _announce(address, on_ready))
    identity.on_change = server.retire_outdated
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_log_exception)
    watches = [loop.create_task(_watch(identity))]
    if stop is not None:
        watches.append(loop.create_task(_until(stop, server)))
    try:
        await server.serve(sockets=[listener])
    finally:
        for watch in watches:
            watch.cancel()
        listener.close()


class _Server(Server):
    def __init__(self, config: Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a signal that ended the server is not raised again: to end is not a failure."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def retire_outdated(self) -> None:
        """Close the connections that show another certificate than the present one, after the answer in progress."""
        for connection in list(self.server_state.connections):
            if isinstance(connection, _Protocol) and connection.outdated:
                connection.retire()


def _announce(address: tuple[Any, ...], on_ready: Callable[[str, int], None] | None) -> None:
    host, port = address[0], address[1]
    LOGGER.info("listening on https://%s:%d", f"[{host}]" if ":" in host else host, port)
    if on_ready is not None:
        on_ready(host, port)


async def _watch(identity: Identity) -> None:
    """Certificates are picked up also when nobody connects: older connections do not linger."""
    while True:
        await asyncio.sleep(_REFRESH_SECONDS)
        identity.refresh()


async def _until(stop: asyncio.Event, server: Server) -> None:
    await stop.wait()
    server.should_exit = True


def _log_exception(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What asyncio finds wrong by itself: lost connections are everyday, the rest is one line."""
    exc = context.get("exception")
    if isinstance(exc, OSError):
        return
    LOGGER.error("%s%s", context.get("message", "error"), f": {describe(exc)}" if exc is not None else "")
