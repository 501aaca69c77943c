"""An agent of a few lines: real TLS on loopback, each answer scripted, for tests of the client and the command line."""

from __future__ import annotations

import ssl
import tempfile
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cosmian_vm.certificates import SelfSigned, leaf_der, self_signed

Reply = tuple[int, bytes] | tuple[int, bytes, dict[str, str]]
Route = Callable[["Call"], Reply]


class Call:
    """One request as it came. ``leaf``: certificate (DER) of the connection that it came over."""

    def __init__(self, method: str, target: str, headers: dict[str, str], body: bytes, leaf: bytes) -> None:
        self.method = method
        self.path, _, self.query = target.partition("?")
        self.headers = headers
        self.body = body
        self.leaf = leaf


class FakeAgent:
    """``routes``: (method, path) to what answers it; anything else is 404. ``calls``: all requests, in order."""

    def __init__(self, identity: SelfSigned | None = None) -> None:
        self.routes: dict[tuple[str, str], Route] = {}
        self.calls: list[Call] = []
        self.connections = 0
        self.use(identity or self_signed("fake-agent", ["127.0.0.1"], now=datetime.now(UTC)))
        agent = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                self.leaf, context = agent.leaf, agent.context
                self.request.settimeout(10)
                self.request = context.wrap_socket(self.request, server_side=True)
                agent.connections += 1
                super().setup()

            def finish(self) -> None:
                try:
                    super().finish()
                finally:
                    self.rfile.close()
                    self.request.close()

            def answer(self) -> None:
                size = int(self.headers.get("Content-Length") or 0)
                headers = {k.lower(): v for k, v in self.headers.items()}
                call = Call(self.command, self.path, headers, self.rfile.read(size), self.leaf)
                agent.calls.append(call)
                route = agent.routes.get((call.method, call.path))
                status, body, *more = (404, b"not found") if route is None else route(call)
                self.send_response(status)
                extra: dict[str, str] = more[0] if more else {}
                for name, value in {"Content-Length": str(len(body)), **extra}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_DELETE = answer  # noqa: N815 - names of http.server

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                pass  # clients that hang up, handshakes that fail: what the tests are about

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"https://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def use(self, identity: SelfSigned) -> None:
        """New connections get this certificate."""
        self.identity = identity
        self.leaf = leaf_der(identity.certificate_pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.TemporaryDirectory() as folder:
            certificate, key = Path(folder, "cert.pem"), Path(folder, "key.pem")
            certificate.write_bytes(identity.certificate_pem)
            key.write_bytes(identity.key_pem)
            context.load_cert_chain(certificate, key)
        self.context = context

    def route(self, method: str, path: str, status: int = 200, body: bytes = b"null", **headers: str) -> None:
        """Answer always the same."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.routes[method, path] = lambda _: (status, body, named)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
