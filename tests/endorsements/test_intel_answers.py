"""Intel's answers one by one: what is signed is the text as it stands there; all else is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.devkit.intel import Document, IntelVendor
from cosmian_vm.endorsements.intel_answers import chain_text, crl_in, join, qe_identity_in, tcb_info_in
from cosmian_vm.endorsements.intel_collateral import parse_collateral, serialise_collateral
from cosmian_vm.errors import EvidenceFormatError

FMSPC = bytes.fromhex("90c06f000000")


@pytest.fixture(scope="module")
def intel() -> IntelVendor:
    return IntelVendor.create()


def _body(member: str, document: Document, signature: str | None = None) -> bytes:
    return f'{{"{member}":{document.text},"signature":"{signature or document.signature.hex()}"}}'.encode()


def _pem(*certificates: x509.Certificate) -> str:
    return b"".join(c.public_bytes(Encoding.PEM) for c in certificates).decode()


def _tcb_info(raw: bytes) -> object:
    return tcb_info_in(raw, "", tee="TDX", fmspc=FMSPC)


def _identity(raw: bytes) -> object:
    return qe_identity_in(raw, "", tee="TDX")


def test_the_text_is_kept_as_it_stands(intel: IntelVendor) -> None:
    """Spaces and order are part of what is signed, whatever JSON may say."""
    document = intel.tcb_info()
    spaced = Document(document.text.replace('","', '" ,\n "'), document.signature)
    assert tcb_info_in(_body("tcbInfo", spaced), "chain", tee="TDX", fmspc=FMSPC).text == spaced.text
    found = tcb_info_in(_body("tcbInfo", document), "chain", tee="TDX", fmspc=FMSPC)
    assert (found.text, found.signature, found.chain) == (document.text, document.signature.hex(), "chain")


def test_all_together(intel: IntelVendor) -> None:
    signers, issuers = _pem(intel.pki.signer, intel.root), _pem(intel.pki.authority, intel.root)
    tcb_info, identity = intel.tcb_info(), intel.qe_identity()
    joined = join(
        tcb_info_in(_body("tcbInfo", tcb_info), signers, tee="TDX", fmspc=FMSPC),
        qe_identity_in(_body("enclaveIdentity", identity), signers, tee="TDX"),
        pck_crl=crl_in(intel.crl(intel.pki.authority), "PCK CRL"),
        pck_crl_chain=issuers,
        root_crl=crl_in(intel.crl(intel.root), "root CRL"),
    )
    again = parse_collateral(serialise_collateral(joined))
    assert again.tcb_info_text == tcb_info.text.encode()
    assert again.qe_identity_signature == identity.signature
    assert again.pck_crl_chain == (intel.pki.authority, intel.root)
    assert again.window is not None


@pytest.mark.parametrize("tee", ["TDX", "SGX"])
def test_of_something_else(intel: IntelVendor, tee: str) -> None:
    other = "SGX" if tee == "TDX" else "TDX"
    with pytest.raises(EvidenceFormatError, match=f"is of {other}"):
        tcb_info_in(_body("tcbInfo", intel.tcb_info(other)), "", tee=tee, fmspc=FMSPC)
    with pytest.raises(EvidenceFormatError, match="is of TDX 90C06F000000"):
        tcb_info_in(_body("tcbInfo", intel.tcb_info()), "", tee="TDX", fmspc=bytes(6))
    with pytest.raises(EvidenceFormatError, match=r"is of (TD_)?QE, not of"):
        qe_identity_in(_body("enclaveIdentity", intel.qe_identity(other)), "", tee=tee)


def test_every_truncation(intel: IntelVendor) -> None:
    cases: list[tuple[Callable[[bytes], object], bytes]] = [
        (_tcb_info, _body("tcbInfo", intel.tcb_info())),
        (_identity, _body("enclaveIdentity", intel.qe_identity())),
        (lambda raw: crl_in(raw, "CRL"), intel.crl(intel.root)),
        (lambda raw: crl_in(raw, "CRL"), intel.crl(intel.root).hex().encode()),
    ]
    for read, raw in cases:
        read(raw)
        for size in range(len(raw)):
            with pytest.raises(EvidenceFormatError):
                read(raw[:size])


def test_signatures_of_another_size(intel: IntelVendor) -> None:
    for signature in ("00" * 63, "00" * 65, "zz" * 64, "0" * 127):
        with pytest.raises(EvidenceFormatError):
            _tcb_info(_body("tcbInfo", intel.tcb_info(), signature))
    with pytest.raises(EvidenceFormatError, match="signature"):
        _tcb_info(b'{"tcbInfo":{}}')
    with pytest.raises(EvidenceFormatError, match="tcbInfo"):
        _tcb_info(_body("enclaveIdentity", intel.qe_identity()))


def test_forms_of_a_crl(intel: IntelVendor) -> None:
    der = intel.crl(intel.root)
    crl = x509.load_der_x509_crl(der)
    for raw in (der, der.hex().encode(), b'"' + der.hex().upper().encode() + b'"\n', crl.public_bytes(Encoding.PEM)):
        assert crl_in(raw, "CRL") == crl
    for raw in (b"", b"<html>", intel.root.public_bytes(Encoding.DER), intel.root.public_bytes(Encoding.PEM), b"30zz"):
        with pytest.raises(EvidenceFormatError, match="CRL"):
            crl_in(raw, "CRL")


def test_chains(intel: IntelVendor) -> None:
    text = _pem(intel.pki.signer, intel.root)
    assert chain_text(text, "chain") == text
    for bad in ("", "garbage", "\u00e9", text[:-30], text * 3):
        with pytest.raises(EvidenceFormatError, match="chain"):
            chain_text(bad, "chain")


@given(st.one_of(st.binary(max_size=300), st.text(max_size=100).map(str.encode)))
def test_anything(raw: bytes) -> None:
    for read in (
        _tcb_info,
        _identity,
        lambda raw: crl_in(raw, "CRL"),
        lambda raw: chain_text(raw.decode("latin-1"), "c"),
    ):
        with suppress(EvidenceFormatError):
            read(raw)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=5), st.lists))
def test_json_of_any_shape(value: object) -> None:
    import json

    for member in ("tcbInfo", "enclaveIdentity"):
        raw = json.dumps({member: value, "signature": "00" * 64}).encode()
        for read in (_tcb_info, _identity):
            with pytest.raises(EvidenceFormatError):
                read(raw)
