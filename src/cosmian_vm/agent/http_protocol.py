"""HTTP/1.1 over one TLS connection: uvicorn's protocol, with bounds of size and time, and the leaf that its client saw.

uvicorn limits neither how long a request may take to arrive nor how large its head may be.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

from cosmian_vm.agent._uvicorn import Config, HttpToolsProtocol, ServerState
from cosmian_vm.agent.answers import Shares
from cosmian_vm.agent.tls import Identity
from cosmian_vm.errors import OrderError

__all__ = ["MAX_CONNECTIONS", "make_protocol"]

HEAD_SECONDS = 15.0
"""From the first byte of a connection (or of its next request) to the end of the request's head."""

BODY_SECONDS = 150.0
"""From there to the end of the body; calls have shorter limits of their own."""

_GOODBYE_SECONDS = 1.0

MAX_HEAD = 64 * 1024
"""Largest head of a request, in bytes."""

MAX_CONNECTIONS = 1024
"""Connections at once. Beyond it the answer is 503 for those who have more than a few of them. At twice as many,
whoever has most gives one up for a client with fewer.
"""

A_FEW = 8
"""Connections with which a client is answered whatever the others do."""

MAX_OF_ONE_CLIENT = 128
"""Of these, how many one client may have: nobody alone takes all."""


def make_protocol(identity: Identity) -> type[HttpToolsProtocol]:
    """The protocol class of a server that shows ``identity``."""

    class Protocol(_Protocol):
        tls = identity
        places = Shares(MAX_OF_ONE_CLIENT)

    return Protocol


class _Protocol(HttpToolsProtocol):
    tls: Identity
    places: Shares

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._leaf: bytes | None = None
        self._client: bytes | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._in_head = False  # a request's head has begun to arrive and is not complete
        self._fed = 0  # bytes of the present request
        self._body = 0  # those of its body among them

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's own
        try:
            self._client = self.places.take(str((transport.get_extra_info("peername") or ("unknown",))[0]))
        except OrderError:
            self.transport = transport
            transport.abort()
            return
        if len(self.connections) >= 2 * MAX_CONNECTIONS and not self._make_room(self._client):
            self.transport = transport
            transport.abort()
            return
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        if isinstance(tls, ssl.SSLObject):
            self._leaf = self.tls.leaf_of(tls)
        self._give_time(HEAD_SECONDS)

    def _make_room(self, client: bytes) -> bool:
        """Where all places are taken, whoever has most of them gives one to a client that has fewer: hundreds of
        connections of a few strangers do not keep an owner out. One that is not being answered goes first.
        """
        greedy, most = self.places.busiest()
        if most <= self.places.of(client):
            return False
        victim: _Protocol | None = None
        for connection in self.connections:
            if not isinstance(connection, _Protocol) or connection.places_of != greedy:
                continue
            victim = connection
            if connection.is_idle:
                break
        if victim is None:
            return False
        victim.transport.abort()
        return True

    @property
    def places_of(self) -> bytes | None:
        """The client whose connection this is; None once it is being closed."""
        return None if self.transport.is_closing() else self._client

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being answered."""
        return self.cycle is None or bool(self.cycle.response_complete)

    def connection_lost(self, exc: Exception | None) -> None:
        self._take_time()
        if self._client is not None:
            self.places.give_back(self._client)
            self._client = None
        if self in self.connections:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.parser is None or self.transport.is_closing():
            return
        # What is not body is head, trailers, and the framing of chunks (6 bytes for one at worst): none is endless.
        if self._fed > MAX_HEAD + 9 * self._body:
            self.send_400_response("The head of the request is too large.")
            return
        self._fed += len(data)
        super().data_received(data)
        idle = self.cycle is None or self.cycle.response_complete
        if self._timer is None and idle and not self.transport.is_closing():
            self._give_time(HEAD_SECONDS)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._fed = self._body = 0
        self._give_time(HEAD_SECONDS)
        self.scope["state"].update(leaf=self._leaf, abort=self.transport.abort)

    def on_headers_complete(self) -> None:
        self._in_head = False
        few = self._client is not None and self.places.of(self._client) <= A_FEW
        self.limit_concurrency = None if few else MAX_CONNECTIONS
        super().on_headers_complete()
        self._give_time(BODY_SECONDS)
        self.tls.refresh()
        if self.outdated:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._take_time()

    def send_400_response(self, msg: str) -> None:
        """Say so and close. Who sends rubbish may not answer a polite goodbye either: it has a second for it."""
        super().send_400_response(msg)
        self._give_time(_GOODBYE_SECONDS)

    @property
    def outdated(self) -> bool:
        """Whether the certificate of this connection is not the present one."""
        return self._leaf is not None and self._leaf != self.tls.leaf

    def retire(self) -> None:
        """Close when the request that is arriving or being answered is done; now, where there is none."""
        if not self._in_head:
            self.shutdown()

    def _give_time(self, seconds: float) -> None:
        self._take_time()
        self._timer = self.loop.call_later(seconds, self.transport.abort)

    def _take_time(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
