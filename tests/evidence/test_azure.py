"""HCL reports and their runtime data."""

from __future__ import annotations

import json
from contextlib import suppress
from hashlib import sha256, sha512
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.azure import HclReport, parse_hcl_report, runtime_data, serialise_hcl

MODULUS = "q" + "A" * 340 + "Q"
AK = {"kid": "HCLAkPub", "key_ops": ["sign"], "kty": "RSA", "e": "AQAB", "n": MODULUS}
CLAIMS: dict[str, Any] = {"keys": [AK, {"kid": "HCLEkPub"}], "user-data": "00" * 64}


def hcl(claims: object = CLAIMS, *, report_type: int = 2, hash_type: int = 1, data: bytes | None = None) -> bytes:
    data = json.dumps(claims).encode() if data is None else data
    digest = {1: sha256, 3: sha512}.get(hash_type, sha256)(data).digest().ljust(64, b"\x00")
    at = 128 if report_type == 4 else 0x50
    hardware = bytes(at) + digest + bytes(1184 - at - 64)
    sizes = (20 + len(data), 1, report_type, hash_type, len(data))
    frame = b"".join(value.to_bytes(4, "little") for value in sizes)
    header = b"HCLA" + b"".join(v.to_bytes(4, "little") for v in (1, 1236 + len(data), 2, 0)) + bytes(12)
    return header + hardware + frame + data + bytes(100)


def refused(claims: object = CLAIMS, **other: bytes) -> EvidenceFormatError:
    with pytest.raises(EvidenceFormatError) as caught:
        runtime_data(parse_hcl_report(hcl(claims, **other)))  # type: ignore[arg-type]  # only data is given by name
    return caught.value


@pytest.mark.parametrize("report_type", [2, 4])
@pytest.mark.parametrize("hash_type", [1, 3])
def test_round_trip_and_binding(report_type: int, hash_type: int) -> None:
    raw = hcl(report_type=report_type, hash_type=hash_type)
    report = parse_hcl_report(raw)
    assert serialise_hcl(report) == raw
    assert report.binds
    assert len(report.tee_report) == {2: 1184, 4: 1024}[report_type]
    data = runtime_data(report)
    assert data.key_ids == ("HCLAkPub", "HCLEkPub")
    assert data.ak.exponent == 65537
    assert data.user_data == bytes(64)


def test_every_byte_of_the_runtime_data_counts() -> None:
    raw = hcl()
    start = raw.index(b'{"keys')
    end = start + parse_hcl_report(raw).report_size - 1236
    for at in range(start, end):
        assert not parse_hcl_report(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]).binds


def test_the_32_bytes_after_the_hash_must_be_zero() -> None:
    raw = bytearray(hcl())
    raw[0x20 + 0x50 + 63] = 1
    assert not parse_hcl_report(bytes(raw)).binds


def test_every_truncation_is_a_format_error() -> None:
    raw = hcl()
    whole = parse_hcl_report(raw).report_size
    for size in range(whole):
        with pytest.raises(EvidenceFormatError):
            parse_hcl_report(raw[:size])
    assert parse_hcl_report(raw[:whole]).trailing == b""


@pytest.mark.parametrize(
    ("at", "value", "field"),
    [
        (0, b"HCLB", "magic"),
        (8, b"\x01", "data_size"),
        (0x4C0, b"\x01", "data_size"),
        (0x4C8, b"\x03", "report_type"),
        (0x4CC, b"\x00", "hash_type"),
        (0x4D0, b"\x01", "data_size"),
        (-1, b"\x01", "padding"),
    ],
)
def test_frame_errors_name_the_field(at: int, value: bytes, field: str) -> None:
    raw = bytearray(hcl())
    at %= len(raw)
    raw[at : at + len(value)] = value
    with pytest.raises(EvidenceFormatError) as caught:
        parse_hcl_report(bytes(raw))
    assert caught.value.field == field


def test_a_huge_file_is_refused() -> None:
    with pytest.raises(EvidenceFormatError, match="more than"):
        parse_hcl_report(hcl() + bytes(65536))


@pytest.mark.parametrize(
    "keys",
    [
        None,
        [],
        {},
        ["HCLAkPub"],
        [{"kid": 5}],
        [{"kid": "HCLEkPub"}],
        [AK, AK],
        [{**AK, "kty": "EC"}],
        [{**AK, "n": None}],
        [{**AK, "n": ""}],
        [{**AK, "n": "AQAB"}],
        [{**AK, "n": MODULUS + "="}],
        [{**AK, "n": MODULUS[:-1] + "/"}],
        [{**AK, "n": MODULUS + "AAA"[: 1 + (1 - len(MODULUS)) % 4]}],
        [{**AK, "n": "\u00e9" * 340}],
        [{**AK, "n": "A" * 4000}],
        [{**AK, "e": "AA"}],
        [{**AK, "e": "A" * 20}],
    ],
)
def test_the_ak_must_be_one_usable_rsa_key(keys: object) -> None:
    error = refused({"keys": keys})
    assert error.what == "HCL runtime data"
    assert error.field is not None


@pytest.mark.parametrize("user_data", [5, "0", "zz", ["00"]])
def test_user_data_is_hex(user_data: object) -> None:
    assert refused({**CLAIMS, "user-data": user_data}).field == "user-data"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        b"{",
        b'{"keys": ' + json.dumps([AK]).encode() + b', "keys": ' + json.dumps([AK]).encode() + b"}",
        b'{"keys": NaN}',
        b"[" * 20_000,
        b'{"keys": ' + b"9" * 5000 + b"}",
    ],
    ids=range(8),
)
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    assert refused(data=data).what == "HCL runtime data"


@given(st.integers(0, 1500), st.binary(min_size=1, max_size=4))
def test_changed_bytes_are_read_back_or_refused(at: int, value: bytes) -> None:
    raw = hcl()
    changed = raw[:at] + value + raw[at + len(value) :]
    try:
        report = parse_hcl_report(changed)
    except EvidenceFormatError:
        return
    assert serialise_hcl(report) == changed
    with suppress(EvidenceFormatError):
        runtime_data(report)


@pytest.mark.evidence
def test_real_reports_bind_and_name_their_ak(evidence: Path) -> None:
    found = sorted(evidence.glob("azure/*/hcl.bin"))
    assert found
    for path in found:
        raw = path.read_bytes()
        report: HclReport = parse_hcl_report(raw)
        assert serialise_hcl(report) == raw
        assert report.binds
        assert runtime_data(report).ak.modulus.bit_length() == 2048
