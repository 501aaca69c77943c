"""``inspect`` on RA-TLS certificates: the evidence inside, and whose key it binds."""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta
from hashlib import sha256, sha384
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.intel import IntelVendor, enclave_report, td_body
from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence import _cbor
from cosmian_vm.evidence._snp_certificates import serialise_typed
from cosmian_vm.inspection import identify
from cosmian_vm.inspection.model import Inspection, Roots

KEYS = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"
INTEL = IntelVendor.create()
NOW = INTEL.now
AMD = AmdVendor.create(keys=VendorKeys.load(KEYS), now=NOW - timedelta(days=2))
KEY = ec.derive_private_key(0x1234567, ec.SECP256R1())
OTHER_KEY = ec.derive_private_key(0x7654321, ec.SECP256R1())
POINT = KEY.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
SPKI = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
BOUND = sha256(POINT).digest().ljust(64, b"\0")
SGX, SEV, TDX, DICE = "1.2.840.113741.1337.6", "1.2.840.113741.1337.7", "1.2.840.113741.1337.8", "2.23.133.5.4.9"
ROOTS = Roots((AMD.certificates[2], INTEL.root.public_bytes(Encoding.DER)))


def certificate(
    extensions: dict[str, bytes],
    *,
    key: ec.EllipticCurvePrivateKey = KEY,
    signer: ec.EllipticCurvePrivateKey = KEY,
    issuer: str = "vm",
) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "vm")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=30))
    )
    for oid, value in extensions.items():
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical=False)
    return builder.sign(signer, hashes.SHA256()).public_bytes(Encoding.DER)


def inspected(raw: bytes, *, at: datetime = NOW, roots: Roots = ROOTS) -> Inspection:
    return identify.inspect(raw, identify.material_of([]), verify=(at, roots))


def failed(found: Inspection) -> set[str]:
    return {check.id for check in found.checks or () if check.status == "fail"}


def octets(raw: bytes) -> bytes:
    return b"\x04\x82" + len(raw).to_bytes(2, "big") + raw


def snp(report_data: bytes = BOUND, **fields: int) -> bytes:
    chip, ask, ark = AMD.certificates
    return AMD.sign_report(report_data=report_data, **fields) + serialise_typed(((1, ark), (3, chip), (2, ask)))


TDX_QUOTE = INTEL.quote(td_body(report_data=BOUND))
SGX_QUOTE = INTEL.quote(enclave_report(report_data=BOUND))
GOOD = {
    "snp": ({SEV: snp()}, "snp-report"),
    "snp of version 4": ({SEV: snp(version=4)}, "snp-report"),
    "snp in an octet string": ({SEV: octets(snp())}, "snp-report"),
    "sgx": ({SGX: SGX_QUOTE}, "sgx-quote"),
    "tdx": ({TDX: TDX_QUOTE}, "tdx-quote"),
    "tdx, padded": ({TDX: TDX_QUOTE.ljust(8192, b"\0")}, "tdx-quote"),
    "tdx under the OID of sgx": ({SGX: TDX_QUOTE}, "tdx-quote"),
    "bare under DICE": ({DICE: TDX_QUOTE}, "tdx-quote"),
    "hash of the whole key": (
        {SGX: INTEL.quote(enclave_report(report_data=sha256(SPKI).digest().ljust(64, b"\0")))},
        "sgx-quote",
    ),
}


@pytest.mark.parametrize(("extensions", "kind"), GOOD.values(), ids=GOOD)
def test_good(extensions: dict[str, bytes], kind: str) -> None:
    found = inspected(certificate(extensions))
    assert (found.kind, failed(found)) == ("ra-tls-certificate", set())
    assert found.authentic()
    evidence = found.facts["evidence"]
    assert isinstance(evidence, list)
    assert isinstance(first := evidence[0], dict)
    assert (first["kind"], first["oid"]) == (kind, next(iter(extensions)))
    assert found.facts["subject"] == "CN=vm"


def test_the_evidence_of_another_key() -> None:
    assert failed(inspected(certificate({SEV: snp()}, key=OTHER_KEY, signer=OTHER_KEY))) == {"tee.report_data"}


def test_foreign_roots() -> None:
    assert "tee.chain" in failed(inspected(certificate({SEV: snp()}), roots=Roots()))
    assert "tee.chain" in failed(inspected(certificate({TDX: TDX_QUOTE}), roots=Roots()))


def test_a_changed_certificate() -> None:
    assert failed(inspected(certificate({SEV: snp()}, signer=OTHER_KEY))) == {"certificate.signature"}


def test_issued_by_another_the_evidence_alone_vouches() -> None:
    assert inspected(certificate({SEV: snp()}, signer=OTHER_KEY, issuer="ca")).authentic()


def test_dates() -> None:
    assert failed(inspected(certificate({SEV: snp()}), at=NOW + timedelta(days=31))) == {"certificate.dates"}


def test_an_extension_that_holds_nothing_known() -> None:
    found = inspected(certificate({SGX: b"nothing that anybody knows"}))
    assert found.kind == "ra-tls-certificate"
    assert failed(found) == {"tee.signature"}


def test_other_certificates_are_certificates() -> None:
    assert inspected(certificate({"1.2.3.4": snp()})).kind == "certificate"


def test_damaged_evidence() -> None:
    for position in range(0, 0x2A0, 13):
        raw = snp()
        changed = raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :]
        assert not inspected(certificate({SEV: changed})).authentic(), position
    assert not inspected(certificate({SEV: snp()[:-9]})).authentic()
    assert not inspected(certificate({TDX: TDX_QUOTE[:900]})).authentic()


# DICE: tag([evidence, claims])


def head(major: int, number: int) -> bytes:
    return bytes([major << 5 | 25]) + number.to_bytes(2, "big") if number > 23 else bytes([major << 5 | number])


def dice(claims: bytes, *, bound: bytes | None = None) -> bytes:
    report_data = (bound or sha256(claims).digest()).ljust(64, b"\0")
    quote = INTEL.quote(enclave_report(report_data=report_data))
    return head(6, 60000) + head(4, 2) + head(2, len(quote)) + quote + head(2, len(claims)) + claims


def claims_of(algorithm: int, digest: bytes) -> bytes:
    value = head(4, 2) + head(0, algorithm) + head(2, len(digest)) + digest
    return head(5, 1) + head(3, 11) + b"pubkey-hash" + head(2, len(value)) + value


@pytest.mark.parametrize(
    ("claims", "fails"),
    [
        (claims_of(1, sha256(SPKI).digest()), set()),
        (claims_of(7, sha384(SPKI).digest()), set()),
        (claims_of(1, sha256(b"another").digest()), {"tee.report_data"}),
        (claims_of(99, sha256(SPKI).digest()), {"tee.report_data"}),
        (head(5, 0), {"tee.report_data"}),
        (b"\xff", {"tee.report_data"}),
    ],
)
def test_dice(claims: bytes, fails: set[str]) -> None:
    found = inspected(certificate({DICE: dice(claims)}))
    assert (found.kind, failed(found)) == ("ra-tls-certificate", fails)


def test_dice_with_claims_that_are_not_bound() -> None:
    claims = claims_of(1, sha256(SPKI).digest())
    assert failed(inspected(certificate({DICE: dice(claims, bound=bytes(32))}))) == {"tee.report_data"}


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        ("00", 0),
        ("1903e8", 1000),
        ("20", -1),
        ("43010203", b"\1\2\3"),
        ("6161", "a"),
        ("820102", [1, 2]),
        ("a1016161", {1: "a"}),
        ("c101", _cbor.Tagged(1, 1)),
        ("f5", True),
        ("f6", None),
    ],
)
def test_cbor(raw: str, value: object) -> None:
    assert _cbor.decode(bytes.fromhex(raw)) == value


@pytest.mark.parametrize(
    "raw", ["", "18", "4301", "9f", "a201010101", "f90000", "0000", "9a7fffffff", "c1" * 20 + "00"]
)
def test_bad_cbor(raw: str) -> None:
    with pytest.raises(EvidenceFormatError):
        _cbor.decode(bytes.fromhex(raw))


@given(st.binary(max_size=60))
def test_any_cbor(raw: bytes) -> None:
    with contextlib.suppress(EvidenceFormatError):
        _cbor.decode(raw)


@given(st.binary(max_size=120))
def test_any_extension(raw: bytes) -> None:
    assert not inspected(certificate({DICE: raw})).authentic()
