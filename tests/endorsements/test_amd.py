"""AMD's pinned roots, chip certificates and CRLs."""

from __future__ import annotations

import contextlib
import warnings
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.devkit.amd import DEFAULT_TCB, AmdVendor, VendorKeys
from cosmian_vm.endorsements import amd
from cosmian_vm.endorsements.amd import Product
from cosmian_vm.errors import EndorsementError
from cosmian_vm.evidence.snp import SigningKey

KEYS = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
ARC = "1.3.6.1.4.1.3704.1"


@pytest.fixture(scope="module")
def keys() -> VendorKeys:
    return VendorKeys.load(KEYS)


@pytest.fixture(scope="module")
def vendor(keys: VendorKeys) -> AmdVendor:
    return AmdVendor.create(keys=keys, now=NOW)


def certificate(
    extensions: dict[str, bytes], *, name: str = "SEV-VCEK", curve: ec.EllipticCurve | None = None
) -> bytes:
    key = ec.generate_private_key(curve or ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW)
    )
    for oid, value in extensions.items():
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def extensions(**changed: bytes | None) -> dict[str, bytes]:
    values: dict[str, bytes | None] = {
        "1": b"\x02\x01\x00",
        "2": b"\x16\x05Genoa",
        "3.1": b"\x02\x01\x0a",
        "3.2": b"\x02\x01\x00",
        "3.3": b"\x02\x01\x17",
        "3.8": b"\x02\x02\x00\xd5",
        "4": bytes(range(64)),
    }
    values |= {name.removeprefix("x").replace("_", "."): value for name, value in changed.items()}
    return {f"{ARC}.{name}": value for name, value in values.items() if value is not None}


def test_pinned_roots_are_amds() -> None:
    roots = amd.pinned_roots()
    assert [amd.common_name(root.subject) for root in roots] == ["ARK-Milan", "ARK-Genoa", "ARK-Turin"]
    for root in roots:
        root.verify_directly_issued_by(root)
        assert root.fingerprint(hashes.SHA256()).hex() in amd.PINNED_ROOTS
        assert amd.is_pinned_root(root)


def test_pinned_intermediates_chain_to_them() -> None:
    by_name = {root.subject: root for root in amd.pinned_roots()}
    assert len(amd.pinned_intermediates()) == 6
    for intermediate in amd.pinned_intermediates():
        intermediate.verify_directly_issued_by(by_name[intermediate.issuer])
        fingerprint = intermediate.fingerprint(hashes.SHA256()).hex()
        assert amd.PINNED_INTERMEDIATES[fingerprint] == amd.common_name(intermediate.subject)


def test_a_simulated_root_is_not_pinned(vendor: AmdVendor) -> None:
    assert not amd.is_pinned_root(vendor.ark)


def test_a_damaged_installation_says_so() -> None:
    with pytest.raises(EndorsementError, match="damaged"):
        amd._pinned(["00" * 32])


@pytest.mark.evidence
def test_pins_agree_with_the_published_fingerprints(evidence: Path) -> None:
    lines = (evidence / "amd_ca" / "fingerprints.txt").read_text().splitlines()
    published = {line.split()[1]: line.split()[3] for line in lines if not line.startswith("#")}
    ours = {f"ARK-{product}": fingerprint for fingerprint, product in amd.PINNED_ROOTS.items()}
    ours |= {name: fingerprint for fingerprint, name in amd.PINNED_INTERMEDIATES.items()}
    assert ours == published


@pytest.mark.parametrize("product", list(Product))
@pytest.mark.parametrize("vlek", [False, True])
def test_chip_certificate(keys: VendorKeys, product: Product, vlek: bool) -> None:
    vendor = AmdVendor.create(product, vlek=vlek, keys=keys, now=NOW)
    chip = amd.parse_chip_certificate(vendor.chip)
    assert chip.kind is (SigningKey.VLEK if vlek else SigningKey.VCEK)
    assert chip.product is product
    assert chip.serial == 0
    assert {name: chip.svns[name] for name, _ in product.tcb_layout.value} == {
        name: DEFAULT_TCB[name] for name, _ in product.tcb_layout.value
    }
    assert chip.svns["ucode"] > 127  # two bytes of DER
    if vlek:
        assert (chip.hwid, chip.csp_id) == (None, "simulated")
    else:
        assert chip.csp_id is None
        assert chip.hwid == (vendor.chip_id[:8] if product is Product.TURIN else vendor.chip_id)


def test_hwid_in_both_forms() -> None:
    bare = amd.parse_chip_certificate(amd.load_certificate(certificate(extensions())))
    wrapped = amd.parse_chip_certificate(
        amd.load_certificate(certificate(extensions(x4=b"\x04\x40" + bytes(range(64)))))
    )
    assert bare.hwid == wrapped.hwid == bytes(range(64))
    assert bare.product is Product.GENOA


@pytest.mark.parametrize(
    ("name", "product"), [("Milan-B1", Product.MILAN), ("Siena", Product.GENOA), ("Rome-A0", None)]
)
def test_product_names(name: str, product: Product | None) -> None:
    der = certificate(extensions(x2=bytes([0x16, len(name)]) + name.encode()))
    assert amd.parse_chip_certificate(amd.load_certificate(der)).product is product


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"x1": None}, f"{ARC}.1 is missing"),
        ({"x2": None}, "product name"),
        ({"x2": b"\x02\x01\x00"}, "printable string"),
        ({"x2": b"\x16\x01\n"}, "printable string"),
        ({"x2": b"\x16\x01\xff"}, "printable string"),
        ({"x3_1": b"\x02\x02\x01\x00"}, "0 to 255"),
        ({"x3_1": b"\x02\x01\xff"}, "0 to 255"),
        ({"x3_1": b""}, "0 to 255"),
        ({"x4": None}, "hwID"),
        ({"x4": bytes(63)}, "not 64 or 8"),
        ({"x4": b"\x04\x3f" + bytes(63)}, "not 64 or 8"),
    ],
)
def test_broken_extensions(changed: dict[str, bytes | None], message: str) -> None:
    with pytest.raises(EndorsementError, match=message):
        amd.parse_chip_certificate(amd.load_certificate(certificate(extensions(**changed))))


def test_other_names_and_curves_are_no_chip() -> None:
    with pytest.raises(EndorsementError, match="neither a VCEK nor a VLEK"):
        amd.parse_chip_certificate(amd.load_certificate(certificate(extensions(), name="SEV-Milan")))
    with pytest.raises(EndorsementError, match="P-384"):
        amd.parse_chip_certificate(amd.load_certificate(certificate(extensions(), curve=ec.SECP256R1())))


def test_an_extension_that_cryptography_cannot_read() -> None:
    """It raises an exception of its own kind for such names, when the extensions are asked for."""
    der = certificate(extensions() | {"2.5.29.17": b"\x30\x02\xa3\x00"})
    with pytest.raises(EndorsementError, match="SEV-VCEK"):
        amd.parse_chip_certificate(amd.load_certificate(der))


def test_other_versions_of_x509() -> None:
    with pytest.raises(EndorsementError, match="version"):
        amd.load_certificate(_SAMPLE.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x05"))


def test_collect_tells_by_content(vendor: AmdVendor) -> None:
    vcek, ask, ark = vendor.certificates
    crl = vendor.crl()
    found = amd.collect([vcek + bytes(3), vendor.root_pem, crl, ask, vcek], pinned=False)
    assert [c.public_bytes(Encoding.DER) for c in found.certificates] == [vcek, ark, ask]
    assert [c.public_bytes(Encoding.DER) for c in found.crls] == [crl]
    assert amd.collect([]).certificates == amd.pinned_intermediates()


@pytest.mark.parametrize("garbage", [b"", b"junk", b"\x30\x03\x02\x01\x01", b"-----BEGIN CERTIFICATE-----"])
def test_collect_names_garbage(vendor: AmdVendor, garbage: bytes) -> None:
    with pytest.raises(EndorsementError, match="endorsement 2"):
        amd.collect([vendor.root_pem, garbage])


def test_collect_is_bounded(keys: VendorKeys) -> None:
    blobs = [certificate({}) for _ in range(70)]
    with pytest.raises(EndorsementError, match="more than 64"):
        amd.collect(blobs)


def test_serial_zero_warns_nobody_and_only_that_warning_is_silenced(vendor: AmdVendor) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        amd.load_certificate.cache_clear()
        amd.load_crl.cache_clear()
        amd.read_crl.cache_clear()
        chip = amd.load_certificate(vendor.certificates[0])
        assert amd.serial_number(chip) == 0
        assert amd.read_crl(vendor.crl([vendor.chip, vendor.ask])).serials == {0, 0x10001}
        with pytest.raises(UserWarning, match="something else"):
            warnings.warn("something else", UserWarning, stacklevel=1)


@given(st.data())
def test_any_mutated_certificate(data: st.DataObject) -> None:
    """Read or refused; never another exception."""
    changed = bytearray(_SAMPLE)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(EndorsementError):
        for loaded in amd.collect([bytes(changed)], pinned=False).certificates:
            if amd.is_chip_certificate(loaded):
                amd.parse_chip_certificate(loaded)


_SAMPLE = certificate(extensions())
