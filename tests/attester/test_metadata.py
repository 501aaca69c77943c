"""The metadata service's client, against a server of the test's own, and which cloud it belongs to."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.attester.metadata import MAX_BODY, MetadataAnswer, MetadataService, find_cloud
from cosmian_vm.errors import AttesterError


class Server:
    """Answers each connection with what ``answer`` makes of the request, byte for byte."""

    def __init__(self) -> None:
        self.answer: Callable[[bytes], bytes] = lambda _request: b""
        self.asked: list[bytes] = []
        self.over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.over.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # who waits in accept() would not notice that it is closed
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, suppress(OSError):
                    connection.settimeout(10)
                    self._converse(connection)

    def _converse(self, connection: socket.socket) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += connection.recv(4096)
        head, _, body = request.partition(b"\r\n\r\n")
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                while len(body) < int(line.split(b":")[1]):
                    body += connection.recv(4096)
        self.asked.append(head + b"\r\n\r\n" + body)
        connection.sendall(self.answer(request))


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def ok(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def ask(server: Server, *, seconds: float = 5.0) -> MetadataAnswer:
    return MetadataService(server.address)("GET", "/path?a=b", {"Metadata": "true"}, seconds=seconds)


def test_request_and_answer(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    server.answer = lambda _request: ok(b"body", "Metadata-Flavor: Google")
    answer = ask(server)
    assert (answer.status, answer.body, answer.headers["metadata-flavor"]) == (200, b"body", "Google")
    head = server.asked[0].decode().split("\r\n")
    assert head[0] == "GET /path?a=b HTTP/1.1"
    assert "Metadata: true" in head
    assert "Connection: close" in head
    service = MetadataService(server.address)
    assert service("POST", "/", {}, b"0123456789", seconds=5).body == b"body"
    assert server.asked[1].endswith(b"Content-Length: 10\r\n\r\n0123456789")
    assert service("PUT", "/", {}, seconds=5).status == 200
    assert b"Content-Length: 0" in server.asked[2]


def test_a_body_without_length_or_in_chunks(server: Server) -> None:
    server.answer = lambda _request: b"HTTP/1.1 200 OK\r\n\r\nup to the end"
    assert ask(server).body == b"up to the end"
    server.answer = lambda _request: (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    )
    assert ask(server).body == b"abcde"


def test_a_redirect_is_an_answer_like_others(server: Server) -> None:
    server.answer = lambda _request: ok(b"", "Location: http://192.0.2.1/", status="302 Found")
    assert ask(server).status == 302
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK",
        b"HTTP/1.1 200 OK\r\nMetadata-Flavor: Google\r\nX-",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab",
        b"HTTP/1.1 200 OK\r\n\r\n" + bytes(MAX_BODY * 2),
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * (MAX_BODY * 2),
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"\x00" * 100,
    ],
)
def test_no_answer_is_one_line(server: Server, answer: bytes) -> None:
    server.answer = lambda _request: answer
    with pytest.raises(AttesterError, match=r"metadata service: http://127.0.0.1/path\?a=b: ") as caught:
        ask(server)
    assert "\n" not in str(caught.value)


def test_the_time_is_bounded(server: Server) -> None:
    server.answer = lambda _request: ok(bytes(server.over.wait(10)))
    with pytest.raises(AttesterError, match="no answer"):
        ask(server, seconds=0.2)
    with pytest.raises(AttesterError, match="no answer"):
        ask(server, seconds=0)


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with pytest.raises(AttesterError, match="refused"):
        MetadataService(address)("GET", "/", {}, seconds=5)


GCP = ("GET", "/computeMetadata/v1/instance/id", "Metadata-Flavor", "Google")
AZURE = ("GET", "/metadata/instance?api-version=2021-02-01", "Metadata", "true")
AWS = ("PUT", "/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds", "60")
FLAVOR = {"metadata-flavor": "Google"}


@pytest.mark.parametrize(
    ("call", "status", "told", "content", "cloud"),
    [
        (GCP, 200, FLAVOR, b"1234", "GCP"),
        (GCP, 200, {}, b"1234", None),
        (GCP, 404, FLAVOR, b"", None),
        (AZURE, 200, {}, b'{"compute":{"azEnvironment":"AzurePublicCloud"}}', "Azure"),
        (AZURE, 200, {}, b"<html>", None),
        (AWS, 200, {}, b"AQAAAtoken==", "AWS"),
        (AWS, 200, {}, b"", None),
        (AWS, 200, {}, bytes(257), None),
        (AWS, 302, {}, b"AQAAAtoken==", None),
    ],
)
def test_whose_service_it_is(
    call: tuple[str, ...], status: int, told: dict[str, str], content: bytes, cloud: str | None
) -> None:
    def metadata(
        method: str, path: str, headers: Mapping[str, str], body: bytes = b"", *, seconds: float
    ) -> MetadataAnswer:
        assert 0 < seconds <= 1
        if (method, path, *next(iter(headers.items()))) == call:
            return MetadataAnswer(status=status, headers=told, body=content)
        raise AttesterError("no answer")

    assert find_cloud(metadata, seconds=1) == cloud


def test_after_its_time_nothing_is_asked() -> None:
    def metadata(*_args: object, **_more: object) -> MetadataAnswer:
        raise AssertionError("asked")

    assert find_cloud(metadata, seconds=0) is None


@given(
    st.lists(st.sampled_from([b"HTTP/1.1 200 OK\r\n", b"Content-Length: 3\r\n", b"\r\n", b"abc", b"\0", b"X: y\r\n"]))
)
def test_whatever_is_answered_is_an_answer_or_one_line(parts: list[bytes]) -> None:
    server = Server()
    server.answer = lambda _request: b"".join(parts)
    try:
        with suppress(AttesterError):
            assert ask(server).status == 200
    finally:
        server.close()
