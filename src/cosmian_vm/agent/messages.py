"""What passes between front and collector: frames, typed messages, and errors that keep their kind on the way.

A frame is its length (32 bits, big endian) and that many bytes of MessagePack. Each order of ``orders.Orders`` is a
message of its own, and nothing else is one.
"""

from __future__ import annotations

import asyncio
import struct
from typing import Annotated, Generic, Literal, TypeVar

import msgspec
from msgspec import Meta

from cosmian_vm.agent.caller import Caller
from cosmian_vm.agent.log import describe
from cosmian_vm.errors import AttesterError, NotAvailableError, OrderError
from cosmian_vm.wire import MAX_APP_BODY, MAX_CREDENTIAL_BLOB, MAX_CREDENTIAL_SECRET, MAX_LOG_LINES

__all__ = [
    "LENGTH",
    "MAX_ANSWER",
    "MAX_ORDER",
    "MAX_SMALL_ORDER",
    "Activate",
    "AddOwner",
    "AdmitInit",
    "AppLogs",
    "AppStatus",
    "Claim",
    "DeleteSnapshot",
    "Done",
    "Evidence",
    "Failed",
    "FrameError",
    "ImaAscii",
    "ImaBinary",
    "InitApp",
    "IsOwner",
    "Nonce",
    "Order",
    "RemoveOwner",
    "RestartApp",
    "ShowOwners",
    "Snapshot",
    "TeeQuoteV1",
    "TpmQuote",
    "Version",
    "failed",
    "frame",
    "raised",
    "read_body",
    "read_length",
]

MAX_SMALL_ORDER = 128 * 1024
"""Largest order, in bytes, but for ``InitApp``."""

MAX_ORDER = MAX_APP_BODY + MAX_SMALL_ORDER

MAX_ANSWER = 512 * 1024 * 1024
"""Largest answer, in bytes: an IMA list or a snapshot of a large machine."""

LENGTH = struct.Struct(">I")

_MAX_TEXT = 4000
_Result = TypeVar("_Result")
_Leaf = Annotated[bytes, Meta(min_length=1, max_length=64 * 1024)]
_SmallBody = Annotated[bytes, Meta(max_length=4096)]


class _Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """A message, told apart from the others by its name."""


class Version(_Strict, frozen=True, kw_only=True):
    """``Orders.version``."""


class Evidence(_Strict, frozen=True, kw_only=True):
    """``Orders.evidence``."""

    nonce: Annotated[bytes, Meta(min_length=32, max_length=32)]
    leaf: _Leaf
    ima_from: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    first: bool = False


class Activate(_Strict, frozen=True, kw_only=True):
    """``Orders.activate``."""

    credential_blob: Annotated[bytes, Meta(max_length=MAX_CREDENTIAL_BLOB)]
    secret: Annotated[bytes, Meta(max_length=MAX_CREDENTIAL_SECRET)]


class TeeQuoteV1(_Strict, frozen=True, kw_only=True):
    """``Orders.tee_quote_v1``."""

    nonce: Annotated[bytes, Meta(min_length=32, max_length=32)]
    leaf: _Leaf


class TpmQuote(_Strict, frozen=True, kw_only=True):
    """``Orders.tpm_quote_v1``."""

    nonce: Annotated[bytes, Meta(max_length=64)]


class ImaAscii(_Strict, frozen=True, kw_only=True):
    """``Orders.ima_ascii``."""


class ImaBinary(_Strict, frozen=True, kw_only=True):
    """``Orders.ima_binary``."""


class IsOwner(_Strict, frozen=True, kw_only=True):
    """``Orders.is_owner``."""

    caller: Caller


class Snapshot(_Strict, frozen=True, kw_only=True):
    """``Orders.snapshot``."""

    caller: Caller


class DeleteSnapshot(_Strict, frozen=True, kw_only=True):
    """``Orders.delete_snapshot``."""

    caller: Caller


class AdmitInit(_Strict, frozen=True, kw_only=True):
    """``Orders.admit_init``."""

    caller: Caller


class InitApp(_Strict, frozen=True, kw_only=True):
    """``Orders.init_app``."""

    caller: Caller
    body: Annotated[bytes, Meta(max_length=MAX_APP_BODY)]


class RestartApp(_Strict, frozen=True, kw_only=True):
    """``Orders.restart_app``."""

    caller: Caller


class AppStatus(_Strict, frozen=True, kw_only=True):
    """``Orders.app_status``."""

    caller: Caller


class AppLogs(_Strict, frozen=True, kw_only=True):
    """``Orders.app_logs``."""

    caller: Caller
    lines: Annotated[int, Meta(ge=1, le=MAX_LOG_LINES)]


class Nonce(_Strict, frozen=True, kw_only=True):
    """``Orders.nonce``."""


class ShowOwners(_Strict, frozen=True, kw_only=True):
    """``Orders.owners``."""


class Claim(_Strict, frozen=True, kw_only=True):
    """``Orders.claim``."""

    caller: Caller


class AddOwner(_Strict, frozen=True, kw_only=True):
    """``Orders.add_owner``."""

    caller: Caller
    body: _SmallBody


class RemoveOwner(_Strict, frozen=True, kw_only=True):
    """``Orders.remove_owner``."""

    caller: Caller
    body: _SmallBody


Order = (
    Version
    | Evidence
    | Activate
    | TeeQuoteV1
    | TpmQuote
    | ImaAscii
    | ImaBinary
    | Snapshot
    | DeleteSnapshot
    | AdmitInit
    | InitApp
    | IsOwner
    | RestartApp
    | AppStatus
    | AppLogs
    | Nonce
    | ShowOwners
    | Claim
    | AddOwner
    | RemoveOwner
)


class Done(msgspec.Struct, Generic[_Result], frozen=True, forbid_unknown_fields=True, tag=True):
    """The order's result."""

    result: _Result


class Failed(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag=True):
    """The order's error. ``text``: its one line, for the client; ``detail``: the same with its causes, for the log."""

    kind: Literal["order", "absent", "device", "internal"]
    text: Annotated[str, Meta(max_length=_MAX_TEXT)]
    detail: Annotated[str, Meta(max_length=_MAX_TEXT)]
    status: Annotated[int, Meta(ge=400, le=599)] = 500


class FrameError(Exception):
    """The other side sends no frames, or larger ones than it may."""


class _CollectorError(Exception):
    """An error as the collector describes it: the cause of the one that is raised here."""


def failed(exc: Exception) -> Failed:
    """``exc`` as a message. What is none of the errors that ``orders.Orders`` may raise has no text for clients."""
    kind: Literal["order", "absent", "device", "internal"]
    text, status = str(exc), 500
    if isinstance(exc, OrderError):
        kind, status = "order", exc.status if 400 <= exc.status <= 599 else 500
    elif isinstance(exc, NotAvailableError):
        kind = "absent"
    elif isinstance(exc, AttesterError):
        kind = "device"
    else:
        kind, text = "internal", "internal error"
    return Failed(kind=kind, text=_clean(text), detail=_clean(describe(exc)), status=status)


def raised(failure: Failed) -> Exception:
    """The error that ``failure`` was made of; its causes are one, in the collector's words."""
    error: Exception
    if failure.kind == "order":
        error = OrderError(failure.text, status=failure.status)
    elif failure.kind == "absent":
        error = NotAvailableError(failure.text)
    elif failure.kind == "device":
        error = AttesterError(failure.text)
    else:
        error = RuntimeError(failure.text)
    error.__cause__ = _CollectorError(failure.detail)
    return error


def frame(message: object, limit: int) -> bytes:
    """``message`` as a frame. Raises FrameError where it is larger than ``limit`` bytes."""
    body = msgspec.msgpack.encode(message)
    if len(body) > limit:
        raise FrameError(f"a message of {len(body)} bytes; {limit} are the most")
    return LENGTH.pack(len(body)) + body


async def read_length(reader: asyncio.StreamReader, limit: int) -> int | None:
    """Length of the next frame's body; None where the other side has closed in good order.

    Raises FrameError, OSError.
    """
    try:
        head = await reader.readexactly(LENGTH.size)
    except asyncio.IncompleteReadError as exc:
        if exc.partial:
            raise FrameError("the connection ended in the middle of a frame") from exc
        return None
    length: int = LENGTH.unpack(head)[0]
    if not 0 < length <= limit:
        raise FrameError(f"a frame of {length} bytes; 1 to {limit} are allowed")
    return length


async def read_body(reader: asyncio.StreamReader, length: int) -> bytes:
    """A frame's body. Raises FrameError, OSError."""
    try:
        return await reader.readexactly(length)
    except asyncio.IncompleteReadError as exc:
        raise FrameError("the connection ended in the middle of a frame") from exc


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()[:_MAX_TEXT]
