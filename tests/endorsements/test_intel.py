"""Intel's pinned root, PEM chains, the SGX extension, CRLs."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.devkit._intel_certificates import sgx_extension
from cosmian_vm.devkit.intel import IntelVendor, Platform
from cosmian_vm.endorsements._sgx_extension import parse_sgx_extension
from cosmian_vm.endorsements.intel import (
    INTEL_ROOT_SHA256,
    MAX_CHAIN_SIZE,
    crl_of,
    is_pinned_root,
    p256_key,
    parse_chain,
    pck_extension,
    pinned_root,
)
from cosmian_vm.errors import EvidenceFormatError

VENDOR = IntelVendor.create(Platform(ppid=b"\x07" * 16, components=tuple(range(240, 256)), pce_svn=300))
CHAIN = VENDOR.pki.pck_chain
EXTENSION = sgx_extension(VENDOR.pki.platform)


def test_the_pinned_root_is_intels() -> None:
    der = pinned_root().public_bytes(Encoding.DER)
    assert hashlib.sha256(der).hexdigest() == INTEL_ROOT_SHA256
    assert pinned_root().subject.rfc4514_string().endswith("CN=Intel SGX Root CA")
    assert is_pinned_root(pinned_root())
    assert not is_pinned_root(VENDOR.root)


@pytest.mark.evidence
def test_the_pinned_root_is_the_recorded_one(evidence: Path) -> None:
    assert pinned_root().public_bytes(Encoding.DER) == (evidence / "collateral/intel/root_ca.der").read_bytes()


def test_a_chain_is_read_in_its_order() -> None:
    chain = parse_chain(CHAIN, "chain")
    assert chain == (VENDOR.pki.pck, VENDOR.pki.authority, VENDOR.root)
    assert parse_chain(CHAIN.replace(b"\n", b"\r\n"), "chain") == chain
    assert all(p256_key(certificate) is not None for certificate in chain)


@pytest.mark.parametrize(
    "pem",
    [
        b"",
        b"\x00\n",
        b"no certificate",
        b"x" + CHAIN,
        CHAIN + b"x",
        CHAIN.replace(b"-----END CERTIFICATE-----\n-----BEGIN", b"-----END CERTIFICATE-----\nx\n-----BEGIN", 1),
        CHAIN.replace(b"-----END CERTIFICATE-----", b"-----END CERTIFICATE----2", 1),
        CHAIN + CHAIN,
        b"-----BEGIN CERTIFICATE-----\nAAA\n-----END CERTIFICATE-----",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
        b" " * (MAX_CHAIN_SIZE + 1),
    ],
    ids=range(11),
)
def test_what_is_no_chain_is_refused(pem: bytes) -> None:
    with pytest.raises(EvidenceFormatError) as caught:
        parse_chain(pem, "the chain")
    assert caught.value.what == "the chain"


@given(st.integers(0, len(CHAIN) - 1), st.integers(0, 255))
def test_a_changed_byte_of_a_chain_is_read_or_refused(at: int, value: int) -> None:
    try:
        parse_chain(CHAIN[:at] + bytes([value]) + CHAIN[at + 1 :], "chain")
    except EvidenceFormatError as error:
        assert error.what == "chain"  # noqa: PT017 - whichever of the two happens


def test_the_sgx_extension_says_what_was_certified() -> None:
    pck = pck_extension(VENDOR.pki.pck)
    assert pck.ppid == b"\x07" * 16
    assert pck.components == tuple(range(240, 256))
    assert pck.cpu_svn == bytes(range(240, 256))
    assert (pck.pce_svn, pck.pce_id, pck.fmspc.hex(), pck.sgx_type) == (300, b"\x00\x00", "90c06f000000", 1)
    assert pck.platform_instance_id == bytes(16)
    assert pck.configuration == {"dynamic_platform": True, "cached_keys": True, "smt_enabled": True}
    with pytest.raises(EvidenceFormatError, match="no SGX extension"):
        pck_extension(VENDOR.pki.authority)


def test_every_truncation_of_the_extension_is_a_format_error() -> None:
    for size in range(len(EXTENSION)):
        with pytest.raises(EvidenceFormatError):
            parse_sgx_extension(EXTENSION[:size])
    with pytest.raises(EvidenceFormatError):
        parse_sgx_extension(EXTENSION + b"\x05\x00")


def tlv(tag: int, content: bytes) -> bytes:
    return bytes([tag, 0x82]) + len(content).to_bytes(2, "big") + content


def test_a_field_that_stands_there_twice_or_not_at_all_is_refused() -> None:
    content = EXTENSION[4:]
    first = content[: 2 + content[1]]
    with pytest.raises(EvidenceFormatError, match="twice"):
        parse_sgx_extension(tlv(0x30, first + content))
    with pytest.raises(EvidenceFormatError, match=r"PPID.*missing"):
        parse_sgx_extension(tlv(0x30, content[len(first) :]))


@given(st.integers(0, len(EXTENSION) - 1), st.integers(0, 255))
def test_a_changed_byte_of_the_extension_is_read_or_refused(at: int, value: int) -> None:
    try:
        pck = parse_sgx_extension(EXTENSION[:at] + bytes([value]) + EXTENSION[at + 1 :])
    except EvidenceFormatError:
        return
    assert len(pck.components) == 16
    assert all(0 <= svn <= 255 for svn in pck.components)


def test_a_serial_number_that_is_none_is_refused() -> None:
    der = bytearray(VENDOR.root.public_bytes(Encoding.DER))
    number = VENDOR.root.serial_number
    at = bytes(der).index(number.to_bytes(number.bit_length() // 8 + 1, "big"))  # as DER has it, sign bit included
    der[at] = 0x80  # negative, and no longer than it must be: 0xFF before a set bit would be
    pem = b"-----BEGIN CERTIFICATE-----\n" + base64.b64encode(bytes(der)) + b"\n-----END CERTIFICATE-----"
    with pytest.raises(EvidenceFormatError, match="not positive"):
        parse_chain(pem, "chain")


def test_crls() -> None:
    der = VENDOR.pki.crl(VENDOR.root, [VENDOR.pki.signer], VENDOR.issued, VENDOR.now)
    assert len(crl_of(der, "CRL")) == 1
    for size in range(0, len(der), 3):
        with pytest.raises(EvidenceFormatError):
            crl_of(der[:size], "CRL")


@given(st.integers(0, 300), st.integers(0, 255))
def test_a_changed_byte_of_a_crl_is_read_or_refused(at: int, value: int) -> None:
    der = VENDOR.pki.crl(VENDOR.root, [VENDOR.pki.signer], VENDOR.issued, VENDOR.now)
    try:
        crl_of(der[:at] + bytes([value]) + der[at + 1 :], "CRL")
    except EvidenceFormatError as error:
        assert error.what == "CRL"  # noqa: PT017 - whichever of the two happens
