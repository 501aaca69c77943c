"""Who owns a machine, and the proof that an order comes from an owner: bytes and their meaning. Pure; nothing is signed
or verified here.

An owner is an Ed25519 public key (RFC 8032: 32 bytes), written ``ed25519:`` and its base64url without padding: the
fingerprint is the key. The signed message is::

    "cosmian-vm/order/1" || 0x00 || for each part: u32be length, the part
    parts: method, target (path and query as sent), SHA-256(body), SHA-256(SPKI of the agent's TLS leaf), nonce

and the proof, which goes in the header ``cosmian-vm-proof`` as base64url without padding, has 161 bytes::

    0    1  version, 1
    1   32  public key
    33  32  nonce, as the agent issued it
    65  32  SHA-256 of the request's body
    97  64  signature (RFC 8032, pure Ed25519)

The body's hash is in the proof so that it can be verified before a large body is read.
"""

from __future__ import annotations

import base64
import binascii
from typing import NamedTuple

from cosmian_vm.errors import EvidenceFormatError

__all__ = [
    "ANYONE",
    "HASH_SIZE",
    "KEY_SIZE",
    "MAX_OWNERS",
    "MAX_PROOF",
    "NONCE_SIZE",
    "PROOF_HEADER",
    "SIGNATURE_SIZE",
    "UNKNOWN",
    "Proof",
    "encode_proof",
    "fingerprint",
    "order_message",
    "parse_fingerprint",
    "parse_proof",
]

PROOF_HEADER = "cosmian-vm-proof"
"""Request header with the proof."""

ANYONE = "anyone"
"""Stands for the owners of an agent that takes orders from any client."""

UNKNOWN = "unknown"
"""Stands for owners that the agent cannot read: they lie in a container that is locked, or their file is broken."""

KEY_SIZE = 32
NONCE_SIZE = 32
HASH_SIZE = 32
SIGNATURE_SIZE = 64

MAX_OWNERS = 16
"""Owners of one machine."""

_PREFIX = "ed25519:"
_DOMAIN = b"cosmian-vm/order/1\x00"
_VERSION = 1
_PROOF_SIZE = 1 + KEY_SIZE + NONCE_SIZE + HASH_SIZE + SIGNATURE_SIZE

MAX_PROOF = (_PROOF_SIZE * 4 + 2) // 3
"""Length of an encoded proof, in characters."""

_FIELD = 2**255 - 19
# y of the eight points of small order (curve25519): whoever names one as a key, lets anybody sign for it.
_ORDER_8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_WEAK = frozenset({0, 1, _FIELD - 1, _ORDER_8, _FIELD - _ORDER_8})


class Proof(NamedTuple):
    """``key``: of the owner, 32 bytes. ``nonce``: 32 bytes. ``body_sha256``: 32 bytes. ``signature``: 64 bytes over
    ``order_message``.
    """

    key: bytes
    nonce: bytes
    body_sha256: bytes
    signature: bytes


def fingerprint(key: bytes) -> str:
    """The written form of an owner's public key (32 bytes)."""
    return _PREFIX + base64.urlsafe_b64encode(key).decode("ascii").rstrip("=")


def parse_fingerprint(text: str) -> bytes:
    """The public key, 32 bytes. Raises EvidenceFormatError for any other form, and for a key that anybody can use."""
    if not text.startswith(_PREFIX):
        raise EvidenceFormatError("owner", f"expected is {_PREFIX} and the key's base64url, as `owner show` prints it")
    key = _decoded(text.removeprefix(_PREFIX), "owner")
    if len(key) != KEY_SIZE:
        raise EvidenceFormatError("owner", f"the key has {len(key)} bytes; expected are {KEY_SIZE}")
    y = int.from_bytes(key, "little") % 2**255
    if y >= _FIELD or y in _WEAK:
        raise EvidenceFormatError("owner", "this is no key: it is not canonical, or of small order")
    return key


def encode_proof(proof: Proof) -> str:
    """The header's value."""
    raw = bytes([_VERSION]) + proof.key + proof.nonce + proof.body_sha256 + proof.signature
    return base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=")


def parse_proof(text: str) -> Proof:
    """The header's value, read. Raises EvidenceFormatError."""
    if len(text) > MAX_PROOF:
        raise EvidenceFormatError("owner's proof", f"is longer than {MAX_PROOF} characters")
    raw = _decoded(text, "owner's proof")
    if len(raw) != _PROOF_SIZE:
        raise EvidenceFormatError("owner's proof", f"has {len(raw)} bytes; expected are {_PROOF_SIZE}")
    if raw[0] != _VERSION:
        raise EvidenceFormatError("owner's proof", f"has version {raw[0]}; expected is {_VERSION}", offset=0)
    nonce, body = 1 + KEY_SIZE, 1 + KEY_SIZE + NONCE_SIZE
    signature = body + HASH_SIZE
    return Proof(raw[1:nonce], raw[nonce:body], raw[body:signature], raw[signature:])


def order_message(method: str, target: str, body_sha256: bytes, spki_sha256: bytes, nonce: bytes) -> bytes:
    """What an owner signs. ``target``: path and query as sent; ``body_sha256``: of the whole body as sent, 32 bytes;
    ``spki_sha256``: of the agent's TLS leaf, 32 bytes.
    """
    parts = (method.encode(), target.encode(), body_sha256, spki_sha256, nonce)
    return _DOMAIN + b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def _decoded(text: str, what: str) -> bytes:
    """base64url without padding, in its one valid form."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as exc:
        raise EvidenceFormatError(what, "is not base64url without padding") from exc
    if base64.urlsafe_b64encode(raw).decode("ascii").rstrip("=") != text:
        raise EvidenceFormatError(what, "is not base64url in its one valid form (no padding, trailing bits zero)")
    return raw
