"""What ``--with`` named, recognised by its content: certificates, CRLs, keys, signatures, PCR values, evidence."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator, Mapping

from cosmian_vm._reader import Reader
from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.inspection._quote_texts import plain_base64
from cosmian_vm.inspection._wrapping import layers
from cosmian_vm.inspection.model import (
    CERTIFICATE,
    CRL,
    OTHER,
    PCR_VALUES,
    PUBLIC_KEY,
    TPM_PUBLIC,
    TPM_SIGNATURE,
    Item,
    Kind,
    Material,
    PcrValues,
)

__all__ = ["classify", "first_certificate", "gather", "parse_pcr_values"]

_PEM_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----\s(.*?)-----END \1-----", re.DOTALL)
_PEM_KINDS = {
    b"CERTIFICATE": CERTIFICATE,
    b"TRUSTED CERTIFICATE": CERTIFICATE,
    b"X509 CRL": CRL,
    b"PUBLIC KEY": PUBLIC_KEY,
}

# TPM 2.0 Library, Part 2, table 9 (TPM_ALG_ID)
_RSA, _ECC, _NULL = 0x0001, 0x0023, 0x0010
_HASHES = {0x0004: ("sha1", 20), 0x000B: ("sha256", 32), 0x000C: ("sha384", 48), 0x000D: ("sha512", 64)}
_OTHER_HASHES = {0x0012: ("sm3_256", 32), 0x0027: ("sha3_256", 32), 0x0028: ("sha3_384", 48), 0x0029: ("sha3_512", 64)}
_BANKS = {**_HASHES, **_OTHER_HASHES}
_BANK_SIZES = dict(_BANKS.values())
_RSASSA, _RSAPSS, _ECDSA = 0x0014, 0x0016, 0x0018

# tpm2-tools writes C structures as they lie in memory: TPML_PCR_SELECTION (room for 16), then TPML_DIGESTs
_SELECTIONS, _SELECTION_SIZE = 16, 8
_DIGESTS, _DIGEST_SIZE = 8, 66
_YAML_BANK = re.compile(r"^\s*([a-z0-9_]+)\s*:\s*$")
_YAML_VALUE = re.compile(r"^\s*(\d{1,2})\s*:\s*(?:0x)?([0-9A-Fa-f]+)\s*$")
_MAX_PCR_FILE = 256 * 1024


def gather(files: Iterable[tuple[str, bytes]], kinds: Iterable[Kind]) -> Material:
    """All files as one Material, in order. ``files``: name and content. What nobody knows is kept as OTHER."""
    kinds = tuple(kinds)
    items: list[Item] = []
    pcrs: list[PcrValues] = []
    for name, raw in files:
        for item in classify(name, raw, kinds):
            items.append(item)
            if item.kind == PCR_VALUES and (banks := parse_pcr_values(item.raw)) is not None:
                pcrs.append(PcrValues(name, banks))
    return Material(tuple(items), tuple(pcrs))


def classify(name: str, raw: bytes, kinds: Iterable[Kind]) -> list[Item]:
    """One file as items: several where it is a PEM file with several blocks, one otherwise.

    What is nothing known may be something known in hex, base64 or JSON.
    """
    kinds = tuple(kinds)
    found = _classify(name, raw, kinds)
    if [item.kind for item in found] != [OTHER]:
        return found
    for inside in layers(raw):
        items = _classify(name, inside.raw, kinds)
        if all(item.kind != OTHER for item in items):
            return items + [
                item for part, content in inside.beside for item in classify(f"{name}, {part}", content, kinds)
            ]
    return found


def _classify(name: str, raw: bytes, kinds: Iterable[Kind]) -> list[Item]:
    if blocks := [Item(kind, name, der) for kind, der in _pem_blocks(raw)]:
        return blocks
    if kind := _der_kind(raw):
        return [Item(kind, name, raw)]
    for candidate in kinds:
        if candidate.matches(raw):
            return [Item(candidate.name, name, raw)]
    if (public := _tpm_public(raw)) is not None:
        return [Item(TPM_PUBLIC, name, public)]
    if (signature := _tpm_signature(raw)) is not None:
        return [Item(TPM_SIGNATURE, name, signature)]
    if parse_pcr_values(raw) is not None:
        return [Item(PCR_VALUES, name, raw)]
    return [Item(OTHER, name, raw)]


def _pem_blocks(raw: bytes) -> Iterator[tuple[str, bytes]]:
    """Kind and DER of each PEM block of a text file; nothing for a binary one (a report with PEM text behind it)."""
    start = raw.find(b"-----BEGIN ")
    if start < 0 or b"\x00" in raw[:start]:
        return
    for label, body in _PEM_BLOCK.findall(raw[start:]):
        try:
            der = base64.b64decode(b"".join(body.split()), validate=True)
        except (binascii.Error, ValueError):
            continue
        yield _PEM_KINDS.get(label, OTHER), der


def first_certificate(pem: bytes) -> bytes | None:
    """DER of the first certificate in PEM text; None where there is none."""
    return next((der for kind, der in _pem_blocks(pem) if kind == CERTIFICATE), None)


def _element(data: bytes, at: int) -> tuple[int, int, int] | None:
    """Tag, start of content and end of the DER element at ``at``; None where there is none."""
    if at + 2 > len(data):
        return None
    tag, length, start = data[at], data[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        if not 1 <= size <= 4 or start + size > len(data):
            return None
        length, start = int.from_bytes(data[start : start + size], "big"), start + size
    return (tag, start, start + length) if start + length <= len(data) else None


def _der_kind(raw: bytes) -> str | None:
    """Certificate, CRL or SubjectPublicKeyInfo by the tags of their first elements (RFC 5280, 4.1 and 5.1)."""
    outer = _element(raw, 0)
    if outer is None or outer[0] != 0x30 or outer[2] != len(raw):
        return None
    inner = _element(raw, outer[1])
    if inner is None or inner[0] != 0x30:
        return None
    tags: list[int] = []
    at = inner[1]
    while len(tags) < 4 and at < inner[2] and (element := _element(raw, at)) is not None:
        tags.append(element[0])
        at = element[2]
    if tags[:1] == [0x06]:
        return PUBLIC_KEY
    if tags[:2] == [0xA0, 0x02] or tags == [0x02, 0x30, 0x30, 0x30]:
        return CERTIFICATE
    if tags[:1] == [0x02]:
        tags = tags[1:]
    return CRL if tags[:2] == [0x30, 0x30] and tags[2:3] in ([0x17], [0x18]) else None


def _tpm_public(raw: bytes) -> bytes | None:
    """The TPMT_PUBLIC in ``raw``, which may have the length of a TPM2B_PUBLIC in front; None if it is not one."""
    if _is_tpmt_public(raw):
        return raw
    if len(raw) > 2 and int.from_bytes(raw[:2], "big") == len(raw) - 2 and _is_tpmt_public(raw[2:]):
        return raw[2:]
    return None


def _is_tpmt_public(raw: bytes) -> bool:
    """Whether the lengths of an RSA or ECC TPMT_PUBLIC come out right (TPM 2.0 Library, Part 2, 12.2.4)."""
    reader = Reader(raw, "TPMT_PUBLIC")
    try:
        kind, name_hash = (reader.uint(2, f, big=True) for f in ("type", "nameAlg"))
        if kind not in (_RSA, _ECC) or name_hash not in _HASHES:
            return False
        reader.take(4, "objectAttributes")
        _sized(reader)
        if reader.uint(2, "symmetric", big=True) != _NULL:
            reader.take(4, "keyBits and mode")
        if reader.uint(2, "scheme", big=True) != _NULL:
            reader.take(2, "scheme.hashAlg")
        if kind == _RSA:
            reader.take(6, "keyBits and exponent")
        else:
            reader.take(2, "curveID")
            if reader.uint(2, "kdf", big=True) != _NULL:
                reader.take(2, "kdf.hashAlg")
            _sized(reader)
        _sized(reader)
        reader.end()
    except EvidenceFormatError:
        return False
    return True


def _tpm_signature(raw: bytes) -> bytes | None:
    """The TPMT_SIGNATURE in ``raw``, which may have two bytes of length in front; None if it is not one."""
    if _is_tpm_signature(raw):
        return raw
    if len(raw) > 2 and int.from_bytes(raw[:2], "big") == len(raw) - 2 and _is_tpm_signature(raw[2:]):
        return raw[2:]
    return None


def _is_tpm_signature(raw: bytes) -> bool:
    """Whether the lengths of a TPMT_SIGNATURE come out right (TPM 2.0 Library, Part 2, 11.3.4)."""
    reader = Reader(raw, "TPMT_SIGNATURE")
    try:
        algorithm, digest = (reader.uint(2, f, big=True) for f in ("sigAlg", "hash"))
        if algorithm not in (_RSASSA, _RSAPSS, _ECDSA) or digest not in _HASHES:
            return False
        _sized(reader)
        if algorithm == _ECDSA:
            _sized(reader)
        reader.end()
    except EvidenceFormatError:
        return False
    return True


def _sized(reader: Reader) -> bytes:
    return reader.take(reader.uint(2, "size", big=True), "bytes")


def parse_pcr_values(raw: bytes) -> Mapping[str, Mapping[int, bytes]] | None:
    """PCR values by bank and index, from the three forms in use; None if ``raw`` is none of them.

    tpm2-tools' own binary form (``tpm2_quote --pcr``), the YAML that ``tpm2_pcrread`` prints, and JSON
    ``{"sha256": {"0": "hex"}}`` or one bank's values by index or in order.
    """
    if len(raw) > _MAX_PCR_FILE:
        return None
    try:
        text = raw.decode("ascii")
    except UnicodeDecodeError:
        return _pcrs_binary(raw)
    if text.lstrip().startswith(("{", "[")):
        return _pcrs_json(text)
    return _pcrs_yaml(text) or _pcrs_binary(raw)


def _pcrs_json(text: str) -> Mapping[str, Mapping[int, bytes]] | None:
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError):
        return None
    banks: dict[str, dict[int, bytes]] = {}
    for bank, values in _pcr_members(loaded):
        if bank not in _BANK_SIZES:
            return None
        for index, value in values.items():
            if not _fill(banks, bank, str(index), value):
                return None
    return banks or None


def _pcr_members(loaded: object) -> Iterator[tuple[str, Mapping[object, object]]]:
    """Bank and values: by bank, or one bank alone that the values' size tells; values by index or in order."""
    if isinstance(loaded, dict) and len(loaded) == 1 and str(next(iter(loaded))).lower() in ("pcrs", "pcr_values"):
        loaded = next(iter(loaded.values()))
    if isinstance(loaded, dict) and loaded and all(str(bank).lower() in _BANK_SIZES for bank in loaded):
        for bank, values in loaded.items():
            yield str(bank).lower(), _by_index(values)
        return
    values = _by_index(loaded)
    sizes = {len(digest) for value in values.values() if (digest := _digest(value)) is not None}
    banks = [bank for bank, size in (*_HASHES.values(),) if sizes == {size}]
    yield (banks[0] if banks else ""), values


def _by_index(values: object) -> Mapping[object, object]:
    if isinstance(values, list):
        return dict(enumerate(values))
    return values if isinstance(values, dict) else {"": values}


def _digest(value: object) -> bytes | None:
    """A PCR's value: hex, base64 or an array of byte values."""
    if isinstance(value, list):
        return bytes(value) if value and all(type(item) is int and 0 <= item <= 255 for item in value) else None
    if not isinstance(value, str):
        return None
    try:
        return bytes.fromhex(value.removeprefix("0x"))
    except ValueError:
        return plain_base64(value.encode("utf-8", "replace"))


def _pcrs_yaml(text: str) -> Mapping[str, Mapping[int, bytes]] | None:
    banks: dict[str, dict[int, bytes]] = {}
    bank = ""
    for line in text.splitlines():
        if not line.strip():
            continue
        if (head := _YAML_BANK.match(line)) and head[1] in _BANK_SIZES:
            bank = head[1]
        elif not ((pair := _YAML_VALUE.match(line)) and _fill(banks, bank, pair[1], pair[2])):
            return None
    return banks or None


def _fill(banks: dict[str, dict[int, bytes]], bank: str, index: object, value: object) -> bool:
    """Put one value given as text where it belongs; False if it is none."""
    digest = _digest(value)
    if digest is None or not (isinstance(index, str) and index.isascii() and index.isdigit()):
        return False
    if len(index) > 2 or len(digest) != _BANK_SIZES.get(bank):
        return False
    banks.setdefault(bank, {})[int(index)] = digest
    return True


def _pcrs_binary(raw: bytes) -> Mapping[str, Mapping[int, bytes]] | None:
    """tpm2-tools: u32le count and 16 selections of 8 bytes, u32le n, n lists of (u32le count and 8 digests of 66)."""
    reader = Reader(raw, "PCR values")
    try:
        count = reader.u32("count")
        if not 1 <= count <= _SELECTIONS:
            return None
        wanted: list[tuple[str, int, int]] = []
        for entry in range(_SELECTIONS):
            selection = reader.take(_SELECTION_SIZE, "selection")
            algorithm, size = int.from_bytes(selection[:2], "little"), selection[2]
            if entry >= count:
                continue
            if algorithm not in _BANKS or size > 4:
                return None
            mask = int.from_bytes(selection[3 : 3 + size], "little")
            wanted += [(*_BANKS[algorithm], index) for index in range(8 * size) if mask >> index & 1]
        digests = [digest for _ in range(reader.u32("lists")) for digest in _digest_list(reader)]
        reader.end()
    except EvidenceFormatError:
        return None
    if len(digests) != len(wanted):
        return None
    banks: dict[str, dict[int, bytes]] = {}
    for (bank, width, index), digest in zip(wanted, digests, strict=True):
        if len(digest) != width:
            return None
        banks.setdefault(bank, {})[index] = digest
    return banks or None


def _digest_list(reader: Reader) -> list[bytes]:
    count = reader.u32("digests")
    found = []
    for entry in range(_DIGESTS):
        size = reader.u16("size")
        buffer = reader.take(_DIGEST_SIZE - 2, "digest")
        if entry < count:
            found.append(buffer[:size])
    return found
