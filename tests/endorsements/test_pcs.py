"""Intel's collateral: whose is needed, which of several is taken, and what a PCS or PCCS must have answered."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cosmian_vm.devkit.intel import IntelVendor, Lies, Platform, enclave_report, td_body
from cosmian_vm.devkit.vendors import FakeVendors, Lie
from cosmian_vm.endorsements import _pcs
from cosmian_vm.endorsements.intel_collateral import parse_collateral
from cosmian_vm.endorsements.store import EndorsementStore, Services, fetch
from cosmian_vm.errors import InputError
from cosmian_vm.evidence.intel_quote import parse_quote
from cosmian_vm.verifier.intel import verify_quote
from cosmian_vm.verifier.result import Status


@pytest.fixture(scope="module")
def intel() -> IntelVendor:
    return IntelVendor.create()


@pytest.mark.parametrize("tee", ["TDX", "SGX"])
@pytest.mark.parametrize("pccs", [False, True])
def test_collateral_makes_a_quote_verifiable(intel: IntelVendor, tee: str, pccs: bool, tmp_path: Path) -> None:
    raw = intel.quote(td_body() if tee == "TDX" else enclave_report())
    with FakeVendors(intel=intel) as service:
        services = Services().through(f"{service.url}/sgx/certification/v4/") if pccs else service.services
        for _ in range(2):
            store = EndorsementStore(cache=tmp_path, fetcher=fetch, services=services)
            gathered = store.gather(raw, [], now=intel.now)
            assert gathered.notes == ()
    assert gathered.collateral is not None
    checks = verify_quote(parse_quote(raw), gathered.collateral, (intel.root,), intel.now)
    assert {check.status for check in checks} <= {Status.OK, Status.WARNING}, checks
    low = tee.lower()
    assert service.asked == [
        f"/{low}/certification/v4/tcb?fmspc=90C06F000000&update=standard",
        f"/{low}/certification/v4/qe/identity?update=standard",
        "/sgx/certification/v4/pckcrl?ca=platform&encoding=der",
        "/sgx/certification/v4/rootcacrl" if pccs else "/IntelSGXRootCA.der",
    ]


def test_current_collateral_that_was_given_is_enough(intel: IntelVendor) -> None:
    raw = intel.quote(td_body())
    gathered = EndorsementStore(cache=None, fetcher=None).gather(
        raw, [], given=[intel.collateral("SGX"), intel.collateral("TDX")], now=intel.now
    )
    assert gathered.notes == ()
    assert gathered.collateral is not None
    assert gathered.collateral.tcb_info.id == "TDX"


def test_a_fleet_s_collaterals(intel: IntelVendor) -> None:
    """Of the user's all are looked at, of the machine's a few."""
    foreign = json.loads(intel.collateral())
    foreign["tcb_info"] = intel.tcb_info(fmspc="00A06F000000").text
    many = [json.dumps(foreign | {"note": str(number)}).encode() for number in range(20)]
    store = EndorsementStore(cache=None, fetcher=None)
    raw = intel.quote(td_body())
    gathered = store.gather(raw, [], given=[*many, intel.collateral()], now=intel.now)
    assert (gathered.notes, gathered.collateral is not None) == ((), True)
    gathered = store.gather(raw, [*many, intel.collateral()], now=intel.now)
    assert "more than 8 collaterals came from the machine" in gathered.notes[0]
    assert gathered.collateral is None


def test_the_current_one_of_several(intel: IntelVendor) -> None:
    old = replace(intel, issued=intel.issued - timedelta(days=100))
    raw = intel.quote(td_body())
    for given in ([old, intel], [intel, old]):
        blobs = [vendor.collateral() for vendor in given]
        gathered = EndorsementStore(cache=None, fetcher=None).gather(raw, blobs, now=intel.now)
        assert gathered.collateral is not None
        assert gathered.collateral.tcb_info.issue_date == intel.issued
        assert gathered.notes == ()


def test_a_stale_one_is_renewed_or_handed_on_with_a_note(intel: IntelVendor) -> None:
    old = replace(intel, issued=intel.issued - timedelta(days=100))
    raw = intel.quote(td_body())
    gathered = EndorsementStore(cache=None, fetcher=None).gather(raw, [old.collateral()], now=intel.now)
    assert gathered.collateral is not None
    assert gathered.collateral.tcb_info.issue_date == old.issued
    assert "was to be renewed by 2025-10-23" in gathered.notes[0]
    with FakeVendors(intel=intel) as service:
        store = EndorsementStore(cache=None, fetcher=fetch, services=service.services)
        gathered = store.gather(raw, [old.collateral()], now=intel.now)
    assert gathered.collateral is not None
    assert gathered.collateral.tcb_info.issue_date == intel.issued


def test_expired_answers_in_the_cache_are_asked_for_again(intel: IntelVendor, tmp_path: Path) -> None:
    raw = intel.quote(td_body())
    with FakeVendors(intel=intel) as service:
        store = EndorsementStore(cache=tmp_path, fetcher=fetch, services=service.services)
        store.gather(raw, [], now=intel.now)
        service.intel = replace(intel, issued=intel.issued + timedelta(days=40))
        gathered = store.gather(raw, [], now=intel.now + timedelta(days=40))
        assert gathered.notes == ()
        assert len(service.asked) == 8
        service.lie = Lie.CUT
        gathered = store.gather(raw, [], now=intel.now + timedelta(days=80))
    assert gathered.collateral is not None
    assert gathered.collateral.tcb_info.issue_date == intel.issued + timedelta(days=40)
    assert len(gathered.notes) == 4
    assert all("was to be renewed by" in note for note in gathered.notes)


def test_collateral_of_another_platform_is_named_and_not_used(intel: IntelVendor) -> None:
    other = IntelVendor.create(Platform(fmspc=bytes.fromhex("00a06f000000")))
    gathered = EndorsementStore(cache=None, fetcher=None).gather(
        intel.quote(td_body()), [other.collateral()], now=intel.now
    )
    assert gathered.collateral is None
    assert "another platform" in gathered.notes[0]
    assert "90c06f000000" in gathered.notes[0]


def test_collateral_of_the_other_ca_is_of_another_platform(intel: IntelVendor) -> None:
    platform = _pcs.platform_of(parse_quote(intel.quote(td_body())))
    collateral = parse_collateral(intel.collateral())
    assert _pcs.fitting([collateral], platform, intel.now) is collateral
    for other in ({"ca": "processor"}, {"tee": "SGX"}, {"fmspc": bytes(6)}):
        assert _pcs.fitting([collateral], replace(platform, **other), intel.now) is None


def test_off_the_network_each_document_and_its_address_is_named(intel: IntelVendor) -> None:
    gathered = EndorsementStore(cache=None, fetcher=None).gather(intel.quote(td_body()), [], now=intel.now)
    assert gathered.collateral is None
    assert len(gathered.notes) == 4
    text = "\n".join(gathered.notes)
    assert "https://api.trustedservices.intel.com/tdx/certification/v4/tcb?fmspc=90C06F000000&update=standard" in text
    assert "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der" in text
    assert text.count("--endorsements DIR") == 1
    assert text.endswith("--endorsements DIR"), "what helps is said once, behind all that is lacking"


@pytest.mark.parametrize("about", ["/tcb", "/qe/identity", "/pckcrl", "RootCA"])
def test_one_answer_that_is_garbage(intel: IntelVendor, about: str, tmp_path: Path) -> None:
    raw = intel.quote(td_body())
    with FakeVendors(intel=intel) as service:
        service.lie, service.lie_about = Lie.GARBAGE, about
        store = EndorsementStore(cache=tmp_path, fetcher=fetch, services=service.services)
        gathered = store.gather(raw, [], now=intel.now)
        assert gathered.collateral is None
        (note,) = gathered.notes
        assert about in note
        service.lie = None
        assert store.gather(raw, [], now=intel.now).collateral is not None, "garbage must not have been kept"


def test_tcb_info_of_another_platform_is_no_answer(intel: IntelVendor) -> None:
    with FakeVendors(intel=intel) as service:
        service.tcb_fields = {"fmspc": "00A06F000000"}
        store = EndorsementStore(cache=None, fetcher=fetch, services=service.services)
        gathered = store.gather(intel.quote(td_body()), [], now=intel.now)
    assert gathered.collateral is None
    assert "is of TDX 00A06F000000, not of TDX 90c06f000000" in gathered.notes[0]


def test_a_service_that_is_silent_is_asked_once(intel: IntelVendor) -> None:
    with FakeVendors(intel=intel) as service:
        service.lie = Lie.SILENT
        store = EndorsementStore(cache=None, fetcher=service.fetch, services=service.services)
        gathered = store.gather(intel.quote(td_body()), [], now=intel.now)
        assert len(service.asked) <= 1
    assert len(gathered.notes) == 4
    assert "took too long" in gathered.notes[0]
    assert "(a moment ago)" in gathered.notes[3]


def test_a_quote_that_names_no_platform(intel: IntelVendor) -> None:
    for lies in (Lies(cert_data_type=1), Lies(chain=b"no chain")):
        gathered = EndorsementStore(cache=None, fetcher=None).gather(
            intel.quote(td_body(), lies=lies), [], now=intel.now
        )
        (note,) = gathered.notes
        assert "cannot be looked up" in note


def test_addresses_of_a_pccs() -> None:
    for given in ("https://pccs:8081", "https://pccs:8081/", "https://pccs:8081/sgx/certification/v4/"):
        assert _pcs.pccs_base(given) == "https://pccs:8081"
    assert _pcs.pccs_base("https://host/pccs/") == "https://host/pccs"
    assert _pcs.pccs_base("http://127.0.0.1:8081") == "http://127.0.0.1:8081"
    for bad in (
        "pccs",
        "http://pccs:8081",
        "ftp://pccs",
        "https://",
        "https://user:x@pccs",
        "https://p:port",
        "https://p?a=b",
    ):
        with pytest.raises(InputError, match="--pccs"):
            _pcs.pccs_base(bad)


@pytest.mark.evidence
def test_real_quotes_name_their_platform(evidence: Path) -> None:
    """And Intel's own answers, joined, are the collateral that a library has made of them."""
    raw = (evidence / "tdx" / "google-v4" / "quote.bin").read_bytes()
    assert _pcs.platform_of(parse_quote(raw)) == _pcs.Platform(
        tee="TDX", fmspc=bytes.fromhex("50806f000000"), ca="platform"
    )
    raw = (evidence / "sgx" / "phala" / "quote.bin").read_bytes()
    platform = _pcs.platform_of(parse_quote(raw))
    assert (platform.tee, platform.fmspc.hex()) == ("SGX", "00a067110000")
    folder = evidence / "collateral" / "intel"
    whole = [parse_collateral(path.read_bytes()) for path in sorted(folder.glob("*.json"))]
    found = _pcs.fitting(whole, platform, datetime(2025, 7, 1, tzinfo=UTC))
    assert found is not None
    assert found.tcb_info.id == "SGX"


@pytest.mark.evidence
def test_real_answers(evidence: Path) -> None:
    from urllib.parse import quote

    from cosmian_vm.endorsements.store import Answer, Request

    parts = evidence / "collateral" / "intel" / "google-parts"
    answers = {
        "/tcb": ("tcb_info.json", "tcb_info_issuer_chain.pem"),
        "/qe/identity": ("qe_identity.json", "qe_identity_issuer_chain.pem"),
        "/pckcrl": ("pck_crl.der", "pck_crl_issuer_chain.pem"),
        "RootCA": ("root_crl.der", None),
    }

    def intel(request: Request) -> Answer:
        body, chain = next(files for part, files in answers.items() if part in request.url)
        header = "" if chain is None else quote((parts / chain).read_text())
        return Answer(body=(parts / body).read_bytes(), header=header)

    raw = (evidence / "tdx" / "google-v4" / "quote.bin").read_bytes()
    now = datetime(2023, 7, 1, tzinfo=UTC)
    gathered = EndorsementStore(cache=None, fetcher=intel).gather(raw, [], now=now)
    assert gathered.notes == ()
    assert gathered.collateral is not None
    known = json.loads((evidence / "collateral" / "intel" / "tdx-50806f-2023-06.json").read_text())
    for name in ("tcb_info", "tcb_info_signature", "qe_identity", "qe_identity_signature", "pck_crl", "root_ca_crl"):
        assert gathered.collateral.raw[name] == known[name], name
