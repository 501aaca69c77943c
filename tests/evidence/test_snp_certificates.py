"""Certificates behind an SNP report: every layout, told by content; broken tables are errors, never fewer certificates
in silence."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.snp import (
    MAX_OBJECTS,
    REPORT_SIZE,
    CertificateLayout,
    parse_certificates,
    parse_evidence,
    serialise_v1,
    split_objects,
    subject_common_name,
)

KEYS = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"
ARK = UUID("c0b406a4-a803-4952-9743-3fb6014cd0ae")
ASK = UUID("4ab7b379-bbac-4fe4-a02f-05aef327c782")
VCEK = UUID("63da758d-e664-4564-adc5-f4b93be8accd")
SOMETHING = UUID("00112233-4455-6677-8899-aabbccddeeff")


@pytest.fixture(scope="module")
def vendor() -> AmdVendor:
    return AmdVendor.create(keys=VendorKeys.load(KEYS), now=datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture(scope="module")
def ders(vendor: AmdVendor) -> tuple[bytes, ...]:
    """VCEK, ASK, ARK, CRL."""
    return (*vendor.certificates, vendor.crl())


def ghcb(entries: list[tuple[bytes, bytes]], *, padding: int = 0) -> bytes:
    offset = 24 * (len(entries) + 1)
    table, blobs = b"", b""
    for guid, der in entries:
        table += guid + (offset + len(blobs)).to_bytes(4, "little") + len(der).to_bytes(4, "little")
        blobs += der
    return table + bytes(24) + blobs + bytes(padding)


def typed(entries: list[tuple[int, bytes]], *, other: int) -> bytes:
    out = len(entries).to_bytes(8, "little")
    for number, der in entries:
        out += number.to_bytes(4, "little")
        if number == other:
            out += (16).to_bytes(8, "little") + SOMETHING.bytes
        out += len(der).to_bytes(8, "little") + der
    return out


def counted(entries: list[tuple[UUID, bytes]]) -> bytes:
    parts = [(16 + len(der)).to_bytes(4, "little") + guid.bytes + der for guid, der in entries]
    return len(entries).to_bytes(4, "little") + b"".join(parts)


def pem(der: bytes, label: str = "CERTIFICATE") -> bytes:
    body = base64.encodebytes(der).decode()
    return f"-----BEGIN {label}-----\n{body}-----END {label}-----\n".encode()


def layouts(ders: tuple[bytes, ...]) -> dict[CertificateLayout, bytes]:
    vcek, ask, ark, crl = ders
    return {
        CertificateLayout.GHCB: ghcb(
            [(VCEK.bytes_le, vcek), (ASK.bytes_le, ask), (ARK.bytes_le, ark), (b"x" * 16, crl)]
        ),
        CertificateLayout.TYPED: typed([(3, vcek), (2, ask), (1, ark), (0, b""), (5, crl)], other=6),
        CertificateLayout.TYPED_OLD: typed([(2, vcek), (1, ask), (0, ark), (3, crl)], other=3),
        CertificateLayout.COUNTED: counted([(VCEK, vcek), (ASK, ask), (ARK, ark), (SOMETHING, crl)]),
        CertificateLayout.PEM: pem(vcek) + pem(ask) + pem(ark) + pem(crl, "X509 CRL"),
    }


@pytest.mark.parametrize("layout", [x for x in CertificateLayout if x not in ("none", "unknown")])
def test_every_layout_gives_the_same(layout: CertificateLayout, ders: tuple[bytes, ...]) -> None:
    table = parse_certificates(layouts(ders)[layout])
    assert table.layout is layout
    assert (table.certificates, table.crls, table.trailing) == (ders[:3], ders[3:], 0)


@pytest.mark.parametrize("layout", [x for x in CertificateLayout if x not in ("none", "unknown")])
def test_every_truncation(layout: CertificateLayout, ders: tuple[bytes, ...]) -> None:
    """A table that is cut off is an error, or, where nothing of it is recognisable any more, all of it is trailing."""
    whole = layouts(ders)[layout]
    for size in [*range(200), *range(200, len(whole), 37), len(whole) - 1]:
        cut = whole[:size]
        try:
            table = parse_certificates(cut)
        except EvidenceFormatError:
            continue
        if layout is CertificateLayout.PEM and cut.rstrip(b"\n").endswith(b"-----END X509 CRL-----"):
            continue
        complete = layout is CertificateLayout.PEM and cut.endswith((b"-----END CERTIFICATE-----", b"-----\n"))
        assert complete or (not table.certificates and table.trailing == size), size


def test_types_and_guids_are_not_believed(ders: tuple[bytes, ...]) -> None:
    """The ARK under the VCEK's number, and under its GUID, is still the ARK; a CRL anywhere is a CRL."""
    vcek, _, ark, crl = ders
    for data in (
        typed([(3, ark), (1, crl)], other=6),
        counted([(VCEK, ark), (ARK, crl)]),
        ghcb([(VCEK.bytes, ark), (ARK.bytes, crl)]),
    ):
        table = parse_certificates(data)
        assert (table.certificates, table.crls) == ((ark,), (crl,))
    assert subject_common_name(vcek) == "SEV-VCEK"


def test_other_entries_of_both_typed_forms(ders: tuple[bytes, ...]) -> None:
    vcek = ders[0]
    assert parse_certificates(typed([(6, vcek)], other=6)).layout is CertificateLayout.TYPED
    assert parse_certificates(typed([(3, vcek)], other=3)).layout is CertificateLayout.TYPED_OLD
    assert parse_certificates(typed([(3, vcek)], other=6)).layout is CertificateLayout.TYPED


def test_ghcb_page_padding_and_both_byte_orders(ders: tuple[bytes, ...]) -> None:
    for guid in (VCEK.bytes, VCEK.bytes_le, SOMETHING.bytes):
        table = parse_certificates(ghcb([(guid, ders[0])], padding=500))
        assert (table.layout, table.certificates, table.trailing) == (CertificateLayout.GHCB, ders[:1], 500)


def test_ghcb_blob_with_padding_or_pem_inside(ders: tuple[bytes, ...]) -> None:
    assert parse_certificates(ghcb([(VCEK.bytes, ders[0] + bytes(9))])).certificates == ders[:1]
    assert parse_certificates(ghcb([(VCEK.bytes, pem(ders[0]) + pem(ders[1]))])).certificates == ders[:2]


def test_no_certificates(ders: tuple[bytes, ...]) -> None:
    assert parse_certificates(b"").layout is CertificateLayout.NONE
    none = parse_certificates(bytes(8))
    assert (none.layout, none.certificates, none.trailing) == (CertificateLayout.TYPED, (), 0)


def test_text_around_pem_is_passed_over(ders: tuple[bytes, ...]) -> None:
    table = parse_certificates(b"\n\0" + pem(ders[0]) + b"subject=CN = x\n" + pem(ders[1]) + b"end")
    assert (table.certificates, table.trailing) == (ders[:2], 3)


@pytest.mark.parametrize(
    "data",
    [
        pem(b"\x30\x03\x02\x01\x01"),
        pem(b"text", "PRIVATE KEY"),
        pem(bytes.fromhex("30820008308200020400") + bytes(2)),
        pem(bytes.fromhex("308200063082000204 00")),
        b"-----BEGIN CERTIFICATE-----\nMIIB\n",
        b"-----BEGIN CERTIFICATE-----\nM*IB\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END X509 CRL-----\n",
        typed([(9, b"")], other=6),
        typed([(3, b"\x30\x00")], other=6),
        (2).to_bytes(8, "little"),
        counted([(VCEK, b"junk")]),
        VCEK.bytes_le + (24).to_bytes(4, "little") + (99).to_bytes(4, "little"),
        VCEK.bytes_le + (24).to_bytes(4, "little") + (0).to_bytes(4, "little"),
    ],
)
def test_broken_tables(data: bytes) -> None:
    with pytest.raises(EvidenceFormatError) as caught:
        parse_certificates(data, base=REPORT_SIZE)
    assert caught.value.offset is not None
    assert caught.value.offset >= REPORT_SIZE


def test_too_many(ders: tuple[bytes, ...]) -> None:
    vcek = ders[0]
    with pytest.raises(EvidenceFormatError, match="more than"):
        parse_certificates(pem(vcek) * (MAX_OBJECTS + 1))
    entry = VCEK.bytes + (24 * (MAX_OBJECTS + 2)).to_bytes(4, "little") + len(vcek).to_bytes(4, "little")
    with pytest.raises(EvidenceFormatError, match="more than"):
        parse_certificates(entry * (MAX_OBJECTS + 1) + bytes(24) + vcek)
    # Not taken for a table at all:
    assert parse_certificates(typed([(0, b"")] * (MAX_OBJECTS + 1), other=6)).layout is CertificateLayout.UNKNOWN


def test_split_objects(ders: tuple[bytes, ...]) -> None:
    assert split_objects(ders[0]) == (ders[:1], ())
    assert split_objects(ders[3]) == ((), ders[3:])
    assert split_objects(pem(ders[0]) + pem(ders[3], "X509 CRL")) == (ders[:1], ders[3:])
    for junk in (
        b"",
        b"junk",
        ders[0] + b"x",
        ders[0][:-1],
        b"\x30\x84\xff\xff\xff\xff",
        b"-----BEGIN CERTIFICATE-----",
    ):
        with pytest.raises(EvidenceFormatError, match="this one"):
            split_objects(junk, "this one")


def test_version_1_answer(vendor: AmdVendor, ders: tuple[bytes, ...]) -> None:
    """Byte for byte what 1.3.5 and later write."""
    vcek, ask, ark, _ = ders
    report = vendor.sign_report()
    entries = b"".join(
        number.to_bytes(4, "little") + len(der).to_bytes(8, "little") + der
        for number, der in ((1, ark), (2, ask), (3, vcek))
    )
    assert serialise_v1(report, [vcek, ask, ark]) == report + (3).to_bytes(8, "little") + entries
    assert serialise_v1(report, [vcek]) == report + bytes(8)
    assert serialise_v1(report, [b"junk"]) == report + bytes(8)
    parsed = parse_evidence(serialise_v1(report, [ark, vcek, ask]))
    assert (parsed.layout, parsed.certificates) == (CertificateLayout.TYPED, (ark, ask, vcek))


def test_version_1_answer_with_a_vlek() -> None:
    vendor = AmdVendor.create(keys=VendorKeys.load(KEYS), vlek=True, now=datetime(2026, 1, 1, tzinfo=UTC))
    report = vendor.sign_report()
    vlek = vendor.certificates[0]
    expected = (1).to_bytes(8, "little") + (4).to_bytes(4, "little") + len(vlek).to_bytes(8, "little") + vlek
    assert serialise_v1(report, vendor.certificates) == report + expected


def test_common_name_of_anything(ders: tuple[bytes, ...]) -> None:
    assert [subject_common_name(der) for der in ders[:3]] == ["SEV-VCEK", "SEV-Milan", "ARK-Milan"]
    assert subject_common_name(b"") is None
    assert all(subject_common_name(ders[0][:n]) is None for n in range(0, len(ders[0]), 11))


@settings(max_examples=200)
@given(st.data())
def test_any_mutation(data: st.DataObject) -> None:
    whole = _MUTATED[data.draw(st.integers(0, len(_MUTATED) - 1))]
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, min(len(changed) - 1, 120)))
        changed[position] = data.draw(st.integers(0, 255))
    try:
        table = parse_certificates(bytes(changed))
    except EvidenceFormatError:
        return
    assert len(table.certificates) + len(table.crls) <= MAX_OBJECTS


# A certificate's outline is enough to be split.
_OUTLINE = bytes.fromhex("300a3008a003020102020100")
_MUTATED = (
    ghcb([(VCEK.bytes, _OUTLINE), (ARK.bytes_le, _OUTLINE)]),
    typed([(3, _OUTLINE), (6, _OUTLINE)], other=6),
    typed([(3, _OUTLINE), (0, _OUTLINE)], other=3),
    counted([(VCEK, _OUTLINE), (ASK, _OUTLINE)]),
    pem(_OUTLINE) * 2,
)
