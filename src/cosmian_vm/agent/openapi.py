"""The API document that ``GET /openapi.json`` answers (OpenAPI 3.1)."""

from __future__ import annotations

from typing import Any

import msgspec

from cosmian_vm import __version__, wire
from cosmian_vm.owner_proof import PROOF_HEADER

__all__ = ["openapi_document"]

_REFERENCE = "#/components/schemas/{name}"
_SHAPES = (
    wire.VersionAnswer,
    wire.EvidenceRequest,
    wire.EvidenceAnswer,
    wire.ActivateRequest,
    wire.ActivateAnswer,
    wire.SnapshotProgress,
    wire.AppConfiguration,
    wire.NonceAnswer,
    wire.OwnersAnswer,
    wire.OwnerRequest,
    wire.AppAnswer,
    wire.AppLogsAnswer,
    wire.TpmQuoteV1,
)
_BYTES = {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 255}}
_NULL = {"type": "null"}
_SNAPSHOT = {"type": "object", "description": "The snapshot file's content."}

_Schema = dict[str, Any]


def openapi_document() -> _Schema:
    """The document, made of the very shapes that are sent."""
    _, components = msgspec.json.schema_components(_SHAPES, ref_template=_REFERENCE)
    paths: dict[str, _Schema] = {
        wire.VERSION: {"get": _call("What this machine has and which API versions it speaks", _of(wire.VersionAnswer))},
        wire.EVIDENCE: {
            "post": _call(
                "All evidence of this moment, bound to the nonce and to this connection's certificate",
                _of(wire.EvidenceAnswer),
                body=_of(wire.EvidenceRequest),
            )
        },
        wire.ACTIVATE: {
            "post": _call(
                "TPM2_ActivateCredential: proof that AK and EK of the evidence are one TPM's; 400 for other keys",
                _of(wire.ActivateAnswer),
                body=_of(wire.ActivateRequest),
            )
        },
        wire.SNAPSHOT_V2: {
            "get": _call("The snapshot; the first call orders it", _SNAPSHOT, waiting=_of(wire.SnapshotProgress)),
            "delete": _call("Forget the snapshot; 409 while it is computed", _NULL),
        },
        wire.SNAPSHOT_V1: {
            "get": _call("The snapshot; the first call orders it (version 1)", _SNAPSHOT, waiting=_NULL),
            "delete": _call("Forget the snapshot; 409 while it is computed", _NULL),
        },
        wire.IMA_ASCII: {"get": _call("The kernel's IMA list, ASCII (version 1)", {"type": "string"})},
        wire.IMA_BINARY: {"get": _call("The kernel's IMA list, binary (version 1)", _BYTES)},
        wire.QUOTE_TEE: {"get": _call("A quote of the TEE (version 1)", _BYTES, query=_nonce("exactly 32"))},
        wire.QUOTE_TPM: {
            "get": _call("A quote of the TPM (version 1)", _of(wire.TpmQuoteV1), query=_nonce("at most 64"))
        },
        wire.APP_INIT: {
            "post": _call("Write app.conf and start the application", _NULL, body=_of(wire.AppConfiguration))
        },
        wire.APP_RESTART: {"post": _call("Restart the application", _NULL)},
        **_owners_and_application(),
        wire.OPENAPI: {"get": _call("This document", {"type": "object"})},
        wire.HEALTH: {"get": _call("Whether the agent lives", {"type": "object"})},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Cosmian VM agent",
            "version": __version__,
            "description": (
                f"Orders (snapshot, application, owners) need an owner's proof in the header {PROOF_HEADER}, unless "
                "the agent takes orders from anyone."
            ),
        },
        "paths": paths,
        "components": {"schemas": components},
    }


def _owners_and_application() -> dict[str, _Schema]:
    return {
        wire.NONCE: {"post": _call("What an owner's proof answers, usable once", _of(wire.NonceAnswer))},
        wire.OWNER: {"get": _call("Who owns this machine", _of(wire.OwnersAnswer))},
        wire.OWNER_CLAIM: {"post": _call("Own a machine that nobody owns; 409 otherwise", _of(wire.OwnersAnswer))},
        wire.OWNER_ADD: {
            "post": _call("One owner more", _of(wire.OwnersAnswer), body=_of(wire.OwnerRequest)),
        },
        wire.OWNER_REMOVE: {
            "post": _call("One owner less", _of(wire.OwnersAnswer), body=_of(wire.OwnerRequest)),
        },
        wire.APP: {"get": _call("How the application is", _of(wire.AppAnswer))},
        wire.APP_LOGS: {
            "get": _call("The application's last words", _of(wire.AppLogsAnswer), query=("lines", "1 to 1000")),
        },
    }


def _of(shape: type[msgspec.Struct]) -> _Schema:
    return {"$ref": _REFERENCE.format(name=shape.__name__)}


def _nonce(size: str) -> tuple[str, str]:
    return "nonce", f"{size} bytes, base64 (standard alphabet) without padding; + is sent as %2B"


def _content(schema: _Schema) -> _Schema:
    return {"application/json": {"schema": schema}}


def _call(
    summary: str,
    answer: _Schema,
    *,
    body: _Schema | None = None,
    waiting: _Schema | None = None,
    query: tuple[str, str] | None = None,
) -> _Schema:
    responses: _Schema = {
        "200": {"description": "Done", "content": _content(answer)},
        "default": {
            "description": "Why not, in one line; status 500 carries an error id that the agent's log explains",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
    }
    if waiting is not None:
        responses["202"] = {"description": "It is being computed", "content": _content(waiting)}
    call: _Schema = {"summary": summary, "responses": responses}
    if body is not None:
        call["requestBody"] = {"required": True, "content": _content(body)}
    if query is not None:
        name, what = query
        call["parameters"] = [
            {"name": name, "in": "query", "required": True, "description": what, "schema": {"type": "string"}}
        ]
    return call
