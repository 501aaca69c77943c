"""Answers on the wire: JSON, one line of text, zstd where the client takes it; sent in pieces, in bounded time."""

from __future__ import annotations

import asyncio
import ipaddress
from collections import Counter
from collections.abc import Mapping

import msgspec
import zstandard

from cosmian_vm.agent.asgi import Receive, Scope, Send
from cosmian_vm.agent.log import LOGGER, describe, new_error_id
from cosmian_vm.errors import AttesterError, CosmianVmError, NotAvailableError, OrderError

__all__ = [
    "Answer",
    "Budget",
    "Shares",
    "byte_array",
    "compressed",
    "from_error",
    "json_answer",
    "network",
    "takes_zstd",
    "text_answer",
]

_PIECE = 64 * 1024
_PIECE_SECONDS = 30.0
_SEND_SECONDS = 60.0
_SLOWEST = 64 * 1024
"""Bytes a second below which a client is given up."""
_ZSTD_LEVEL = 1
_WORTH_COMPRESSING = 1024
_MAX_TEXT = 1000
_SLICE = 64 * 1024


class Budget:
    """How many bytes of large bodies may be on their way, in or out, at once: slow clients must not fill the memory."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0

    def take(self, size: int) -> None:
        """Raises OrderError (503) where there is no room; a single one always has room."""
        if size and self._used and self._used + size > self._limit:
            raise OrderError("too much is being sent and received, try again later", status=503)
        self._used += size

    def give_back(self, size: int) -> None:
        """The answer is out, or given up."""
        self._used -= size


class Shares:
    """How many requests of one client may be underway at once: nobody alone takes what there is for all.

    A client is an IPv4 address, or the network (/64) of an IPv6 address: whoever has one of its addresses has all.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._underway: Counter[bytes] = Counter()

    def take(self, address: str) -> bytes:
        """The client, for ``give_back``. Raises OrderError (503) where its share is used up."""
        client = network(address)
        if self._underway[client] >= self._most:
            raise OrderError("too many requests from this address are underway, try again later", status=503)
        self._underway[client] += 1
        return client

    def busiest(self) -> tuple[bytes, int]:
        """Who has most of them underway, and how many; (b"", 0) where nobody has any."""
        return max(self._underway.items(), key=lambda item: item[1], default=(b"", 0))

    def of(self, client: bytes) -> int:
        """How many of this client are underway."""
        return self._underway.get(client, 0)

    def give_back(self, client: bytes) -> None:
        """One of its requests is over."""
        self._underway[client] -= 1
        if not self._underway[client]:
            del self._underway[client]


def network(address: str) -> bytes:
    """The client that an address stands for: the IPv4 address, or the network (/64) of an IPv6 one."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address.encode("utf-8", "replace")
    if isinstance(parsed, ipaddress.IPv6Address):
        mapped = parsed.ipv4_mapped
        return parsed.packed[:8] if mapped is None else mapped.packed
    return parsed.packed


class Answer:
    """One answer; an ASGI application, so that routes may return it. ``close``: end the connection after it."""

    def __init__(
        self,
        status: int,
        body: bytes,
        media_type: str,
        headers: Mapping[str, str] | None = None,
        *,
        close: bool = False,
    ) -> None:
        self.status = status
        self.body = body
        self.headers = {
            "content-type": media_type,
            "content-length": str(len(body)),
            "cache-control": "no-store",
            **(headers or {}),
        }
        if close:
            self.headers["connection"] = "close"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. A client that takes too long loses its connection."""
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()]
        try:
            async with asyncio.timeout(_SEND_SECONDS + len(self.body) / _SLOWEST):
                await send({"type": "http.response.start", "status": self.status, "headers": headers})
                view = memoryview(self.body)
                for at in range(0, len(view), _PIECE):
                    async with asyncio.timeout(_PIECE_SECONDS):
                        piece = bytes(view[at : at + _PIECE])
                        await send({"type": "http.response.body", "body": piece, "more_body": True})
                        await asyncio.sleep(0)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            LOGGER.info("a client did not take its answer in time; its connection is closed")
            abort = scope.get("state", {}).get("abort")
            if abort is not None:
                abort()
            while (await receive())["type"] != "http.disconnect":
                pass


def text_answer(status: int, text: str, headers: Mapping[str, str] | None = None, *, close: bool = False) -> Answer:
    """One line of text, printable."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[:_MAX_TEXT]).split())
    return Answer(status, line.encode(), "text/plain; charset=utf-8", headers, close=close)


def json_answer(value: object, status: int = 200) -> Answer:
    """A small value as JSON."""
    return Answer(status, msgspec.json.encode(value), "application/json")


def compressed(body: bytes, *, zstd: bool) -> Answer:
    """A body that is JSON already, compressed where that is worth it. Blocks."""
    headers = {"vary": "accept-encoding"}
    if zstd and len(body) >= _WORTH_COMPRESSING:
        body = zstandard.ZstdCompressor(level=_ZSTD_LEVEL).compress(body)
        headers["content-encoding"] = "zstd"
    return Answer(200, body, "application/json", headers)


def takes_zstd(accept_encoding: str) -> bool:
    """Whether the client says that it takes zstd (RFC 9110, section 12.5.3)."""
    for item in accept_encoding.lower().split(","):
        coding, *parameters = (part.strip() for part in item.split(";"))
        if coding == "zstd":
            weight = next((p[2:] for p in parameters if p.startswith("q=")), "1")
            return weight.strip("0.") != ""
    return False


def byte_array(raw: bytes) -> bytes:
    """JSON array of byte values, made in slices: as Python integers, all of it would take 8 times its size."""
    slices = (msgspec.json.encode(list(raw[at : at + _SLICE]))[1:-1] for at in range(0, len(raw), _SLICE))
    return b"[" + b",".join(slices) + b"]"


def from_error(exc: Exception, call: str) -> Answer:
    """The answer to a call that failed. What status 500 hides stands in the log, under the id that the answer has."""
    if isinstance(exc, OrderError) and exc.status in (400, 401, 403, 404, 409, 413, 503):
        headers = {"www-authenticate": "cosmian-vm-proof"} if exc.status == 401 else None
        return text_answer(exc.status, str(exc), headers, close=exc.status == 413)
    if isinstance(exc, NotAvailableError):
        return text_answer(404, str(exc))
    error_id = new_error_id()
    LOGGER.error("error %s in %s: %s", error_id, call, describe(exc))
    told = isinstance(exc, AttesterError | OrderError) and isinstance(exc, CosmianVmError)
    return text_answer(500, f"{exc if told else 'internal error'} (error {error_id}: the agent's log explains it)")
