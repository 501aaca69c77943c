"""The little web server of HTTP-01: pending challenges, and nothing else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.certtool import _http01
from cosmian_vm.certtool._http01 import PATH, ChallengeServer
from cosmian_vm.errors import InputError

TOKEN = "t" * 43


@pytest.fixture(scope="module")
def server() -> Iterator[ChallengeServer]:
    with ChallengeServer("127.0.0.1", 0) as server:
        server.answer(TOKEN, b"proof")
        yield server


def ask(server: ChallengeServer, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as link:
        answer = b""
        with suppress(OSError):  # it does not read what it does not want
            link.sendall(request)
            link.shutdown(socket.SHUT_WR)
            while more := link.recv(65536):
                answer += more
        return answer


def test_get_and_head(server: ChallengeServer) -> None:
    path = (PATH + TOKEN).encode()
    answer = ask(server, b"GET " + path + b" HTTP/1.1\r\nHost: vm\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\nproof")
    assert ask(server, b"HEAD " + path + b" HTTP/1.1\r\nHost: vm\r\n\r\n").endswith(
        b"Content-Length: 5\r\nConnection: close\r\n\r\n"
    )
    assert ask(server, b"GET " + path + b" HTTP/1.0\r\n\r\n").endswith(b"proof")


@pytest.mark.parametrize("method", ["POST", "PUT", "get", "OPTIONS", ""])
def test_other_methods(server: ChallengeServer, method: str) -> None:
    answer = ask(server, f"{method} {PATH}{TOKEN} HTTP/1.1\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert b"proof" not in answer


@given(st.binary(max_size=300))
def test_any_request(server: ChallengeServer, request: bytes) -> None:
    answer = ask(server, request + b"\r\n\r\n")
    assert answer.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 200 ")) or answer == b""
    assert (b"proof" in answer) == (b" 200 " in answer[:20])


@given(st.text(alphabet="abct/.%?#\\-_AZ09 ", max_size=60))
def test_any_path(server: ChallengeServer, tail: str) -> None:
    answer = ask(server, f"GET {PATH}{tail} HTTP/1.1\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 404 ") or tail == TOKEN


def test_a_request_that_does_not_end(server: ChallengeServer) -> None:
    answer = ask(server, b"GET " + (PATH + TOKEN).encode() + b" HTTP/1.1\r\n" + b"X: " + b"a" * 20_000 + b"\r\n\r\n")
    assert b"proof" not in answer


def test_forgotten_challenges_are_gone() -> None:
    with ChallengeServer("127.0.0.1", 0) as server:
        request = f"GET {PATH}{TOKEN} HTTP/1.1\r\n\r\n".encode()
        server.answer(TOKEN, b"proof")
        assert ask(server, request).endswith(b"proof")
        server.forget()
        assert ask(server, request).startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize("token", ["", "../x", "a/b", "a" * 21, "a" * 600, "a" * 42 + "\n", "ä" * 43])
def test_what_is_no_token_is_never_served(token: str) -> None:
    with pytest.raises(ValueError, match="not a token"):
        ChallengeServer("127.0.0.1", 0).answer(token, b"x")


def test_silent_clients_do_not_keep_it_from_ending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor from answering: as many as it serves at once, and one more that asks."""
    monkeypatch.setattr(_http01, "_SECONDS", 2.0)
    before = set(threading.enumerate())
    with ChallengeServer("127.0.0.1", 0) as server:
        server.answer(TOKEN, b"proof")
        silent = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(80)]
        assert ask(server, f"GET {PATH}{TOKEN} HTTP/1.1\r\n\r\n".encode()).endswith(b"proof")
    for link in silent:
        link.close()
    assert set(threading.enumerate()) <= before


def test_silent_clients_do_not_keep_the_ca_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many they are; what they hold is taken from them at once and not when their time is over."""
    monkeypatch.setattr(_http01, "_CONNECTIONS", 4)
    monkeypatch.setattr(_http01, "_SECONDS", 3600.0)
    with ChallengeServer("127.0.0.1", 0) as server, ExitStack() as held:
        server.answer(TOKEN, b"proof")
        for _ in range(20):
            held.enter_context(socket.create_connection(("127.0.0.1", server.port)))
        assert ask(server, f"GET {PATH}{TOKEN} HTTP/1.1\r\n\r\n".encode()).endswith(b"proof")


def test_it_is_stopped_whatever_happens() -> None:
    server = ChallengeServer("127.0.0.1", 0)
    with pytest.raises(RuntimeError), server:
        raise RuntimeError
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)


def test_all_addresses_by_default() -> None:
    with ChallengeServer("", 0) as server:
        assert ask(server, b"GET / HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 404 ")


def test_a_taken_port_is_named() -> None:
    message = "cannot be listened on: another program"
    with ChallengeServer("127.0.0.1", 0) as first, pytest.raises(InputError, match=message):
        ChallengeServer("127.0.0.1", first.port).__enter__()
