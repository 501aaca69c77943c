"""A vendor's service that was broken into, or a box on the wire that speaks in its name.

It can withhold trust, for a while; it can make nothing trusted, and nothing hang.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.intel import IntelVendor, td_body
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.devkit.vendors import FakeVendors, Lie
from cosmian_vm.endorsements.store import Answer, EndorsementStore, Gathered, Request
from cosmian_vm.evidence.intel_quote import parse_quote
from cosmian_vm.verifier.intel import verify_quote
from cosmian_vm.verifier.result import Status

from .conftest import NONCE, NOW, Judge

REMEDY = "--endorsements DIR"


@pytest.fixture(scope="module")
def intel() -> IntelVendor:
    return IntelVendor.create()


@pytest.fixture
def service(machine: Machine, intel: IntelVendor) -> Iterator[FakeVendors]:
    """The services, and a machine that sends nothing beside its report."""
    assert machine.tee is not None
    machine.tee.endorsements = ()
    with FakeVendors(machine.vendor, intel) as service:
        service.retry_after = "86400"
        yield service


def _gather(service: FakeVendors, tee: bytes | None, cache: Path | None = None) -> Gathered:
    store = EndorsementStore(cache=cache, fetcher=service.fetch, services=service.services)
    return store.gather(tee, [], now=NOW)


def test_an_honest_service(machine: Machine, judge: Judge, service: FakeVendors) -> None:
    evidence = machine.evidence(NONCE)
    gathered = _gather(service, evidence.tee)
    assert gathered.notes == ()
    assert judge.verdict(evidence, gathered.endorsements).trusted


@pytest.mark.parametrize("lie", list(Lie))
def test_kds_that_answers_nothing_of_use(
    machine: Machine, judge: Judge, service: FakeVendors, lie: Lie, tmp_path: Path
) -> None:
    service.lie = lie
    evidence = machine.evidence(NONCE)
    gathered = _gather(service, evidence.tee, tmp_path)
    assert gathered.notes
    assert all(f"{service.url}/vcek/v1/Milan/" in note for note in gathered.notes)
    assert [REMEDY in note for note in gathered.notes] == [False] * (len(gathered.notes) - 1) + [True]
    assert not judge.verdict(evidence, gathered.endorsements).trusted
    assert list(tmp_path.glob("*.json")) == [], "nothing of it is kept"
    service.lie = None
    assert judge.verdict(evidence, _gather(service, evidence.tee, tmp_path).endorsements).trusted


@pytest.mark.parametrize("lie", list(Lie))
def test_kds_that_keeps_the_revocation_list_back(
    machine: Machine, judge: Judge, service: FakeVendors, lie: Lie
) -> None:
    """All else can be verified: trust is withheld for want of the list, and nothing is called forged."""
    service.lie, service.lie_about = lie, "/crl"
    evidence = machine.evidence(NONCE)
    gathered = _gather(service, evidence.tee)
    (note,) = gathered.notes
    assert REMEDY in note
    assert f"{service.url}/vcek/v1/Milan/crl" in note
    verdict = judge.verdict(evidence, gathered.endorsements)
    assert not verdict.trusted
    assert list(verdict.failures) == []
    assert {check.id for check in verdict.skipped_required} == {"tee.revocation"}


@pytest.mark.parametrize("lie", list(Lie))
@pytest.mark.parametrize("about", ["/tcb", "/qe/identity", "/pckcrl", "/IntelSGXRootCA.der"])
def test_pcs_that_keeps_a_document_back(intel: IntelVendor, service: FakeVendors, lie: Lie, about: str) -> None:
    service.lie, service.lie_about = lie, about
    quote = intel.quote(td_body())
    store = EndorsementStore(cache=None, fetcher=service.fetch, services=service.services)
    gathered = store.gather(quote, [], now=intel.now)
    assert gathered.collateral is None
    assert any(about in note for note in gathered.notes)
    assert REMEDY in gathered.notes[-1]
    checks = verify_quote(parse_quote(quote), None, (intel.root,), intel.now)
    lacking = {check.id for check in checks if check.status is Status.SKIP}
    assert {"tee.tcb", "tee.revocation"} <= lacking
    assert not any(check.status is Status.FAIL for check in checks)


def test_kds_with_a_chain_of_its_own(machine: Machine, judge: Judge, service: FakeVendors) -> None:
    """Names and extensions as AMD's, chip and TCB as asked for; the keys are the attacker's, report included."""
    forger = AmdVendor.create(keys=VendorKeys.generate(), chip_id=machine.vendor.chip_id, now=NOW)
    assert machine.tee is not None
    machine.tee.vendor = service.amd = forger
    machine.tee.endorsements = ()
    evidence = machine.evidence(NONCE)
    assert judge.failed(evidence, _gather(service, evidence.tee).endorsements) == {"tee.chain"}


def test_kds_with_the_certificate_of_another_chip(machine: Machine, judge: Judge, service: FakeVendors) -> None:
    """It is not what was asked for, so it is no answer."""
    other = machine.vendor.new_chip()

    def kds(request: Request) -> Answer:
        answer = service.fetch(request)
        return Answer(body=other.certificates[0]) if "SPL" in request.url else answer

    evidence = machine.evidence(NONCE)
    store = EndorsementStore(cache=None, fetcher=kds, services=service.services)
    gathered = store.gather(evidence.tee, [], now=NOW)
    assert "not the certificate of this chip and TCB" in gathered.notes[0]
    assert other.chip not in gathered.endorsements.certificates
    assert not judge.verdict(evidence, gathered.endorsements).trusted


def test_kds_with_a_list_that_it_signed_itself(machine: Machine, judge: Judge, service: FakeVendors) -> None:
    service.crl_fields = {"signer": VendorKeys.generate().ark}
    evidence = machine.evidence(NONCE)
    assert judge.failed(evidence, _gather(service, evidence.tee).endorsements) == {"tee.revocation"}


def test_kds_with_last_year_s_list(machine: Machine, judge: Judge, service: FakeVendors) -> None:
    """Genuine, of the time before a key was revoked."""
    service.crl_fields = {"next_update": NOW - timedelta(hours=1)}
    evidence = machine.evidence(NONCE)
    gathered = _gather(service, evidence.tee)
    assert "was to be renewed by" in gathered.notes[0]
    assert judge.failed(evidence, gathered.endorsements) == {"tee.revocation"}


def test_pcs_that_signs_itself(intel: IntelVendor, service: FakeVendors) -> None:
    """TCB info of another key under the true chain: it is handed on, and called forged."""
    forger = replace(intel, pki=replace(intel.pki, signer_key=ec.generate_private_key(ec.SECP256R1())))
    service.intel = forger
    quote = intel.quote(td_body())
    gathered = EndorsementStore(cache=None, fetcher=service.fetch, services=service.services).gather(
        quote, [], now=intel.now
    )
    assert gathered.collateral is not None
    checks = verify_quote(parse_quote(quote), gathered.collateral, (intel.root,), intel.now)
    assert any(check.status is Status.FAIL for check in checks)


def test_a_cache_that_somebody_filled(machine: Machine, judge: Judge, service: FakeVendors, tmp_path: Path) -> None:
    """The folder holds a list that a key of the attacker's signed, under the right address: it is no better for it."""
    service.crl_fields = {"signer": VendorKeys.generate().ark}
    evidence = machine.evidence(NONCE)
    _gather(service, evidence.tee, tmp_path)
    service.close()
    assert judge.failed(evidence, _gather(service, evidence.tee, tmp_path).endorsements) == {"tee.revocation"}
