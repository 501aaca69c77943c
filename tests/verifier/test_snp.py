"""SNP evidence, genuine or not: signature, chain, revocation. Each step can fail on its own, under its id."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cosmian_vm.devkit._amd_certificates import authority
from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.endorsements import amd
from cosmian_vm.endorsements.amd import AmdEndorsements, collect
from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.snp import Product, SnpEvidence, parse_evidence, parse_report
from cosmian_vm.verifier import amd_chain
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.result import Status
from cosmian_vm.verifier.snp import appraise_snp

from .snp_case import IDS, KEYS, NOW, Case, case_of, snapshot_of


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


@pytest.mark.parametrize("version", [2, 3, 5])
@pytest.mark.parametrize("product", list(Product))
@pytest.mark.parametrize("vlek", [False, True])
def test_genuine(keys: VendorKeys, product: Product, vlek: bool, version: int) -> None:
    vendor = AmdVendor.create(product, vlek=vlek, keys=keys, now=NOW - timedelta(days=10))
    assert case_of(vendor, version=version).bad() == {}


def test_certificates_beside_the_report_will_do(case: Case) -> None:
    evidence = SnpEvidence(report=case.report, certificates=case.vendor.certificates, crls=(case.vendor.crl(),))
    case.endorsements = AmdEndorsements()
    assert case.bad(evidence) == {}
    assert set(case.bad()) == set(IDS[:4])


def test_garbage_beside_the_report_is_named_not_fatal(case: Case) -> None:
    evidence = SnpEvidence(report=case.report, certificates=(b"junk",), crls=(b"\x30\x00",))
    assert case.bad(evidence) == {}
    case.endorsements = AmdEndorsements()
    signature = case.appraise(evidence)[0]
    assert any("certificate 1" in detail for detail in signature.details)


# tee.signature


@pytest.mark.parametrize("position", [0x10, 0x50, 0x90, 0x140, 0x1A0, 0x1E8, 0x2A0, 0x2CF, 0x2E8, 0x317])
def test_flipped_bits(case: Case, position: int) -> None:
    raw = bytearray(case.report.raw)
    raw[position] ^= 1
    assert "tee.signature" in replace(case, report=parse_report(bytes(raw))).bad()


def test_the_bytes_as_they_came_are_verified_not_the_fields(case: Case) -> None:
    assert set(replace(case, report=replace(case.report, report_data=bytes(64))).bad()) == {"tee.report_data"}
    assert "tee.signature" in replace(case, report=replace(case.report, raw=bytes(1184))).bad()


@pytest.mark.parametrize(("r", "s"), [(0, 1), (1, 0), (0, 0), (2**575, 1), (1, 2**575)])
def test_degenerate_signatures(case: Case, r: int, s: int) -> None:
    forged = replace(case.report, signature_r=r.to_bytes(72, "little"), signature_s=s.to_bytes(72, "little"))
    assert set(replace(case, report=forged).bad()) == {"tee.signature"}


def test_unsigned_report(case: Case) -> None:
    masked = replace(case.report, flags=7 << 2 | 2, signature_r=bytes(72), signature_s=bytes(72))
    bad = replace(case, report=masked).bad()
    assert "not signed" in bad["tee.signature"]


def test_unknown_algorithm_and_reserved_signing_key(case: Case) -> None:
    assert "algorithm is 2" in case.sign(signature_algo=2).bad()["tee.signature"]
    bad = case.sign(flags=3 << 2).bad()
    assert "not defined" in bad["tee.signature"]
    assert "unknown" in bad["tee.chain"]


def test_no_certificate(case: Case) -> None:
    case.endorsements = AmdEndorsements(crls=case.endorsements.crls)
    bad = case.bad()
    assert set(bad) == set(IDS[:4])
    assert "VCEK" in bad["tee.signature"]


def test_the_right_one_of_many_certificates_is_found(case: Case) -> None:
    others = [case.vendor.new_chip() for _ in range(3)]
    twins = [case.vendor.new_chip(chip_id=case.vendor.chip_id) for _ in range(3)]
    chips = tuple(v.chip for v in (*others, *twins, case.vendor))
    case.endorsements = AmdEndorsements((*chips, *case.endorsements.certificates[1:]), case.endorsements.crls)
    assert case.bad() == {}


def test_certificates_that_cannot_be_read_are_named(case: Case) -> None:
    """Names in them that cryptography has an exception of its own for, in whatever role they come."""
    key = ec.generate_private_key(ec.SECP384R1())
    for subject, issuer in (
        (case.vendor.chip.subject, case.vendor.ask.subject),
        (case.vendor.ask.subject, case.vendor.ark.subject),
        (case.vendor.ark.subject, case.vendor.ark.subject),
    ):
        odd = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(1)
            .not_valid_before(NOW)
            .not_valid_after(NOW)
            .add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.17"), b"\x30\x02\xa3\x00"), False)
            .sign(key, hashes.SHA384())
        )
        der = odd.public_bytes(Encoding.DER)
        evidence = SnpEvidence(report=case.report, certificates=(der, *case.vendor.certificates))
        assert case.bad(evidence) == {}
        assert amd_chain.is_signed_by(case.vendor.chip, odd) is False
        alone = replace(case, endorsements=AmdEndorsements((odd,)))
        assert "tee.chain" in alone.bad()


# tee.chain


def test_self_made_chain(case: Case, other_keys: VendorKeys) -> None:
    forger = AmdVendor.create(keys=other_keys, now=NOW - timedelta(days=10))
    forged = replace(case_of(forger), roots=case.roots)
    bad = forged.bad()
    assert set(bad) == {"tee.chain", "tee.revocation"}
    assert "forged" in bad["tee.chain"]


def test_simulated_chain_against_amds_roots(case: Case) -> None:
    bad = replace(case, roots=amd.pinned_roots()).bad()
    assert set(bad) == {"tee.chain", "tee.revocation"}
    assert "--trust-root" in bad["tee.chain"]


def test_chip_certificate_of_the_attackers_under_the_true_intermediate(case: Case, other_keys: VendorKeys) -> None:
    forger = AmdVendor.create(keys=other_keys, now=NOW - timedelta(days=10))
    forged = replace(case_of(forger), roots=case.roots)
    forged.endorsements = AmdEndorsements((forger.chip, *case.endorsements.certificates[1:]), case.endorsements.crls)
    assert "not signed by" in forged.bad()["tee.chain"]


def test_intermediate_of_the_attackers_under_the_true_root(case: Case, other_keys: VendorKeys) -> None:
    forger = AmdVendor.create(keys=other_keys, now=NOW - timedelta(days=10))
    forged = replace(case_of(forger), roots=case.roots)
    forged.endorsements = AmdEndorsements((forger.chip, forger.ask, case.vendor.ark), case.endorsements.crls)
    assert "tee.chain" in forged.bad()


def test_forged_intermediate_beside_the_true_one(case: Case, other_keys: VendorKeys) -> None:
    """Another certificate of the same name does not hide the true one."""
    forger = AmdVendor.create(keys=other_keys, now=NOW)
    certificates = (forger.ask, *case.endorsements.certificates)
    case.endorsements = AmdEndorsements(certificates, case.endorsements.crls)
    assert case.bad() == {}


def test_the_root_itself_is_no_intermediate(case: Case, keys: VendorKeys) -> None:
    """No intermediate: a chip certificate that the root signed is not one of AMD's."""
    direct = AmdVendor.create(keys=VendorKeys(keys.ark, keys.ark), now=NOW - timedelta(days=10))
    bad = replace(case_of(direct), endorsements=AmdEndorsements((direct.chip, direct.ark))).bad()
    assert "missing" in bad["tee.chain"]


def test_vlek_certificate_for_a_vcek_report(keys: VendorKeys) -> None:
    vlek = AmdVendor.create(vlek=True, keys=keys, now=NOW - timedelta(days=10))
    bad = case_of(vlek, flags=0).bad()
    assert set(bad) == {"tee.chain"}
    assert "VLEK" in bad["tee.chain"]


def test_vlek_under_the_intermediate_of_vceks(keys: VendorKeys, vendor: AmdVendor) -> None:
    vlek = replace(vendor, vlek=True).new_chip()
    case = Case(vlek, vlek.report(), vlek.endorsements(), (vlek.ark,), None).sign()
    assert "which no AMD intermediate is called" in case.bad()["tee.chain"]


@pytest.mark.parametrize(
    ("moment", "message"),
    [
        (NOW - timedelta(days=30), "valid only from"),
        (NOW + timedelta(days=8 * 365), "'SEV-VCEK' expired"),
        (NOW + timedelta(days=30 * 365), "expired"),
    ],
)
def test_dates(case: Case, moment: datetime, message: str) -> None:
    assert message in replace(case, now=moment).bad()["tee.chain"]


def test_another_chip_of_the_same_vendor(case: Case) -> None:
    other = case.vendor.new_chip()
    bad = replace(case, endorsements=other.endorsements()).bad()
    assert set(bad) == {"tee.signature", "tee.chain"}
    assert set(case_of(other, chip_id=case.vendor.chip_id).bad()) == {"tee.chain"}


def test_masked_chip_id(case: Case) -> None:
    masked = case.sign(chip_id=bytes(64))
    assert masked.bad() == {}
    assert "masks" in masked.appraise()[1].details[0]


def test_turin_chip_id_is_its_first_eight_bytes(keys: VendorKeys) -> None:
    turin = AmdVendor.create(Product.TURIN, keys=keys, now=NOW - timedelta(days=10))
    assert case_of(turin, chip_id=turin.chip_id[:8] + b"\xff" * 56).bad() == {}
    assert set(case_of(turin, chip_id=b"\xff" * 64).bad()) == {"tee.chain"}


@pytest.mark.parametrize(("family", "model"), [(0x19, 0x11), (0x1A, 0x02), (0x17, 0x01)])
def test_processor_of_another_product(case: Case, family: int, model: int) -> None:
    bad = case.sign(cpuid_fam_id=family, cpuid_mod_id=model).bad()
    assert set(bad) == {"tee.chain"}
    assert "another processor" in bad["tee.chain"]


def test_chip_certificate_of_another_product_under_the_chain(keys: VendorKeys, vendor: AmdVendor) -> None:
    genoa = replace(vendor, product=Product.GENOA).new_chip()
    fields = {"cpuid_mod_id": 0x01}
    case = Case(genoa, genoa.report(), genoa.endorsements(), (genoa.ark,), None).sign(**fields)
    assert "the chip certificate is for 'Genoa'" in case.bad()["tee.chain"]


@pytest.mark.parametrize("curious", ["ARK-Milan2", "SEV-Milan"])
def test_root_of_no_known_product(vendor: AmdVendor, curious: str) -> None:
    """Only names of AMD's form tell a product."""
    assert amd_chain._product_of(curious, "ARK-") is None
    assert amd_chain._product_of("ARK-Genoa", "ARK-") is Product.GENOA


@pytest.mark.parametrize("flaw", ["no CA", "no certSign", "RSA-2048 root"])
def test_intermediates_that_may_not_sign(case: Case, keys: VendorKeys, flaw: str) -> None:
    """Signatures alone do not make an authority."""
    small = rsa.generate_private_key(65537, 2048)
    root_key = small if flaw == "RSA-2048 root" else keys.ark
    start = NOW - timedelta(days=10)
    root = authority(
        case.vendor.ark.subject,
        issuer=case.vendor.ark.subject,
        key=root_key,
        issuer_key=root_key,
        serial=1,
        start=start,
        path_length=None,
    )
    usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
    ask = (
        x509.CertificateBuilder()
        .subject_name(case.vendor.ask.subject)
        .issuer_name(root.subject)
        .public_key(keys.ask.public_key())
        .serial_number(2)
        .not_valid_before(start)
        .not_valid_after(NOW + timedelta(days=100))
        .add_extension(x509.BasicConstraints(ca=flaw != "no CA", path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=flaw != "no certSign",
                crl_sign=False,
                encipher_only=False,
                decipher_only=False,
                **usage,
            ),
            critical=True,
        )
        .sign(root_key, hashes.SHA384(), rsa_padding=padding.PSS(padding.MGF1(hashes.SHA384()), 48))
    )
    flawed = replace(case, roots=(root,), endorsements=AmdEndorsements((case.vendor.chip, ask)))
    assert "tee.chain" in flawed.bad()


def test_the_right_key_under_another_name_signs_nothing(keys: VendorKeys, vendor: AmdVendor) -> None:
    genoa = AmdVendor.create(Product.GENOA, keys=keys, now=NOW)
    assert amd_chain.is_signed_by(vendor.chip, vendor.ask)
    assert not amd_chain.is_signed_by(vendor.chip, genoa.ask)


def test_a_root_that_does_not_sign_itself_is_none(keys: VendorKeys, other_keys: VendorKeys, vendor: AmdVendor) -> None:
    name = vendor.ark.subject
    broken = authority(
        name, issuer=name, key=keys.ark, issuer_key=other_keys.ark, serial=9, start=NOW, path_length=None
    )
    assert amd_chain.is_authority_of(vendor.ask, vendor.ark)
    assert not amd_chain.is_authority_of(vendor.ask, broken)


# Anything


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 1183), difference=st.integers(1, 255))
def test_any_changed_byte_is_noticed(case: Case, position: int, difference: int) -> None:
    raw = bytearray(case.report.raw)
    raw[position] ^= difference
    try:
        evidence = parse_evidence(bytes(raw))
    except EvidenceFormatError:
        return
    assert "tee.signature" in case.bad(evidence)


@pytest.mark.evidence
@pytest.mark.parametrize(
    ("folder", "name", "moment"),
    [
        ("snp/trustee-genoa-v3", "vcek.der", datetime(2025, 6, 1, tzinfo=UTC)),
        ("snp/trustee-milan-v2", "vcek.der", datetime(2023, 2, 1, tzinfo=UTC)),
        ("snp/dstack-milan-v3", "vcek.pem", datetime(2026, 6, 18, 2, tzinfo=UTC)),
    ],
)
def test_real_reports_with_amds_roots(evidence: Path, folder: str, name: str, moment: datetime) -> None:
    report = parse_report((evidence / folder / "report.bin").read_bytes())
    checks = appraise_snp(
        SnpEvidence(report=report),
        collect([(evidence / folder / name).read_bytes()]),
        report_data=report.report_data,
        reference=snapshot_of(report),
        policy=Policy(),
        roots=amd.pinned_roots(),
        now=moment,
    )
    assert {c.id: c.status for c in checks if c.status is not Status.OK} == {"tee.revocation": Status.SKIP}
