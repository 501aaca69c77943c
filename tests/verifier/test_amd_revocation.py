"""CRLs clear and revoke only what they may."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.endorsements import amd
from cosmian_vm.endorsements.amd import AmdEndorsements, collect
from cosmian_vm.evidence.snp import Product
from cosmian_vm.verifier.result import Status

from .snp_case import KEYS, NOW, Case, case_of


@pytest.fixture(scope="module")
def keys() -> VendorKeys:
    return VendorKeys.load(KEYS)


@pytest.fixture(scope="module")
def other_keys() -> VendorKeys:
    return VendorKeys.load(KEYS / "other")


@pytest.fixture(scope="module")
def vendor(keys: VendorKeys) -> AmdVendor:
    return AmdVendor.create(keys=keys, now=NOW - timedelta(days=10))


@pytest.fixture
def case(vendor: AmdVendor) -> Case:
    return case_of(vendor)


def loaded(ders: Iterable[bytes]) -> AmdEndorsements:
    return collect(ders, pinned=False)


# tee.revocation


def test_no_crl_is_no_answer(case: Case) -> None:
    case.endorsements = AmdEndorsements(case.endorsements.certificates)
    [revocation] = [c for c in case.appraise() if c.id == "tee.revocation"]
    assert revocation.status is Status.SKIP


def test_a_missing_crl_of_amds_says_where_to_get_it() -> None:
    from cosmian_vm.evidence.snp import SigningKey

    assert amd.crl_url(Product.MILAN, SigningKey.VCEK) == "https://kdsintf.amd.com/vcek/v1/Milan/crl"
    assert amd.crl_url(Product.TURIN, SigningKey.VLEK) == "https://kdsintf.amd.com/vlek/v1/Turin/crl"


@pytest.mark.parametrize("which", ["chip", "ask", "both"])
def test_revoked(case: Case, which: str) -> None:
    vendor = case.vendor
    revoked = {"chip": [vendor.chip], "ask": [vendor.ask], "both": [vendor.chip, vendor.ask]}[which]
    bad = replace(case, endorsements=vendor.endorsements(revoked)).bad()
    assert set(bad) == {"tee.revocation"}
    assert "has revoked" in bad["tee.revocation"]


def with_crls(case: Case, *crls: bytes) -> Case:
    certificates = [c.public_bytes(Encoding.DER) for c in case.endorsements.certificates]
    return replace(case, endorsements=loaded([*certificates, *crls]))


def test_forged_crl(case: Case, other_keys: VendorKeys) -> None:
    forged = case.vendor.crl(signer=other_keys.ark)
    bad = with_crls(case, forged).bad()
    assert "not signed by its key" in bad["tee.revocation"]
    # It neither clears nor revokes:
    assert with_crls(case, forged, case.vendor.crl()).bad() == {}
    condemning = case.vendor.crl([case.vendor.chip], signer=other_keys.ark)
    assert with_crls(case, condemning, case.vendor.crl()).bad() == {}


def test_outdated_crl_does_not_clear_but_still_revokes(case: Case) -> None:
    ended = case.vendor.crl(next_update=NOW - timedelta(days=1))
    assert "ended on 2026-05-31" in with_crls(case, ended).bad()["tee.revocation"]
    future = case.vendor.crl(last_update=NOW + timedelta(days=1))
    assert "valid only from" in with_crls(case, future).bad()["tee.revocation"]
    revoking = case.vendor.crl([case.vendor.ask], next_update=NOW - timedelta(days=1))
    assert "has revoked" in with_crls(case, case.vendor.crl(), revoking).bad()["tee.revocation"]


def test_crl_of_another_issuer_is_passed_over(case: Case, keys: VendorKeys) -> None:
    genoa = AmdVendor.create(Product.GENOA, keys=keys, now=NOW)
    bad = with_crls(case, genoa.crl()).bad()
    assert "No revocation list" in bad["tee.revocation"]


def crl_by(
    issuer: x509.Certificate, key: rsa.RSAPrivateKey, serials: tuple[int, ...] = (), *, partial: bool = False
) -> bytes:
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.subject)
        .last_update(NOW - timedelta(days=1))
        .next_update(NOW + timedelta(days=1))
    )
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(NOW - timedelta(days=1))
        builder = builder.add_revoked_certificate(entry.build())
    if partial:
        builder = builder.add_extension(x509.DeltaCRLIndicator(1), critical=True)
    padding_ = padding.PSS(padding.MGF1(hashes.SHA384()), 48)
    return builder.sign(key, hashes.SHA384(), rsa_padding=padding_).public_bytes(Encoding.DER)


def test_crl_of_the_intermediate_clears_nothing(case: Case, keys: VendorKeys) -> None:
    """It says nothing about the intermediate itself."""
    assert "No revocation list" in with_crls(case, crl_by(case.vendor.ask, keys.ask)).bad()["tee.revocation"]


def test_crl_of_the_intermediate_does_not_revoke_it(case: Case, keys: VendorKeys) -> None:
    """Its numbers are those of chip certificates; the intermediate's own number is the root's to revoke."""
    number = case.vendor.ask.serial_number
    assert with_crls(case, case.vendor.crl(), crl_by(case.vendor.ask, keys.ask, (number,))).bad() == {}


def test_partial_crl_clears_nothing_but_revokes(case: Case, keys: VendorKeys) -> None:
    ark = case.vendor.ark
    assert "a part of" in with_crls(case, crl_by(ark, keys.ark, partial=True)).bad()["tee.revocation"]
    revoking = crl_by(ark, keys.ark, (case.vendor.ask.serial_number,), partial=True)
    assert "has revoked" in with_crls(case, case.vendor.crl(), revoking).bad()["tee.revocation"]
