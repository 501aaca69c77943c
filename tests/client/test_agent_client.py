"""The client against a scripted agent over real TLS on loopback."""

from __future__ import annotations

import base64
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cosmian_vm import wire
from cosmian_vm.certificates import self_signed, spki_sha256
from cosmian_vm.client import AgentClient, application_peer, one_line, parse_address
from cosmian_vm.client import _channel as channel
from cosmian_vm.client.owner_key import OwnerKey, create
from cosmian_vm.errors import InputError, PeerChangedError, RefusedError, TransportError
from cosmian_vm.owner_proof import PROOF_HEADER, Proof, order_message, parse_proof

NONCE = bytes(range(32))


def evidence_body(**changes: Any) -> bytes:
    values: dict[str, Any] = {
        "api": 2,
        "agent_version": "2.0.0",
        "tee_kind": "sev-snp",
        "tee_quote": b"report",
        "endorsements": [b"certificate"],
        "tpm": wire.TpmAnswer(quote=b"q", signature=b"s", ak_public=b"a", pcrs=[bytes([i]) * 32 for i in range(16)]),
        "boot_event_log": b"boot",
        "ima_log": b"ima",
        "ima_from": 0,
        "owners": ["anyone"],
        "cloud": "GCP",
    }
    return msgspec.json.encode(wire.EvidenceAnswer(**(values | changes)))


@pytest.fixture
def client(agent: Any) -> Iterator[AgentClient]:
    with AgentClient(agent.url, allow_insecure_tls=True, timeout=5) as client:
        yield client


def another_identity() -> Any:
    return self_signed("other", ["127.0.0.1"], now=datetime.now(UTC))


class TestConnection:
    def test_leaf_is_known_before_anything_is_sent(self, agent: Any, client: AgentClient) -> None:
        assert client.connect().leaf == agent.leaf
        assert agent.calls == []

    def test_insecure_asks_no_ca(self, client: AgentClient) -> None:
        assert client.connect().trusted is None

    def test_self_signed_is_not_trusted_but_shown(self, agent: Any) -> None:
        with AgentClient(agent.url, timeout=5) as client:
            peer = client.connect()
        assert peer.trusted is False
        assert "self-signed" in peer.problem
        assert peer.leaf == agent.leaf

    def test_trusted_with_its_ca(self, agent: Any, tmp_path: Path) -> None:
        ca = tmp_path / "ca.pem"
        ca.write_bytes(agent.identity.certificate_pem)
        with AgentClient(agent.url, ca_file=str(ca), timeout=5) as client:
            peer = client.connect()
        assert peer.trusted is True
        assert peer.leaf == agent.leaf

    def test_one_connection_serves_many_calls(self, agent: Any, client: AgentClient) -> None:
        agent.route("POST", wire.APP_RESTART)
        client.app_restart()
        client.app_restart()
        assert agent.connections == 1

    def test_idle_connection_that_was_closed_is_opened_again(self, agent: Any, client: AgentClient) -> None:
        agent.routes["POST", wire.APP_RESTART] = lambda _: (200, b"null")
        client.app_restart()
        held = client._channel._connection
        assert held is not None
        socket.socket.shutdown(held.sock, socket.SHUT_RDWR)
        client.app_restart()
        assert agent.connections == 2

    def test_agent_that_announces_the_end_of_the_connection(self, agent: Any, client: AgentClient) -> None:
        agent.routes["POST", wire.APP_RESTART] = lambda _: (200, b"null", {"Connection": "close"})
        client.app_restart()
        client.app_restart()
        assert agent.connections == 2

    def test_pinned_key_is_the_only_one_spoken_to(self, agent: Any, client: AgentClient) -> None:
        agent.route("POST", wire.APP_RESTART, 200, b"null", Connection="close")
        client.pin(client.connect().leaf)
        client.app_restart()
        agent.use(another_identity())
        with pytest.raises(PeerChangedError, match="another machine"):
            client.app_restart()
        assert len(agent.calls) == 1

    def test_pinned_key_may_come_with_another_certificate(self, agent: Any, client: AgentClient) -> None:
        agent.route("POST", wire.APP_RESTART, 200, b"null", Connection="close")
        client.pin(client.connect().leaf)
        client.app_restart()
        agent.use(agent.identity)
        client.app_restart()
        assert len(agent.calls) == 2

    def test_pinning_another_key_drops_the_connection(self, agent: Any, client: AgentClient) -> None:
        client.connect()
        other = another_identity()
        from cosmian_vm.certificates import leaf_der

        client.pin(leaf_der(other.certificate_pem))
        with pytest.raises(PeerChangedError):
            client.version()
        assert agent.calls == []


class TestLosses:
    def test_nobody_listens(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        with pytest.raises(TransportError, match=f"refused on port {port}"):
            AgentClient(f"https://127.0.0.1:{port}", timeout=20).connect()

    def test_unknown_name(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def unknown(*_: object, **__: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)
        with pytest.raises(TransportError, match=r"the name vm\.invalid is not known"):
            AgentClient("https://vm.invalid", timeout=20).connect()

    def test_plain_http(self) -> None:
        with (
            _raw_server(lambda peer: peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port,
            pytest.raises(TransportError, match="no TLS connection"),
        ):
            AgentClient(f"https://127.0.0.1:{port}", timeout=20).connect()

    def test_silence(self) -> None:
        with _raw_server(_silent_until_it_hangs_up) as port, pytest.raises(TransportError) as caught:
            AgentClient(f"https://127.0.0.1:{port}", timeout=0.2).connect()
        assert "no answer within 0.2 s" in str(caught.value)

    def test_trickle_is_cut(self, agent: Any) -> None:
        """Each byte comes in time, the whole never: no step times out, the call as a whole must."""
        context = agent.context

        def drip(peer: socket.socket) -> None:
            with context.wrap_socket(peer, server_side=True) as tls:
                tls.recv(4096)
                tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                for _ in range(1000):
                    tls.sendall(b" ")
                    time.sleep(0.05)

        with (
            _raw_server(drip) as port,
            AgentClient(f"https://127.0.0.1:{port}", allow_insecure_tls=True, timeout=30) as client,
            pytest.raises(TransportError, match=r"no answer within 0\.3 s"),
        ):
            client._channel.call("GET", "/slow", seconds=0.3)

    def test_not_http(self, agent: Any) -> None:
        context = agent.context

        def talk(peer: socket.socket) -> None:
            with context.wrap_socket(peer, server_side=True) as tls:
                tls.recv(4096)
                tls.sendall(b"220 mail.example.com ESMTP\r\n")

        with _raw_server(talk) as port, pytest.raises(TransportError, match="not an HTTP answer"):
            AgentClient(f"https://127.0.0.1:{port}", allow_insecure_tls=True, timeout=20).version()

    def test_body_that_ends_early(self, agent: Any, client: AgentClient) -> None:
        agent.route("GET", wire.VERSION, 200, b"{}", Content_Length="50", Connection="close")
        with pytest.raises(TransportError, match="not an HTTP answer"):
            client.version()

    def test_closed_without_an_answer(self, agent: Any) -> None:
        context = agent.context

        def hang_up(peer: socket.socket) -> None:
            with context.wrap_socket(peer, server_side=True) as tls:
                tls.recv(4096)

        with _raw_server(hang_up) as port, pytest.raises(TransportError, match="closed without an answer"):
            AgentClient(f"https://127.0.0.1:{port}", allow_insecure_tls=True, timeout=20).version()

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 413, 500, 503])
    def test_refusal_carries_status_and_text(self, agent: Any, client: AgentClient, status: int) -> None:
        agent.route("GET", wire.VERSION, status, b"not\nnow \x1b[31mreally\x1b[0m")
        with pytest.raises(RefusedError, match=rf"{agent.url}: GET /version: {status} not now \[31mreally") as caught:
            client.version()
        assert caught.value.status == status
        assert str(caught.value).isprintable()

    @pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{", b'{"agent_version": 1}', b"\xff" * 30, b"[" * 9999])
    def test_answer_that_makes_no_sense(self, agent: Any, client: AgentClient, body: bytes) -> None:
        agent.route("GET", wire.VERSION, 200, body)
        with pytest.raises(TransportError, match="/version: the answer is not understood") as caught:
            client.version()
        assert str(caught.value).isprintable()

    def test_redirect_is_not_followed(self, agent: Any, client: AgentClient) -> None:
        agent.route("GET", wire.VERSION, 302, b"", Location="https://127.0.0.1:1/")
        with pytest.raises(RefusedError, match="302 Found"):
            client.version()


class TestBounds:
    def test_body_over_the_limit(self, agent: Any, client: AgentClient) -> None:
        agent.route("GET", wire.VERSION, 200, b" " * (1 << 20) + b"{}")
        with pytest.raises(TransportError, match="larger than 1048576 bytes"):
            client.version()

    def test_zstd(self, agent: Any, client: AgentClient) -> None:
        packed = zstandard.compress(evidence_body(ima_log=b"i" * 100_000))
        agent.route("POST", wire.EVIDENCE, 200, packed, Content_Encoding="zstd")
        assert client.evidence(NONCE).ima_log == b"i" * 100_000
        assert agent.calls[0].headers["accept-encoding"] == "zstd"

    def test_zstd_bomb(self, agent: Any, client: AgentClient) -> None:
        agent.route("GET", wire.VERSION, 200, zstandard.compress(bytes(1 << 26)), Content_Encoding="zstd")
        with pytest.raises(TransportError, match="larger than 1048576 bytes"):
            client.version()

    @pytest.mark.parametrize("encoding", ["zstd", "gzip"])
    def test_broken_encoding(self, agent: Any, client: AgentClient, encoding: str) -> None:
        agent.route("GET", wire.VERSION, 200, b"neither", Content_Encoding=encoding)
        with pytest.raises(TransportError, match=r"zstd|gzip"):
            client.version()


class TestEvidence:
    def test_all_of_it(self, agent: Any, client: AgentClient) -> None:
        agent.route("POST", wire.EVIDENCE, 200, evidence_body())
        evidence = client.evidence(NONCE)
        assert evidence.tls.leaf == agent.leaf
        assert (evidence.api, evidence.tee, evidence.ima_log, evidence.boot_event_log) == (
            2,
            b"report",
            b"ima",
            b"boot",
        )
        assert evidence.tpm is not None
        assert evidence.tpm.pcrs == {i: bytes([i]) * 32 for i in range(16)}
        assert (evidence.endorsements, evidence.owners, evidence.cloud) == ((b"certificate",), ("anyone",), "GCP")
        sent = json.loads(agent.calls[0].body)
        assert base64.b64decode(sent["nonce"]) == NONCE
        assert agent.calls[0].headers["user-agent"].startswith("cosmian-vm/")

    def test_nothing_at_all(self, agent: Any, client: AgentClient) -> None:
        empty = evidence_body(tee_quote=None, tpm=None, ima_log=None, boot_event_log=None, endorsements=[])
        agent.route("POST", wire.EVIDENCE, 200, empty)
        evidence = client.evidence(NONCE)
        assert (evidence.tee, evidence.tpm, evidence.ima_log, evidence.boot_event_log) == (None, None, None, None)

    def test_another_version(self, agent: Any, client: AgentClient) -> None:
        agent.route("POST", wire.EVIDENCE, 200, evidence_body(api=3))
        with pytest.raises(TransportError, match="evidence of version 3"):
            client.evidence(NONCE)

    def test_names_the_certificate_of_the_answer(self, agent: Any, client: AgentClient) -> None:
        """The certificate changes between two calls: the evidence is that of the connection that carried it."""
        agent.route("GET", wire.VERSION, 404, b"", Connection="close")
        with pytest.raises(RefusedError):
            client.version()
        agent.use(another_identity())
        agent.route("POST", wire.EVIDENCE, 200, evidence_body())
        assert client.evidence(NONCE).tls.leaf == agent.leaf

    def test_agent_version_is_one_printable_line(self, agent: Any, client: AgentClient) -> None:
        agent.route("POST", wire.EVIDENCE, 200, evidence_body(agent_version="2\n\x1b]0;owned\x07"))
        assert client.evidence(NONCE).agent_version.isprintable()


class TestVersion1:
    @pytest.fixture
    def old_agent(self, agent: Any) -> Any:
        quote = wire.TpmQuoteV1(
            pcr_value_hash_method="Sha256",
            quote=wire.encode_base64_unpadded(b"quote"),
            signature=wire.encode_base64_unpadded(b"signature"),
            public_key=wire.encode_base64_unpadded(b"public"),
        )
        agent.route("GET", wire.QUOTE_TEE, 200, b"[1,2,255]")
        agent.route("GET", wire.QUOTE_TPM, 200, msgspec.json.encode(quote))
        agent.route("GET", wire.IMA_BINARY, 200, b"[10,0,0,0]")
        return agent

    def test_all_of_it(self, old_agent: Any, client: AgentClient) -> None:
        evidence = client.evidence_v1(b"\xfb" * 32)
        assert (evidence.api, evidence.tee, evidence.ima_log) == (1, b"\x01\x02\xff", b"\n\0\0\0")
        assert evidence.tpm is not None
        assert (evidence.tpm.quote, evidence.tpm.signature, evidence.tpm.ak_public) == (
            b"quote",
            b"signature",
            b"public",
        )
        assert evidence.tpm.pcrs == {}
        assert [call.path for call in old_agent.calls] == [wire.QUOTE_TEE, wire.QUOTE_TPM, wire.IMA_BINARY]
        assert "+" not in old_agent.calls[0].query
        assert "%2B" in old_agent.calls[0].query
        assert "=" not in old_agent.calls[0].query.removeprefix("nonce=")

    def test_what_is_refused_is_missing(self, old_agent: Any, client: AgentClient) -> None:
        old_agent.route("GET", wire.QUOTE_TPM, 500, b"no TPM")
        old_agent.route("GET", wire.IMA_BINARY, 404, b"no IMA")
        evidence = client.evidence_v1(NONCE)
        assert (evidence.tpm, evidence.ima_log) == (None, None)

    def test_busy_is_not_missing(self, old_agent: Any, client: AgentClient) -> None:
        old_agent.route("GET", wire.QUOTE_TPM, 503, b"busy")
        with pytest.raises(RefusedError):
            client.evidence_v1(NONCE)

    @pytest.mark.parametrize("body", [b"[256]", b"[-1]", b'"AQ=="', b"[1.5]", b"null"])
    def test_no_bytes(self, old_agent: Any, client: AgentClient, body: bytes) -> None:
        old_agent.route("GET", wire.QUOTE_TEE, 200, body)
        with pytest.raises(TransportError, match="/quote/tee"):
            client.evidence_v1(NONCE)

    def test_padding(self, old_agent: Any, client: AgentClient) -> None:
        quote = {"pcr_value_hash_method": "Sha256", "quote": "cQ==", "signature": "cQ", "public_key": "cQ"}
        old_agent.route("GET", wire.QUOTE_TPM, 200, json.dumps(quote).encode())
        with pytest.raises(TransportError, match="quote/tpm"):
            client.evidence_v1(NONCE)

    def test_certificate_that_changes_half_way(self, old_agent: Any, client: AgentClient) -> None:
        def swap(_: Any) -> Any:
            old_agent.use(another_identity())
            return 200, b"[1]", {"Connection": "close"}

        old_agent.routes["GET", wire.QUOTE_TEE] = swap
        with pytest.raises(PeerChangedError):
            client.evidence_v1(NONCE)


class TestSnapshot:
    @pytest.fixture(autouse=True)
    def _fast(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("cosmian_vm.client.agent._POLL", (0.0, 0.0))

    @staticmethod
    def _working(agent: Any, polls: int, *, between: Callable[[], None] = lambda: None) -> None:
        told = msgspec.json.encode(wire.SnapshotProgress(files_done=3, bytes_done=9, files_total=10))
        answers = [(202, told)] * polls

        def poll(_: Any) -> Any:
            if answers:
                status, body = answers.pop()
                if not answers:
                    between()
                return status, body, {"Connection": "close"}
            return 200, b'{"done": true}'

        agent.routes["GET", wire.SNAPSHOT_V2] = poll
        agent.route("DELETE", wire.SNAPSHOT_V2, 200, b"null", Connection="close")

    def test_ordered_awaited_fetched_and_forgotten(self, agent: Any, client: AgentClient) -> None:
        self._working(agent, 2)
        seen: list[wire.SnapshotProgress] = []
        assert client.snapshot(seen.append) == b'{"done": true}'
        assert [call.method for call in agent.calls] == ["DELETE", "GET", "GET", "GET", "DELETE"]
        assert [progress.files_done for progress in seen] == [3, 3]
        assert all(call.headers[wire.ORDER_HEADER] == "2" for call in agent.calls)

    def test_one_that_is_being_computed_is_awaited(self, agent: Any, client: AgentClient) -> None:
        self._working(agent, 1)
        agent.route("DELETE", wire.SNAPSHOT_V2, 409, b"being computed")
        assert client.snapshot() == b'{"done": true}'

    def test_another_machine_half_way(self, agent: Any, client: AgentClient) -> None:
        self._working(agent, 2, between=lambda: agent.use(another_identity()))
        client.pin(client.connect().leaf)
        with pytest.raises(PeerChangedError):
            client.snapshot()
        assert len(agent.calls) == 3

    def test_refused(self, agent: Any, client: AgentClient) -> None:
        agent.route("DELETE", wire.SNAPSHOT_V2, 403, b"owners only")
        with pytest.raises(RefusedError, match="owners only"):
            client.snapshot()

    def test_version_1(self, agent: Any, client: AgentClient) -> None:
        answers = [(200, b"{}"), (202, b"null")]
        agent.routes["GET", wire.SNAPSHOT_V1] = lambda _: answers.pop()
        agent.route("DELETE", wire.SNAPSHOT_V1)
        assert client.snapshot(lambda _: pytest.fail("version 1 has no progress"), api=1) == b"{}"


class TestProofs:
    @pytest.fixture
    def owner(self, agent: Any, client: AgentClient, tmp_path: Path) -> OwnerKey:
        client.owner = create(tmp_path / "config")
        issued = iter(range(100))
        agent.routes["POST", wire.NONCE] = lambda _: (
            200,
            msgspec.json.encode(wire.NonceAnswer(nonce=bytes([next(issued)]) * 32)),
        )
        return client.owner

    @staticmethod
    def proved(call: Any, owner: OwnerKey) -> Proof:
        """The proof of a call, which holds for it."""
        proof = parse_proof(call.headers[PROOF_HEADER])
        assert (proof.key, proof.body_sha256) == (owner.public, sha256(call.body).digest())
        target = f"{call.path}?{call.query}" if call.query else call.path
        message = order_message(call.method, target, proof.body_sha256, spki_sha256(call.leaf), proof.nonce)
        Ed25519PublicKey.from_public_bytes(proof.key).verify(proof.signature, message)
        return proof

    def test_each_order_has_its_own(self, agent: Any, client: AgentClient, owner: OwnerKey) -> None:
        owners = msgspec.json.encode(wire.OwnersAnswer(owners=[owner.fingerprint], claimable=False))
        for path in (wire.APP_INIT, wire.APP_RESTART):
            agent.route("POST", path)
        for path in (wire.OWNER_CLAIM, wire.OWNER_ADD, wire.OWNER_REMOVE):
            agent.route("POST", path, 200, owners)
        agent.route("GET", wire.APP_LOGS, 200, b'{"lines":["a"]}')
        client.app_init(b"content")
        client.app_restart()
        client.claim()
        client.change_owners(wire.OWNER_ADD, "x")
        client.change_owners(wire.OWNER_REMOVE, "x")
        assert client.app_logs(7) == ["a"]
        orders = [call for call in agent.calls if call.path != wire.NONCE]
        assert len(orders) == 6
        assert len({self.proved(call, owner).nonce for call in orders}) == 6

    def test_reading_has_none(self, agent: Any, client: AgentClient, owner: OwnerKey) -> None:
        agent.route("GET", wire.OWNER, 200, b'{"owners":[],"claimable":true}')
        assert client.owners().claimable
        agent.route("POST", wire.EVIDENCE, 500, b"broken")
        with pytest.raises(RefusedError):
            client.evidence(NONCE)
        assert all(PROOF_HEADER not in call.headers for call in agent.calls)
        assert wire.NONCE not in [call.path for call in agent.calls]

    def test_an_owner_passes_the_queue(self, agent: Any, client: AgentClient, owner: OwnerKey) -> None:
        def busy(call: Any) -> Any:
            return (200, evidence_body()) if PROOF_HEADER in call.headers else (503, b"devices: too many calls")

        agent.routes["POST", wire.EVIDENCE] = busy
        assert client.evidence(NONCE).api == 2
        self.proved(agent.calls[-1], owner)
        client.owner = None
        with pytest.raises(RefusedError, match="503"):
            client.evidence(NONCE)

    def test_a_snapshot_is_ordered_once_and_again_where_it_was_forgotten(
        self, agent: Any, client: AgentClient, owner: OwnerKey
    ) -> None:
        progress = msgspec.json.encode(wire.SnapshotProgress(files_done=1, bytes_done=1))
        answers = [(200, b"{}"), (202, progress), (401, b"no proof"), (202, progress), (202, progress)]
        agent.routes["GET", wire.SNAPSHOT_V2] = lambda _: answers.pop()
        agent.route("DELETE", wire.SNAPSHOT_V2)
        assert client.snapshot() == b"{}"
        polls = [call for call in agent.calls if call.method == "GET"]
        assert [PROOF_HEADER in call.headers for call in polls] == [True, False, False, True, False]

    def test_a_refused_order_is_not_repeated(self, agent: Any, client: AgentClient, owner: OwnerKey) -> None:
        agent.route("DELETE", wire.SNAPSHOT_V2)
        agent.route("GET", wire.SNAPSHOT_V2, 403, b"this machine is owned by somebody")
        with pytest.raises(RefusedError, match="owned by somebody"):
            client.snapshot()
        assert len([call for call in agent.calls if call.method == "GET"]) == 1

    def test_no_nonce_of_another_machine(self, agent: Any, client: AgentClient, owner: OwnerKey) -> None:
        """The connection ends after the nonce, and another machine answers: it gets no order."""
        agent.route("POST", wire.APP_INIT)
        client.pin(client.connect().leaf)
        nonce = agent.routes["POST", wire.NONCE]

        def then_swap(call: Any) -> Any:
            agent.use(another_identity())
            return *nonce(call), {"Connection": "close"}

        agent.routes["POST", wire.NONCE] = then_swap
        with pytest.raises(PeerChangedError):
            client.app_init(b"secret")
        assert [call.path for call in agent.calls] == [wire.NONCE]


class TestOrders:
    def test_configuration(self, agent: Any, client: AgentClient) -> None:
        agent.route("POST", wire.APP_INIT)
        content = os.urandom(1000)
        client.app_init(content)
        call = agent.calls[0]
        sent = json.loads(call.body)["content"]
        assert wire.decode_base64_unpadded(sent, "content") == content
        assert call.headers[wire.ORDER_HEADER] == "2"
        assert call.headers["content-type"] == "application/json"

    def test_configuration_too_large(self, agent: Any, client: AgentClient) -> None:
        with pytest.raises(InputError, match="16777216"):
            client.app_init(bytes(wire.MAX_APP_CONFIGURATION + 1))
        assert agent.calls == []

    def test_restart_has_no_body_and_no_type(self, agent: Any, client: AgentClient) -> None:
        agent.route("POST", wire.APP_RESTART)
        client.app_restart()
        assert agent.calls[0].body == b""
        assert "content-type" not in agent.calls[0].headers

    def test_secret_is_not_in_errors(self, agent: Any, client: AgentClient) -> None:
        agent.route("POST", wire.APP_INIT, 500, b"error 17")
        with pytest.raises(RefusedError) as caught:
            client.app_init(b"secret")
        assert wire.encode_base64_unpadded(b"secret") not in str(caught.value)


class TestApplication:
    def test_leaf(self, agent: Any) -> None:
        peer = application_peer(f"127.0.0.1:{agent.port}", 5)
        assert (peer.leaf, peer.problem) == (agent.leaf, "")

    def test_nobody_there(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        peer = application_peer(f"127.0.0.1:{port}", 2)
        assert peer.leaf is None
        assert "refused" in peer.problem.lower()

    def test_no_tls(self) -> None:
        with _raw_server(lambda peer: peer.sendall(b"hello")) as port:
            peer = application_peer(f"127.0.0.1:{port}", 2)
        assert peer.leaf is None
        assert peer.problem

    def test_silence(self) -> None:
        with _raw_server(_silent_until_it_hangs_up) as port:
            peer = application_peer(f"127.0.0.1:{port}", 0.2)
        assert peer.leaf is None
        assert peer.problem


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("host", ("host", 443)),
        ("host:3655", ("host", 3655)),
        ("[::1]:8", ("::1", 8)),
        ("10.0.0.7:1", ("10.0.0.7", 1)),
        ("Service.Example.com", ("service.example.com", 443)),
    ],
)
def test_addresses(address: str, expected: tuple[str, int]) -> None:
    assert parse_address(address, "--application") == expected


@pytest.mark.parametrize(
    "address",
    ["", ":1", "host:", "host:x", "host:99999", "a/b", "a?b", "a#b", "u@host", "[::1", "a\nb", "https://a", "a b"],
)
def test_no_address(address: str) -> None:
    if address == "host:":
        assert parse_address(address, "x") == ("host", 443)
        return
    with pytest.raises(InputError, match="--application"):
        parse_address(address, "--application")


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("host:x", "'host:x': the port is no number from 0 to 65535"),
        ("host:99999", "'host:99999': the port is no number from 0 to 65535"),
        ("[::1", "'[::1' is no host[:port]; expected, for instance, service.example.com:3655"),
        ("a..b", "'a..b' is no host name: its parts have 1 to 63 letters, digits or -"),
        ("a" * 64, f"'{'a' * 64}' is no host name: its parts have 1 to 63 letters, digits or -"),
    ],
)
def test_what_is_wrong_is_said_in_our_words(address: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_address(address, "--application")
    assert str(caught.value) == f"--application: {says}"


@pytest.mark.parametrize(
    "url", ["http://vm", "ftp://vm", "https://", "https://vm/path", "https://vm:0x50", "https://u:p@vm"]
)
def test_no_url(url: str) -> None:
    with pytest.raises(InputError, match="--url"):
        AgentClient(url)


def test_a_url_that_is_none_is_told_what_one_looks_like() -> None:
    with pytest.raises(InputError, match=r"for instance, https://vm\.example\.com:5355$"):
        AgentClient("https://vm/path")


@pytest.mark.parametrize(
    ("url", "shown"),
    [("https://vm", "https://vm"), ("vm:5355", "https://vm:5355"), ("https://[::1]:8/", "https://[::1]:8")],
)
def test_urls(url: str, shown: str) -> None:
    assert AgentClient(url).url == shown


def test_ca_file_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    with pytest.raises(InputError, match=r"ca\.pem: cannot be used as CA file: No such file or directory$"):
        AgentClient("https://vm", ca_file=str(path))
    for content in ("", "nothing", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        path.write_text(content)
        with pytest.raises(InputError, match=r"ca\.pem: cannot be used as CA file: it has no certificate in PEM$"):
            AgentClient("https://vm", ca_file=str(path))
    with pytest.raises(InputError, match="--ca-file is empty"):
        AgentClient("https://vm", ca_file="")
    with pytest.raises(InputError, match=r"cannot be used as CA file: no name of a file$"):
        AgentClient("https://vm", ca_file="a\0b")


def test_one_line() -> None:
    assert one_line("a\r\nb\t\x1b[31mc\x07\u202ed ") == "a b [31mc d"
    assert len(one_line("x" * 5000)) == 300


def test_tls_1_1_is_not_spoken(agent: Any) -> None:
    for context in (channel.unchecked_context(), AgentClient(agent.url)._channel._contexts[0]):
        assert context is not None
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def _silent_until_it_hangs_up(peer: socket.socket) -> None:
    while peer.recv(4096):
        pass


class _raw_server:  # noqa: N801 - reads as a function
    """Accepts connections and hands each to ``talk`` as it is."""

    def __init__(self, talk: Callable[[socket.socket], None]) -> None:
        self._talk = talk

    def __enter__(self) -> int:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        port: int = self._server.getsockname()[1]
        return port

    def _serve(self) -> None:
        while True:
            try:
                peer, _ = self._server.accept()
            except OSError:
                return
            with peer:
                try:
                    self._talk(peer)
                except (OSError, ssl.SSLError):
                    continue

    def __exit__(self, *_: object) -> None:
        socket.socket.shutdown(self._server, socket.SHUT_RDWR)
        self._server.close()
        self._thread.join()


def test_activate(agent: Any) -> None:
    with AgentClient(agent.url, allow_insecure_tls=True) as client:
        agent.route("POST", wire.ACTIVATE, 200, json.dumps({"credential": "c2VjcmV0"}).encode())
        assert client.activate(b"blob", b"encrypted") == b"secret"
        assert json.loads(agent.calls[-1].body) == {"credential_blob": "YmxvYg==", "secret": "ZW5jcnlwdGVk"}
        agent.route("POST", wire.ACTIVATE, 200, json.dumps({"credential": "A" * 88}).encode())
        with pytest.raises(TransportError, match="not understood"):
            client.activate(b"blob", b"encrypted")
        agent.route("POST", wire.ACTIVATE, 400, b"the TPM does not activate this credential")
        with pytest.raises(RefusedError, match="does not activate") as caught:
            client.activate(b"blob", b"encrypted")
        assert caught.value.status == 400
