"""TPM quotes as text with all that belongs to them: agents' JSON, keylime's line, what ``tpm2_quote`` prints."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = ["QuoteText", "from_json", "from_line", "from_tool_output", "plain_base64"]

_ATTEST_MAGIC = b"\xffTCG"
_LINE = re.compile(rb"[rd]?([A-Za-z0-9+/=]{40,}):([A-Za-z0-9+/=]{40,})(?::([A-Za-z0-9+/=]{40,}))?")
_MAX_LINE = 1_000_000
_OUTPUT = re.compile(
    rb"quoted:[ \t]*([0-9a-fA-F]+)\s+signature:\s+alg:[ \t]*\w+\s+sig:[ \t]*([0-9a-fA-F]+)\s+"
    rb"pcrs:[ \t]*\n(.*?)(?:calcDigest:.*)?",
    re.DOTALL,
)
_QUOTES = ("quote", "message", "attest", "quoted", "tpm_quote")
_SIGNATURES = ("signature", "sig", "quote_signature")
_PUBLIC = ("public_key", "ak_public", "ak_pub", "ak", "ak_tpm", "aik_tpm", "pubkey", "public")
_NONCES = ("nonce", "qualifying_data", "extra_data")
_PCRS = ("pcrs", "pcr_values", "pcr")


@dataclass(frozen=True, slots=True)
class QuoteText:
    """``attest``: TPMS_ATTEST. ``beside``: what came along, name and bytes, for whoever recognises it."""

    attest: bytes
    beside: tuple[tuple[str, bytes], ...]


def from_json(value: object) -> QuoteText | None:
    """A JSON object that holds an attest and its signature, in base64, in hex or as arrays of byte values.

    What else is known by its name or is PEM text comes along: key, certificates, nonce, PCR values.
    """
    if not isinstance(value, dict):
        return None
    members: dict[str, object] = {str(key).lower(): inner for key, inner in value.items()}
    if isinstance(members.get("quote"), dict):
        return from_json({**{k: v for k, v in members.items() if k != "quote"}, **value["quote"]})
    attest = next((raw for name in _QUOTES if (raw := _attest(members.get(name)))), None)
    signature = next((raw for name in _SIGNATURES if (raw := _bytes(members.get(name)))), None)
    if attest is None or signature is None:
        return None
    beside = [("signature", signature)]
    for name, inner in members.items():
        if isinstance(inner, str) and "-----BEGIN " in inner:
            beside.append((name, inner.encode("utf-8", "replace")))
        elif name in (*_PUBLIC, *_NONCES) and (raw := _bytes(inner)):
            beside.append((name, raw))
        elif name in _PCRS and isinstance(inner, Mapping | list):
            beside.append((name, json.dumps(inner).encode()))
    return QuoteText(attest, tuple(beside))


def from_line(text: bytes) -> QuoteText | None:
    """What keylime's agent answers: ``r``, then attest, signature and PCR values in base64, colons between."""
    parts = _LINE.fullmatch(text) if len(text) <= _MAX_LINE else None
    if parts is None:
        return None
    attest, *others = (plain_base64(part) for part in parts.groups() if part is not None)
    if not attest or not attest.startswith(_ATTEST_MAGIC):
        return None
    return QuoteText(attest, _named(("signature", "pcrs"), others))


def from_tool_output(text: bytes) -> QuoteText | None:
    """What ``tpm2_quote`` of tpm2-tools prints: attest and signature in hex, PCR values."""
    parts = _OUTPUT.fullmatch(text) if text.startswith(b"quoted:") and len(text) <= _MAX_LINE else None
    if parts is None:
        return None
    try:
        attest, signature = (bytes.fromhex(part.decode("ascii")) for part in parts.groups()[:2])
    except ValueError:
        return None
    return QuoteText(attest, (("signature", signature), ("pcrs", parts[3]))) if attest[:4] == _ATTEST_MAGIC else None


def _named(names: Iterable[str], parts: Iterable[bytes | None]) -> tuple[tuple[str, bytes], ...]:
    return tuple((name, part) for name, part in zip(names, parts, strict=False) if part)


def _attest(value: object) -> bytes | None:
    """A TPMS_ATTEST, out of a TPM2B where it is in one."""
    raw = _bytes(value)
    if raw is None:
        return None
    if raw[2:6] == _ATTEST_MAGIC and int.from_bytes(raw[:2], "big") == len(raw) - 2:
        return raw[2:]
    return raw if raw.startswith(_ATTEST_MAGIC) else None


def _bytes(value: object) -> bytes | None:
    if isinstance(value, list):
        return bytes(value) if value and all(type(item) is int and 0 <= item <= 255 for item in value) else None
    if not isinstance(value, str):
        return None
    try:
        return bytes.fromhex(value)
    except ValueError:
        return plain_base64(value.encode("utf-8", "replace"))


def plain_base64(text: bytes) -> bytes | None:
    """Standard or URL-safe alphabet, with or without padding; None where it is neither."""
    text = b"".join(text.split()).translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    try:
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        return None
