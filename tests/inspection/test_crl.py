"""``inspect`` on revocation lists."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.intel import IntelVendor
from cosmian_vm.inspection import identify
from cosmian_vm.inspection.model import Inspection, Roots

KEYS = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"
NOW = datetime(2026, 6, 1, tzinfo=UTC)
VENDOR = AmdVendor.create(keys=VendorKeys.load(KEYS), now=NOW - timedelta(days=2))
FORGER = AmdVendor.create(keys=VendorKeys.load(KEYS / "other"), now=NOW - timedelta(days=2))
CRL = VENDOR.crl([VENDOR.ask, VENDOR.chip])
ROOT = VENDOR.certificates[2]


def inspected(
    raw: bytes, *beside: bytes, roots: tuple[bytes, ...] = (ROOT,), at: datetime = NOW + timedelta(days=1)
) -> Inspection:
    material = identify.material_of((f"beside {n}", content) for n, content in enumerate(beside))
    return identify.inspect(raw, material, verify=(at, Roots(roots)))


def failed(found: Inspection) -> set[str]:
    return {check.id for check in found.checks or () if check.status == "fail"}


def pem(der: bytes) -> bytes:
    return b"-----BEGIN X509 CRL-----\n" + base64.encodebytes(der) + b"-----END X509 CRL-----\n"


def test_facts() -> None:
    facts = inspected(CRL).facts
    assert facts["issuer"] == VENDOR.ark.subject.rfc4514_string()
    assert facts["entries"] == 2
    assert facts["revoked"] == [
        {"serial": f"{VENDOR.ask.serial_number:#x}", "revoked": facts["this_update"]},
        {"serial": "0x0", "revoked": facts["this_update"]},
    ]
    assert facts["next_update"]
    assert facts["partial"] is False


@pytest.mark.parametrize("raw", [CRL, pem(CRL), CRL.hex().encode(), CRL + bytes(9)], ids=["der", "pem", "hex", "zeros"])
def test_signed_by_a_trusted_root(raw: bytes) -> None:
    found = inspected(raw)
    assert (found.kind, found.authentic()) == ("crl", True)


def test_two_in_a_file() -> None:
    found = inspected(pem(CRL) + pem(VENDOR.crl()))
    assert isinstance(crls := found.facts["crls"], list)
    assert len(crls) == 2
    assert found.authentic()
    assert not inspected(pem(CRL) + pem(FORGER.crl())).authentic()


def test_its_issuer_must_lead_to_a_root() -> None:
    assert failed(inspected(CRL, roots=())) == {"crl.signature"}
    assert failed(inspected(CRL, ROOT, roots=())) == {"tee.chain"}


def test_forged() -> None:
    assert failed(inspected(VENDOR.crl(signer=FORGER.keys.ark))) == {"crl.signature"}


def test_dates() -> None:
    start = NOW - timedelta(days=1)
    crl = VENDOR.crl(last_update=start, next_update=start + timedelta(days=30))
    assert inspected(crl).authentic()
    assert failed(inspected(crl, at=start - timedelta(hours=1))) == {"crl.dates"}
    assert failed(inspected(crl, at=start + timedelta(days=31))) == {"crl.dates"}


def test_intels() -> None:
    vendor = IntelVendor.create()
    pki = vendor.pki
    crl = pki.crl(pki.authority, [pki.pck], vendor.issued, vendor.now + timedelta(days=20))
    authority, root = (c.public_bytes(Encoding.DER) for c in (pki.authority, pki.root))
    found = inspected(crl, authority, roots=(root,), at=vendor.now)
    assert found.authentic()
    assert (found.facts["entries"], found.facts["number"]) == (1, 1)
    assert failed(inspected(crl, roots=(root,), at=vendor.now)) == {"crl.signature"}


def test_damaged() -> None:
    for size in range(0, len(CRL), 11):
        assert not inspected(CRL[:size]).authentic()
    for position in range(0, len(CRL), 5):
        changed = CRL[:position] + bytes([CRL[position] ^ 0x55]) + CRL[position + 1 :]
        assert not inspected(changed).authentic(), position
    assert inspected(pem(CRL)[:-40]).kind == "crl"
