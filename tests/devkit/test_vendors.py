"""The fake services have the vendors' own addresses and forms."""

from __future__ import annotations

import http.client
from datetime import timedelta
from pathlib import Path
from urllib.parse import unquote

import msgspec
import pytest
from cryptography import x509

from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.intel import IntelVendor
from cosmian_vm.devkit.vendors import FakeVendors, Lie
from cosmian_vm.endorsements.amd import Product, collect
from cosmian_vm.endorsements.intel import parse_chain
from cosmian_vm.evidence.snp import decode_tcb

DATA = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"


@pytest.fixture(scope="module")
def intel() -> IntelVendor:
    return IntelVendor.create()


def _get(service: FakeVendors, path: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(service.url.removeprefix("http://"), timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("product", list(Product))
def test_kds(product: Product) -> None:
    """The addresses are written out here, as AMD 57230 has them."""
    vendor = AmdVendor.create(product, keys=VendorKeys.load(DATA))
    tcb = decode_tcb(vendor.report().reported_tcb, product.tcb_layout).components
    chip, first = vendor.chip_id.hex(), ""
    if product is Product.TURIN:
        chip, first = chip[:16], f"fmcSPL={tcb['fmc']:02}&"
    svns = f"{first}blSPL={tcb['bl']:02}&teeSPL={tcb['tee']:02}&snpSPL={tcb['snp']:02}&ucodeSPL={tcb['ucode']:02}"
    with FakeVendors(vendor) as service:
        answer, body = _get(service, f"/vcek/v1/{product}/{chip}?{svns}")
        assert (answer.status, collect([body], pinned=False).certificates) == (200, (vendor.chip,))
        answer, body = _get(service, f"/vcek/v1/{product}/cert_chain")
        assert collect([body], pinned=False).certificates == (vendor.ask, vendor.ark)
        answer, body = _get(service, f"/vcek/v1/{product}/crl")
        assert len(collect([body], pinned=False).crls) == 1
        for path in (f"/vcek/v1/{product}/{'00' * 64}?{svns}", f"/vlek/v1/{product}/crl", "/vcek/v1/Rome/crl", "/"):
            assert _get(service, path)[0].status == 404


@pytest.mark.parametrize("tee", ["tdx", "sgx"])
def test_pcs(intel: IntelVendor, tee: str) -> None:
    with FakeVendors(intel=intel) as service:
        answer, body = _get(service, f"/{tee}/certification/v4/tcb?fmspc=90c06f000000")
        assert msgspec.json.decode(body)["tcbInfo"]["id"] == tee.upper()
        chain = parse_chain(unquote(answer.headers["TCB-Info-Issuer-Chain"]).encode(), "chain")
        assert chain == (intel.pki.signer, intel.root)
        answer, body = _get(service, f"/{tee}/certification/v4/qe/identity")
        assert msgspec.json.decode(body)["enclaveIdentity"]["id"] == {"tdx": "TD_QE", "sgx": "QE"}[tee]
        answer, body = _get(service, "/sgx/certification/v4/pckcrl?ca=platform&encoding=der")
        assert x509.load_der_x509_crl(body).issuer == intel.pki.authority.subject
        for path in (
            f"/{tee}/certification/v4/tcb?fmspc=000000000000",
            "/sgx/certification/v4/pckcrl?ca=processor&encoding=der",
        ):
            assert _get(service, path)[0].status == 404
        _, der = _get(service, "/IntelSGXRootCA.der")
        _, text = _get(service, "/sgx/certification/v4/rootcacrl")
        for crl in (der, bytes.fromhex(text.decode())):
            assert x509.load_der_x509_crl(crl).next_update_utc == intel.issued + timedelta(days=30)


def test_closing_lets_go_of_those_that_wait(intel: IntelVendor) -> None:
    service = FakeVendors(intel=intel)
    service.lie = Lie.SILENT
    connection = http.client.HTTPConnection(service.url.removeprefix("http://"), timeout=10)
    connection.request("GET", "/")
    service.close()
    with pytest.raises((http.client.HTTPException, OSError)):
        connection.getresponse()
    connection.close()
