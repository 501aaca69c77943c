"""Endorsements: with the evidence first, then the cache, then the network; what cannot be had is said."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.endorsements.amd import Product, is_chip_certificate
from cosmian_vm.endorsements.store import EndorsementStore, vcek_url
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
        self._crl = vendor.crl() if crl is None else crl

    def __call__(self, url: str) -> bytes:
        self.asked.append(url)
        return self._crl if url.endswith("/crl") else self._chip


def test_what_came_along_is_enough(vendor: AmdVendor, report: bytes) -> None:
    kds = Kds(vendor)
    gathered = EndorsementStore(cache=None, fetcher=kds).gather(report, [*vendor.certificates, vendor.crl()], now=NOW)
    assert kds.asked == []
    assert gathered.notes == ()
    assert vendor.chip in gathered.endorsements.certificates
    assert len(gathered.endorsements.crls) == 1


def test_chip_and_crl_are_fetched_once_and_kept(vendor: AmdVendor, report: bytes, tmp_path: Path) -> None:
    kds = Kds(vendor)
    for _ in range(2):
        gathered = EndorsementStore(cache=tmp_path / "new", fetcher=kds).gather(report, [], now=NOW)
        assert gathered.notes == ()
        assert any(is_chip_certificate(c) for c in gathered.endorsements.certificates)
        assert len(gathered.endorsements.crls) == 1
    assert len(kds.asked) == 2
    assert kds.asked[0] == vcek_url(vendor.sign(vendor.report()), Product.MILAN)
    assert kds.asked[1].endswith("/vcek/v1/Milan/crl")


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
    def down(url: str) -> bytes:
        raise TransportError("host cannot be reached")

    for fetcher in (down, lambda url: b"<html>busy</html>"):
        gathered = EndorsementStore(cache=tmp_path, fetcher=fetcher).gather(report, [], now=NOW)
        assert len(gathered.notes) == 2
        assert gathered.endorsements.crls == ()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_cache_is_as_good_as_none(vendor: AmdVendor, report: bytes, tmp_path: Path) -> None:
    store = EndorsementStore(cache=tmp_path, fetcher=Kds(vendor))
    store.gather(report, [], now=NOW)
    for file in tmp_path.iterdir():
        file.write_bytes(b"damaged")
    kds = Kds(vendor)
    assert EndorsementStore(cache=tmp_path, fetcher=kds).gather(report, [], now=NOW).notes == ()
    assert len(kds.asked) == 2


def test_garbage_from_the_machine_is_noted_and_left_out(vendor: AmdVendor, report: bytes) -> None:
    blobs = [b"garbage", *vendor.certificates, vendor.crl()]
    gathered = EndorsementStore(cache=None, fetcher=None).gather(report, blobs, now=NOW)
    assert len(gathered.notes) == 1
    assert vendor.chip in gathered.endorsements.certificates


def test_a_quote_that_is_no_snp_report_needs_nothing_of_amd() -> None:
    for tee in (None, b"", bytes(2000)):
        gathered = EndorsementStore(cache=None, fetcher=None).gather(tee, [], now=NOW)
        assert gathered.notes == ()
