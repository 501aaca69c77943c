"""The agent's HTTP API, seen from the administrator's side: one TLS connection at a time, the one that is appraised."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

import msgspec

from cosmian_vm import wire
from cosmian_vm.client._channel import Answer, Channel, deadline, one_line, parse_address, unchecked_context
from cosmian_vm.errors import EvidenceFormatError, InputError, PeerChangedError, RefusedError, TransportError
from cosmian_vm.evidence.bundle import (
    ApplicationPeer,
    Evidence,
    TlsPeer,
    TpmEvidence,
)
from cosmian_vm.owner_proof import PROOF_HEADER
from cosmian_vm.reference.snapshot import MAX_SNAPSHOT_SIZE

if TYPE_CHECKING:
    from cosmian_vm.client.owner_key import OwnerKey

__all__ = ["MAX_EVIDENCE", "AgentClient", "application_peer"]

MAX_EVIDENCE = 512 * 1024 * 1024
"""Largest answer with evidence, in bytes, after decompression (an IMA list of a million entries takes some 150 MB)."""
_MAX_QUOTE_V1 = 1024 * 1024
_MAX_LIST_V1 = 128 * 1024 * 1024
"""A JSON array of numbers takes up to 8 times its own size while it is read."""
_SNAPSHOT_TIME = 900.0
_SNAPSHOT_WAIT = 24 * 3600.0
_POLL = (0.1, 1.0)
_ORDER_TIME = 150.0
"""For an order and its answer; the agent gives a service manager 45 s for each step."""
_MAX_ORDER_ANSWER = 1024 * 1024
_MAX_LOGS = 8 * 1024 * 1024
_BUSY = 503
_UNPROVEN = (401, 403)

_Shape = TypeVar("_Shape")


class AgentClient:
    """One agent. Not thread-safe. The arguments are those of :class:`Channel`."""

    def __init__(
        self, url: str, *, allow_insecure_tls: bool = False, ca_file: str | None = None, timeout: float = 30.0
    ) -> None:
        self._channel = Channel(url, allow_insecure_tls=allow_insecure_tls, ca_file=ca_file, timeout=timeout)
        self.url = self._channel.url
        """The address, in its short form, for messages."""
        self.timeout = timeout
        self.owner: OwnerKey | None = None
        """Who gives the orders: each gets a proof by this key. None: orders are sent without."""

    def __enter__(self) -> AgentClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, if there is one."""
        self._channel.close()

    def connect(self) -> TlsPeer:
        """The other end of the present connection, which is opened if there is none.

        Raises TransportError, and PeerChangedError where the key is not the pinned one.
        """
        return self._channel.connect()

    def pin(self, leaf: bytes) -> None:
        """From now on, talk to nobody but the holder of this certificate's key (DER): it has been attested."""
        self._channel.pin(leaf)

    def hold(self, *, held: bool) -> None:
        """``held``: send nothing but on the present connection. Raises nothing; the calls raise ConnectionLostError."""
        self._channel.hold(held=held)

    # What an agent can be asked

    def version(self) -> wire.VersionAnswer:
        """``GET /version``."""
        answer = self._channel.call("GET", wire.VERSION)
        return self._decoded(answer.body, wire.VersionAnswer, wire.VERSION)

    def evidence(self, nonce: bytes, *, ima_from: int = 0) -> Evidence:
        """All evidence of this moment (version 2), with the certificate of the connection that it came over.

        Raises RefusedError (status 404: the agent speaks version 1 only) and TransportError.
        """
        request = msgspec.json.encode(wire.EvidenceRequest(nonce=nonce, ima_from=ima_from))
        try:
            answer = self._channel.call("POST", wire.EVIDENCE, request, limit=MAX_EVIDENCE)
        except RefusedError as exc:
            if exc.status != _BUSY or self.owner is None:
                raise
            answer = self._order("POST", wire.EVIDENCE, request, limit=MAX_EVIDENCE)  # an owner need not wait
        told = self._decoded(answer.body, wire.EvidenceAnswer, wire.EVIDENCE)
        if told.api != 2:
            raise TransportError(f"{self.url}: the agent answers with evidence of version {told.api}, expected is 2")
        return Evidence(
            api=2,
            tee=told.tee_quote,
            tpm=None if told.tpm is None else wire.tpm_evidence(told.tpm),
            ima_log=told.ima_log,
            boot_event_log=told.boot_event_log,
            tls=answer.peer,
            endorsements=tuple(told.endorsements),
            ima_from=told.ima_from,
            owners=tuple(told.owners),
            cloud=told.cloud,
            agent_version=one_line(told.agent_version),
            hcl_report=told.hcl_report,
            cc_event_log=told.cc_event_log,
            svsm=wire.svsm_report(told.svsm),
        )

    def activate(self, credential_blob: bytes, secret: bytes) -> bytes:
        """TPM2_ActivateCredential for the AK and the EK of the evidence: the credential. Arguments as in
        ``wire.ActivateRequest``.

        Raises RefusedError (status 400: the TPM does not activate it; 404: no TPM, or no EK) and TransportError.
        """
        request = msgspec.json.encode(wire.ActivateRequest(credential_blob=credential_blob, secret=secret))
        answer = self._channel.call("POST", wire.ACTIVATE, request)
        return self._decoded(answer.body, wire.ActivateAnswer, wire.ACTIVATE).credential

    def evidence_v1(self, nonce: bytes) -> Evidence:
        """What a 1.3.x agent has to show. Three calls, one certificate; the TPM is asked before the list is read.

        What the agent refuses (it has no TPM, no IMA) is None: missing evidence, which the appraisal judges.
        """
        query = f"?nonce={quote(wire.encode_base64_unpadded(nonce), safe='')}"
        peer = self.connect()
        tee = self._bytes_v1(wire.QUOTE_TEE + query, peer, limit=_MAX_QUOTE_V1)
        tpm = self._tpm_v1(wire.QUOTE_TPM + query, peer)
        log = self._bytes_v1(wire.IMA_BINARY, peer, limit=_MAX_LIST_V1)
        return Evidence(api=1, tee=tee, tpm=tpm, ima_log=log, boot_event_log=None, tls=peer)

    def snapshot(self, progress: Callable[[wire.SnapshotProgress], None] | None = None, *, api: int = 2) -> bytes:
        """Order a snapshot, wait for it, fetch it: the agent's JSON, not yet read. Every connection has the pinned key.

        One that the agent still keeps from before is thrown away first; one that is being computed right now is
        waited for. ``progress`` is called at every poll while it is computed.
        """
        path = wire.SNAPSHOT_V1 if api == 1 else wire.SNAPSHOT_V2
        order = {wire.ORDER_HEADER: str(api)}
        self._order("DELETE", path, accept=(200, 404, 409), headers=order)
        give_up = time.monotonic() + _SNAPSHOT_WAIT
        pause, longest = _POLL
        ask: Callable[..., Answer] = self._order  # the first call orders it, the others only read
        while time.monotonic() < give_up:
            try:
                answer = ask(
                    "GET", path, accept=(200, 202), headers=order, limit=MAX_SNAPSHOT_SIZE, seconds=_SNAPSHOT_TIME
                )
            except RefusedError as exc:
                if exc.status not in _UNPROVEN or ask == self._order:
                    raise
                ask = self._order  # the agent has forgotten what was ordered: it was started anew
                continue
            if answer.status == 200:
                with suppress(TransportError):  # only tidiness: the agent keeps it until the next order
                    self._order("DELETE", path, headers=order)
                return answer.body
            if progress is not None and api != 1:
                progress(self._decoded(answer.body, wire.SnapshotProgress, path))
            ask = self._channel.call
            time.sleep(pause)
            pause = min(2 * pause, longest)
        raise TransportError(f"{self.url}: the snapshot was not ready after {_SNAPSHOT_WAIT / 3600:.0f} hours")

    def app_init(self, content: bytes) -> None:
        """Write the application's configuration and start it."""
        if len(content) > wire.MAX_APP_CONFIGURATION:
            raise InputError(f"the configuration has {len(content)} bytes, at most {wire.MAX_APP_CONFIGURATION} fit")
        body = msgspec.json.encode(wire.AppConfiguration(content=wire.encode_base64_unpadded(content)))
        self._order("POST", wire.APP_INIT, body)

    def app_restart(self) -> None:
        """Restart the application."""
        self._order("POST", wire.APP_RESTART)

    def app_status(self) -> wire.AppAnswer:
        """How the application is."""
        return self._decoded(self._order("GET", wire.APP).body, wire.AppAnswer, wire.APP)

    def app_logs(self, lines: int) -> list[str]:
        """The last lines that the application wrote."""
        target = f"{wire.APP_LOGS}?lines={lines}"
        answer = self._order("GET", target, limit=_MAX_LOGS)
        return self._decoded(answer.body, wire.AppLogsAnswer, target).lines

    def owners(self) -> wire.OwnersAnswer:
        """Who owns the machine, as the agent says. Raises RefusedError (404: an agent of before there were owners)."""
        return self._decoded(self._channel.call("GET", wire.OWNER).body, wire.OwnersAnswer, wire.OWNER)

    def claim(self) -> wire.OwnersAnswer:
        """Make ``owner`` the owner of a machine that nobody owns. Raises RefusedError (409: somebody else is)."""
        return self._decoded(self._order("POST", wire.OWNER_CLAIM).body, wire.OwnersAnswer, wire.OWNER_CLAIM)

    def change_owners(self, target: str, owner: str) -> wire.OwnersAnswer:
        """``target``: OWNER_ADD or OWNER_REMOVE."""
        body = msgspec.json.encode(wire.OwnerRequest(owner=owner))
        return self._decoded(self._order("POST", target, body).body, wire.OwnersAnswer, target)

    # Underneath

    def _order(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        *,
        accept: tuple[int, ...] = (200,),
        headers: Mapping[str, str] | None = None,
        limit: int = _MAX_ORDER_ANSWER,
        seconds: float = _ORDER_TIME,
    ) -> Answer:
        """A call with the owner's proof, where there is an owner. It is bound to the connection's key: one that is lost
        meanwhile may be opened again to that key, and the proof does not hold for any other.
        """
        sent = {wire.ORDER_HEADER: "2", **(headers or {})}
        if self.owner is not None:
            told = self._channel.call("POST", wire.NONCE)
            nonce = self._decoded(told.body, wire.NonceAnswer, wire.NONCE).nonce
            sent[PROOF_HEADER] = self.owner.prove(method, target, body or b"", told.peer.leaf, nonce)
        return self._channel.call(method, target, body, accept=accept, headers=sent, limit=limit, seconds=seconds)

    def _call_v1(self, path: str, peer: TlsPeer, *, limit: int) -> bytes | None:
        """The body of one of the calls that make up version 1's evidence; None where the agent says it has none."""
        try:
            answer = self._channel.call("GET", path, limit=limit)
        except RefusedError as exc:
            if exc.status == 503:  # busy: that says nothing about the machine
                raise
            return None
        if answer.peer.leaf != peer.leaf:
            raise PeerChangedError(f"{self.url}: the certificate changed between two answers of one verification")
        return answer.body

    def _bytes_v1(self, path: str, peer: TlsPeer, *, limit: int) -> bytes | None:
        body = self._call_v1(path, peer, limit=limit)
        try:
            return None if body is None else bytes(self._decoded(body, list[int], path))
        except ValueError as exc:
            raise TransportError(f"{self.url}{path.partition('?')[0]}: expected an array of bytes: {exc}") from exc

    def _tpm_v1(self, path: str, peer: TlsPeer) -> TpmEvidence | None:
        body = self._call_v1(path, peer, limit=_MAX_QUOTE_V1)
        if body is None:
            return None
        told = self._decoded(body, wire.TpmQuoteV1, wire.QUOTE_TPM)
        try:
            return TpmEvidence(
                quote=wire.decode_base64_unpadded(told.quote, "quote"),
                signature=wire.decode_base64_unpadded(told.signature, "signature"),
                ak_public=wire.decode_base64_unpadded(told.public_key, "public_key"),
            )
        except EvidenceFormatError as exc:
            raise TransportError(f"{self.url}{wire.QUOTE_TPM}: {exc}") from exc

    def _decoded(self, body: bytes, shape: type[_Shape], path: str) -> _Shape:
        try:
            return msgspec.json.decode(body, type=shape)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            place = f"{self.url}{path.partition('?')[0]}"
            raise TransportError(f"{place}: the answer is not understood: {one_line(str(exc))}") from exc


def application_peer(address: str, timeout: float = 30.0) -> ApplicationPeer:
    """The certificate that an application serves at ``host[:port]`` (443); the CA checks are not made: it is compared
    with the agent's. Raises InputError where ``address`` is none; an application that cannot be reached is a finding.
    """
    host, port = parse_address(address, "--application")
    try:
        with (
            socket.create_connection((host, port), timeout=timeout) as plain,
            deadline(plain, timeout),
            unchecked_context().wrap_socket(plain, server_hostname=host) as tls,
        ):
            leaf = tls.getpeercert(binary_form=True)
    except (OSError, ValueError) as exc:
        reason = getattr(exc, "reason", None) or getattr(exc, "strerror", None) or exc
        return ApplicationPeer(address=address, leaf=None, problem=one_line(str(reason)) or "no answer")
    return ApplicationPeer(address=address, leaf=leaf, problem="" if leaf else "it shows no certificate")
