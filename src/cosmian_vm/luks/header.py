"""LUKS2 header: bytes to a frozen value, or EvidenceFormatError. Pure, total, and an allowlist.

Format: "LUKS2 On-Disk Format Specification" 1.1. A detached header file is, big-endian:

    0                   binary header, 4096 bytes; then JSON, filled up with zeros to ``hdr_size``
    hdr_size            the same a second time, with another magic and salt
    2 * hdr_size        keyslot areas, ``keyslots_size`` bytes, to the end of the file

cryptsetup believes what the JSON says about ciphers. Who can write the disk can therefore have data written in the
clear by a header that names ``cipher_null-ecb`` (CVE-2025-59054 and kin), have it decrypted by a reencryption that was
never asked for, or name a segment that is no crypt segment. Hence nothing is accepted here but the shape that we make:
one segment, AES-XTS with HMAC-SHA-256, keyslots of the same key, one digest over all of them, TPM tokens of systemd.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise

from cosmian_vm._reader import Reader
from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.luks._json import Table, decode

__all__ = ["MAX_HEADER_SIZE", "Keyslot", "LuksHeader", "TpmToken", "parse_header"]

MAX_HEADER_SIZE = 32 << 20
"""Largest header file that is read at all, in bytes (cryptsetup makes 16 MiB, we 4 MiB and 32 KiB)."""

_WHAT = "LUKS2 header"
_BINARY_SIZE = 4096
_MAGIC = b"LUKS\xba\xbe"
_SECOND_MAGIC = b"SKUL\xba\xbe"
# Section 2.1: the sizes that a header with its JSON area may have.
_HEADER_SIZES = frozenset(1 << n for n in range(14, 23))
_CHECKSUM_AT, _CHECKSUM_SIZE = 448, 64
_ALIGNMENT = 4096
_MAX_KEYSLOTS = 32
_VOLUME_KEY = 96  # AES-256-XTS: 64 bytes, HMAC-SHA-256: 32
_STRIPES = 4000
_CIPHER = ("aes-xts-plain64",)
_HASHES = ("sha256", "sha512")
_MAX_PCR = 23


@dataclass(frozen=True, slots=True, kw_only=True)
class Keyslot:
    """One wrapped volume key. ``kdf``: argon2id or pbkdf2; ``cost``: its passes or iterations."""

    number: int
    kdf: str
    cost: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmToken:
    """Token of systemd-cryptenroll: the TPM gives the passphrase of ``keyslot`` while ``pcrs`` are the same."""

    number: int
    keyslot: int
    pcrs: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LuksHeader:
    """A header that names nothing but allowed things. ``sequence`` rises by one with each change of it."""

    uuid: str
    sequence: int
    sector_size: int
    keyslots: tuple[Keyslot, ...]
    tokens: tuple[TpmToken, ...]


@dataclass(frozen=True, slots=True)
class _Copy:
    """One of the two copies: what must be the same in both, and its size."""

    size: int
    sequence: int
    uuid: str
    json: bytes


def parse_header(raw: bytes) -> LuksHeader:
    """Parse a whole detached LUKS2 header file. Raises EvidenceFormatError for anything that is not allowed."""
    if len(raw) > MAX_HEADER_SIZE:
        raise EvidenceFormatError(_WHAT, f"is larger than {MAX_HEADER_SIZE} bytes")
    first = _copy(raw, 0, _MAGIC)
    second = _copy(raw, first.size, _SECOND_MAGIC)
    if first != second:
        raise EvidenceFormatError(_WHAT, "the two copies of the header differ", offset=first.size)
    top = decode(first.json, _WHAT)
    _config(top.table("config"), first.size, len(raw))
    sector_size = _segments(top)
    keyslots = _keyslots(top, 2 * first.size, len(raw))
    _digests(top, {slot.number for slot in keyslots})
    tokens = _tokens(top, {slot.number for slot in keyslots})
    top.end()
    return LuksHeader(
        uuid=first.uuid, sequence=first.sequence, sector_size=sector_size, keyslots=keyslots, tokens=tokens
    )


def _copy(raw: bytes, start: int, magic: bytes) -> _Copy:
    """Section 2.1, ``struct luks2_hdr_disk``."""
    reader = Reader(raw[start : start + _BINARY_SIZE], _WHAT, base=start)
    if reader.take(6, "magic") != magic:
        raise EvidenceFormatError(_WHAT, "no LUKS header", offset=start, field="magic")
    if reader.uint(2, "version", big=True) != 2:
        raise EvidenceFormatError(_WHAT, "another version than 2", offset=start + 6, field="version")
    size = reader.uint(8, "hdr_size", big=True)
    if size not in _HEADER_SIZES or len(raw) < start + size:
        raise EvidenceFormatError(_WHAT, f"{size} bytes cannot be", offset=start + 8, field="hdr_size")
    sequence = reader.uint(8, "seqid", big=True)
    _text(reader, 48, "label")
    algorithm = _text(reader, 32, "csum_alg")
    if algorithm != "sha256":
        raise EvidenceFormatError(_WHAT, "expected is sha256", offset=start + 72, field="csum_alg")
    reader.take(64, "salt")
    uuid = _text(reader, 40, "uuid")
    _text(reader, 48, "subsystem")
    if reader.uint(8, "hdr_offset", big=True) != start:
        raise EvidenceFormatError(_WHAT, "is not where it says it is", offset=start + 256, field="hdr_offset")
    reader.zeros(184, "padding")
    checksum = reader.take(_CHECKSUM_SIZE, "csum")
    reader.zeros(3584, "padding4096")
    whole = bytearray(raw[start : start + size])
    whole[_CHECKSUM_AT : _CHECKSUM_AT + _CHECKSUM_SIZE] = bytes(_CHECKSUM_SIZE)
    if checksum != sha256(whole).digest() + bytes(_CHECKSUM_SIZE - 32):
        raise EvidenceFormatError(_WHAT, "does not match", offset=start + _CHECKSUM_AT, field="csum")
    text, _, fill = bytes(whole[_BINARY_SIZE:]).partition(b"\0")
    if any(fill):
        raise EvidenceFormatError(_WHAT, "something follows the JSON", offset=start + _BINARY_SIZE + len(text))
    return _Copy(size=size, sequence=sequence, uuid=uuid, json=text)


def _text(reader: Reader, size: int, field: str) -> str:
    """ASCII that ends with a zero; zeros fill the field."""
    at = reader.offset
    text, _, fill = reader.take(size, field).partition(b"\0")
    if any(fill) or len(text) == size or not text.isascii() or not text.decode("ascii").isprintable():
        raise EvidenceFormatError(_WHAT, "no text that ends with zeros", offset=at, field=field)
    return text.decode("ascii")


def _config(table: Table, header_size: int, file_size: int) -> None:
    """Section 3.6. ``flags`` and ``requirements`` (discards, a reencryption under way) are not allowed."""
    if table.decimal("json_size") != header_size - _BINARY_SIZE:
        table.wrong("does not fit the binary header", "json_size")
    if 2 * header_size + table.decimal("keyslots_size") != file_size:
        table.wrong("does not fit the size of the file", "keyslots_size")
    table.end()


def _segments(top: Table) -> int:
    """Section 3.3: one segment, the whole container. Gives the size of its sectors, in bytes."""
    segments = dict(top.numbered("segments", _MAX_KEYSLOTS))
    if list(segments) != [0]:
        raise EvidenceFormatError(_WHAT, "expected is one segment, number 0", field="JSON.segments")
    table = segments[0]
    table.one_of("type", ("crypt",))
    table.one_of("offset", ("0",))
    table.one_of("size", ("dynamic",))
    table.one_of("iv_tweak", ("0",))
    table.one_of("encryption", _CIPHER)
    sector_size = table.integer("sector_size", 512, 4096)
    if sector_size not in (512, 4096):
        table.wrong("expected is 512 or 4096", "sector_size")
    integrity = table.table("integrity")
    integrity.one_of("type", ("hmac(sha256)",))
    integrity.one_of("journal_encryption", ("none",))
    integrity.one_of("journal_integrity", ("none",))
    if "key_size" in integrity:  # since cryptsetup 2.8
        integrity.integer("key_size", 32, 32)
    integrity.end()
    table.end()
    return sector_size


def _keyslots(top: Table, start: int, end: int) -> tuple[Keyslot, ...]:
    """Section 3.2. The areas lie within the file, after the headers, and do not overlap."""
    keyslots = []
    areas = []
    for number, table in top.numbered("keyslots", _MAX_KEYSLOTS):
        table.one_of("type", ("luks2",))
        table.integer("key_size", _VOLUME_KEY, _VOLUME_KEY)
        if "priority" in table:
            table.integer("priority", 0, 2)
        split = table.table("af")
        split.one_of("type", ("luks1",))
        split.integer("stripes", _STRIPES, _STRIPES)
        split.one_of("hash", _HASHES)
        split.end()
        area = table.table("area")
        area.one_of("type", ("raw",))
        area.one_of("encryption", _CIPHER)
        area.integer("key_size", 64, 64)
        offset, size = area.decimal("offset"), area.decimal("size")
        area.end()
        if offset % _ALIGNMENT or offset < start or size < _VOLUME_KEY * _STRIPES or offset + size > end:
            area.wrong("is not within the area of the keyslots")
        areas.append((offset, offset + size))
        kdf, cost = _kdf(table.table("kdf"))
        table.end()
        keyslots.append(Keyslot(number=number, kdf=kdf, cost=cost))
    areas.sort()
    if any(before[1] > after[0] for before, after in pairwise(areas)):
        raise EvidenceFormatError(_WHAT, "two areas overlap", field="JSON.keyslots")
    if not keyslots:
        raise EvidenceFormatError(_WHAT, "there is none", field="JSON.keyslots")
    return tuple(sorted(keyslots, key=lambda slot: slot.number))


def _kdf(table: Table) -> tuple[str, int]:
    """Section 3.2.3. The upper limits keep a forged header from taking all memory or time."""
    kind = table.one_of("type", ("argon2id", "pbkdf2"))
    table.base64("salt", 32, 64)
    if kind == "pbkdf2":
        table.one_of("hash", _HASHES)
        cost = table.integer("iterations", 1000, 1 << 30)
    else:
        cost = table.integer("time", 1, 1 << 16)
        table.integer("memory", 32, 4 << 20)  # KiB
        table.integer("cpus", 1, 4)
    table.end()
    return kind, cost


def _digests(top: Table, keyslots: set[int]) -> None:
    """Section 3.5: one digest binds the key of every keyslot to the segment; a keyslot of another key is not ours."""
    digests = dict(top.numbered("digests", _MAX_KEYSLOTS))
    if list(digests) != [0]:
        raise EvidenceFormatError(_WHAT, "expected is one digest, number 0", field="JSON.digests")
    table = digests[0]
    table.one_of("type", ("pbkdf2",))
    table.one_of("hash", _HASHES)
    table.integer("iterations", 1000, 1 << 30)
    table.base64("salt", 32, 64)
    table.base64("digest", 32, 64)
    if set(table.ids("keyslots")) != keyslots or table.ids("segments") != [0]:
        table.wrong("does not cover every keyslot and the segment")
    table.end()


def _tokens(top: Table, keyslots: set[int]) -> tuple[TpmToken, ...]:
    """Section 3.4; the JSON of systemd (src/shared/tpm2-util.c, ``tpm2_make_luks2_json``), versions 252 to 257."""
    tokens = []
    for number, table in top.numbered("tokens", _MAX_KEYSLOTS):
        table.one_of("type", ("systemd-tpm2",))
        slots = table.ids("keyslots")
        if len(slots) != 1 or slots[0] not in keyslots:
            table.wrong("expected is one keyslot that there is", "keyslots")
        table.base64("tpm2-blob", 32, 4096)
        pcrs = table.integers("tpm2-pcrs", 0, _MAX_PCR)
        table.one_of("tpm2-pcr-bank", ("sha256",))
        table.one_of("tpm2-primary-alg", ("ecc", "rsa"))
        table.hexadecimal("tpm2-policy-hash", 32)
        for other_way in ("tpm2-pin", "tpm2_pcrlock"):  # since version 255 only written where they are true
            if other_way in table:
                table.false(other_way)
        if "tpm2_srk" in table:
            table.base64("tpm2_srk", 1, 4096)
        table.end()  # tpm2_pubkey: another party's signature would open it, not ours
        if not pcrs:
            table.wrong("expected is at least one", "tpm2-pcrs")
        tokens.append(TpmToken(number=number, keyslot=slots[0], pcrs=tuple(sorted(pcrs))))
    return tuple(sorted(tokens, key=lambda token: token.number))
