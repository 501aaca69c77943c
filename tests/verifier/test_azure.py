"""HCL reports: what vouches for what."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256, sha384

import pytest

from cosmian_vm.devkit.intel import IntelVendor, enclave_report, td_body
from cosmian_vm.evidence.azure import HclReport
from cosmian_vm.evidence.intel_quote import parse_quote
from cosmian_vm.evidence.tdx import TdReport, parse_tdreport
from cosmian_vm.verifier.azure import (
    check_hcl_ak,
    check_hcl_binding,
    check_td_quote_binding,
    check_tdreport_hashes,
)
from cosmian_vm.verifier.result import Status

DATA = b'{"keys":[{"kid":"HCLAkPub","kty":"RSA","e":"AQAB","n":"q' + b"A" * 340 + b'Q"}]}'
BOUND = sha256(DATA).digest().ljust(64, b"\x00")
VENDOR = IntelVendor.create()


def tdreport(report_data: bytes = BOUND) -> bytes:
    tcb_info = bytes.fromhex("ff01030000000000") + bytes(231)
    td_info = bytes(16) + b"\x33" * 48 + bytes(448)
    mac = b"\x81\x00\x00\x00" + bytes(28) + sha384(tcb_info).digest() + sha384(td_info).digest() + report_data
    return mac + bytes(64) + tcb_info + bytes(17) + td_info


def hcl(hardware: bytes, report_type: str = "TDX", data: bytes = DATA) -> HclReport:
    return HclReport(
        version=2,
        report_size=1236 + len(data),
        request_type=2,
        status=0,
        reserved=bytes(12),
        hardware_report=hardware.ljust(1184, b"\x00"),
        data_size=20 + len(data),
        data_version=1,
        report_type=report_type,
        hash_type="sha256",
        var_data=data,
        trailing=b"",
    )


def inner(report: HclReport) -> TdReport:
    return parse_tdreport(report.tee_report)


@pytest.mark.parametrize(("report_type", "hardware"), [("TDX", tdreport()), ("SNP", bytes(0x50) + BOUND)])
def test_binding(report_type: str, hardware: bytes) -> None:
    report = hcl(hardware, report_type)
    assert check_hcl_binding(report).status is Status.OK
    for changed in (DATA + b" ", DATA[:-1], DATA.replace(b"AQAB", b"AQAC")):
        assert check_hcl_binding(replace(report, var_data=changed)).status is Status.FAIL
    assert check_hcl_binding(replace(report, report_type={"TDX": "SNP"}.get(report_type, "TDX"))).status is Status.FAIL


def test_ak() -> None:
    report = hcl(tdreport())
    assert "RSA-2048" in check_hcl_ak(report).line
    assert check_hcl_ak(replace(report, var_data=b"{}")).status is Status.FAIL
    assert check_hcl_ak(replace(report, var_data=DATA.replace(b"HCLAkPub", b"HCLEkPub"))).status is Status.FAIL


def test_tdreport_hashes() -> None:
    raw = tdreport()
    assert check_tdreport_hashes(parse_tdreport(raw)).status is Status.OK
    changed = raw[:600] + b"\x01" + raw[601:]
    assert check_tdreport_hashes(parse_tdreport(changed)).status is Status.FAIL


def test_a_quote_must_be_of_the_same_td_and_data() -> None:
    report = hcl(tdreport())

    def status(**fields: bytes) -> Status:
        body = td_body({"report_data": BOUND, "mr_td": b"\x33" * 48, **fields})
        return check_td_quote_binding(report, inner(report), parse_quote(VENDOR.quote(body))).status

    assert status() is Status.OK
    assert status(report_data=bytes(64)) is Status.FAIL
    assert status(mr_td=bytes(48)) is Status.FAIL
    enclave = parse_quote(VENDOR.quote(enclave_report(report_data=BOUND)))
    assert check_td_quote_binding(report, inner(report), enclave).status is Status.FAIL
