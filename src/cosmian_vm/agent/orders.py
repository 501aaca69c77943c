"""The seam between the front (HTTPS, unprivileged) and the collector (root): a small, fixed vocabulary.

The front knows nothing of TPMs, reports or files; it hands on what a client asked and the certificate of the client's
connection. Arguments and results are plain values, so that a Unix socket can stand between the two. Each order may
raise OrderError (with the HTTP status), AttesterError (a device failed: 500), NotAvailableError (no such device: 404).
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from cosmian_vm.agent.caller import Caller
from cosmian_vm.wire import (
    AppAnswer,
    AppLogsAnswer,
    EvidenceAnswer,
    OwnersAnswer,
    SnapshotProgress,
    TpmQuoteV1,
    VersionAnswer,
)

__all__ = ["Orders", "SnapshotState"]


class SnapshotState(msgspec.Struct, frozen=True, kw_only=True):
    """Where the snapshot stands: exactly one of the three is set, or none where none was ordered.

    ``progress``: it is being computed. ``finished``: the file's content, JSON. ``failed``: why, in one line.
    """

    progress: SnapshotProgress | None = None
    finished: bytes | None = None
    failed: str | None = None


class Orders(Protocol):
    """All that the front can ask for. ``leaf``: certificate (DER) of the very connection that gets the answer."""

    async def version(self) -> VersionAnswer:
        """What this machine has."""
        ...

    async def is_owner(self, caller: Caller) -> bool:
        """Whether a proof that came with a call for evidence is an owner's: then nobody else is served first."""
        ...

    async def evidence(self, nonce: bytes, leaf: bytes, ima_from: int, *, first: bool = False) -> EvidenceAnswer:
        """All evidence of one moment, bound to ``nonce`` (32 bytes) and ``leaf`` (version 2). ``first``: before those
        who wait.
        """
        ...

    async def activate(self, credential_blob: bytes, secret: bytes) -> bytes:
        """TPM2_ActivateCredential for the AK and the EK of the evidence: the credential. Arguments as in
        ``wire.ActivateRequest``. 400 where it was made for other keys.
        """
        ...

    async def tee_quote_v1(self, nonce: bytes, leaf: bytes) -> bytes:
        """Version 1: the TEE's quote with its certificates behind it. ``nonce``: 32 bytes."""
        ...

    async def tpm_quote_v1(self, nonce: bytes) -> TpmQuoteV1:
        """Version 1: a quote over the one PCR of the IMA list. ``nonce``: at most 64 bytes."""
        ...

    async def ima_ascii(self) -> bytes:
        """The kernel's list, ASCII."""
        ...

    async def ima_binary(self) -> bytes:
        """The kernel's list, binary."""
        ...

    async def snapshot(self, caller: Caller) -> SnapshotState:
        """The present state; where there is none yet, this orders one (and needs the right to)."""
        ...

    async def delete_snapshot(self, caller: Caller) -> None:
        """Forget a finished or failed snapshot. 409 while one is being computed."""
        ...

    async def admit_init(self, caller: Caller) -> None:
        """Whether ``init_app`` would be obeyed, asked before its body is read."""
        ...

    async def init_app(self, caller: Caller, body: bytes) -> None:
        """Write ``app.conf`` and start the application with it. ``body``: JSON, as it came."""
        ...

    async def restart_app(self, caller: Caller) -> None:
        """Restart the application."""
        ...

    async def app_status(self, caller: Caller) -> AppAnswer:
        """How the application is."""
        ...

    async def app_logs(self, caller: Caller, lines: int) -> AppLogsAnswer:
        """The last ``lines`` lines that the application wrote; for owners alone."""
        ...

    async def nonce(self) -> bytes:
        """What an owner's proof answers, 32 bytes, usable once and for a short time."""
        ...

    async def owners(self) -> OwnersAnswer:
        """Who owns this machine."""
        ...

    async def claim(self, caller: Caller) -> OwnersAnswer:
        """Make whoever holds the proof's key the owner. 409 where somebody else is."""
        ...

    async def add_owner(self, caller: Caller, body: bytes) -> OwnersAnswer:
        """One owner more. ``body``: JSON, as it came."""
        ...

    async def remove_owner(self, caller: Caller, body: bytes) -> OwnersAnswer:
        """One owner less. ``body``: JSON, as it came."""
        ...
