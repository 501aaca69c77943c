"""The simulated AMD makes what the real one makes, and keeps it across restarts."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa

from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.endorsements import amd
from cosmian_vm.evidence.snp import Product, SigningKey, decode_tcb, parse_report

KEYS = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def keys() -> VendorKeys:
    return VendorKeys.load(KEYS)


@pytest.mark.parametrize("product", list(Product))
@pytest.mark.parametrize("vlek", [False, True])
def test_chain_has_the_real_form(keys: VendorKeys, product: Product, vlek: bool) -> None:
    vendor = AmdVendor.create(product, vlek=vlek, keys=keys, now=NOW)
    names = [amd.common_name(c.subject) for c in (vendor.ark, vendor.ask, vendor.chip)]
    infix = "VLEK-" if vlek else ""
    assert names == [f"ARK-{product}", f"SEV-{infix}{product}", "SEV-VLEK" if vlek else "SEV-VCEK"]
    real_root = next(r for r in amd.pinned_roots() if amd.common_name(r.subject) == names[0])
    real_ask = next(c for c in amd.pinned_intermediates() if amd.common_name(c.subject) == names[1])
    for ours, real in ((vendor.ark, real_root), (vendor.ask, real_ask)):
        assert ours.signature_algorithm_oid == real.signature_algorithm_oid
        assert isinstance(ours.signature_hash_algorithm, hashes.SHA384)
        key = ours.public_key()
        assert isinstance(key, rsa.RSAPublicKey)
        assert key.key_size == 4096
        # Turin's and Genoa's differ by a few: the form counts.
        assert ours.serial_number >> 16 == real.serial_number >> 16
        assert ours.subject != real.subject
    vendor.ark.verify_directly_issued_by(vendor.ark)
    vendor.ask.verify_directly_issued_by(vendor.ark)
    vendor.chip.verify_directly_issued_by(vendor.ask)


@pytest.mark.evidence
def test_chip_certificate_has_the_extensions_of_a_real_one(keys: VendorKeys, evidence: Path) -> None:
    for product, file in (
        (Product.GENOA, "snp/trustee-genoa-v3/vcek.der"),
        (Product.TURIN, "snp/turin-vcek-only/vcek.der"),
    ):
        real = amd.parse_chip_certificate(amd.load_certificate((evidence / file).read_bytes()))
        ours = amd.parse_chip_certificate(AmdVendor.create(product, keys=keys, now=NOW).chip)
        assert set(ours.svns) == set(real.svns)
        assert (ours.product_name, ours.struct_version, ours.serial) == (
            real.product_name,
            real.struct_version,
            real.serial,
        )
        assert ours.hwid is not None
        assert real.hwid is not None
        assert len(ours.hwid) == len(real.hwid)


@pytest.mark.parametrize("product", list(Product))
@pytest.mark.parametrize("version", [2, 3, 5])
def test_reports(keys: VendorKeys, product: Product, version: int) -> None:
    vendor = AmdVendor.create(product, keys=keys, now=NOW)
    report = parse_report(vendor.sign_report(version=version, report_data=b"\x07" * 64, vmpl=1))
    assert (report.version, report.vmpl, report.report_data) == (version, 1, b"\x07" * 64)
    assert report.product is (product if version >= 3 else None)
    assert report.signing_key is SigningKey.VCEK
    assert decode_tcb(report.reported_tcb, product.tcb_layout).components == vendor.tcb
    assert report.chip_id == vendor.chip_id


def test_two_chips_of_one_vendor(keys: VendorKeys) -> None:
    vendor = AmdVendor.create(keys=keys, now=NOW)
    other = vendor.new_chip()
    assert other.ark == vendor.ark
    assert other.chip_id != vendor.chip_id
    assert other.chip.public_key() != vendor.chip.public_key()
    older = vendor.new_chip(chip_id=vendor.chip_id, tcb={**vendor.tcb, "snp": 3})
    assert older.chip_id == vendor.chip_id
    assert amd.parse_chip_certificate(older.chip).svns["snp"] == 3


def test_crl(keys: VendorKeys) -> None:
    vendor = AmdVendor.create(keys=keys, now=NOW)
    key = vendor.ark.public_key()
    assert isinstance(key, rsa.RSAPublicKey)
    for revoked, serials in (((), set()), ((vendor.chip,), {0}), ((vendor.chip, vendor.ask), {0, 0x10001})):
        der = vendor.crl(revoked)
        assert amd.load_crl(der).is_signature_valid(key)
        assert amd.read_crl(der).serials == serials
    forged = amd.load_crl(vendor.crl((vendor.chip,), signer=VendorKeys.load(KEYS / "other").ark))
    assert not forged.is_signature_valid(key)
    ended = amd.load_crl(vendor.crl(next_update=NOW + timedelta(days=1)))
    assert ended.next_update_utc == NOW + timedelta(days=1)


@pytest.mark.parametrize("vlek", [False, True])
def test_saved_and_loaded(keys: VendorKeys, tmp_path: Path, vlek: bool) -> None:
    vendor = AmdVendor.create(keys=keys, vlek=vlek, now=NOW)
    vendor.save(tmp_path / "vendor")
    loaded = AmdVendor.load(tmp_path / "vendor")
    assert loaded.certificates == vendor.certificates
    assert (loaded.product, loaded.vlek, loaded.chip_id, loaded.tcb) == (
        vendor.product,
        vendor.vlek,
        vendor.chip_id,
        vendor.tcb,
    )
    assert loaded.chip_key.public_key() == vendor.chip.public_key()
    loaded.sign_report()
    for name in ("ark_key.pem", "ask_key.pem", "chip_key.pem"):
        assert stat.S_IMODE((tmp_path / "vendor" / name).stat().st_mode) == 0o600
