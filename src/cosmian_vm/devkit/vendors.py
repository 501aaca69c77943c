"""A fake of AMD's KDS, Intel's PCS and a PCCS on loopback: one HTTP server with the vendors' paths, headers and forms.

It serves what the simulated vendors sign, and it can misbehave (:class:`Lie`), as a service that was broken into or a
box on the wire would.
"""

from __future__ import annotations

import ssl
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, auto
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, quote, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.devkit.amd import AmdVendor
from cosmian_vm.devkit.intel import Document, IntelVendor
from cosmian_vm.endorsements.store import Answer, Fetcher, Limits, Request, Services, vcek_url

__all__ = ["FakeVendors", "Lie"]

_HOST = "127.0.0.1"
_HUGE = 64 << 20
_CHUNK = bytes(1 << 16)
_DRIP = 0.02
_LITTLE = Limits(connect=1.0, read=0.5, total=1.0)


class Lie(Enum):
    """What the server does instead of answering."""

    GARBAGE = auto()
    """200, and a page for people."""
    HUGE = auto()
    """200, and more bytes than anybody wants."""
    BUSY = auto()
    """429 with Retry-After."""
    SILENT = auto()
    """Takes the request and says nothing."""
    DRIP = auto()
    """200, and a byte now and then."""
    DRIP_HEADERS = auto()
    """A byte of a header now and then."""
    CUT = auto()
    """Hangs up in the middle of the body."""
    REDIRECT = auto()
    """Sends to another host."""

    @property
    def takes_time(self) -> bool:
        """Whether it has no end but the asker's patience."""
        return self in (Lie.SILENT, Lie.DRIP, Lie.DRIP_HEADERS)


@dataclass
class _Reply:
    body: bytes
    kind: str = "application/octet-stream"
    headers: tuple[tuple[str, str], ...] = ()


class FakeVendors:
    """Serves ``amd`` and ``intel`` until it is closed; a context manager.

    ``asked``: each request's path and query, in order. ``lie``: for every path that holds ``lie_about``. ``busy``: how
    many times it is busy before it answers, with ``retry_after`` (a header's value). ``pause``: seconds before each
    answer. ``crl_fields``: of AmdVendor.crl; ``tcb_fields``: of IntelVendor.tcb_info. ``tls``: serve HTTPS with it.
    """

    def __init__(
        self, amd: AmdVendor | None = None, intel: IntelVendor | None = None, *, tls: ssl.SSLContext | None = None
    ) -> None:
        self.amd, self.intel = amd, intel
        self.asked: list[str] = []
        self.lie: Lie | None = None
        self.lie_about = ""
        self.busy = 0
        self.retry_after = "0"
        self.pause = 0.0
        self.crl_fields: dict[str, Any] = {}
        self.tcb_fields: dict[str, Any] = {}
        self.closing = threading.Event()
        handler = type("Handler", (_Handler,), {"vendors": self})
        self._server = ThreadingHTTPServer((_HOST, 0), handler)
        self._server.daemon_threads = True
        self._scheme = "http"
        if tls is not None:
            self._scheme = "https"
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Base address."""
        return f"{self._scheme}://{_HOST}:{self._server.server_address[1]}"

    @property
    def services(self) -> Services:
        """Its addresses, Intel's own forms."""
        return Services(kds=self.url, pcs=self.url, root_crl=f"{self.url}/IntelSGXRootCA.der")

    def close(self) -> None:
        """Stop; requests that hang are let go."""
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def __enter__(self) -> FakeVendors:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fetch(self, request: Request) -> Answer:
        """GET as verifiers do, with the usual patience; little of it for a lie that takes its time.

        Raises RefusedError, TransportError.
        """
        lying = self.lie is not None and self.lie.takes_time and self.lie_about in request.url
        return Fetcher(_LITTLE if lying else Limits())(request)

    def reply(self, target: str) -> _Reply | None:
        """The honest answer to a GET; None for 404."""
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        return self._amd(target, parts.path) or self._intel(parts.path, query)

    def _amd(self, target: str, path: str) -> _Reply | None:
        vendor = self.amd
        if vendor is None:
            return None
        base = f"/{'vlek' if vendor.vlek else 'vcek'}/v1/{vendor.product}"
        if path == f"{base}/cert_chain":
            pem = b"".join(c.public_bytes(Encoding.PEM) for c in (vendor.ask, vendor.ark))
            return _Reply(pem, "application/x-pem-file")
        if path == f"{base}/crl":
            return _Reply(vendor.crl(**self.crl_fields), "application/pkix-crl")
        if not vendor.vlek and target == vcek_url(vendor.report(), vendor.product, ""):
            return _Reply(vendor.chip.public_bytes(Encoding.DER), "application/pkix-cert")
        return None

    def _intel(self, path: str, query: dict[str, str]) -> _Reply | None:
        vendor = self.intel
        if vendor is None:
            return None
        pki = vendor.pki
        _, tee, rest = path.split("/", 2) if path.count("/") > 1 else ("", "", path)
        name = rest.removeprefix("certification/v4/")
        signers = (pki.signer, pki.root)
        if name == "tcb" and query.get("fmspc", "").lower() == pki.platform.fmspc.hex() and tee in ("sgx", "tdx"):
            body = _signed("tcbInfo", vendor.tcb_info(tee.upper(), **self.tcb_fields))
            return _Reply(body, "application/json", (("TCB-Info-Issuer-Chain", _header(*signers)),))
        if name == "qe/identity" and tee in ("sgx", "tdx"):
            body = _signed("enclaveIdentity", vendor.qe_identity(tee.upper()))
            return _Reply(body, "application/json", (("SGX-Enclave-Identity-Issuer-Chain", _header(*signers)),))
        if name == "pckcrl" and query.get("ca") == "platform" and query.get("encoding") == "der":
            chain = (("SGX-PCK-CRL-Issuer-Chain", _header(pki.authority, pki.root)),)
            return _Reply(vendor.crl(pki.authority), "application/pkix-crl", chain)
        if path == "/IntelSGXRootCA.der":
            return _Reply(vendor.crl(pki.root), "application/pkix-crl")
        if name == "rootcacrl":  # a PCCS, which gives it as text
            return _Reply(vendor.crl(pki.root).hex().encode(), "text/plain")
        return None


class _Handler(BaseHTTPRequestHandler):
    vendors: ClassVar[FakeVendors]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        vendors = self.vendors
        vendors.asked.append(self.path)
        self.close_connection = True
        vendors.closing.wait(vendors.pause)
        if vendors.busy > 0:
            vendors.busy -= 1
            self._send(429, b"", (("Retry-After", vendors.retry_after),))
            return
        if vendors.lie is not None and vendors.lie_about in self.path:
            self._misbehave(vendors.lie)
            return
        reply = vendors.reply(self.path)
        if reply is None:
            self._send(404, b"no such thing")
        else:
            self._send(200, reply.body, (("Content-Type", reply.kind), *reply.headers))

    def _send(self, status: int, body: bytes, headers: tuple[tuple[str, str], ...] = ()) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _misbehave(self, lie: Lie) -> None:
        with suppress(OSError):  # the other side had enough
            _MISDEEDS[lie](self)

    def garbage(self) -> None:
        self._send(200, b"<html>Welcome to the hotel's network</html>", (("Content-Type", "text/html"),))

    def huge(self) -> None:
        self._start(_HUGE)
        for _ in range(_HUGE // len(_CHUNK)):
            self.wfile.write(_CHUNK)

    def too_busy(self) -> None:
        self._send(429, b"", (("Retry-After", self.vendors.retry_after),))

    def silent(self) -> None:
        self.vendors.closing.wait()

    def drip(self) -> None:
        self._start(100_000)
        self._drops(b"0")

    def drip_headers(self) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
        self._drops(b"a")

    def cut(self) -> None:
        self._start(1000)
        self.wfile.write(b"0" * 100)

    def redirect(self) -> None:
        self._send(302, b"", (("Location", "https://elsewhere.example.com/crl"),))

    def _start(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _drops(self, drop: bytes) -> None:
        while not self.vendors.closing.is_set():
            self.wfile.write(drop)
            self.wfile.flush()
            time.sleep(_DRIP)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


_MISDEEDS = {
    Lie.GARBAGE: _Handler.garbage,
    Lie.HUGE: _Handler.huge,
    Lie.BUSY: _Handler.too_busy,
    Lie.SILENT: _Handler.silent,
    Lie.DRIP: _Handler.drip,
    Lie.DRIP_HEADERS: _Handler.drip_headers,
    Lie.CUT: _Handler.cut,
    Lie.REDIRECT: _Handler.redirect,
}


def _signed(member: str, document: Document) -> bytes:
    return f'{{"{member}":{document.text},"signature":"{document.signature.hex()}"}}'.encode()


def _header(*certificates: x509.Certificate) -> str:
    return quote(b"".join(c.public_bytes(Encoding.PEM) for c in certificates).decode())
