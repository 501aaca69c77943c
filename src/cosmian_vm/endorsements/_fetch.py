"""One GET from a vendor's service, bounded in time and size. What it brings is trusted for nothing.

No redirect is followed: AMD's and Intel's services give none, and whoever sits on the wire should choose no host. The
system resolver's own time limit is the one thing that the limits here do not shorten.
"""

from __future__ import annotations

import http.client
import io
import time
from collections.abc import Callable
from contextlib import closing
from typing import TYPE_CHECKING, cast
from urllib.parse import SplitResult, urlsplit

import msgspec

from cosmian_vm.errors import RefusedError, TransportError

if TYPE_CHECKING:
    import socket
    import ssl

    from _typeshed import WriteableBuffer

__all__ = ["Answer", "Fetch", "Fetcher", "Limits", "Request", "fetch", "is_loopback"]

_BUSY = (429, 503)
_CHUNK = 1 << 16
_FIRST_PAUSE = 1.0


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds. ``connect``: for a connection to stand, TLS included; ``read``: for the next bytes to come; ``total``:
    for one thing, repetitions and the pauses between them included; ``together``: when all that one verification looks
    up has taken as long, nothing more is asked for.
    """

    connect: float = 10.0
    read: float = 10.0
    total: float = 30.0
    together: float = 60.0


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to GET. ``most``: a longer body is refused, in bytes. ``headers``: of these headers of the answer the first
    that is there is kept.
    """

    url: str
    most: int
    headers: tuple[str, ...] = ()


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """``body``, and ``header``: of the one header that was asked for, as it came; empty where there is none."""

    body: bytes
    header: str = ""


Fetch = Callable[[Request], Answer]
"""Gets one thing. Raises RefusedError where the service answered otherwise, TransportError where it did not answer."""


class Fetcher:
    """Gets one thing over TLS with the usual CA checks, by way of the proxy that the environment names.

    ``tls``: other CAs than the system's. ``http://`` is for this machine alone (a PCCS on it, say). A service that is
    busy (429, 503) is asked again after the pause that it names, as far as ``limits`` allow.
    """

    def __init__(self, limits: Limits | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        self._limits = limits or Limits()
        self._tls = tls

    def __call__(self, request: Request) -> Answer:
        """Raises RefusedError, TransportError."""
        end = time.monotonic() + self._limits.total
        pause = _FIRST_PAUSE
        while True:
            answer = self._once(request, end)
            if isinstance(answer, Answer):
                return answer
            wait = pause if answer is None else answer
            host = urlsplit(request.url).hostname
            if time.monotonic() + wait >= end:
                raise TransportError(f"{host} is busy and wants to be asked again in {wait:.0f} s")
            time.sleep(wait)
            pause *= 2

    def _once(self, request: Request, end: float) -> Answer | float | None:
        """The answer; where the service is busy the pause that it asks for, None if it names none."""
        parts = urlsplit(request.url)
        host = parts.hostname or ""
        try:
            with closing(self._connection(parts, end)) as connection:
                connection.connect()
                connection.sock = cast("socket.socket", _BoundedSocket(connection.sock, self._limits.read, end))
                target = f"{parts.path}?{parts.query}" if parts.query else parts.path
                connection.request("GET", target, headers={"User-Agent": "cosmian-vm", "Accept-Encoding": "identity"})
                return _read(connection.getresponse(), request, host)
        except (OSError, ValueError, http.client.HTTPException) as exc:
            raise TransportError(f"{host} gave no answer: {_problem(exc)}") from exc

    def _connection(self, parts: SplitResult, end: float) -> http.client.HTTPConnection:
        host, port = _address(parts)
        timeout = max(min(self._limits.connect, end - time.monotonic()), 0.001)
        if parts.scheme == "http":
            if not is_loopback(host):
                raise TransportError(f"http:// is for this machine alone, {host} takes https://")
            return http.client.HTTPConnection(host, port or 80, timeout=timeout)
        if parts.scheme != "https":
            raise TransportError(f"{_printable(parts.geturl())} is no address that begins with https://")
        import ssl

        tls = self._tls or ssl.create_default_context()
        proxy = _proxy(host)
        if proxy is None:
            return http.client.HTTPSConnection(host, port or 443, timeout=timeout, context=tls)
        return _ThroughProxy(proxy, host, port or 443, tls, timeout=timeout, read=self._limits.read, end=end)


def fetch(request: Request) -> Answer:
    """What a Fetcher with the usual limits and CAs gets. Raises RefusedError, TransportError."""
    return Fetcher()(request)


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine."""
    import ipaddress

    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _address(parts: SplitResult) -> tuple[str, int | None]:
    try:
        return parts.hostname or "", parts.port
    except ValueError as exc:
        raise TransportError(f"{_printable(parts.geturl())} is no address: {exc}") from exc


def _proxy(host: str) -> tuple[str, int] | None:
    """The proxy of the environment for https, if it has one for ``host``. (One with a password is not supported.)"""
    if is_loopback(host):
        return None
    from urllib.request import getproxies, proxy_bypass

    named = getproxies().get("https", "")
    if not named or proxy_bypass(host):
        return None
    parts = urlsplit(named if "://" in named else f"http://{named}")
    proxy, port = _address(parts)
    return (proxy, port or 3128) if proxy else None


class _BoundedSocket:
    """As much of a socket as http.client uses, each read bounded by what is left of the time."""

    def __init__(self, sock: socket.socket, read: float, end: float) -> None:
        self._sock, self._read, self._end = sock, read, end

    def _bound(self) -> None:
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("it took too long")
        self._sock.settimeout(min(self._read, left))

    def makefile(self, mode: str) -> io.BufferedReader:  # noqa: ARG002 - http.client's interface
        return io.BufferedReader(_BoundedReads(self._sock, self._bound))

    def sendall(self, data: bytes) -> None:
        self._bound()
        self._sock.sendall(data)

    def close(self) -> None:
        self._sock.close()


class _BoundedReads(io.RawIOBase):
    """The reading end, for io.BufferedReader."""

    def __init__(self, sock: socket.socket, bound: Callable[[], None]) -> None:
        self._sock, self._bound = sock, bound

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        self._bound()
        return self._sock.recv_into(buffer)


class _ThroughProxy(http.client.HTTPSConnection):
    """As http.client's tunnel, but what the proxy answers is bounded in time: between it and us there is no TLS, and
    whoever sits there could have us wait for the end of its answer without end.
    """

    def __init__(
        self,
        proxy: tuple[str, int],
        host: str,
        port: int,
        tls: ssl.SSLContext,
        *,
        timeout: float,
        read: float,
        end: float,
    ) -> None:
        super().__init__(host, port, timeout=timeout, context=tls)
        self._proxy, self._tls, self._limit, self._read, self._end = proxy, tls, timeout, read, end

    def connect(self) -> None:
        """Raises OSError, http.client.HTTPException."""
        import socket

        target = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        plain = socket.create_connection(self._proxy, self._limit)
        try:
            bounded = cast("socket.socket", _BoundedSocket(plain, self._read, self._end))
            bounded.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode("ascii"))
            answer = http.client.HTTPResponse(bounded, method="CONNECT")
            answer.begin()
            if answer.status != http.client.OK:
                raise OSError(f"the proxy answered {answer.status} {_printable(answer.reason)}")
            plain.settimeout(max(min(self._limit, self._end - time.monotonic()), 0.001))
            self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise


def _read(answer: http.client.HTTPResponse, request: Request, host: str) -> Answer | float | None:
    """As Fetcher._once. Raises RefusedError for any status but 200."""
    if answer.status in _BUSY:
        return _retry_after(answer.headers)
    if answer.status != http.client.OK:
        raise RefusedError(f"{host} answered {answer.status} {_printable(answer.reason)}", status=answer.status)
    body = _body(answer, request.most, host)
    header = next((answer.headers[name] for name in request.headers if name in answer.headers), "")
    return Answer(body=body, header=header)


def _body(answer: http.client.HTTPResponse, most: int, host: str) -> bytes:
    body = bytearray()
    while chunk := answer.read1(min(_CHUNK, most + 1 - len(body))):
        body += chunk
        if len(body) > most:
            raise TransportError(f"{host} sent more than {most} bytes")
    if answer.length:
        raise TransportError(f"{host} broke off before the end")
    return bytes(body)


def _retry_after(headers: http.client.HTTPMessage) -> float | None:
    """Retry-After in seconds (RFC 9110, 10.2.3: a number or a date), at least 0; None where there is none."""
    from email.utils import parsedate_to_datetime

    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        return max(parsedate_to_datetime(text).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return None


def _problem(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it took too long"
    return _printable(str(getattr(error, "strerror", None) or error)) or type(error).__name__


def _printable(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:200]
