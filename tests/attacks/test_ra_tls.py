"""A key of the attacker's own in an RA-TLS certificate, with evidence that a machine of somebody else's made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cosmian_vm.devkit.amd import AmdVendor
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.endorsements.amd import collect
from cosmian_vm.evidence.snp import parse_evidence
from cosmian_vm.inspection.identify import material_of
from cosmian_vm.inspection.model import Roots
from cosmian_vm.inspection.ra_tls import KINDS
from cosmian_vm.ra_tls import embedded, make_certificate
from cosmian_vm.verifier.ra_tls import Pins, Vouchers, appraise_certificate
from cosmian_vm.verifier.result import Status, Verdict

from .conftest import NOW

KEY = ec.derive_private_key(0xBAD, ec.SECP256R1())


def _point() -> bytes:
    return KEY.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _spki() -> bytes:
    return KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _relayed(machine: Machine, named: bytes, api: int) -> x509.Certificate:
    """The agent answers any client's nonce: here the nonce is the hash of the attacker's key."""
    told = machine.evidence(sha256(named).digest(), api=api)
    assert told.tee is not None
    pem = make_certificate(KEY, told.tee, subject="CN=vm", sans=("vm",), days=30, now=NOW)
    return x509.load_pem_x509_certificate(pem)


def _verdict(machine: Machine, vendor: AmdVendor, certificate: x509.Certificate, pins: Pins) -> Verdict:
    endorsements = collect([*vendor.certificates, vendor.crl()])
    vouchers = Vouchers(amd=endorsements, amd_roots=machine.roots, intel_roots=())
    return appraise_certificate(certificate, [(item, vouchers) for item in embedded(certificate)], pins, now=NOW)


@pytest.mark.parametrize("named", [_point, _spki])
@pytest.mark.parametrize("api", [1, 2])
def test_an_agents_answer_is_no_ra_tls_evidence(
    machine: Machine, vendor: AmdVendor, named: Callable[[], bytes], api: int
) -> None:
    certificate = _relayed(machine, named(), api)
    (item,) = embedded(certificate)
    pins = Pins(measurement=parse_evidence(item.raw).report.measurement)
    verdict = _verdict(machine, vendor, certificate, pins)
    assert {check.id for check in verdict.failures} == {"ratls.extra_data"}
    assert not verdict.trusted


def test_inspection_does_not_take_it_either(machine: Machine, vendor: AmdVendor) -> None:
    raw = _relayed(machine, _point(), 2).public_bytes(Encoding.DER)
    material = material_of([("crl", vendor.crl()), *((str(n), der) for n, der in enumerate(vendor.certificates))])
    roots = Roots(tuple(root.public_bytes(Encoding.DER) for root in machine.roots))
    checks = KINDS[0].verify(raw, material, NOW + timedelta(hours=1), roots)
    assert {check.id for check in checks if check.status is Status.FAIL} == {"tee.report_data"}


def test_extra_data_that_are_expected_pass(machine: Machine, vendor: AmdVendor) -> None:
    """The rule is no harder than it must be."""
    certificate = _relayed(machine, _point(), 2)
    (item,) = embedded(certificate)
    report = parse_evidence(item.raw).report
    pins = Pins(measurement=report.measurement, extra_data=report.report_data[32:])
    assert _verdict(machine, vendor, certificate, pins).trusted
    assert not _verdict(machine, vendor, certificate, replace(pins, extra_data=b"")).trusted


@pytest.mark.parametrize(
    ("extra", "status"), [(b"", Status.OK), (b"a short text", Status.WARNING), (b"x" * 17, Status.FAIL)]
)
def test_a_short_text_is_no_agents_hash(machine: Machine, vendor: AmdVendor, extra: bytes, status: Status) -> None:
    assert machine.tee is not None
    raw = machine.tee.quote(sha256(_point()).digest() + extra.ljust(32, b"\0")).raw
    pem = make_certificate(KEY, raw, subject="CN=vm", sans=("vm",), days=30, now=NOW)
    verdict = _verdict(machine, vendor, x509.load_pem_x509_certificate(pem), Pins())
    assert [check.status for check in verdict.of("ratls.extra_data")] == [status]
