"""Azure: the HCL report in the vTPM, and what the metadata service adds."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import pytest

from cosmian_vm.attester.azure import AzureTee, AzureTpm
from cosmian_vm.attester.metadata import MetadataAnswer
from cosmian_vm.devkit.intel import IntelVendor, td_body
from cosmian_vm.devkit.soft_tpm import SoftTpm
from cosmian_vm.errors import AttesterError, NotAvailableError
from cosmian_vm.evidence.azure import parse_hcl_report
from cosmian_vm.evidence.bundle import TeeKind
from cosmian_vm.evidence.intel_quote import parse_quote

DATA = bytes(range(64))
SNP, TDX = 2, 4
VCEK, CHAIN = "-----BEGIN CERTIFICATE-----\nvcek", "-----BEGIN CERTIFICATE-----\nask, ark"


def hcl(report_type: int, data: bytes = b'{"keys":[]}', hardware: bytes = b"") -> bytes:
    at = 128 if report_type == TDX else 0x50
    bound = sha256(data).digest().ljust(64, b"\0")
    hardware = hardware.ljust(at, b"\x81") + bound + bytes(1184 - at - 64)
    sizes = (20 + len(data), 1, report_type, 1, len(data))
    header = b"HCLA" + b"".join(v.to_bytes(4, "little") for v in (1, 1236 + len(data), 2, 0)) + bytes(12)
    return header + hardware + b"".join(value.to_bytes(4, "little") for value in sizes) + data + bytes(100)


class Tpm:
    def __init__(self, content: bytes | None) -> None:
        self.content = content

    def nv_read(self, index: int) -> bytes:
        assert index == 0x01400001
        if self.content is None:
            raise NotAvailableError("TPM: there is no NV index 0x01400001")
        return self.content


class Service:
    """The metadata service."""

    def __init__(self) -> None:
        self.status = 200
        self.answer: object = {"vcekCert": VCEK, "tcbm": "DB18000000000004", "certificateChain": CHAIN}
        self.asked: list[tuple[str, str, dict[str, str], bytes]] = []

    def __call__(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"", *, seconds: float
    ) -> MetadataAnswer:
        assert 0 < seconds <= 10
        self.asked.append((method, path, dict(headers), body))
        told = self.answer if isinstance(self.answer, bytes) else json.dumps(self.answer).encode()
        return MetadataAnswer(status=self.status, headers={}, body=told)


@pytest.fixture
def service() -> Service:
    return Service()


def test_snp(service: Service) -> None:
    tpm = Tpm(hcl(SNP))
    device = AzureTee(tpm, service)
    assert device.kind is TeeKind.SNP
    assert service.asked == []
    quote = device.quote(DATA)
    assert quote.hcl_report == tpm.content
    assert quote.raw == parse_hcl_report(hcl(SNP)).hardware_report
    assert quote.endorsements == (VCEK.encode(), CHAIN.encode())
    assert service.asked == [("GET", "/metadata/THIM/amd/certification", {"Metadata": "true"}, b"")]
    assert device.quote(DATA) == quote  # the same report: the service is not asked again
    assert len(service.asked) == 1
    tpm.content = hcl(SNP, b'{"keys":[],"user-data":"00"}')
    assert device.quote(DATA).hcl_report == tpm.content
    assert len(service.asked) == 2


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"vcekCert": VCEK},
        {"vcekCert": 1, "certificateChain": CHAIN},
        {"vcekCert": "\ud800", "certificateChain": CHAIN},
        [],
        b"<html>",
        b"1" * 10_000,
    ],
)
def test_snp_goes_without_certificates(service: Service, answer: object, caplog: pytest.LogCaptureFixture) -> None:
    device = AzureTee(Tpm(hcl(SNP)), service)
    good, service.answer = service.answer, answer
    quote = device.quote(DATA)
    assert (len(quote.raw), quote.endorsements) == (1184, ())
    assert "without the chip's certificates: metadata service: /metadata/THIM/amd/certification" in caplog.text
    service.answer, service.status = good, 500
    assert device.quote(DATA).endorsements == ()
    assert "status 500" in caplog.text
    service.status = 200
    assert len(device.quote(DATA).endorsements) == 2


@pytest.fixture(scope="module")
def vendor() -> IntelVendor:
    return IntelVendor.create()


@pytest.mark.parametrize("padding", [b"", b"="])
def test_tdx(service: Service, vendor: IntelVendor, padding: bytes) -> None:
    report = parse_hcl_report(hcl(TDX))
    raw = vendor.quote(td_body(report_data=report.report_data))
    text = base64.urlsafe_b64encode(raw)
    service.answer = {"quote": (text if padding else text.rstrip(b"=")).decode()}
    device = AzureTee(Tpm(hcl(TDX)), service)
    assert device.kind is TeeKind.TDX
    quote = device.quote(DATA)
    assert parse_quote(quote.raw).body.report_data == report.report_data
    assert (quote.hcl_report, quote.endorsements) == (hcl(TDX), ())
    ((method, path, headers, body),) = service.asked
    assert (method, path) == ("POST", "/acc/tdquote")
    assert headers == {"Metadata": "true", "Content-Type": "application/json"}
    asked = json.loads(body)["report"]
    assert base64.urlsafe_b64decode(asked + "=" * (-len(asked) % 4)) == report.tee_report
    assert device.quote(DATA) == quote
    assert len(service.asked) == 1


def test_tdx_needs_the_quote(service: Service, vendor: IntelVendor) -> None:
    device = AzureTee(Tpm(hcl(TDX)), service)
    other = base64.urlsafe_b64encode(vendor.quote(td_body(report_data=DATA))).decode()
    for answer, match in (
        ({"quote": other}, "other report_data"),
        ({"quote": "%%%"}, "not base64url"),
        ({"quote": "é"}, "no ASCII text 'quote'"),
        ({"quote": "A"}, "not base64url"),
        ({"quote": ""}, "are no quote"),
        ({}, "no ASCII text 'quote'"),
        (b"[" * 100_000, "no JSON"),
        (b"\xff", "no JSON"),
    ):
        service.answer = answer
        with pytest.raises(AttesterError, match=match):
            device.quote(DATA)
    service.status = 429
    with pytest.raises(AttesterError, match="/acc/tdquote: status 429"):
        device.quote(DATA)


def test_without_an_hcl_report_it_is_no_such_machine(service: Service) -> None:
    with pytest.raises(NotAvailableError):
        AzureTee(Tpm(None), service)
    with pytest.raises(AttesterError, match="NV index 0x01400001: HCL report, magic"):
        AzureTee(Tpm(b"other"), service)
    device = AzureTee(Tpm(hcl(SNP)), service)
    with pytest.raises(AttesterError, match="64 bytes, not 3"):
        device.quote(b"abc")


@pytest.mark.evidence
@pytest.mark.parametrize(("name", "kind"), [("trustee-milan-v3", TeeKind.SNP), ("kinvolk-tdx", TeeKind.TDX)])
def test_real_reports(service: Service, evidence: Path, name: str, kind: TeeKind) -> None:
    raw = (evidence / "azure" / name / "hcl.bin").read_bytes()
    device = AzureTee(Tpm(raw), service)
    assert device.kind is kind
    if kind is TeeKind.SNP:
        quote = device.quote(DATA)
        assert quote.raw == (evidence / "azure" / name / "snp_report.bin").read_bytes()
        assert quote.hcl_report == raw


def test_the_tpm_of_version_2_quotes_with_the_hcls_key() -> None:
    hcl_keys, own = SoftTpm(seed=b"hcl"), SoftTpm(seed=b"own")
    tpm = AzureTpm(hcl_keys, own)
    tpm.provision()
    assert tpm.provisioned() == own.provisioned()
    assert tpm.ak_public() == hcl_keys.ak_public() != own.ak_public()
    assert tpm.quote(DATA, [0]).ak_public == hcl_keys.ak_public()
    assert (tpm.ak_certificate(), tpm.platform_ak(DATA), tpm.ek()) == (None, None, None)
    with pytest.raises(NotAvailableError):
        tpm.activate(b"", b"")
