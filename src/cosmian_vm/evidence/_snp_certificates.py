"""The certificates that travel behind an SNP report, in every layout that is met, split by content.

====================  ==================================================================================================
layout                bytes after the report (integers little-endian, offsets from the first byte after the report)
====================  ==================================================================================================
ghcb                  GHCB specification, 4.1.8.1: entries ``GUID[16] | u32 offset | u32 length``, ended by a zero entry
typed (1.3.5 to 21)   ``u64 n``, n times ``u32 type | for OTHER (6): u64 16, uuid[16] | u64 length | DER``
typed-old (1.3.0-4)   the same, OTHER is 3
counted               ``u32 count``, count times ``u32 n | GUID[16] | DER``; n counts GUID and DER
pem                   PEM text (Azure)
====================  ==================================================================================================

What an object is (certificate, CRL) is read from its own bytes; type numbers and GUIDs are never believed.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

from cosmian_vm._reader import Reader
from cosmian_vm.errors import EvidenceFormatError

__all__ = [
    "MAX_OBJECTS",
    "MAX_OBJECT_SIZE",
    "CertificateLayout",
    "CertificateTable",
    "parse_certificates",
    "serialise_typed",
    "split_objects",
    "subject_common_name",
]

MAX_OBJECTS = 64
"""Most certificates and CRLs that are taken from one input."""
MAX_OBJECT_SIZE = 1 << 18
"""Largest certificate or CRL, in bytes."""

_WHAT = "SNP certificate table"
_GHCB_ENTRY = 24
_GUID = 16
_OTHER, _OTHER_OLD = 6, 3

_PEM_MARK = b"-----BEGIN "
_PEM_BLOCK = rb"-----BEGIN ([A-Z0-9 ]{1,40})-----([^-]*)-----END ([A-Z0-9 ]{1,40})-----"
_PEM_WORDS = 4096
_PEM_BLANK = b" \t\r\n\x00"

_TAG_SEQUENCE, _TAG_INTEGER, _TAG_VERSION, _TAG_SET, _TAG_OID = 0x30, 0x02, 0xA0, 0x31, 0x06
_FIRST_TAGS = (_TAG_VERSION, _TAG_INTEGER, _TAG_SEQUENCE)
_OID_COMMON_NAME = b"\x55\x04\x03"  # 2.5.4.3


class CertificateLayout(StrEnum):
    """How the bytes behind a report are laid out. UNKNOWN: there are bytes, of no layout that we know."""

    NONE = "none"
    GHCB = "ghcb"
    TYPED = "typed"
    TYPED_OLD = "typed-old"
    COUNTED = "counted"
    PEM = "pem"
    UNKNOWN = "unknown"


class CertificateTable(NamedTuple):
    """What stands behind a report. ``certificates``, ``crls``: DER, in the order found, unverified.
    ``trailing``: how many bytes at the end belong to nothing (padding).
    """

    certificates: tuple[bytes, ...] = ()
    crls: tuple[bytes, ...] = ()
    layout: CertificateLayout = CertificateLayout.NONE
    trailing: int = 0


def parse_certificates(data: bytes, *, base: int = 0) -> CertificateTable:
    """Read what follows a report, or the certificate table that the kernel hands out beside it.

    ``base`` is added to the offsets in errors. Zeros alone are padding. Bytes of no known layout are counted as
    trailing; a table that is recognised but broken raises EvidenceFormatError.
    """
    if not data:
        return CertificateTable()
    if not any(data):
        layout = CertificateLayout.TYPED if len(data) == 8 else CertificateLayout.NONE
        return CertificateTable(layout=layout, trailing=0 if len(data) == 8 else len(data))
    if _starts_pem(data):
        return _read_pem_layout(data, base)
    first, second = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:8], "little")
    if len(data) >= 8 and 1 <= first <= MAX_OBJECTS:
        if second == 0:
            return _read_either_typed(data, base)
        if _GUID < second <= _GUID + MAX_OBJECT_SIZE:
            return _read_counted(data, base)
    if _looks_like_ghcb(data):
        return _read_ghcb(data, base)
    return CertificateTable(layout=CertificateLayout.UNKNOWN, trailing=len(data))


def _starts_pem(data: bytes) -> bool:
    """PEM text, perhaps with words before its first block."""
    mark = data.find(_PEM_MARK, 0, _PEM_WORDS)
    words = data[: max(mark, 0)].strip(_PEM_BLANK)
    return mark >= 0 and words.isascii() and b"\x00" not in words


def split_objects(blob: bytes, what: str = "certificate") -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Certificates and CRLs (DER) in ``blob``: one DER object, or PEM text of any number of both.

    Raises EvidenceFormatError, ``what`` names the blob, for anything else.
    """
    certificates: list[bytes] = []
    crls: list[bytes] = []
    pem = _PEM_MARK in blob[:4096] and not blob.startswith(b"\x30\x82")
    for der, offset in _pem_objects(blob, what, 0) if pem else iter([(_trim_padding(blob), 0)]):
        (crls if _is_crl(der, what, offset) else certificates).append(der)
    return tuple(certificates), tuple(crls)


def serialise_typed(entries: tuple[tuple[int, bytes], ...]) -> bytes:
    """The ``typed`` layout of 1.3.5 and later, from pairs of type number and DER."""
    out = [len(entries).to_bytes(8, "little")]
    for number, der in entries:
        out += [number.to_bytes(4, "little"), len(der).to_bytes(8, "little"), der]
    return b"".join(out)


def subject_common_name(certificate: bytes) -> str | None:
    """The first common name in the subject of a certificate (DER), None where none can be read. Proves nothing."""
    try:
        tbs = _der(_der(Reader(certificate, _WHAT), "certificate", _TAG_SEQUENCE), "tbsCertificate", _TAG_SEQUENCE)
        for field in ("version", "serialNumber", "signature", "issuer", "validity"):
            _der(tbs, field)
        subject = _der(tbs, "subject", _TAG_SEQUENCE)
        while subject.remaining:
            attribute = _der(_der(subject, "RDN", _TAG_SET), "attribute", _TAG_SEQUENCE)
            if _der(attribute, "type", _TAG_OID).rest() == _OID_COMMON_NAME:
                return _der(attribute, "value").rest().decode("utf-8", "replace")
    except EvidenceFormatError:
        pass
    return None


# DER, as far as is needed to tell objects apart


def _der(reader: Reader, field: str, tag: int | None = None) -> Reader:
    """A reader over the content of the next DER element (definite length, at most 4 length bytes)."""
    base = reader.offset
    found = reader.u8(field)
    if tag is not None and found != tag:
        raise EvidenceFormatError(_WHAT, f"DER tag {found:#04x} where {tag:#04x} is expected", offset=base, field=field)
    length = reader.u8(field)
    if length & 0x80:
        if not 1 <= length & 0x7F <= 4:
            raise EvidenceFormatError(_WHAT, "DER length of a form that is not allowed", offset=base, field=field)
        length = reader.uint(length & 0x7F, field, big=True)
    start = reader.offset
    return Reader(reader.take(length, field), _WHAT, base=start)


def _is_crl(der: bytes, what: str, offset: int) -> bool:
    """True for a CRL, False for a certificate; EvidenceFormatError for neither. The object must end where ``der``
    does.
    """
    if len(der) > MAX_OBJECT_SIZE:
        raise EvidenceFormatError(what, f"{len(der)} bytes are too many for a certificate or CRL", offset=offset)
    if der[:2] == der[4:6] == b"\x30\x82" and int.from_bytes(der[2:4], "big") == len(der) - 4:
        size = int.from_bytes(der[6:8], "big")
        if 0 < size <= len(der) - 8 and der[8] in _FIRST_TAGS:
            return der[8] != _TAG_VERSION  # what nearly all are; everything else is read with care
    reader = Reader(der, what, base=offset)
    try:
        tbs = _der(_der(reader, "certificate", _TAG_SEQUENCE), "tbsCertificate", _TAG_SEQUENCE)
        reader.end()
        first = tbs.u8("version")
    except EvidenceFormatError as exc:
        problem = f"is neither an X.509 certificate nor a CRL ({exc.problem})"
        raise EvidenceFormatError(what, problem, offset=offset) from exc
    if first == _TAG_VERSION:
        return False
    if first in (_TAG_INTEGER, _TAG_SEQUENCE):
        return True
    raise EvidenceFormatError(what, "is neither an X.509 v3 certificate nor a CRL", offset=offset)


def _trim_padding(blob: bytes) -> bytes:
    """``blob`` without zeros after its DER object; unchanged where it is none."""
    reader = Reader(blob, _WHAT)
    try:
        _der(reader, "object", _TAG_SEQUENCE)
    except EvidenceFormatError:
        return blob
    return blob if any(blob[reader.position :]) else blob[: reader.position]


class _Collected:
    """Gathers objects while a table is read."""

    def __init__(self) -> None:
        self.certificates: list[bytes] = []
        self.crls: list[bytes] = []

    def add(self, der: bytes, offset: int) -> None:
        if len(self.certificates) + len(self.crls) >= MAX_OBJECTS:
            raise EvidenceFormatError(_WHAT, f"more than {MAX_OBJECTS} certificates", offset=offset)
        (self.crls if _is_crl(der, _WHAT, offset) else self.certificates).append(der)

    def table(self, layout: CertificateLayout, trailing: int) -> CertificateTable:
        return CertificateTable(tuple(self.certificates), tuple(self.crls), layout, trailing)


# The layouts


def _read_either_typed(data: bytes, base: int) -> CertificateTable:
    try:
        return _read_typed(data, base, CertificateLayout.TYPED, _OTHER)
    except EvidenceFormatError as new:
        # The two differ in nothing but the number of OTHER: an entry read under the wrong one is no DER.
        try:
            return _read_typed(data, base, CertificateLayout.TYPED_OLD, _OTHER_OLD)
        except EvidenceFormatError:
            raise new from None


def _read_typed(data: bytes, base: int, layout: CertificateLayout, other: int) -> CertificateTable:
    reader = Reader(data, _WHAT, base=base)
    found = _Collected()
    for index in range(reader.u64("n")):
        field = f"entry {index}"
        number = reader.u32(field)
        if number > _OTHER:
            raise reader.error(f"certificate type {number} is not known", field)
        if number == other:
            if reader.u64(field) != _GUID:
                raise reader.error("a UUID of 16 bytes is expected", field)
            reader.take(_GUID, field)
        der = reader.take(reader.u64(field), field)
        if der:
            found.add(der, reader.offset - len(der))
    return found.table(layout, reader.remaining)


def _read_counted(data: bytes, base: int) -> CertificateTable:
    reader = Reader(data, _WHAT, base=base)
    found = _Collected()
    for index in range(reader.u32("count")):
        field = f"entry {index}"
        size = reader.u32(field)
        if size < _GUID:
            raise reader.error(f"an entry of {size} bytes has no room for its GUID", field)
        der = reader.take(size, field)[_GUID:]
        if der:
            found.add(der, reader.offset - len(der))
    return found.table(CertificateLayout.COUNTED, reader.remaining)


_GHCB_GUIDS = tuple(
    bytes.fromhex(guid.replace("-", ""))
    for guid in (
        "c0b406a4-a803-4952-9743-3fb6014cd0ae",  # ARK
        "4ab7b379-bbac-4fe4-a02f-05aef327c782",  # ASK
        "63da758d-e664-4564-adc5-f4b93be8accd",  # VCEK
        "a8074bc2-a25a-483e-aae6-39c045a0b8a1",  # VLEK
        "92f81bc3-5811-4d3d-97ff-d19f88dc67ea",  # CRL
    )
)


def _swapped(guid: bytes) -> bytes:
    """A GUID with its first three fields little-endian, the other way in which tables store it."""
    return guid[3::-1] + guid[5:3:-1] + guid[7:5:-1] + guid[8:]


_GHCB_STARTS = frozenset(_GHCB_GUIDS) | frozenset(map(_swapped, _GHCB_GUIDS))


def _looks_like_ghcb(data: bytes) -> bool:
    """The first GUID is one of the specification's, or the first entry points at DER behind the table."""
    if data[:_GUID] in _GHCB_STARTS:
        return True
    offset, length = int.from_bytes(data[16:20], "little"), int.from_bytes(data[20:24], "little")
    return 2 * _GHCB_ENTRY <= offset < offset + length <= len(data) and data[offset] == _TAG_SEQUENCE


def _read_ghcb(data: bytes, base: int) -> CertificateTable:
    reader = Reader(data, _WHAT, base=base)
    found = _Collected()
    covered = 0
    for index in range(MAX_OBJECTS + 1):
        field = f"entry {index}"
        guid, offset, length = reader.take(_GUID, field), reader.u32(field), reader.u32(field)
        if not any(guid) and not offset and not length:
            break
        if index == MAX_OBJECTS:
            raise reader.error(f"more than {MAX_OBJECTS} entries", field)
        if offset + length > len(data):
            raise reader.error(f"{length} bytes at {offset:#x} reach past the end ({len(data)} bytes)", field)
        covered = max(covered, offset + length)
        blob = data[offset : offset + length]
        if blob.lstrip(_PEM_BLANK).startswith(_PEM_MARK):
            for der, at in _pem_objects(blob, _WHAT, base + offset):
                found.add(der, at)
        elif any(blob):
            found.add(_trim_padding(blob), base + offset)
    return found.table(CertificateLayout.GHCB, len(data) - max(covered, reader.position))


def _read_pem_layout(data: bytes, base: int) -> CertificateTable:
    found = _Collected()
    for der, offset in _pem_objects(data, _WHAT, base):
        found.add(der, offset)
    end = data.rfind(b"-----") + 5
    return found.table(CertificateLayout.PEM, len(data[end:].strip(_PEM_BLANK)))


def _pem_objects(data: bytes, what: str, base: int) -> Iterator[tuple[bytes, int]]:
    """Each block's DER and the offset of its BEGIN line. Text between blocks is skipped (``openssl x509 -text``)."""
    position = data.find(_PEM_MARK)
    if position < 0:
        raise EvidenceFormatError(what, "no PEM block", offset=base)
    pattern = re.compile(_PEM_BLOCK)  # here: few inputs have PEM in them
    for _ in range(MAX_OBJECTS):
        block = pattern.match(data, position)
        if block is None or block[1] != block[3]:
            raise EvidenceFormatError(what, "PEM block without its END line", offset=base + position)
        if block[1] not in (b"CERTIFICATE", b"X509 CRL", b"TRUSTED CERTIFICATE", b"X509 CERTIFICATE"):
            label = block[1].decode("ascii")
            raise EvidenceFormatError(
                what, f"PEM block {label!r} is neither certificate nor CRL", offset=base + position
            )
        try:
            der = base64.b64decode(block[2].translate(None, b" \t\r\n"), validate=True)
        except (binascii.Error, ValueError) as exc:
            raise EvidenceFormatError(what, "PEM block is not base64", offset=base + position) from exc
        yield der, base + position
        position = data.find(_PEM_MARK, block.end())
        if position < 0:
            return
    raise EvidenceFormatError(what, f"more than {MAX_OBJECTS} PEM blocks", offset=base)
