"""Real sockets: certificates that change, connections that misbehave."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cosmian_vm import wire
from cosmian_vm.agent import answers, http_protocol, requests
from cosmian_vm.agent.config import AgentConfig
from cosmian_vm.agent.listener import listen
from cosmian_vm.agent.tls import TlsIdentity
from cosmian_vm.attester.platform import Platform, TeeQuote
from cosmian_vm.certificates import generate_key, leaf_der, self_signed, spki_sha256
from cosmian_vm.errors import ConfigError
from cosmian_vm.evidence import snp
from cosmian_vm.evidence.binding import compute_binding, report_data
from cosmian_vm.evidence.bundle import TeeKind

Live = Callable[..., Any]
NONCE = bytes(range(32))
EVIDENCE_BODY = b'{"nonce":"' + base64.b64encode(NONCE) + b'"}'
EVIDENCE = b"POST /v2/evidence HTTP/1.1\nHost: vm\nContent-Length: %d" % len(EVIDENCE_BODY)
HEALTH = b"GET /health HTTP/1.1\nHost: vm"
PATIENCE = 60
"""Seconds for what happens at once, on however busy a machine."""
TEE_V1 = b"GET /quote/tee?nonce=" + base64.b64encode(NONCE).rstrip(b"=") + b" HTTP/1.1\nHost: vm"


def renew(config: AgentConfig, name: str = "renewed.example") -> bytes:
    """Another key and certificate, as certbot would put them there; its leaf (DER)."""
    made = self_signed(name, now=datetime.now(UTC))
    for path, content in ((config.ssl_private_key, made.key_pem), (config.ssl_certificate, made.certificate_pem)):
        draft = path.with_suffix(".new")
        draft.write_bytes(content)
        draft.replace(path)
    return leaf_der(made.certificate_pem)


def seen_by(connection: ssl.SSLSocket) -> bytes:
    leaf = connection.getpeercert(binary_form=True)
    assert leaf is not None
    return leaf


def bound_to(reply: Any, leaf: bytes) -> bool:
    assert reply.status == 200, reply.body
    told = msgspec.json.decode(reply.body, type=wire.EvidenceAnswer)
    assert told.tpm is not None
    assert told.tee_quote is not None
    binding = compute_binding(NONCE, spki_sha256(leaf), told.tpm.ak_public)
    return snp.parse_report(told.tee_quote).report_data == report_data(NONCE, binding)


def wait_until_served(agent: Any, leaf: bytes) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with agent.connect() as connection:
            if seen_by(connection) == leaf:
                return
        time.sleep(0.1)
    raise AssertionError(f"the new certificate was not picked up in {PATIENCE} s")


def closed(connection: socket.socket, seconds: float = PATIENCE) -> bool:
    connection.settimeout(seconds)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


def refused(connection: ssl.SSLSocket, piece: bytes, seconds: float = PATIENCE) -> bool:
    """Whether the other side ends the connection while the same piece is sent again and again."""
    connection.settimeout(seconds)
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            connection.sendall(piece)
    except OSError:
        return True
    return False


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_evidence_is_bound_to_the_certificate_of_the_connection(live: Live, version: ssl.TLSVersion) -> None:
    agent = live()
    with agent.connect(agent.context(version)) as connection:
        assert bound_to(agent.ask(connection, EVIDENCE, EVIDENCE_BODY), seen_by(connection))
        quote = bytes(agent.ask(connection, TEE_V1).json())
        assert snp.parse_evidence(quote).report.report_data == NONCE + sha256(seen_by(connection)).digest()


def test_a_changed_certificate_is_picked_up_and_old_connections_end(live: Live, config: AgentConfig) -> None:
    agent = live()
    with agent.connect() as old, agent.connect() as idle:
        before = seen_by(old)
        assert bound_to(agent.ask(old, EVIDENCE, EVIDENCE_BODY), before)
        after = renew(config)
        wait_until_served(agent, after)
        assert closed(idle)
        assert closed(old)
    with agent.connect() as fresh:
        assert seen_by(fresh) == after
        reply = agent.ask(fresh, EVIDENCE, EVIDENCE_BODY)
        assert bound_to(reply, after)
        assert "connection" not in reply.headers


def test_an_answer_in_progress_keeps_its_certificate_and_then_the_connection_ends(
    live: Live, config: AgentConfig, platform: Platform
) -> None:
    entered, go_on = threading.Event(), threading.Event()
    true: Any = platform.tee

    class Tee:
        kind = TeeKind.SNP

        def quote(self, report_data: bytes) -> TeeQuote:
            entered.set()
            go_on.wait(PATIENCE)
            quote: TeeQuote = true.quote(report_data)
            return quote

    agent = live(platform=replace(platform, tee=Tee()))
    with agent.connect() as old:
        before = seen_by(old)
        old.sendall(EVIDENCE.replace(b"\n", b"\r\n") + b"\r\n\r\n" + EVIDENCE_BODY)
        assert entered.wait(PATIENCE)
        wait_until_served(agent, renew(config))
        go_on.set()
        raw = b""
        old.settimeout(PATIENCE)
        while piece := old.recv(65536):
            raw += piece
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"connection: close" in head
    told = msgspec.json.decode(body, type=wire.EvidenceAnswer)
    assert told.tpm is not None
    assert told.tee_quote is not None
    binding = compute_binding(NONCE, spki_sha256(before), told.tpm.ak_public)
    assert snp.parse_report(told.tee_quote).report_data == report_data(NONCE, binding)


def test_a_resumed_session_is_bound_to_the_certificate_that_its_client_knows(live: Live, config: AgentConfig) -> None:
    """TLS 1.2 resumption shows no certificate: the client goes by the one of the first handshake."""
    agent = live()
    context = agent.context(ssl.TLSVersion.TLSv1_2)
    with agent.connect(context) as first:
        before = seen_by(first)
        agent.ask(first, HEALTH)
        session = first.session
        first.unwrap()  # OpenSSL forgets the sessions of connections that end without a goodbye
    wait_until_served(agent, renew(config))
    with agent.connect(context, session=session) as resumed:
        assert resumed.session_reused
        assert seen_by(resumed) == before
        reply = agent.ask(resumed, EVIDENCE, EVIDENCE_BODY)
        assert bound_to(reply, before)
        assert reply.headers["connection"] == "close"


def test_tls_1_3_sessions_are_not_resumed(live: Live) -> None:
    agent = live()
    context = agent.context()
    with agent.connect(context) as first:
        agent.ask(first, HEALTH)
        session = first.session
    with agent.connect(context, session=session) as second:
        assert not second.session_reused


def test_tls_below_1_2_is_refused(live: Live) -> None:
    agent = live()
    context = agent.context()
    with contextlib.suppress(ValueError, ssl.SSLError):
        context.set_ciphers("ALL:@SECLEVEL=0")
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises((ssl.SSLError, ConnectionError)):
        agent.connect(context)


def test_a_broken_renewal_keeps_the_present_certificate(
    live: Live, config: AgentConfig, caplog: pytest.LogCaptureFixture
) -> None:
    agent = live()
    with agent.connect() as connection:
        before = seen_by(connection)
    config.ssl_private_key.write_bytes(generate_key())  # belongs to no certificate
    with caplog.at_level("WARNING"):
        deadline = time.monotonic() + PATIENCE
        while "do not belong together" not in caplog.text and time.monotonic() < deadline:
            with agent.connect() as connection:
                assert seen_by(connection) == before
            time.sleep(0.1)
    assert "do not belong together" in caplog.text
    wait_until_served(agent, renew(config))


def test_the_1_3_clients_first_knock(live: Live) -> None:
    """It opens a raw connection, sends GET / without Host, and drops it."""
    agent = live()
    for greeting in (b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"):
        with agent.plain() as plain:
            plain.sendall(greeting)
        with agent.connect() as connection:
            connection.sendall(greeting)
        with agent.connect() as connection:
            assert agent.ask(connection, greeting.strip().replace(b"\r\n", b"\n")).status == 404
    assert agent.once(HEALTH).status == 200


def test_garbage_is_refused_in_one_line(live: Live) -> None:
    agent = live()
    for garbage in (
        b"\x00\xff rubbish\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v2/evidence HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v2/evidence HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"CONNECT vm:1 HTTP/1.1\r\n\r\n",
        b"GET http://[bad HTTP/1.1\r\n\r\n",
    ):
        with agent.connect() as connection:
            connection.sendall(garbage)
            connection.settimeout(5)
            with contextlib.suppress(OSError):
                answer = connection.recv(65536)
                assert answer == b"" or answer.startswith((b"HTTP/1.1 4",)), garbage
    with agent.plain() as plain:
        plain.sendall(os.urandom(4096))
        assert closed(plain)
    assert agent.once(HEALTH).status == 200


def test_a_head_has_a_limit(live: Live) -> None:
    agent = live()
    with agent.connect() as connection:
        connection.settimeout(10)
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        assert refused(connection, b"X-Filler: " + b"a" * 16000 + b"\r\n")


def test_trailers_have_a_limit(live: Live) -> None:
    agent = live()
    with agent.connect() as connection:
        connection.settimeout(10)
        connection.sendall(b"POST /v2/evidence HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n")
        assert refused(connection, b"X-Trailer: " + b"a" * 16000 + b"\r\n")


def test_single_byte_chunks_are_a_body_too(live: Live) -> None:
    agent = live()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in EVIDENCE_BODY) + b"0\r\n\r\n"
    reply = agent.once(b"POST /v2/evidence HTTP/1.1\nTransfer-Encoding: chunked", chunks)
    assert reply.status == 200


def test_chunk_framing_has_a_limit(live: Live) -> None:
    agent = live()
    with agent.connect() as connection:
        connection.sendall(b"POST /v2/evidence HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert refused(connection, b"1;" + b"a" * 16000 + b"\r\n{\r\n")


@pytest.mark.parametrize("start", [b"", b"GET /heal", b"\r\n", b"GET /health HTTP/1.1\r\nX: 1\r\n"])
def test_a_slow_head_loses_its_connection(live: Live, monkeypatch: pytest.MonkeyPatch, start: bytes) -> None:
    agent = live()
    with agent.connect() as connection:  # behind a first request, which had all its time
        assert agent.ask(connection, HEALTH).status == 200
        monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.5)
        time.sleep(0.2)  # what comes before the answer is quite over is an idle connection, which may last longer
        connection.sendall(start or b"G")
        assert closed(connection)
    with agent.connect() as connection:
        with contextlib.suppress(OSError):  # half a second may be over
            connection.sendall(start)
        assert closed(connection)


def test_a_slow_body_loses_its_connection(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = live()
    with monkeypatch.context() as short, agent.connect() as connection:
        short.setattr(http_protocol, "BODY_SECONDS", 0.5)
        connection.sendall(EVIDENCE.replace(b"\n", b"\r\n") + b"\r\n\r\n" + EVIDENCE_BODY[:5])
        assert closed(connection, requests._BODY_SECONDS - 10)
    assert agent.once(EVIDENCE, EVIDENCE_BODY).status == 200


def test_a_body_that_is_too_large_is_told_so(live: Live) -> None:
    agent = live()
    head = b"POST /v2/evidence HTTP/1.1\nHost: vm\nContent-Length: 17825792"
    reply = agent.once(head, bytes(17825792))
    assert (reply.status, reply.headers["connection"]) == (413, "close")


def test_expect_continue_and_pipelining(live: Live) -> None:
    agent = live()
    with agent.connect() as connection:
        connection.sendall((HEALTH.replace(b"\n", b"\r\n") + b"\r\n\r\n") * 3)
        raw = b""
        while raw.count(b'{"status":"ok"}') < 3:
            raw += connection.recv(65536)
        assert raw.count(b"HTTP/1.1 200") == 3


def test_a_client_that_does_not_read_is_let_go(
    live: Live, machine: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(answers, "_PIECE_SECONDS", 0.5)
    machine.forged_ima_log = os.urandom(8 * 2**20)
    agent = live()
    with agent.connect() as connection, caplog.at_level("INFO"):
        connection.sendall(b"GET /ima/binary HTTP/1.1\r\nHost: vm\r\n\r\n")
        while "did not take its answer in time" not in caplog.text:
            time.sleep(0.1)
        connection.settimeout(PATIENCE)
        got = 0
        try:
            while piece := connection.recv(65536):
                got += len(piece)
        except TimeoutError:
            pytest.fail("the connection is still open")
        except OSError:
            pass
        assert got < 8 * 2**20
    assert agent.once(HEALTH).status == 200


def test_connections_have_a_limit(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "MAX_CONNECTIONS", 1)
    agent = live()
    with agent.connect() as first, agent.connect() as second:
        assert agent.ask(first, HEALTH).status == 200
        assert agent.ask(second, HEALTH).status == 200
        with agent.connect() as third:
            with contextlib.suppress(OSError):
                third.sendall(HEALTH.replace(b"\n", b"\r\n") + b"\r\n\r\n")
            assert closed(third)
        assert agent.ask(first, HEALTH).status == 200
    deadline = time.monotonic() + PATIENCE
    while True:  # places are free again
        with contextlib.suppress(OSError):
            assert agent.once(HEALTH).status == 200
            break
        assert time.monotonic() < deadline


def test_whoever_has_most_makes_room(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "MAX_CONNECTIONS", 2)
    agent = live()
    with contextlib.ExitStack() as held:
        kept = []
        for address in ("127.0.0.8", "127.0.0.9", "127.0.0.9", "127.0.0.9"):
            plain = socket.create_connection(("127.0.0.1", agent.port), timeout=PATIENCE, source_address=(address, 0))
            kept.append(held.enter_context(agent.context().wrap_socket(plain)))
            assert agent.ask(kept[-1], HEALTH).status == 200
        with agent.connect() as mine:
            assert agent.ask(mine, HEALTH).status == 200
            assert agent.ask(kept[0], HEALTH).status == 200
        assert sum(closed(connection, 0.5) for connection in kept[1:]) == 1  # it was before anybody else was served


def test_one_client_cannot_have_all_connections(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "MAX_OF_ONE_CLIENT", 3)
    agent = live()

    def from_another_address() -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", agent.port), timeout=PATIENCE, source_address=("127.0.0.9", 0))
        context: ssl.SSLContext = agent.context()
        return context.wrap_socket(plain)

    with contextlib.ExitStack() as held:
        kept = [held.enter_context(from_another_address()) for _ in range(3)]
        refused = held.enter_context(from_another_address())
        assert closed(refused)
        assert agent.once(HEALTH).status == 200
        assert [agent.ask(connection, HEALTH).status for connection in kept] == [200] * 3
    deadline = time.monotonic() + PATIENCE
    while True:  # its places are free again
        with contextlib.suppress(OSError), from_another_address() as connection:
            assert agent.ask(connection, HEALTH).status == 200
            break
        assert time.monotonic() < deadline


def test_the_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"port {port}: the port is in use by another program"):
            listen("127.0.0.1", port)
        monkeypatch.setattr("cosmian_vm.agent.listener._LLMNR_PORT", port)
        with pytest.raises(ConfigError, match=r"systemd-resolved.*LLMNR=no"):
            listen("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "a" * 300, "999.1.1.1"])
def test_a_host_that_is_not_ours_is_named(host: str) -> None:
    with pytest.raises(ConfigError):
        listen(host, 0)


# TlsIdentity by itself


def files(tmp_path: Path, certificate: bytes, key: bytes) -> tuple[Path, Path]:
    paths = tmp_path / "cert.pem", tmp_path / "key.pem"
    paths[0].write_bytes(certificate)
    paths[1].write_bytes(key)
    return paths


def test_unusable_files_are_named(tmp_path: Path) -> None:
    made = self_signed("vm", now=datetime.now(UTC))
    with pytest.raises(ConfigError, match=r"nothing\.pem: cannot be read: No such file"):
        TlsIdentity(tmp_path / "nothing.pem", tmp_path / "key.pem")
    with pytest.raises(ConfigError, match="do not belong together"):
        TlsIdentity(*files(tmp_path, made.certificate_pem, generate_key()))
    for certificate, key in ((b"", made.key_pem), (b"rubbish", b"rubbish"), (made.certificate_pem, b"")):
        with pytest.raises(ConfigError, match=r"cert\.pem and .*key\.pem: cannot be used"):
            TlsIdentity(*files(tmp_path, certificate, key))


def test_an_encrypted_key_is_an_error_and_no_question(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    made = self_signed("vm", now=datetime.now(UTC))
    locked = load_pem_private_key(made.key_pem, None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    with pytest.raises(ConfigError, match="without a password"):
        TlsIdentity(*files(tmp_path, made.certificate_pem, locked))


def test_a_leaf_that_old_clients_refuse_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = ec.generate_private_key(ec.SECP521R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    made = self_signed("vm", now=datetime.now(UTC), key_pem=key)
    with caplog.at_level("WARNING"):
        assert TlsIdentity(*files(tmp_path, made.certificate_pem, key)).leaf == leaf_der(made.certificate_pem)
    assert "another curve than P-256 and P-384" in caplog.text


def test_the_leaf_is_the_first_of_the_chain(tmp_path: Path) -> None:
    made, other = (self_signed(name, now=datetime.now(UTC)) for name in ("vm", "ca"))
    chain = made.certificate_pem + other.certificate_pem
    assert TlsIdentity(*files(tmp_path, chain, made.key_pem)).leaf == leaf_der(made.certificate_pem)
