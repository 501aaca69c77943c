"""``inspect`` on certificates that are not in the folder of real evidence."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.certificates import self_signed
from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.endorsements.amd import pinned_intermediates, pinned_roots
from cosmian_vm.inspection import identify
from cosmian_vm.inspection.model import Inspection, Material, Roots
from cosmian_vm.verifier.result import Status

KEYS = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"
NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def vendor() -> AmdVendor:
    return AmdVendor.create(keys=VendorKeys.load(KEYS), now=NOW - timedelta(days=2))


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(c.public_bytes(Encoding.PEM) for c in certificates)


def inspected(
    raw: bytes, *, given: tuple[bytes, ...] = (), roots: tuple[bytes, ...] = (), at: datetime = NOW
) -> Inspection:
    material = identify.material_of((f"file {n}", file) for n, file in enumerate(given))
    return identify.inspect(raw, material, verify=(at, Roots(roots)))


def ders(vendor: AmdVendor) -> tuple[bytes, bytes, bytes]:
    chip, ask, ark = vendor.certificates
    return chip, ask, ark


def test_a_chip_certificate_needs_its_root_named(vendor: AmdVendor) -> None:
    chip, ask, ark = ders(vendor)
    assert inspected(chip, given=(ask, ark), roots=(ark,)).authentic()
    assert not inspected(chip, given=(ask, ark)).authentic()
    assert not inspected(chip, roots=(ark,)).authentic()


def test_a_root_of_the_users_own_is_called_that(vendor: AmdVendor) -> None:
    chip, ask, ark = ders(vendor)
    checks = inspected(chip, given=(ask,), roots=(ark,)).checks
    assert checks
    assert "not AMD's" in checks[0].line


def test_chip_facts(vendor: AmdVendor) -> None:
    facts = inspected(ders(vendor)[0]).facts
    assert facts["serial"] == "0x0"
    assert facts["hwid"] == vendor.chip_id.hex()
    assert facts["ucode"] == vendor.tcb["ucode"]


def test_revoked(vendor: AmdVendor) -> None:
    chip, ask, ark = ders(vendor)
    found = inspected(chip, given=(ask, vendor.crl([vendor.ask])), roots=(ark,))
    assert not found.authentic()
    assert found.checks
    assert {c.id for c in found.checks if c.status is Status.FAIL} == {"tee.revocation"}


def test_a_bundle_is_judged_one_by_one(vendor: AmdVendor) -> None:
    bundle = pem(vendor.chip, vendor.ask, vendor.ark)
    found = inspected(bundle, roots=(ders(vendor)[2],))
    assert found.authentic()
    certificates = found.facts["certificates"]
    assert isinstance(certificates, list)
    assert len(certificates) == 3
    assert not inspected(bundle).authentic()


def test_one_forged_certificate_spoils_a_bundle(vendor: AmdVendor) -> None:
    forger = AmdVendor.create(keys=VendorKeys.load(KEYS / "other"), now=NOW - timedelta(days=2))
    root = ders(vendor)[2]
    assert not inspected(pem(vendor.ask, forger.ask), roots=(root,)).authentic()
    assert not inspected(pem(vendor.chip, vendor.ask, forger.chip), roots=(root,)).authentic()


def test_a_bundle_out_of_date(vendor: AmdVendor) -> None:
    roots = (ders(vendor)[2],)
    long_after = NOW + timedelta(days=10 * 365)  # the VCEK has expired, the CAs have not
    assert not inspected(pem(vendor.chip, vendor.ask), roots=roots, at=long_after).authentic()
    assert inspected(pem(vendor.ask), roots=roots, at=long_after).authentic()
    never = NOW - timedelta(days=400)
    assert not inspected(pem(vendor.ask, vendor.ark), roots=roots, at=never).authentic()


def test_amds_own(vendor: AmdVendor) -> None:
    for certificate in (*pinned_roots(), *pinned_intermediates()):
        assert inspected(certificate.public_bytes(Encoding.DER)).authentic()


def test_a_self_signed_certificate_is_vouched_for_by_nobody() -> None:
    made = self_signed("agent", ["127.0.0.1"], now=NOW)
    found = inspected(made.certificate_pem)
    assert found.kind == "certificate"
    assert not found.authentic()
    assert found.checks
    assert "itself alone" in found.checks[0].line
    der = x509.load_pem_x509_certificate(made.certificate_pem).public_bytes(Encoding.DER)
    assert inspected(made.certificate_pem, roots=(der,)).authentic()


@pytest.mark.parametrize("cut", [30, 100, 400])
def test_damaged_pem(vendor: AmdVendor, cut: int) -> None:
    found = inspected(pem(vendor.chip)[:-cut])
    assert found.kind == "certificate"
    assert found.problem
    assert not found.authentic()


def test_every_truncation_is_handled(vendor: AmdVendor) -> None:
    der = ders(vendor)[0]
    for size in range(0, len(der), 7):
        assert not inspected(der[:size]).authentic()


def test_mutations_are_never_authentic(vendor: AmdVendor) -> None:
    chip, ask, ark = ders(vendor)
    for position in range(0, len(chip), 5):
        changed = bytearray(chip)
        changed[position] ^= 0x55
        assert not inspected(bytes(changed), given=(ask,), roots=(ark,)).authentic(), position


def test_nothing_given_nothing_raised(vendor: AmdVendor) -> None:
    for kind in identify.known_kinds():
        if kind.name == "certificate":
            assert kind.facts(ders(vendor)[0], Material())
            assert kind.verify(ders(vendor)[0], Material(), NOW, Roots((b"junk",)))
