"""The report or quote in whatever file it comes in."""

from __future__ import annotations

import base64
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.devkit._intel_certificates import DAY_ZERO
from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.intel import IntelVendor, enclave_report, td_body
from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.azure import HclReport, serialise_hcl
from cosmian_vm.evidence.snp import serialise_v1
from cosmian_vm.inspection.carried import quote_in
from cosmian_vm.wire import SavedEvidence

DATA = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"


@pytest.fixture(scope="module")
def amd() -> AmdVendor:
    return AmdVendor.create(keys=VendorKeys.load(DATA))


@pytest.fixture(scope="module")
def intel() -> IntelVendor:
    return IntelVendor.create()


def _hcl(report: bytes, kind: str) -> bytes:
    data = b"{}"
    return serialise_hcl(
        HclReport(
            version=2,
            report_size=0x4C0 + 20 + len(data),
            request_type=2,
            status=0,
            reserved=bytes(12),
            hardware_report=report,
            data_size=20 + len(data),
            data_version=1,
            report_type=kind,
            hash_type="sha256",
            var_data=data,
            trailing=bytes(100),
        )
    )


def _ra_tls(oid: str, *values: bytes) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "enclave")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(DAY_ZERO).not_valid_after(DAY_ZERO.replace(year=2030))
    for number, value in enumerate(values):
        last = int(oid.rpartition(".")[2]) + number
        identifier = x509.ObjectIdentifier(f"{oid.rpartition('.')[0]}.{last}")
        builder = builder.add_extension(x509.UnrecognizedExtension(identifier, value), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def test_reports_and_quotes(amd: AmdVendor, intel: IntelVendor) -> None:
    report = amd.sign_report()
    quotes = {
        "snp-report": (report, serialise_v1(report, amd.certificates)),
        "tdx-quote": (intel.quote(td_body()), intel.quote(td_body(), version=5)),
        "sgx-quote": (intel.quote(enclave_report()),),
    }
    for kind, raws in quotes.items():
        for raw in raws:
            for wrapped in (raw, raw.hex().encode(), base64.b64encode(raw), msgspec.json.encode(list(raw))):
                carried = quote_in(wrapped)
                assert (carried.kind, carried.quote) == (kind, raw)


def test_hcl_report(amd: AmdVendor) -> None:
    report = amd.sign_report()
    carried = quote_in(_hcl(report, "SNP"))
    assert (carried.kind, carried.quote) == ("hcl-report", report)
    with pytest.raises(EvidenceFormatError, match="give the TD quote"):
        quote_in(_hcl(bytes(1184), "TDX"))


def _bundle(quote: bytes | None, endorsements: list[bytes]) -> bytes:
    return msgspec.json.encode(
        SavedEvidence(
            api=2,
            agent_version="2",
            tee_kind=None,
            tee_quote=quote,
            endorsements=endorsements,
            tpm=None,
            boot_event_log=None,
            ima_log=None,
            ima_from=0,
            owners=[],
            cloud=None,
        )
    )


def test_bundle(amd: AmdVendor) -> None:
    report = amd.sign_report()
    carried = quote_in(_bundle(report, list(amd.certificates)))
    assert (carried.kind, carried.quote, carried.beside) == ("evidence-bundle", report, amd.certificates)
    with pytest.raises(EvidenceFormatError, match="no TEE report or quote"):
        quote_in(_bundle(None, []))
    with pytest.raises(EvidenceFormatError, match="bundle"):
        quote_in(b'{"tee_quote": 1, "endorsements": 2}')


def test_ra_tls_certificate(amd: AmdVendor, intel: IntelVendor) -> None:
    report, quote = amd.sign_report(), intel.quote(enclave_report())
    carried = quote_in(_ra_tls("1.2.840.113741.1337.6", quote))
    assert (carried.kind, carried.quote) == ("ra-tls-certificate", quote)
    with pytest.raises(EvidenceFormatError, match="2 reports or quotes"):
        quote_in(_ra_tls("1.2.840.113741.1337.6", quote, report))


def test_what_carries_none(amd: AmdVendor, intel: IntelVendor) -> None:
    others = [b"", b"garbage", amd.certificates[0], amd.crl(), intel.collateral(), amd.root_pem]
    for raw in others:
        with pytest.raises(EvidenceFormatError, match="there is no TEE report or quote in it"):
            quote_in(raw)
    with pytest.raises(EvidenceFormatError, match=r"crl"):
        quote_in(amd.crl())


@given(st.binary(max_size=2000))
def test_anything(raw: bytes) -> None:
    with suppress(EvidenceFormatError):
        quote_in(raw)


@pytest.mark.evidence
def test_real_files(evidence: Path) -> None:
    report = (evidence / "azure" / "trustee-milan-v3" / "snp_report.bin").read_bytes()
    assert quote_in((evidence / "azure" / "trustee-milan-v3" / "hcl.bin").read_bytes()).quote == report
    with pytest.raises(EvidenceFormatError, match="give the TD quote"):
        quote_in((evidence / "azure" / "kinvolk-tdx" / "hcl.bin").read_bytes())
