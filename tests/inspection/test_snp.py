"""``inspect`` on SNP reports that are not in the folder of real evidence: versions, layouts, damage."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.evidence.snp import Product, serialise_v1
from cosmian_vm.inspection import identify
from cosmian_vm.inspection.model import Inspection, Roots

KEYS = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"
NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def keys() -> VendorKeys:
    return VendorKeys.load(KEYS)


@pytest.fixture(scope="module")
def vendor(keys: VendorKeys) -> AmdVendor:
    return AmdVendor.create(keys=keys, now=NOW - timedelta(days=2))


def inspected(raw: bytes, vendor: AmdVendor, *given: bytes, trusted: bool = True) -> Inspection:
    material = identify.material_of((f"file {n}", file) for n, file in enumerate(given))
    roots = Roots((vendor.certificates[2],) if trusted else ())
    found = identify.inspect(raw, material, verify=(NOW, roots))
    assert json.loads(json.dumps(found.facts)) == found.facts
    return found


def failed(found: Inspection) -> set[str]:
    assert found.checks is not None
    return {c.id for c in found.checks if c.status == "fail"}


@pytest.mark.parametrize("version", [2, 3, 4, 5])
@pytest.mark.parametrize("product", list(Product))
@pytest.mark.parametrize("vlek", [False, True])
def test_every_version_and_product(keys: VendorKeys, product: Product, version: int, vlek: bool) -> None:
    vendor = AmdVendor.create(product, vlek=vlek, keys=keys, now=NOW - timedelta(days=2))
    found = inspected(vendor.sign_report(version=version), vendor, *vendor.certificates, vendor.crl())
    assert (found.kind, found.problem) == ("snp-report", "")
    assert found.authentic(policy=True)
    assert found.facts["chain"] == product.lower()
    report = found.facts["report"]
    assert isinstance(report, dict)
    assert ("cpuid" in report) == (version >= 3)
    assert ("launch_mit_vector" in report) == (version >= 5)
    tcb = report["reported_tcb"]
    assert isinstance(tcb, dict)
    assert ("fmc" in tcb) == (product is Product.TURIN)
    assert report["signing_key"] == ("VLEK" if vlek else "VCEK")


def test_certificates_behind_the_report_are_enough(vendor: AmdVendor) -> None:
    raw = serialise_v1(vendor.sign_report(), vendor.certificates)
    found = inspected(raw, vendor)
    assert found.authentic()
    assert found.facts["layout"] == "typed"
    assert len(found.facts["certificates"]) == 3  # type: ignore[arg-type] # JSON
    assert not inspected(raw, vendor, trusted=False).authentic()


def test_report_alone_proves_nothing(vendor: AmdVendor) -> None:
    found = inspected(vendor.sign_report(), vendor)
    assert failed(found) == set()
    assert not found.authentic()


def test_bit_flips(vendor: AmdVendor) -> None:
    raw = vendor.sign_report()
    for position in range(0, len(raw), 9):
        changed = bytearray(raw)
        changed[position] ^= 0x10
        assert not inspected(bytes(changed), vendor, *vendor.certificates).authentic(), position


def test_truncations(vendor: AmdVendor) -> None:
    raw = vendor.sign_report()
    for size in range(0, len(raw), 13):
        found = inspected(raw[:size], vendor, *vendor.certificates)
        assert not found.authentic()
        assert found.problem
    assert inspected(raw[:-1], vendor).kind == "snp-report"


def test_debug_is_policy(vendor: AmdVendor) -> None:
    found = inspected(vendor.sign_report(policy=0x30000 | 1 << 19), vendor, *vendor.certificates)
    assert failed(found) == {"tee.debug"}
    assert found.authentic()
    assert not found.authentic(policy=True)


def test_revocation_and_other_chip(vendor: AmdVendor) -> None:
    revoked = vendor.crl([vendor.chip])
    assert failed(inspected(vendor.sign_report(), vendor, *vendor.certificates, revoked)) == {"tee.revocation"}
    other = vendor.new_chip()
    assert failed(inspected(vendor.sign_report(), vendor, *other.certificates)) == {"tee.signature", "chip_id"}


def test_report_data_beside_it(vendor: AmdVendor) -> None:
    raw = vendor.sign_report(report_data=b"\xf1" * 64)
    assert inspected(raw, vendor, *vendor.certificates, b"\xf1" * 64).authentic()
    assert failed(inspected(raw, vendor, *vendor.certificates, b"\xf2" * 64)) == {"tee.report_data"}


def test_bytes_behind_a_report_are_counted(vendor: AmdVendor) -> None:
    found = inspected(vendor.sign_report() + bytes(16), vendor, *vendor.certificates)
    assert found.facts["trailing"] == 16
    assert found.authentic()
    broken = inspected(vendor.sign_report() + (1).to_bytes(8, "little") + b"\x03", vendor, *vendor.certificates)
    assert "certificate table" in broken.problem
    assert not broken.authentic()


def test_words_before_the_certificates_do_not_hide_them(vendor: AmdVendor) -> None:
    text = b"".join(b"# one of three\n" + c.public_bytes(Encoding.PEM) for c in (vendor.chip, vendor.ask, vendor.ark))
    assert inspected(vendor.sign_report() + text, vendor).authentic()
    assert not inspected(vendor.sign_report() + b"\0words" + text, vendor, trusted=False).authentic()
