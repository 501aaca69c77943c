"""One GET: bounded in time and size, patient with a busy service, deaf to redirects."""

from __future__ import annotations

import socket
import ssl
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.certificates import self_signed
from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.intel import IntelVendor
from cosmian_vm.devkit.vendors import FakeVendors, Lie
from cosmian_vm.endorsements import _fetch
from cosmian_vm.endorsements._fetch import Answer, Fetcher, Limits, Request
from cosmian_vm.errors import RefusedError, TransportError


@pytest.fixture(scope="module")
def intel() -> IntelVendor:
    return IntelVendor.create()


@pytest.fixture(scope="module")
def amd() -> AmdVendor:
    return AmdVendor.create(keys=VendorKeys.load(Path(__file__).resolve().parent.parent / "data" / "devkit_amd"))


def _request(
    service: FakeVendors, path: str = "/IntelSGXRootCA.der", most: int = 10_000, headers: tuple[str, ...] = ()
) -> Request:
    return Request(url=service.url + path, most=most, headers=headers)


def test_body_and_header(amd: AmdVendor, intel: IntelVendor) -> None:
    with FakeVendors(amd, intel) as service:
        answer = Fetcher()(_request(service, "/vcek/v1/Milan/cert_chain"))
        assert answer.body == b"".join(c.public_bytes(Encoding.PEM) for c in (amd.ask, amd.ark))
        assert answer.header == ""
        path = "/sgx/certification/v4/pckcrl?ca=platform&encoding=der"
        answer = Fetcher()(_request(service, path, headers=("X-None", "SGX-PCK-CRL-Issuer-Chain")))
        assert answer.header.startswith("-----BEGIN%20CERTIFICATE-----%0A")
        assert service.asked[-1] == path


def test_what_is_not_there(intel: IntelVendor) -> None:
    with FakeVendors(intel=intel) as service, pytest.raises(RefusedError, match="answered 404") as caught:
        Fetcher()(_request(service, "/nothing"))
    assert caught.value.status == 404


@pytest.mark.parametrize(
    ("lie", "line"),
    [
        (Lie.HUGE, "sent more than 10000 bytes"),
        (Lie.SILENT, "took too long"),
        (Lie.DRIP, "took too long"),
        (Lie.DRIP_HEADERS, "took too long"),
        (Lie.CUT, "127.0.0.1"),
        (Lie.REDIRECT, "answered 302"),
    ],
)
def test_misdeeds(lie: Lie, line: str) -> None:
    """Dripping outlives every single read's limit: only the limit of the whole ends it."""
    with FakeVendors() as service:
        service.lie = lie
        with pytest.raises(TransportError, match=line):
            service.fetch(_request(service))
        assert len(service.asked) <= 1


def test_a_body_of_exactly_the_limit(amd: AmdVendor) -> None:
    with FakeVendors(amd) as service:
        path = "/vcek/v1/Milan/cert_chain"
        whole = Fetcher()(_request(service, path)).body
        assert Fetcher()(_request(service, path, most=len(whole))).body == whole
        with pytest.raises(TransportError, match=f"sent more than {len(whole) - 1} bytes"):
            Fetcher()(_request(service, path, most=len(whole) - 1))


def test_a_busy_service_is_asked_again(intel: IntelVendor) -> None:
    with FakeVendors(intel=intel) as service:
        service.busy = 2
        assert Fetcher()(_request(service)).body
        assert len(service.asked) == 3
        service.busy, service.retry_after = 1, format_datetime(datetime.now(UTC) - timedelta(days=1), usegmt=True)
        assert Fetcher()(_request(service)).body


@pytest.mark.parametrize("retry_after", ["86400", "9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT", "soon"])
def test_a_pause_longer_than_the_limit_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, retry_after: str) -> None:
    monkeypatch.setattr(_fetch, "_FIRST_PAUSE", Limits().total)  # where the service names none
    with FakeVendors() as service:
        service.lie, service.retry_after = Lie.BUSY, retry_after
        with pytest.raises(TransportError, match="is busy and wants to be asked again in"):
            Fetcher()(_request(service))
        assert len(service.asked) == 1


def test_nobody_there() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/crl"
        with pytest.raises(TransportError, match=r"127\.0\.0\.1 gave no answer: Connection refused"):
            Fetcher()(Request(url=url, most=10))


@pytest.mark.parametrize(
    "url",
    [
        "http://kdsintf.amd.com/x",
        "ftp://127.0.0.1/x",
        "file:///etc/passwd",
        "https://127.0.0.1:port/",
        "https://a b/",
        "http://127.0.0.1/a b",
        "/x",
        "",
    ],
)
def test_addresses_that_are_not_asked(url: str) -> None:
    """Without TLS nobody but this machine is asked. (A connection elsewhere would fail the test.)"""
    with pytest.raises(TransportError):
        Fetcher()(Request(url=url, most=10))


@pytest.fixture
def contexts(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's TLS, and a client's that trusts it."""
    made = self_signed("localhost", now=datetime.now(UTC))
    (tmp_path / "cert.pem").write_bytes(made.certificate_pem)
    (tmp_path / "key.pem").write_bytes(made.key_pem)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    return server, ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))


def test_tls(intel: IntelVendor, contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    server, client = contexts
    with FakeVendors(intel=intel, tls=server) as service:
        request = Request(url=service.url.replace("127.0.0.1", "localhost") + "/IntelSGXRootCA.der", most=10_000)
        assert Fetcher(tls=client)(request).body
        with pytest.raises(TransportError, match="certificate verify failed"):
            Fetcher()(request)
        assert len(service.asked) == 1


def test_a_tls_handshake_without_end(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"https://localhost:{mute.getsockname()[1]}/"
        with pytest.raises(TransportError, match="took too long"):
            Fetcher(Limits(connect=0.2, read=0.2, total=0.5), tls=contexts[1])(Request(url=url, most=10))


def test_the_proxy_of_the_environment(
    intel: IntelVendor, contexts: tuple[ssl.SSLContext, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The proxy is told the host, TLS ends at the host, and this machine is reached without."""
    told: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def proxy() -> None:
            peer, _ = listening.accept()
            with peer:
                told.append(peer.recv(4096))
                peer.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")

        thread = threading.Thread(target=proxy)
        thread.start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{listening.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "direct.example.com")
        with pytest.raises(TransportError, match="403"):
            Fetcher()(Request(url="https://kds.example.com/crl", most=10))
        thread.join()
    assert told[0].startswith(b"CONNECT kds.example.com:443 ")
    assert _fetch._proxy("direct.example.com") is None
    with FakeVendors(intel=intel, tls=contexts[0]) as service:
        url = service.url.replace("127.0.0.1", "localhost") + "/IntelSGXRootCA.der"
        assert Fetcher(tls=contexts[1])(Request(url=url, most=10_000)).body


def _relay(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while part := source.recv(65536):
            sink.sendall(part)
        sink.shutdown(socket.SHUT_WR)


def test_through_a_proxy(
    intel: IntelVendor, contexts: tuple[ssl.SSLContext, ssl.SSLContext], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_fetch, "is_loopback", lambda _host: False)
    with socket.create_server(("127.0.0.1", 0)) as listening, FakeVendors(intel=intel, tls=contexts[0]) as service:

        def proxy() -> None:
            peer, _ = listening.accept()
            with peer, socket.create_connection(("127.0.0.1", int(service.url.rpartition(":")[2]))) as there:
                peer.recv(4096)
                peer.sendall(b"HTTP/1.1 200 Connection established\r\nVia: it\r\n\r\n")
                back = threading.Thread(target=_relay, args=(there, peer))
                back.start()
                _relay(peer, there)
                back.join()

        thread = threading.Thread(target=proxy)
        thread.start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{listening.getsockname()[1]}")
        url = service.url.replace("127.0.0.1", "localhost") + "/IntelSGXRootCA.der"
        assert Fetcher(tls=contexts[1])(Request(url=url, most=10_000)).body
        thread.join()


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 ".ljust(60, b"x"), b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 8])
def test_a_proxys_answer_without_end(monkeypatch: pytest.MonkeyPatch, head: bytes) -> None:
    """No TLS protects it: whoever is on the way to the proxy may send a byte from time to time."""
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def proxy() -> None:
            peer, _ = listening.accept()
            with peer, suppress(OSError):
                for octet in head:
                    peer.sendall(bytes([octet]))
                    if done.wait(0.1):
                        return

        thread = threading.Thread(target=proxy)
        thread.start()
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{listening.getsockname()[1]}")
        with pytest.raises(TransportError, match="took too long"):
            Fetcher(Limits(connect=0.3, read=0.3, total=0.5))(Request(url="https://kds.example.com/crl", most=10))
        done.set()
        thread.join()


def _answered(raw: bytes) -> Answer:
    """What the fetcher makes of these bytes of a server."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            peer, _ = listening.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(raw)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            return Fetcher()(Request(url=f"http://127.0.0.1:{listening.getsockname()[1]}/", most=10))
        finally:
            thread.join()


def test_errors_are_one_printable_line() -> None:
    with pytest.raises(RefusedError) as caught:
        _answered(b"HTTP/1.1 500 \x1b[31mred\x07\r\n\r\n")
    assert str(caught.value).isprintable()


def test_a_body_in_chunks() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert _answered(head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n").body == b"abcde"
    for rest in (b"3\r\nab", b"ffffffff\r\nabc", b"b\r\nabcdefghijk\r\n0\r\n\r\n", b"-1\r\n", b"x\r\n"):
        with pytest.raises(TransportError):
            _answered(head + rest)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x00" * 100,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000,
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000,
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ],
)
def test_what_is_no_answer(raw: bytes) -> None:
    with pytest.raises(TransportError) as caught:
        _answered(raw)
    assert str(caught.value).isprintable()
