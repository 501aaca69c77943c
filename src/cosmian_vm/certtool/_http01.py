"""The web server of HTTP-01 (RFC 8555, section 8.3): it answers the pending challenges, from memory, and nothing else.

No file is ever opened for a request. A request is one line and some headers, 8 KiB at most, within five seconds; what
is not exactly ``GET /.well-known/acme-challenge/TOKEN`` of a pending challenge gets 404. Where all places are taken,
the oldest connection gives its own up: hundreds that stay silent do not keep the CA out.
"""

from __future__ import annotations

import errno
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Self

from cosmian_vm.errors import InputError

__all__ = ["PATH", "TOKEN", "ChallengeServer"]

PATH = "/.well-known/acme-challenge/"
TOKEN = re.compile(r"[A-Za-z0-9_-]{22,512}")
"""base64url, 128 bits at least: nothing in it means anything in a path (RFC 8555, section 8.3)."""

_MAX_REQUEST = 8 * 1024
_SECONDS = 5.0
_CONNECTIONS = 256
_LOOK_SECONDS = 0.2
_REQUEST_LINE = re.compile(rb"(GET|HEAD) (/[!-~]*) HTTP/1\.[01]\r?\n")


class ChallengeServer:
    """Listens from ``__enter__`` to ``__exit__``, whatever happens in between.

    ``address``: "" for all of this machine. ``port`` 0: any free one, then in ``port``.
    """

    def __init__(self, address: str, port: int) -> None:
        self._address = address
        self.port = port
        self._answers: dict[str, bytes] = {}
        self._open: dict[socket.socket, None] = {}  # oldest first
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        """Raises InputError where the port cannot be had."""
        self._listener = self._listen()
        self.port = self._listener.getsockname()[1]
        self._listener.settimeout(_LOOK_SECONDS)
        self._pool = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="http-01")
        self._thread = threading.Thread(target=self._accept, name="http-01", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._listener.close()
        self._pool.shutdown(wait=True, cancel_futures=True)  # none lasts longer than five seconds
        for unserved in self._open:
            unserved.close()

    def answer(self, token: str, content: bytes) -> None:
        """Answer requests for ``token`` from now on. Raises ValueError for a token that is none."""
        if not TOKEN.fullmatch(token):
            raise ValueError("not a token")
        self._answers[token] = content

    def forget(self) -> None:
        """No challenge is pending any more."""
        self._answers.clear()

    def _listen(self) -> socket.socket:
        try:
            if self._address:
                family = socket.AF_INET6 if ":" in self._address else socket.AF_INET
                return socket.create_server((self._address, self.port), family=family)
            if socket.has_dualstack_ipv6():
                with suppress(OSError):  # a kernel may have IPv6 and no address of it
                    return socket.create_server(("", self.port), family=socket.AF_INET6, dualstack_ipv6=True)
            return socket.create_server(("", self.port))
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                why = "another program listens there; stop it, or have it pass port 80 on to another --http-port"
            elif exc.errno in (errno.EACCES, errno.EPERM):
                why = "that takes root"
            else:
                why = exc.strerror or str(exc)
            where = f"{self._address} port {self.port}".strip() if self._address else f"port {self.port}"
            raise InputError(f"{where} cannot be listened on: {why}") from exc
        except (ValueError, OverflowError) as exc:
            raise InputError(f"--http-address {self._address!r}: not an address of this machine") from exc

    def _accept(self) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:
                if self._stop.wait(_LOOK_SECONDS):  # out of file descriptors, say
                    return
                continue
            self._make_room()
            with self._lock:
                self._open[connection] = None
            self._pool.submit(self._serve, connection)

    def _make_room(self) -> None:
        with self._lock:
            oldest = next(iter(self._open)) if len(self._open) >= _CONNECTIONS else None
            if oldest is not None:
                del self._open[oldest]
        if oldest is not None:
            with suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)  # whoever serves it finds it ended

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            request = self._read(connection)
            connection.settimeout(_SECONDS)
            connection.sendall(self._response(request))
            connection.shutdown(socket.SHUT_WR)
        with self._lock:
            self._open.pop(connection, None)

    def _read(self, connection: socket.socket) -> bytes:
        """Line and headers; cut where they are too long or take too long."""
        raw = b""
        end = time.monotonic() + _SECONDS
        while b"\r\n\r\n" not in raw and b"\n\n" not in raw and len(raw) < _MAX_REQUEST:
            left = end - time.monotonic()
            if left <= 0 or self._stop.is_set():
                return b""
            connection.settimeout(min(left, 1.0))
            try:
                more = connection.recv(_MAX_REQUEST - len(raw))
            except TimeoutError:
                continue
            if not more:
                return b""
            raw += more
        return raw if len(raw) < _MAX_REQUEST else b""

    def _response(self, request: bytes) -> bytes:
        line = _REQUEST_LINE.match(request)
        content = None if line is None else self._content(line[2].decode("ascii"))
        status = b"404 Not Found" if content is None else b"200 OK"
        body = b"not found\n" if content is None else content
        kind = b"text/plain" if content is None else b"application/octet-stream"
        head = b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n"
        head = head % (status, kind, len(body))
        return head if line is not None and line[1] == b"HEAD" else head + body

    def _content(self, path: str) -> bytes | None:
        """Exactly the path of a pending challenge: no dots, no escapes, no query are looked through."""
        return self._answers.get(path[len(PATH) :]) if path.startswith(PATH) else None
