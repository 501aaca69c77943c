"""Quotes, report bodies and TDREPORTs: round trips, every truncation, every field at its place."""

from __future__ import annotations

from hashlib import sha384
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.devkit.intel import IntelVendor, Lies, enclave_report, td_body
from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.intel_quote import MAX_TRAILING, Quote, parse_quote, serialise_quote
from cosmian_vm.evidence.sgx import parse_enclave_report
from cosmian_vm.evidence.tdx import TDREPORT_SIZE, parse_td_body, parse_tdreport, td_attribute_names

VENDOR = IntelVendor.create()
SGX_V3 = VENDOR.quote(enclave_report(mr_enclave=b"\x11" * 32, isv_svn=7))
SGX_V4 = VENDOR.quote(enclave_report(), version=4)
SGX_V5 = VENDOR.quote(enclave_report(), version=5)
TDX_V4 = VENDOR.quote(td_body(mr_td=b"\x22" * 48))
TDX_V5 = VENDOR.quote(td_body(td_1_5=True))
TDX_V5_10 = VENDOR.quote(td_body(), version=5)
QUOTES = {"sgx3": SGX_V3, "sgx4": SGX_V4, "sgx5": SGX_V5, "tdx4": TDX_V4, "tdx5": TDX_V5, "tdx5-1.0": TDX_V5_10}
EVERY = pytest.mark.parametrize("raw", QUOTES.values(), ids=QUOTES)


def changed(raw: bytes, at: int, value: bytes) -> bytes:
    return raw[:at] + value + raw[at + len(value) :]


@EVERY
def test_round_trip(raw: bytes) -> None:
    quote = parse_quote(raw)
    assert serialise_quote(quote) == raw
    assert raw.startswith(quote.signed)
    assert quote.signed.endswith(quote.body.raw)
    assert (quote.td is None) == (quote.header.tee == "SGX")
    assert (quote.enclave is None) == (quote.header.tee == "TDX")


@EVERY
def test_every_truncation_is_a_format_error(raw: bytes) -> None:
    for size in range(len(raw)):
        with pytest.raises(EvidenceFormatError):
            parse_quote(raw[:size])


@given(
    position=st.integers(0, len(TDX_V5) - 1), value=st.integers(0, 255), which=st.sampled_from(list(QUOTES.values()))
)
def test_one_changed_byte_is_read_back_or_refused(position: int, value: int, which: bytes) -> None:
    position %= len(which)
    raw = changed(which, position, bytes([value]))
    try:
        quote = parse_quote(raw)
    except EvidenceFormatError:
        return
    assert serialise_quote(quote) == raw


@given(st.binary(max_size=2000))
def test_anything_behind_a_header_is_read_back_or_refused(rest: bytes) -> None:
    for quote in (SGX_V3, TDX_V4, TDX_V5):
        raw = quote[:48] + rest
        try:
            assert serialise_quote(parse_quote(raw)) == raw
        except EvidenceFormatError:
            continue


@pytest.mark.parametrize(
    ("raw", "at", "value", "field"),
    [
        (TDX_V4, 0, b"\x02\x00", "version"),
        (TDX_V4, 0, b"\x03\x00", "tee_type"),
        (TDX_V4, 0, b"\x06\x00", "version"),
        (TDX_V4, 2, b"\x03\x00", "attestation_key_type"),
        (TDX_V4, 4, b"\x82\x00\x00\x00", "tee_type"),
        (TDX_V5, 48, b"\x01\x00", "body_type"),
        (TDX_V5, 48, b"\x02\x00", "body_size"),
        (TDX_V5, 50, b"\x89\x02\x00\x00", "body_size"),
        (SGX_V5, 48, b"\x02\x00", "body_type"),
        (TDX_V4, 632, b"\xff\xff\xff\xff", "signature_data_size"),
        (TDX_V4, 764, b"\x05\x00", "certification_data_type"),
    ],
)
def test_frame_errors_name_the_field(raw: bytes, at: int, value: bytes, field: str) -> None:
    with pytest.raises(EvidenceFormatError) as caught:
        parse_quote(changed(raw, at, value))
    assert caught.value.field == field
    assert caught.value.offset is not None


def test_sizes_that_contradict_each_other_are_refused() -> None:
    size_at = 48 + 584
    size = int.from_bytes(TDX_V4[size_at : size_at + 4], "little")
    one_more = changed(TDX_V4 + b"\x00", size_at, (size + 1).to_bytes(4, "little"))
    with pytest.raises(EvidenceFormatError, match="1 bytes too many"):
        parse_quote(one_more)


def test_bytes_behind_the_certificates_are_refused() -> None:
    raw = bytearray(TDX_V4 + b"\x00")
    for at in (48 + 584, 48 + 584 + 4 + 128 + 2):  # both sizes grow by one, that of the certificates does not
        raw[at : at + 4] = (int.from_bytes(raw[at : at + 4], "little") + 1).to_bytes(4, "little")
    with pytest.raises(EvidenceFormatError, match="1 bytes too many"):
        parse_quote(bytes(raw))


def test_trailing_bytes_are_kept_and_bounded() -> None:
    padded = parse_quote(TDX_V4 + bytes(3000))
    assert padded.trailing == bytes(3000)
    assert padded.signed == parse_quote(TDX_V4).signed
    with pytest.raises(EvidenceFormatError, match="trailing"):
        parse_quote(TDX_V4 + bytes(MAX_TRAILING + 1))


def test_fields_of_an_enclave_report_stand_at_their_offsets() -> None:
    # Intel SDM 3D, REPORT: offsets of the fields
    report = parse_quote(SGX_V3).enclave
    assert report is not None
    raw = bytearray(384)
    raw[64:96] = b"\x11" * 32
    raw[258] = 7
    raw[48:64] = report.attributes
    assert report.raw == bytes(raw)
    assert (report.mr_enclave, report.isv_svn, report.debug, report.initialised) == (b"\x11" * 32, 7, False, True)


def test_reserved_bytes_of_a_bare_enclave_report_must_be_zero() -> None:
    raw = enclave_report().raw
    assert parse_enclave_report(raw).raw == raw
    for at in (20, 96, 160, 262):
        with pytest.raises(EvidenceFormatError, match="reserved"):
            parse_enclave_report(changed(raw, at, b"\x01"))
    with pytest.raises(EvidenceFormatError):
        parse_enclave_report(raw + b"\x00")


@pytest.mark.parametrize(
    ("name", "at", "size"),
    [
        ("tee_tcb_svn", 0, 16),
        ("mr_seam", 16, 48),
        ("mr_signer_seam", 64, 48),
        ("seam_attributes", 112, 8),
        ("td_attributes", 120, 8),
        ("xfam", 128, 8),
        ("mr_td", 136, 48),
        ("mr_config_id", 184, 48),
        ("mr_owner", 232, 48),
        ("mr_owner_config", 280, 48),
        ("report_data", 520, 64),
        ("tee_tcb_svn2", 584, 16),
        ("mr_service_td", 600, 48),
    ],
)
def test_fields_of_a_td_report_body_stand_at_their_offsets(name: str, at: int, size: int) -> None:
    body = parse_td_body(changed(bytes(648), at, b"\x5a" * size))
    assert getattr(body, name) == b"\x5a" * size
    others = ("tee_tcb_svn", "mr_seam", "mr_td", "report_data", "mr_service_td")
    assert not any(any(getattr(body, other)) for other in others if other != name)


def test_rtmrs_and_the_extended_body() -> None:
    raw = bytes(328) + b"".join(bytes([n]) * 48 for n in range(1, 5)) + bytes(64)
    assert parse_td_body(raw).rtmrs == tuple(bytes([n]) * 48 for n in range(1, 5))
    assert parse_td_body(raw).tee_tcb_svn2 is None
    extended = parse_td_body(raw + bytes(64) + b"\x02" + b"\x07" * 236)
    assert extended.extension is not None
    assert (extended.extension.vmid, extended.extension.td_id) == (2, b"\x07" * 32)
    assert len(extended.extension.cur_service_td_attributes) == 8
    for size in (583, 585, 647, 649, 884, 886):
        with pytest.raises(EvidenceFormatError, match="bytes long"):
            parse_td_body(bytes(size))


def test_attribute_names() -> None:
    assert td_attribute_names(bytes.fromhex("0000005000000000")) == ("SEPT_VE_DISABLE", "PKS")
    assert td_attribute_names(bytes.fromhex("0300000000000080")) == ("DEBUG", "bit 1", "PERFMON")


def tdreport() -> bytes:
    tcb_info = bytes.fromhex("ff01030000000000") + b"\x03".ljust(231, b"\x00")
    td_info = bytes(16) + b"\x33" * 48 + bytes(448)
    mac = b"\x81\x00\x00\x00" + bytes(28) + sha384(tcb_info).digest() + sha384(td_info).digest() + b"\x44" * 64
    return mac + bytes(64) + tcb_info + bytes(17) + td_info


def test_tdreport() -> None:
    raw = tdreport()
    report = parse_tdreport(raw)
    assert (report.body.mr_td, report.body.report_data) == (b"\x33" * 48, b"\x44" * 64)
    assert report.consistent
    assert not parse_tdreport(changed(raw, 530, b"\x01")).consistent
    assert not parse_tdreport(changed(raw, 270, b"\x01")).consistent
    with pytest.raises(EvidenceFormatError, match="0x00"):
        parse_tdreport(changed(raw, 0, b"\x00"))
    for size in (0, TDREPORT_SIZE - 1, TDREPORT_SIZE + 1):
        with pytest.raises(EvidenceFormatError):
            parse_tdreport(raw[:size].ljust(size, b"\x00"))


def test_certification_data_of_other_types_is_read() -> None:
    quote: Quote = parse_quote(VENDOR.quote(td_body(), lies=Lies(cert_data_type=3, chain=bytes(404))))
    assert (quote.signature.cert_data_type, quote.signature.cert_data) == (3, bytes(404))


@pytest.mark.evidence
def test_real_quotes_round_trip(evidence: Path) -> None:
    found = [*evidence.glob("tdx/*/quote.bin"), *evidence.glob("sgx/*/quote.bin")]
    assert found
    for path in found:
        raw = path.read_bytes()
        assert serialise_quote(parse_quote(raw)) == raw
