"""Evidence inside something else: hex, base64, JSON, PEM, a TPM2B, an ioctl's answer, an agent's or a tool's reply.

Nothing is decoded because it could be: the caller asks what is inside only where the outside is nothing known, and
keeps it only where the inside is.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.snp import CertificateLayout, parse_certificates
from cosmian_vm.inspection._quote_texts import from_json, from_line, from_tool_output, plain_base64

__all__ = ["Wrapped", "layers"]

_MAX_DEPTH = 4
_MAX_TEXT = 256 * 1024 * 1024

_HEX = re.compile(rb"(?:0[xX])?[0-9A-Fa-f]{2}(?:[\s:,;]*(?:0[xX])?[0-9A-Fa-f]{2})*[\s,;]*\Z")
_HEX_BETWEEN = re.compile(rb"0[xX]|[\s:,;]+")
_DUMP_LINE = re.compile(
    rb"[0-9a-fA-F]{6,16}:?[ \t]+((?:(?:[0-9a-fA-F]{2}){1,2}[ \t]{1,2}){1,16}|(?:[0-9a-fA-F]{2}){1,16})(?:[ \t|].*)?"
)
_OFFSET = re.compile(rb"[0-9a-fA-F]{6,16}(?=:|[ \t]|$)")
_DUMP_WIDTH = 16
_MAX_DUMP = 16 * 1024 * 1024
_BASE64 = re.compile(rb"[A-Za-z0-9+/_\s-]{8,}={0,2}\s*\Z")
_PEM = re.compile(
    rb"-----BEGIN ([A-Z0-9 ]{1,40})-----\s(?:[A-Za-z-]+: .*\n)*\s*([A-Za-z0-9+/=\s]*?)-----END \1-----\s*\Z"
)
_PEM_OBJECTS = frozenset({b"CERTIFICATE", b"TRUSTED CERTIFICATE", b"X509 CERTIFICATE", b"X509 CRL", b"PUBLIC KEY"})
"""PEM blocks that are read as they are."""
_TABLES = (CertificateLayout.GHCB, CertificateLayout.TYPED, CertificateLayout.TYPED_OLD, CertificateLayout.COUNTED)
_AROUND = b" \t\r\n\x00"

_ATTEST_MAGIC = b"\xffTCG"
_SNP_REPORT_SIZE, _SNP_RESPONSE_HEADER = 1184, 32


@dataclass(frozen=True, slots=True)
class Wrapped:
    """``raw``: what was inside, in ``encoding``, outermost first. ``beside``: what came along, name and bytes."""

    encoding: str
    raw: bytes
    beside: tuple[tuple[str, bytes], ...] = ()


def layers(raw: bytes) -> Iterator[Wrapped]:
    """What is inside ``raw``, then inside that, until it is nothing that could hold anything."""
    encodings: list[str] = []
    beside: tuple[tuple[str, bytes], ...] = ()
    for _ in range(_MAX_DEPTH):
        found = _inside(raw)
        if found is None or not found.raw:
            return
        encodings.append(found.encoding)
        raw, beside = found.raw, (*beside, *found.beside)
        yield Wrapped(" of ".join(encodings), raw, beside)


def _inside(raw: bytes) -> Wrapped | None:
    for read in _READERS:
        if (found := read(raw)) is not None:
            return found
    return None


def _tpm2b(raw: bytes) -> Wrapped | None:
    """TPM2B_ATTEST: u16 size, TPMS_ATTEST; what stands behind it may be padding."""
    size = int.from_bytes(raw[:2], "big")
    if raw[2:6] != _ATTEST_MAGIC or size > len(raw) - 2 or any(raw[2 + size :]):
        return None
    return Wrapped("TPM2B_ATTEST", raw[2 : 2 + size])


def _certificate_table(raw: bytes) -> Wrapped | None:
    """The table of certificates that comes beside an SNP report (``auxblob``), as PEM text."""
    try:
        table = parse_certificates(raw)
    except EvidenceFormatError:
        return None
    if table.layout not in _TABLES or not (table.certificates or table.crls):
        return None
    blocks = [("CERTIFICATE", der) for der in table.certificates] + [("X509 CRL", der) for der in table.crls]
    text = b"".join(
        f"-----BEGIN {label}-----\n".encode() + base64.encodebytes(der) + f"-----END {label}-----\n".encode()
        for label, der in blocks
    )
    return Wrapped("SNP certificate table", text)


def _snp_response(raw: bytes) -> Wrapped | None:
    """MSG_REPORT_RSP (SEV-SNP firmware ABI, table 24): u32 status, u32 size, 24 reserved bytes, the report."""
    start, end = _SNP_RESPONSE_HEADER, _SNP_RESPONSE_HEADER + _SNP_REPORT_SIZE
    if len(raw) < end or any(raw[:4]) or int.from_bytes(raw[4:8], "little") != _SNP_REPORT_SIZE or any(raw[8:start]):
        return None
    return Wrapped("MSG_REPORT_RSP", raw[start:])


def _text(raw: bytes) -> bytes:
    """The text without what stands around it, empty where it is none."""
    return raw.strip(_AROUND) if len(raw) <= _MAX_TEXT and raw.isascii() else b""


def _pem(raw: bytes) -> Wrapped | None:
    text = _text(raw)
    block = _PEM.match(text) if text.startswith(b"-----BEGIN ") else None
    if block is None or block[1] in _PEM_OBJECTS:
        return None
    found = _base64(block[2])
    return None if found is None else Wrapped("PEM", found.raw)


def _json(raw: bytes) -> Wrapped | None:
    """A string or an array of byte values, as the agent's version 1 answers are; a TPM quote with what it needs."""
    text = raw.strip(_AROUND) if raw[:64].lstrip(_AROUND)[:1] in (b"[", b'"', b"{") else b""
    if not 2 <= len(text) <= _MAX_TEXT:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, str):
        return Wrapped("JSON string", value.encode("utf-8", "surrogatepass"))
    if isinstance(value, list) and value and all(type(item) is int and 0 <= item <= 255 for item in value):
        return Wrapped("JSON array", bytes(value))
    found = from_json(value)
    return None if found is None else Wrapped("JSON", found.attest, found.beside)


def _quote_text(raw: bytes) -> Wrapped | None:
    """A TPM quote as text, with what belongs to it."""
    text = _text(raw)
    if (found := from_line(text)) is not None:
        return Wrapped("keylime's quote", found.attest, found.beside)
    if (found := from_tool_output(text)) is not None:
        return Wrapped("output of tpm2_quote", found.attest, found.beside)
    return None


def _hex(raw: bytes) -> Wrapped | None:
    text = _text(raw)
    if _HEX.match(text) is None:
        return None
    try:
        return Wrapped("hex", bytes.fromhex(_HEX_BETWEEN.sub(b"", text).decode("ascii")))
    except ValueError:
        return None


def _dump(raw: bytes) -> Wrapped | None:
    """What xxd and hexdump -C print: an offset, bytes in hex, the bytes as text; * for lines like the one before."""
    lines = _text(raw).splitlines()
    if len(lines) < 2 or _DUMP_LINE.fullmatch(lines[0]) is None:
        return None
    found = bytearray()
    squeezed = False
    for line in lines:
        if line == b"*":
            squeezed = True
            continue
        offset = _OFFSET.match(line)
        place = -1 if offset is None else int(offset[0], 16)
        if squeezed and len(found) < place <= _MAX_DUMP:
            missing = place - len(found)
            found += (found[-_DUMP_WIDTH:] * (missing // _DUMP_WIDTH + 1))[:missing]
        if place != len(found):
            return None
        squeezed = False
        match = _DUMP_LINE.fullmatch(line)
        if match is None:
            return Wrapped("hex dump", bytes(found)) if line is lines[-1] else None
        found += bytes.fromhex(match[1].decode("ascii"))
    return Wrapped("hex dump", bytes(found))


def _base64(raw: bytes) -> Wrapped | None:
    text = _text(raw)
    if _BASE64.match(text) is None:
        return None
    decoded = plain_base64(text)
    return Wrapped("base64", decoded) if decoded else None


_READERS: tuple[Callable[[bytes], Wrapped | None], ...] = (
    _tpm2b,
    _certificate_table,
    _snp_response,
    _pem,
    _json,
    _quote_text,
    _hex,
    _dump,
    _base64,
)
