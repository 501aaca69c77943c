"""Who owns this machine, and whether an order comes from an owner: decided in the collector, from the proof alone.

The first who claims a machine owns it; ``data/owners.json`` keeps the owners, on the encrypted container. The front is
believed in nothing: method and target are those of the order that the collector is about to obey, the body is the one
that it was given, and the signature covers all of them (``owner_proof``). Not so the TLS key: the front has it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from typing import Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cosmian_vm.agent.caller import Caller
from cosmian_vm.agent.files import make_folder, write_atomically
from cosmian_vm.agent.lane import Lane
from cosmian_vm.agent.log import LOGGER
from cosmian_vm.agent.nonces import Nonces
from cosmian_vm.agent.storage import Storage
from cosmian_vm.certificates import spki_sha256
from cosmian_vm.errors import AttesterError, EndorsementError, EvidenceFormatError, OrderError
from cosmian_vm.owner_proof import (
    ANYONE,
    MAX_OWNERS,
    UNKNOWN,
    Proof,
    fingerprint,
    order_message,
    parse_fingerprint,
    parse_proof,
)

__all__ = ["Owners"]

_SECONDS = 30.0
_MAX_CHANGES = 8
_MAX_FILE = 64 * 1024
_ANYONE_LINE = 'owners = "anyone" in the section [agent] of the agent\'s configuration'


class _Stored(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``owners.json``."""

    version: Literal[1]
    owners: list[str]


class Owners:
    """The owners of this machine. ``configured``: "anyone" takes orders from any client, as 1.3.x does; fingerprints
    are the owners, and nobody can claim; None: whoever claims first.
    """

    def __init__(
        self,
        configured: Literal["anyone"] | tuple[str, ...] | None,
        storage: Storage,
        *,
        nonces: Nonces | None = None,
    ) -> None:
        self._configured = configured
        self._storage = storage
        self._file = storage.owners_file
        self._nonces = nonces or Nonces()
        self._lane = Lane("owners", capacity=_MAX_CHANGES)
        self._stored: tuple[str, ...] | None = () if configured is not None else self._load()

    def close(self) -> None:
        """End what runs."""
        self._lane.close()

    @property
    def names(self) -> tuple[str, ...]:
        """As evidence shows them: fingerprints in order, ("anyone",), ("unknown",), or () for an unclaimed machine."""
        if self._configured == "anyone":
            return (ANYONE,)
        known = self._stored if self._configured is None else self._configured
        return (UNKNOWN,) if known is None else tuple(sorted(known))

    @property
    def claimable(self) -> bool:
        """Whether whoever comes first may have it."""
        return self._configured is None and self._stored == ()

    @property
    def open_to_anyone(self) -> bool:
        """Whether orders are taken without a proof."""
        return self._configured == "anyone"

    def nonce(self) -> bytes:
        """A fresh nonce for one proof, 32 bytes."""
        return self._nonces.issue()

    def check(self, caller: Caller, method: str, targets: tuple[str, ...], body: bytes = b"") -> str:
        """Let an order pass; who gives it: a fingerprint, or "anyone". The proof is used up.

        ``targets``: the paths with query that stand for this order. Raises OrderError (401, 403, 503) with the remedy.
        """
        if self._configured == "anyone":
            return ANYONE
        proof = self._admitted(caller, method, targets)
        if proof.body_sha256 != sha256(body).digest():
            raise OrderError("the proof is for another body", status=401)
        self._nonces.use(proof.nonce)
        return fingerprint(proof.key)

    def admit(self, caller: Caller, method: str, targets: tuple[str, ...]) -> None:
        """As ``check``, before the body is read: the proof names its hash. It is not used up. Raises OrderError."""
        if self._configured != "anyone":
            self._admitted(caller, method, targets)

    def is_owner(self, caller: Caller, method: str, targets: tuple[str, ...]) -> bool:
        """Whether a call that anybody may make comes from an owner, who need not wait for the others."""
        if not caller.proof:
            return False
        with suppress(OrderError):
            self._admitted(caller, method, targets)
            return True
        return False

    async def claim(self, caller: Caller, method: str, target: str) -> str:
        """Make the holder of the proof's key the owner of a machine that nobody owns; its fingerprint.

        Raises OrderError: 403 where the configuration forbids it, 409 where the machine is owned by somebody else.
        """
        if self._configured is not None:
            how = _ANYONE_LINE if self._configured == "anyone" else "the owners are set in the agent's configuration"
            raise OrderError(f"this machine cannot be claimed: {how}", status=403)
        proof = self._verified(caller, method, (target,))
        who = fingerprint(proof.key)

        def change(owners: tuple[str, ...]) -> tuple[str, ...]:
            if owners and who not in owners:
                raise OrderError(f"this machine is owned by {', '.join(owners)}", status=409)
            return owners or (who,)

        change(self._stored or ())  # a stranger neither queues nor leaves a used nonce, of which there is a limit
        self._nonces.use(proof.nonce)
        await self._change(change)
        return who

    async def add(self, owner: str) -> None:
        """One owner more. Raises OrderError (400, 403, 409)."""
        _understood(owner)

        def change(owners: tuple[str, ...]) -> tuple[str, ...]:
            if owner in owners:
                return owners
            if len(owners) >= MAX_OWNERS:
                raise OrderError(f"a machine has {MAX_OWNERS} owners at most", status=409)
            return (*owners, owner)

        await self._change(change)

    async def remove(self, owner: str) -> None:
        """One owner less. Raises OrderError (400, 403, 404, 409)."""
        _understood(owner)

        def change(owners: tuple[str, ...]) -> tuple[str, ...]:
            if owner not in owners:
                raise OrderError(f"{owner} does not own this machine", status=404)
            if len(owners) == 1:
                raise OrderError("the last owner cannot be removed: add another one first", status=409)
            return tuple(name for name in owners if name != owner)

        await self._change(change)

    async def _change(self, change: Callable[[tuple[str, ...]], tuple[str, ...]]) -> None:
        """One change at a time: what two want at once, the second finds done."""
        if self._configured is not None:
            raise OrderError("the owners of this machine are set in the agent's configuration", status=403)

        def work() -> None:
            self._storage.require_open()
            if self._stored is None:
                raise OrderError(f"{self._file} cannot be used, see the agent's log", status=503)
            owners = change(self._stored)
            if owners != self._stored:
                self._save(owners)
                self._stored = owners

        await self._lane.call(work, seconds=_SECONDS)

    def _admitted(self, caller: Caller, method: str, targets: tuple[str, ...]) -> Proof:
        """The proof of an owner. Raises OrderError."""
        names = self.names
        if names == (UNKNOWN,):
            self._storage.require_open()
            raise OrderError(f"who owns this machine cannot be read ({self._file}), see the agent's log", status=503)
        if not caller.proof:
            raise self._unproven(names, caller.api)
        proof = self._verified(caller, method, targets)
        if fingerprint(proof.key) not in names:
            whose = f"is owned by {', '.join(names)}" if names else "has no owner yet: claim it first"
            raise OrderError(f"this machine {whose}; the order is signed by {fingerprint(proof.key)}", status=403)
        return proof

    def _unproven(self, names: tuple[str, ...], api: int) -> OrderError:
        old = f"; orders of API version 1 carry no proof: use a client of version 2, or set {_ANYONE_LINE}"
        if names:
            text = f"this machine is owned by {', '.join(names)} and takes orders with an owner's proof alone"
            return OrderError(text + (old if api < 2 else ""), status=401)
        text = (
            "nobody owns this machine yet, and orders need an owner's proof: cosmian_vm claims it with its first order"
        )
        return OrderError(text + (old if api < 2 else ""), status=403)

    def _verified(self, caller: Caller, method: str, targets: tuple[str, ...]) -> Proof:
        """The proof, by whomever: of this order, this agent's TLS key and a nonce of ours. Raises OrderError."""
        if not caller.leaf:
            raise OrderError(
                "this connection resumed a TLS session that is not known any more: connect anew", status=503
            )
        try:
            proof = parse_proof(caller.proof)
            parse_fingerprint(fingerprint(proof.key))
            spki = spki_sha256(caller.leaf)
            key = Ed25519PublicKey.from_public_bytes(proof.key)
        except (EvidenceFormatError, EndorsementError, ValueError) as exc:
            raise OrderError(f"the owner's proof is not understood: {exc}", status=401) from exc
        if caller.target not in targets:
            raise OrderError("the proof is for another call", status=401)
        self._nonces.check(proof.nonce)
        message = order_message(method, caller.target, proof.body_sha256, spki, proof.nonce)
        try:
            key.verify(proof.signature, message)
        except InvalidSignature as exc:
            text = "the proof does not fit: it is for another call, body, nonce or machine, or signed with another key"
            raise OrderError(text, status=401) from exc
        return proof

    def _load(self) -> tuple[str, ...] | None:
        """The owners as stored; () where nobody has claimed; None where that cannot be told."""
        if self._storage.locked() is not None:
            return None
        try:
            raw = _read(self._file)
            stored = msgspec.json.decode(raw, type=_Stored)
            for owner in stored.owners:
                parse_fingerprint(owner)
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, msgspec.DecodeError, RecursionError, EvidenceFormatError) as exc:
            LOGGER.error("%s cannot be used, so no order is taken: %s", self._file, " ".join(str(exc).split()))
            return None
        if not 0 < len(set(stored.owners)) == len(stored.owners) <= MAX_OWNERS:
            LOGGER.error("%s cannot be used, so no order is taken: it names no owner, or one twice", self._file)
            return None
        return tuple(stored.owners)

    def _save(self, owners: tuple[str, ...]) -> None:
        try:
            make_folder(self._file.parent)
            write_atomically(self._file, msgspec.json.encode(_Stored(1, sorted(owners))), 0o600)
        except OSError as exc:
            raise AttesterError(f"{self._file} cannot be written: {exc.strerror or exc}; the owners stay") from exc


def _understood(owner: str) -> None:
    try:
        parse_fingerprint(owner)
    except EvidenceFormatError as exc:
        raise OrderError(str(exc), status=400) from exc


def _read(path: os.PathLike[str]) -> bytes:
    """A file that nobody else could have written. Raises OSError, ValueError."""
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
        seen = os.fstat(file.fileno())
        if not stat.S_ISREG(seen.st_mode) or seen.st_uid != os.geteuid() or seen.st_mode & 0o022:
            raise ValueError("others than the agent may write to it")
        raw = file.read(_MAX_FILE + 1)
    if len(raw) > _MAX_FILE:
        raise ValueError(f"it is larger than {_MAX_FILE} bytes")
    return raw
