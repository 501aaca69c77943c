"""SNP reports: round trip, every field at its place, every truncation, reserved bits, real reports."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.snp import (
    REPORT_SIZE,
    SIGNED_SIZE,
    CertificateLayout,
    Product,
    SigningKey,
    SnpReport,
    TcbLayout,
    decode_tcb,
    encode_tcb,
    parse_evidence,
    parse_report,
    serialise_report,
)

REAL = (
    "snp/google-milan-v2-debug",
    "snp/virtee-milan-v2",
    "snp/trustee-milan-v2",
    "snp/trustee-genoa-v3",
    "snp/dstack-milan-v3",
)


def some_report(version: int = 5) -> SnpReport:
    """A report in which every byte of every field differs from its neighbours'."""
    return SnpReport(
        version=version,
        guest_svn=0x01020304,
        policy=0x30000 | 0x1F,
        family_id=bytes(range(16)),
        image_id=bytes(range(16, 32)),
        vmpl=3,
        current_tcb=bytes(range(8)),
        platform_info=0x65,
        flags=0b00101,
        report_data=bytes(range(64)),
        measurement=bytes(range(48)),
        host_data=bytes(range(32)),
        id_key_digest=bytes(range(1, 49)),
        author_key_digest=bytes(range(2, 50)),
        report_id=bytes(range(3, 35)),
        report_id_ma=bytes(range(4, 36)),
        reported_tcb=bytes(range(8, 16)),
        cpuid_fam_id=0x1A if version >= 3 else 0,
        cpuid_mod_id=0x02 if version >= 3 else 0,
        cpuid_step=0x01 if version >= 3 else 0,
        chip_id=bytes(range(64, 128)),
        committed_tcb=bytes(range(16, 24)),
        current_build=1,
        current_minor=2,
        current_major=3,
        committed_build=4,
        committed_minor=5,
        committed_major=6,
        launch_tcb=bytes(range(24, 32)),
        launch_mit_vector=0x0102030405060708 if version >= 5 else 0,
        current_mit_vector=0x1112131415161718 if version >= 5 else 0,
        signature_r=bytes(range(72)),
        signature_s=bytes(range(72, 144)),
    )


@pytest.mark.parametrize("version", [2, 3, 5])
def test_round_trip(version: int) -> None:
    report = some_report(version)
    raw = serialise_report(report)
    parsed = parse_report(raw)
    assert parsed == report
    assert parsed.raw == raw
    assert parsed.signed == raw[:SIGNED_SIZE]
    assert serialise_report(parsed) == raw


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (0x000, (5).to_bytes(4, "little")),
        (0x008, (0x3001F).to_bytes(8, "little")),
        (0x030, (3).to_bytes(4, "little")),
        (0x050, bytes(range(64))),
        (0x090, bytes(range(48))),
        (0x140, bytes(range(3, 35))),
        (0x180, bytes(range(8, 16))),
        (0x188, b"\x1a\x02\x01"),
        (0x1A0, bytes(range(64, 128))),
        (0x1E8, b"\x01\x02\x03\x00\x04\x05\x06\x00"),
        (0x1F8, (0x0102030405060708).to_bytes(8, "little")),
        (0x200, (0x1112131415161718).to_bytes(8, "little")),
        (0x2A0, bytes(range(72))),
        (0x2E8, bytes(range(72, 144))),
    ],
)
def test_fields_stand_where_the_specification_puts_them(offset: int, expected: bytes) -> None:
    assert serialise_report(some_report())[offset : offset + len(expected)] == expected


def test_meaning_of_bits() -> None:
    report = some_report()
    assert report.policy_abi == "0.31"
    assert report.policy_smt
    assert not report.policy_debug
    assert replace(report, policy=1 << 19).policy_debug
    assert replace(report, policy=1 << 18).policy_migrate_ma
    assert replace(report, policy=1 << 20).policy_single_socket
    assert report.author_key_en
    assert not report.mask_chip_key
    assert report.signing_key is SigningKey.VLEK
    assert replace(report, flags=7 << 2).signing_key is SigningKey.NONE
    assert replace(report, flags=3 << 2).signing_key is None
    assert report.current_version == "3.2.1"
    assert report.committed_version == "6.5.4"


@pytest.mark.parametrize(
    ("family", "model", "product"),
    [
        (0x19, 0x00, Product.MILAN),
        (0x19, 0x0F, Product.MILAN),
        (0x19, 0x10, Product.GENOA),
        (0x19, 0xA0, Product.GENOA),
        (0x19, 0xAF, Product.GENOA),
        (0x19, 0x20, None),
        (0x1A, 0x02, Product.TURIN),
        (0x1A, 0x50, None),
        (0x17, 0x01, None),
    ],
)
def test_product_by_cpuid(family: int, model: int, product: Product | None) -> None:
    report = replace(some_report(3), cpuid_fam_id=family, cpuid_mod_id=model)
    assert report.product is product
    assert replace(report, version=2).product is None


def test_tcb_layouts_differ() -> None:
    raw = bytes([1, 2, 3, 4, 5, 6, 7, 8])
    assert decode_tcb(raw, TcbLayout.MILAN).components == {"bl": 1, "tee": 2, "snp": 7, "ucode": 8}
    assert decode_tcb(raw, TcbLayout.TURIN).components == {"fmc": 1, "bl": 2, "tee": 3, "snp": 4, "ucode": 8}
    for layout in TcbLayout:
        components = decode_tcb(raw, layout).components
        assert decode_tcb(encode_tcb(components, layout), layout).components == components
    assert str(decode_tcb(raw, Product.GENOA.tcb_layout)) == "bl 1 tee 2 snp 7 ucode 8"


def test_every_truncation() -> None:
    raw = serialise_report(some_report())
    for size in range(REPORT_SIZE):
        with pytest.raises(EvidenceFormatError, match="1184"):
            parse_report(raw[:size])
        with pytest.raises(EvidenceFormatError, match="1184"):
            parse_evidence(raw[:size])


def test_too_long() -> None:
    with pytest.raises(EvidenceFormatError, match="1184"):
        parse_report(serialise_report(some_report()) + b"\0")


@pytest.mark.parametrize(
    ("version", "offset", "value", "named"),
    [
        (5, 0x000, 0, "version"),
        (5, 0x000, 4, "version"),
        (5, 0x000, 6, "version"),
        (5, 0x00A, 0x01, "policy"),  # bit 17 off
        (5, 0x00B, 0x04, "policy"),  # bit 26 on
        (5, 0x048, 0x20, "flags"),
        (5, 0x04C, 1, "reserved"),
        (5, 0x18B, 1, "reserved"),
        (2, 0x188, 1, "cpuid_fam_id"),
        (2, 0x18A, 1, "cpuid_step"),
        (3, 0x1F8, 1, "launch_mit_vector"),
        (2, 0x207, 1, "current_mit_vector"),
        (5, 0x1EB, 1, "reserved"),
        (5, 0x1EF, 1, "reserved"),
        (5, 0x208, 1, "reserved"),
        (5, 0x29F, 1, "reserved"),
        (5, 0x330, 1, "reserved"),
        (5, 0x49F, 1, "reserved"),
    ],
)
def test_unknown_versions_and_reserved_bits_are_refused(version: int, offset: int, value: int, named: str) -> None:
    raw = bytearray(serialise_report(some_report(version)))
    raw[offset] = value
    with pytest.raises(EvidenceFormatError, match=named) as caught:
        parse_report(bytes(raw))
    assert caught.value.offset is not None


def test_serialise_refuses_fields_of_another_size() -> None:
    with pytest.raises(ValueError, match="report_data must be 64 bytes"):
        serialise_report(replace(some_report(), report_data=bytes(63)))
    with pytest.raises(ValueError, match="does not fit"):
        serialise_report(replace(some_report(), vmpl=1 << 32))


@given(st.binary(min_size=REPORT_SIZE, max_size=REPORT_SIZE))
def test_any_bytes(raw: bytes) -> None:
    with contextlib.suppress(EvidenceFormatError):
        assert serialise_report(parse_report(raw)) == raw


@given(st.integers(0, REPORT_SIZE - 1), st.integers(1, 255), st.sampled_from([2, 3, 5]))
def test_any_changed_byte_is_refused_or_kept(position: int, difference: int, version: int) -> None:
    raw = bytearray(serialise_report(some_report(version)))
    raw[position] ^= difference
    try:
        parsed = parse_report(bytes(raw))
    except EvidenceFormatError:
        return
    assert serialise_report(parsed) == bytes(raw)
    assert parsed != some_report(version)


@given(st.binary(max_size=3000))
def test_evidence_of_any_bytes(raw: bytes) -> None:
    for data in (raw, serialise_report(some_report()) + raw):
        try:
            parsed = parse_evidence(data)
        except EvidenceFormatError:
            continue
        assert parsed.trailing <= len(data) - REPORT_SIZE


def test_padding_and_unknown_bytes_behind_a_report_are_counted() -> None:
    raw = serialise_report(some_report())
    assert parse_evidence(raw).layout is CertificateLayout.NONE
    assert parse_evidence(raw + bytes(100)).trailing == 100
    unknown = parse_evidence(raw + b"\xff" * 33)
    assert (unknown.layout, unknown.trailing) == (CertificateLayout.UNKNOWN, 33)


@pytest.mark.evidence
@pytest.mark.parametrize("folder", REAL)
def test_real_reports_round_trip(evidence: Path, folder: str) -> None:
    raw = (evidence / folder / "report.bin").read_bytes()
    assert serialise_report(parse_report(raw)) == raw
