"""The fingerprint that evidence is bound to, and certificates of our own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.certificates import generate_key, leaf_der, leaf_problem, self_signed, spki_sha256
from cosmian_vm.errors import EndorsementError

NOW = datetime(2025, 6, 1, tzinfo=UTC)


def pem_of(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP384R1()),
        ed25519.Ed25519PrivateKey.generate(),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["p256", "p384", "ed25519", "rsa2048"],
)
def test_spki_hash_is_that_of_the_key(key: ec.EllipticCurvePrivateKey) -> None:
    der = leaf_der(self_signed("vm.example", now=NOW, key_pem=pem_of(key)).certificate_pem)
    spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert spki_sha256(der) == sha256(spki).digest()
    assert leaf_problem(der) is None


def test_spki_hash_survives_a_renewed_certificate() -> None:
    key = generate_key()
    first = leaf_der(self_signed("a.example", now=NOW, key_pem=key).certificate_pem)
    second = leaf_der(self_signed("b.example", now=NOW, key_pem=key).certificate_pem)
    assert first != second
    assert spki_sha256(first) == spki_sha256(second)


@pytest.mark.evidence
def test_spki_hash_of_real_certificates(evidence: Path) -> None:
    """Real certificates too: every one in the evidence folder's AMD chain."""
    seen = 0
    for path in sorted((evidence / "amd_ca").rglob("*.pem")):
        for certificate in x509.load_pem_x509_certificates(path.read_bytes()):
            spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            assert spki_sha256(certificate.public_bytes(Encoding.DER)) == sha256(spki).digest()
            seen += 1
    assert seen


def test_every_truncation_is_one_clear_error() -> None:
    der = leaf_der(self_signed("vm.example", now=NOW).certificate_pem)
    for size in range(len(der)):
        with pytest.raises(EndorsementError):
            spki_sha256(der[:size])
    with pytest.raises(EndorsementError):
        spki_sha256(der + b"\0")


@pytest.mark.parametrize(
    "der",
    [
        b"\x30\x80" + b"\0" * 200,  # indefinite length
        b"\x30\x83\x00" + (len_2 := 300).to_bytes(2, "big") + b"\0" * len_2,
        b"\x30\x81\x05" + b"\0" * 5,
        b"\x30\x85\x00\x00\x00\x00\x05" + b"\0" * 5,
        b"\x3f\x21\x05" + b"\0" * 5,
        b"\x30",
        b"\x30\x00",
        b"\x30\x0e\x30\x08" + b"\x30\x00" * 4 + b"\x30\x00\x03\x00",
    ],
)
def test_only_der_is_read(der: bytes) -> None:
    with pytest.raises(EndorsementError, match=r"^TLS certificate: not "):
        spki_sha256(der)
    with pytest.raises(EndorsementError):
        leaf_problem(der)


def test_a_longer_form_of_the_same_certificate_is_refused() -> None:
    """BER allows many forms of one certificate; what is bound has one."""
    assert _SAMPLE[:2] == b"\x30\x82"
    with pytest.raises(EndorsementError, match="not DER at offset 0x0"):
        spki_sha256(b"\x30\x83\x00" + _SAMPLE[2:])


@given(st.data())
def test_mutations_are_hashed_or_refused(data: st.DataObject) -> None:
    der = bytearray(_SAMPLE)
    for _ in range(data.draw(st.integers(1, 4))):
        der[data.draw(st.integers(0, len(der) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(EndorsementError):
        assert len(spki_sha256(bytes(der))) == 32
        leaf_problem(bytes(der))


def test_self_signed_is_a_server_certificate() -> None:
    made = self_signed("vm.example", ["10.0.0.7", "other.example", "no such name!", "vm.example"], now=NOW)
    certificate = x509.load_pem_x509_certificate(made.certificate_pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["vm.example", "other.example"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7"]
    assert certificate.not_valid_before_utc < NOW < certificate.not_valid_after_utc
    assert certificate.version is x509.Version.v3
    certificate.verify_directly_issued_by(certificate)
    assert isinstance(load_pem_private_key(made.key_pem, None), ec.EllipticCurvePrivateKey)
    assert b"PRIVATE" not in repr(made).encode()


@pytest.mark.parametrize("name", ["", "h" * 300, "ünïcode", "under_score", "a..b"])
def test_any_host_name_makes_a_certificate(name: str) -> None:
    der = leaf_der(self_signed(name, now=NOW).certificate_pem)
    assert leaf_problem(der) is None


@pytest.mark.parametrize("key", [b"", b"rubbish", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_an_unusable_key_is_one_clear_error(key: bytes) -> None:
    with pytest.raises(EndorsementError):
        self_signed("vm.example", now=NOW, key_pem=key)


@pytest.mark.parametrize("pem", [b"", b"rubbish", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_no_certificate_is_one_clear_error(pem: bytes) -> None:
    with pytest.raises(EndorsementError):
        leaf_der(pem)


def build(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey, extension: x509.ExtensionType | None = None) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(5).not_valid_before(NOW).not_valid_after(NOW.replace(year=2030))
    if extension is not None:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER)


def test_what_old_clients_refuse_is_named() -> None:
    p256 = ec.generate_private_key(ec.SECP256R1())
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\5\0")
    assert "1.2.3.4" in (leaf_problem(build(p256, unknown)) or "")
    known = x509.BasicConstraints(ca=False, path_length=None)
    p521, rsa_1024 = ec.generate_private_key(ec.SECP521R1()), rsa.generate_private_key(65537, 1024)
    assert "1.3.132.0.35" in (leaf_problem(build(p521, known)) or "")
    assert "1024 bits" in (leaf_problem(build(rsa_1024, known)) or "")
    assert "no extensions" in (leaf_problem(build(p256)) or "")
    assert leaf_problem(build(p256, known)) is None


def test_what_is_bound_is_read_without_cryptography() -> None:
    """The agent asks this of its own certificate at each start: it need not load a second OpenSSL for it."""
    code = (
        "import sys; from cosmian_vm.certificates import spki_sha256, leaf_problem;"
        f"der = bytes.fromhex('{_SAMPLE.hex()}'); print(spki_sha256(der).hex(), leaf_problem(der));"
        "assert not any(name.startswith('cryptography') for name in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [spki_sha256(_SAMPLE).hex(), "None"]


_SAMPLE = leaf_der(self_signed("vm.example", ["10.0.0.7"], now=NOW).certificate_pem)
