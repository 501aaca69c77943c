"""What clients ask, read with bounds: bodies, nonces, headers. Everything that is wrong is an OrderError."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import msgspec

from cosmian_vm.agent.answers import Budget
from cosmian_vm.agent.asgi import Request
from cosmian_vm.agent.caller import MAX_TARGET, Caller
from cosmian_vm.errors import EvidenceFormatError, OrderError
from cosmian_vm.evidence.binding import NONCE_SIZE
from cosmian_vm.owner_proof import MAX_PROOF, PROOF_HEADER
from cosmian_vm.wire import (
    MAX_APP_BODY,
    MAX_LOG_LINES,
    ORDER_HEADER,
    ActivateRequest,
    EvidenceRequest,
    decode_base64_unpadded,
)

__all__ = [
    "ClientGoneError",
    "activate_request",
    "app_body",
    "caller",
    "evidence_request",
    "leaf",
    "log_lines",
    "no_body",
    "nonce",
    "read_body",
    "small_body",
]

_Shape = TypeVar("_Shape")

MAX_TPM_NONCE = 64
"""Largest qualifyingData of a version 1 quote, in bytes."""

MAX_EVIDENCE_BODY = 4096
MAX_ACTIVATE_BODY = 4096
MAX_SMALL_BODY = 4096
_MAX_ENTRY = 2**63 - 1
_BODY_SECONDS = 30.0
_APP_BODY_SECONDS = 120.0
_MOST_THROWN_AWAY = 64 * 1024 * 1024


class ClientGoneError(Exception):
    """The client left before it had said all; nobody waits for an answer."""


async def read_body(
    request: Request, limit: int, seconds: float, received: Callable[[int], None] = lambda _size: None
) -> bytes:
    """The whole body, at most ``limit`` bytes, arrived within ``seconds``. ``received`` is told the size of each part
    that is kept, and may raise.

    Of a body that is too large some more is read and thrown away, so that its sender reads our answer instead of
    finding its connection broken. Raises OrderError (400, 413), ClientGoneError.
    """
    parts: list[bytes] = []
    size = 0
    more = _announced(request) <= _MOST_THROWN_AWAY
    too_large = not more
    try:
        async with asyncio.timeout(seconds):
            while more and size <= _MOST_THROWN_AWAY:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                part = message.get("body", b"")
                size += len(part)
                if size <= limit:
                    received(len(part))
                    parts.append(part)
                else:
                    too_large = True
                    parts.clear()
                more = message.get("more_body", False)
    except TimeoutError as exc:
        raise OrderError(f"the body did not arrive within {seconds:g} s", status=400) from exc
    if too_large:
        raise OrderError(f"the body is larger than {limit} bytes", status=413)
    return b"".join(parts)


def _announced(request: Request) -> int:
    length = request.header("content-length")
    return int(length) if length.isdecimal() and len(length) < 20 else 0


async def evidence_request(request: Request) -> EvidenceRequest:
    """Body of ``POST /v2/evidence``. Raises OrderError, ClientGoneError."""
    raw = await read_body(request, MAX_EVIDENCE_BODY, _BODY_SECONDS)
    asked = _decoded(raw, EvidenceRequest)
    if len(asked.nonce) != NONCE_SIZE:
        raise OrderError(f"nonce: {len(asked.nonce)} bytes; expected are {NONCE_SIZE}", status=400)
    if not 0 <= asked.ima_from <= _MAX_ENTRY:
        raise OrderError("ima_from: expected is the number of an entry, counted from 0", status=400)
    return asked


async def activate_request(request: Request) -> ActivateRequest:
    """Body of ``POST /v2/activate``. Raises OrderError, ClientGoneError."""
    return _decoded(await read_body(request, MAX_ACTIVATE_BODY, _BODY_SECONDS), ActivateRequest)


async def app_body(request: Request, budget: Budget) -> bytes:
    """Body of ``POST /app/init``, whole. What it takes of the budget is given back by the caller, ``len`` bytes of it.

    Raises OrderError, ClientGoneError.
    """
    taken = 0

    def received(size: int) -> None:
        nonlocal taken
        budget.take(size)
        taken += size

    try:
        return await read_body(request, MAX_APP_BODY, _APP_BODY_SECONDS, received)
    except BaseException:
        budget.give_back(taken)
        raise


async def small_body(request: Request) -> bytes:
    """Body of a small order, whole. Raises OrderError, ClientGoneError."""
    return await read_body(request, MAX_SMALL_BODY, _BODY_SECONDS)


async def no_body(request: Request) -> None:
    """Of an order that has none. Raises OrderError, ClientGoneError."""
    if await small_body(request):
        raise OrderError("this call takes no body", status=400)


def log_lines(request: Request) -> int:
    """Query parameter ``lines``. Raises OrderError."""
    given = request.parameters("lines")
    if len(given) != 1 or not given[0].isascii() or not given[0].isdecimal() or len(given[0]) > 6:
        raise OrderError(f"lines: expected is one query parameter lines=1 to {MAX_LOG_LINES}", status=400)
    if not 1 <= int(given[0]) <= MAX_LOG_LINES:
        raise OrderError(f"lines: expected is a number from 1 to {MAX_LOG_LINES}", status=400)
    return int(given[0])


def nonce(request: Request, *, exactly: int | None = None) -> bytes:
    """Query parameter ``nonce``: base64 without padding of ``exactly`` so many bytes, else of at most 64.

    A ``+`` must be sent as ``%2B``: by itself it is a space in a query. Raises OrderError.
    """
    given = request.parameters("nonce")
    if len(given) != 1:
        raise OrderError("nonce: expected is one query parameter nonce=BASE64", status=400)
    try:
        raw = decode_base64_unpadded(given[0], "nonce")
    except EvidenceFormatError as exc:
        raise OrderError(str(exc), status=400) from exc
    if exactly is not None and len(raw) != exactly:
        raise OrderError(f"nonce: {len(raw)} bytes; expected are {exactly}", status=400)
    if len(raw) > MAX_TPM_NONCE:
        raise OrderError(f"nonce: {len(raw)} bytes; expected are at most {MAX_TPM_NONCE}", status=400)
    return raw


def leaf(request: Request) -> bytes:
    """Certificate (DER) that the client of this very connection saw. Raises OrderError where that is not known."""
    known = request.leaf
    if known is None:
        raise OrderError("this connection resumed a TLS session that is not known any more: connect anew", status=503)
    return known


def caller(request: Request) -> Caller:
    """Who gives the order, and the proof that came with it. Raises OrderError for what is too long to be one."""
    target, proof = request.target, request.header(PROOF_HEADER)
    if len(target) > MAX_TARGET:
        raise OrderError(f"path and query are longer than {MAX_TARGET} characters", status=400)
    if len(proof) > MAX_PROOF:
        raise OrderError(f"the owner's proof is longer than {MAX_PROOF} characters", status=401)
    return Caller(
        api=2 if request.header(ORDER_HEADER) == "2" else 1,
        address=request.address,
        proof=proof,
        target=target,
        leaf=request.leaf or b"",
    )


def _decoded(raw: bytes, shape: type[_Shape]) -> _Shape:
    try:
        return msgspec.json.decode(raw, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise OrderError(f"the body is not understood: {exc}", status=400) from exc
