"""Endorsements: with the evidence first, then the cache, then the network; what cannot be had is said."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.vendors import FakeVendors
from cosmian_vm.endorsements.amd import Product, is_chip_certificate, load_crl
from cosmian_vm.endorsements.store import Answer, EndorsementStore, Request, fetch, vcek_url
from cosmian_vm.errors import TransportError

DATA = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"
NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def vendor() -> AmdVendor:
    return AmdVendor.create(keys=VendorKeys.load(DATA), now=NOW - timedelta(days=2))


@pytest.fixture
def report(vendor: AmdVendor) -> bytes:
    return vendor.sign(vendor.report()).raw


class Kds:
    """A key service that remembers what it was asked for."""

    def __init__(self, vendor: AmdVendor, crl: bytes | None = None) -> None:
        self.asked: list[str] = []
        self._chip = vendor.chip.public_bytes(Encoding.DER)
        self._chain = b"".join(c.public_bytes(Encoding.PEM) for c in (vendor.ask, vendor.ark))
        self._crl = vendor.crl() if crl is None else crl

    def __call__(self, request: Request) -> Answer:
        self.asked.append(request.url)
        if request.url.endswith("/cert_chain"):
            return Answer(body=self._chain)
        return Answer(body=self._crl if request.url.endswith("/crl") else self._chip)


def test_what_came_along_is_enough(vendor: AmdVendor, report: bytes) -> None:
    kds = Kds(vendor)
    gathered = EndorsementStore(cache=None, fetcher=kds).gather(report, [*vendor.certificates, vendor.crl()], now=NOW)
    assert kds.asked == []
    assert gathered.notes == ()
    assert vendor.chip in gathered.endorsements.certificates
    assert len(gathered.endorsements.crls) == 1


def test_chip_chain_and_crl_are_fetched_once_and_kept(vendor: AmdVendor, report: bytes, tmp_path: Path) -> None:
    kds = Kds(vendor)
    for _ in range(2):
        gathered = EndorsementStore(cache=tmp_path / "new", fetcher=kds).gather(report, [], now=NOW)
        assert gathered.notes == ()
        assert any(is_chip_certificate(c) for c in gathered.endorsements.certificates)
        assert len(gathered.endorsements.crls) == 1
    assert kds.asked[0] == vcek_url(vendor.sign(vendor.report()), Product.MILAN)
    assert kds.asked[1].endswith("/vcek/v1/Milan/cert_chain")
    assert kds.asked[2].endswith("/vcek/v1/Milan/crl")
    assert len(kds.asked) == 3


def test_the_address_names_chip_and_tcb(vendor: AmdVendor) -> None:
    url = vcek_url(vendor.report(), Product.MILAN)
    assert url.endswith(f"/vcek/v1/Milan/{vendor.chip_id.hex()}?blSPL=04&teeSPL=00&snpSPL=24&ucodeSPL=219")
    turin = AmdVendor.create(Product.TURIN, keys=vendor.keys, now=NOW)
    assert f"/Turin/{turin.chip_id[:8].hex()}?fmcSPL=01&blSPL=04" in vcek_url(turin.report(), Product.TURIN)


def test_a_stale_crl_is_fetched_anew(vendor: AmdVendor, report: bytes, tmp_path: Path) -> None:
    old = Kds(vendor, vendor.crl(next_update=NOW))
    EndorsementStore(cache=tmp_path, fetcher=old).gather(report, [], now=NOW - timedelta(hours=1))
    new = Kds(vendor)
    gathered = EndorsementStore(cache=tmp_path, fetcher=new).gather(report, [], now=NOW)
    assert [url.rpartition("/")[2] for url in new.asked] == ["crl"]
    assert gathered.notes == ()


def test_off_the_network_a_note_names_what_is_missing_and_where_it_is(report: bytes) -> None:
    gathered = EndorsementStore(cache=None, fetcher=None).gather(report, [], now=NOW)
    assert len(gathered.notes) == 2
    assert "VCEK" in gathered.notes[0]
    assert "/vcek/v1/Milan/crl" in gathered.notes[1]


def test_a_service_that_fails_or_sends_garbage_is_a_note(report: bytes, tmp_path: Path) -> None:
    def down(request: Request) -> Answer:
        raise TransportError("host cannot be reached")

    for fetcher in (down, lambda request: Answer(body=b"<html>busy</html>")):
        gathered = EndorsementStore(cache=tmp_path, fetcher=fetcher).gather(report, [], now=NOW)
        assert len(gathered.notes) == 2
        assert ["--endorsements DIR" in note for note in gathered.notes] == [False, True]
        assert gathered.endorsements.crls == ()
    assert list(tmp_path.glob("*.json")) == []


def test_a_damaged_cache_is_as_good_as_none(vendor: AmdVendor, report: bytes, tmp_path: Path) -> None:
    store = EndorsementStore(cache=tmp_path, fetcher=Kds(vendor))
    store.gather(report, [], now=NOW)
    for file in tmp_path.iterdir():
        file.write_bytes(b"damaged")
    kds = Kds(vendor)
    assert EndorsementStore(cache=tmp_path, fetcher=kds).gather(report, [], now=NOW).notes == ()
    assert len(kds.asked) == 3


def test_garbage_from_the_machine_is_noted_and_left_out(vendor: AmdVendor, report: bytes) -> None:
    blobs = [b"garbage", *vendor.certificates, vendor.crl()]
    gathered = EndorsementStore(cache=None, fetcher=None).gather(report, blobs, now=NOW)
    assert len(gathered.notes) == 1
    assert vendor.chip in gathered.endorsements.certificates


def test_a_quote_that_is_no_snp_report_needs_nothing_of_amd() -> None:
    for tee in (None, b"", bytes(2000)):
        gathered = EndorsementStore(cache=None, fetcher=None).gather(tee, [], now=NOW)
        assert gathered.notes == ()


def test_a_folder_of_a_whole_fleet(vendor: AmdVendor, report: bytes) -> None:
    """However many chips' certificates the user has: this one's is taken, and the machine's own are not crowded out."""
    fleet = [vendor.new_chip().chip.public_bytes(Encoding.DER) for _ in range(100)]
    own = vendor.chip.public_bytes(Encoding.DER)
    gathered = EndorsementStore(cache=None, fetcher=None).gather(
        report, [vendor.ask.public_bytes(Encoding.DER), vendor.crl()], given=[*fleet, own], now=NOW
    )
    assert gathered.notes == ()
    assert [c for c in gathered.endorsements.certificates if is_chip_certificate(c)] == [vendor.chip]
    assert vendor.ask in gathered.endorsements.certificates


def test_a_file_of_another_machine_may_hold_our_list(vendor: AmdVendor, report: bytes) -> None:
    other = vendor.new_chip().chip.public_bytes(Encoding.PEM)
    crl = load_crl(vendor.crl()).public_bytes(Encoding.PEM)
    gathered = EndorsementStore(cache=None, fetcher=None).gather(
        report, vendor.certificates, given=[other + crl], now=NOW
    )
    assert gathered.notes == ()
    assert len(gathered.endorsements.crls) == 1


def test_the_certificate_of_another_tcb_is_no_reason_not_to_look(vendor: AmdVendor, report: bytes) -> None:
    """As a cloud sends it that has updated the firmware and not its own cache."""
    stale = vendor.new_chip(chip_id=vendor.chip_id, tcb={**vendor.tcb, "snp": 8})
    kds = Kds(vendor)
    gathered = EndorsementStore(cache=None, fetcher=kds).gather(report, [*stale.certificates, vendor.crl()], now=NOW)
    assert kds.asked == [vcek_url(vendor.report(), Product.MILAN)]
    assert vendor.chip in gathered.endorsements.certificates


def test_a_stale_list_that_cannot_be_renewed_is_handed_on(vendor: AmdVendor, report: bytes, tmp_path: Path) -> None:
    old = vendor.crl(next_update=NOW)
    EndorsementStore(cache=tmp_path, fetcher=Kds(vendor, old)).gather(report, [], now=NOW - timedelta(hours=1))
    gathered = EndorsementStore(cache=tmp_path, fetcher=None).gather(report, [], now=NOW)
    assert [crl.next_update_utc for crl in gathered.endorsements.crls] == [NOW]
    (note,) = gathered.notes
    assert "was to be renewed by 2026-06-01" in note


def test_a_newer_list_in_the_cache_stands_beside_the_one_that_the_machine_chose(
    vendor: AmdVendor, report: bytes, tmp_path: Path
) -> None:
    revoking = vendor.crl([vendor.ask], last_update=NOW - timedelta(hours=1))
    EndorsementStore(cache=tmp_path, fetcher=Kds(vendor, revoking)).gather(report, [], now=NOW)
    gathered = EndorsementStore(cache=tmp_path, fetcher=None).gather(
        report, [*vendor.certificates, vendor.crl()], now=NOW
    )
    assert len(gathered.endorsements.crls) == 2


def test_renewing_asks_for_what_may_have_changed_alone(vendor: AmdVendor, report: bytes, tmp_path: Path) -> None:
    EndorsementStore(cache=tmp_path, fetcher=Kds(vendor)).gather(report, [], now=NOW)
    kds = Kds(vendor)
    store = EndorsementStore(cache=tmp_path, fetcher=kds)
    assert store.gather(report, [vendor.crl()], now=NOW, renew=True).notes == ()
    assert [url.rpartition("/")[2] for url in kds.asked] == ["crl"]


def test_a_vlek_cannot_be_looked_up_but_its_chain_and_list_can(vendor: AmdVendor) -> None:
    vlek = AmdVendor.create(vlek=True, keys=vendor.keys, now=NOW - timedelta(days=2))
    report = vlek.sign_report()
    kds = Kds(vlek)
    gathered = EndorsementStore(cache=None, fetcher=kds).gather(report, [], now=NOW)
    assert "the machine must send it" in gathered.notes[0]
    gathered = EndorsementStore(cache=None, fetcher=kds).gather(report, vlek.certificates[:1], now=NOW)
    assert gathered.notes == ()
    assert kds.asked[-2].endswith("/vlek/v1/Milan/cert_chain")
    assert kds.asked[-1].endswith("/vlek/v1/Milan/crl")
    assert vlek.ask in gathered.endorsements.certificates


def test_a_version_2_report_names_no_product(vendor: AmdVendor) -> None:
    """Milan is tried, then Genoa; the certificate tells which it was."""
    for product in (Product.MILAN, Product.GENOA):
        machine = AmdVendor.create(product, keys=vendor.keys, now=NOW - timedelta(days=2))
        with FakeVendors(machine) as kds:
            store = EndorsementStore(cache=None, fetcher=fetch, services=kds.services)
            gathered = store.gather(machine.sign_report(version=2), [], now=NOW)
        assert machine.chip in gathered.endorsements.certificates
        (note,) = gathered.notes
        assert f"it is a {product}" in note
        tried = [path for path in kds.asked if "SPL" in path]
        assert len(tried) == (1 if product is Product.MILAN else 2)


def test_a_version_2_report_that_nobody_knows(vendor: AmdVendor) -> None:
    with FakeVendors() as kds:
        store = EndorsementStore(cache=None, fetcher=fetch, services=kds.services)
        gathered = store.gather(vendor.sign_report(version=2), [], now=NOW)
    assert "/vcek/v1/Milan/" in gathered.notes[0]
    assert "/vcek/v1/Genoa/" in gathered.notes[1]
    assert "answered 404" in gathered.notes[0]


def test_every_product_from_a_fake_kds(vendor: AmdVendor) -> None:
    for product in Product:
        machine = AmdVendor.create(product, keys=vendor.keys, now=NOW - timedelta(days=2))
        with FakeVendors(machine) as kds:
            store = EndorsementStore(cache=None, fetcher=fetch, services=kds.services)
            gathered = store.gather(machine.sign_report(), [], now=NOW)
        assert gathered.notes == ()
        assert machine.chip in gathered.endorsements.certificates
        assert machine.ark in gathered.endorsements.certificates
        assert len(gathered.endorsements.crls) == 1


def test_a_version_2_report_whose_chip_both_products_claim(vendor: AmdVendor) -> None:
    """The one whose key has signed the report is taken; where it is neither, one is handed on, with a note."""
    genoa = AmdVendor.create(
        Product.GENOA, keys=vendor.keys, chip_id=vendor.chip_id, tcb=vendor.tcb, now=NOW - timedelta(days=2)
    )

    def both(request: Request) -> Answer:
        return Kds(genoa if "/Genoa/" in request.url else vendor)(request)

    store = EndorsementStore(cache=None, fetcher=both)
    gathered = store.gather(genoa.sign_report(version=2), [], now=NOW)
    assert [c for c in gathered.endorsements.certificates if is_chip_certificate(c)] == [genoa.chip]
    gathered = store.gather(vendor.new_chip(chip_id=vendor.chip_id).sign_report(version=2), [], now=NOW)
    assert [c for c in gathered.endorsements.certificates if is_chip_certificate(c)] == [vendor.chip]
    assert "none has signed this report" in gathered.notes[0]
