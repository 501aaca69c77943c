"""Each rule of Intel's chains, CRLs and signed documents by itself."""

from __future__ import annotations

from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.devkit._intel_certificates import issue, key_usage, sgx_extension
from cosmian_vm.devkit.intel import IntelVendor, Lies, Platform, td_body
from cosmian_vm.endorsements.intel import crl_of
from cosmian_vm.endorsements.intel_collateral import parse_collateral
from cosmian_vm.evidence.intel_quote import parse_quote
from cosmian_vm.verifier._intel_chain import build_path, crl_dated, crl_problem, document_problem
from cosmian_vm.verifier._intel_collateral import examine_collateral
from cosmian_vm.verifier.intel import examine_quote

VENDOR = IntelVendor.create()
PKI = VENDOR.pki
KEY = ec.generate_private_key(ec.SECP256R1())
LEAF_KEY = ec.generate_private_key(ec.SECP256R1())
END = VENDOR.now + timedelta(days=9)


def authority(**other: object) -> x509.Certificate:
    values: dict[str, object] = {"path_length": 0, **other}
    return issue("Intel SGX PCK Platform CA", KEY, PKI.root.subject, PKI.root_key, **values)  # type: ignore[arg-type]  # as issue takes them


def leaf(issuer: x509.Certificate, key: ec.EllipticCurvePrivateKey = KEY, **other: object) -> x509.Certificate:
    values: dict[str, object] = {"extension": sgx_extension(Platform()), **other}
    return issue("Intel SGX PCK Certificate", LEAF_KEY, issuer.subject, key, **values)  # type: ignore[arg-type]  # as issue takes them


def problem(*chain: x509.Certificate, as_authority: bool = False) -> str:
    path, found = build_path(chain, (PKI.root,), authority=as_authority)
    assert (path is None) == bool(found)
    return found


def test_a_path() -> None:
    ca = authority()
    assert problem(leaf(ca), ca, PKI.root) == ""
    assert problem(leaf(ca), ca) == ""
    assert problem(ca, as_authority=True) == ""


def test_who_may_issue() -> None:
    no_ca = authority(path_length=None, usage=key_usage(authority=True))
    assert "not a certificate authority" in problem(leaf(no_ca), no_ca)
    no_usage = authority(usage=key_usage(authority=False))
    assert "not a certificate authority" in problem(leaf(no_usage), no_usage)


def test_path_length() -> None:
    upper = authority(path_length=0)
    lower = issue("Intel SGX PCK Platform CA", LEAF_KEY, upper.subject, KEY, path_length=0)
    assert "may have 0 authorities below it, not 1" in problem(leaf(lower, LEAF_KEY), lower, upper)
    assert "may have 0 authorities below it, not 1" in problem(lower, upper, as_authority=True)


def test_authorities_stand_where_they_belong() -> None:
    ca = authority()
    assert "is an authority" in problem(ca)
    assert "is an authority" in problem(leaf(ca, path_length=0), ca)
    assert "is no authority" in problem(leaf(ca), ca, as_authority=True)


def test_unknown_critical_extensions() -> None:
    ca = authority()
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    assert "1.2.3.4" in problem(leaf(ca, critical=unknown), ca)
    strange = authority(critical=unknown)
    assert "1.2.3.4" in problem(leaf(strange), strange)


def test_signatures() -> None:
    ca = authority()
    assert "not signed by" in problem(leaf(ca, LEAF_KEY), ca)
    assert "P-256" in problem(leaf(ca, algorithm=hashes.SHA384()), ca)
    p384 = ec.generate_private_key(ec.SECP384R1())
    long = issue("Intel SGX PCK Platform CA", p384, PKI.root.subject, PKI.root_key, path_length=0)
    assert "P-256" in problem(leaf(long, p384), long)


def test_roots() -> None:
    ca = authority()
    path, found = build_path((leaf(ca), ca), ())
    assert (path, found) == (None, "no root that we trust is named 'Intel SGX Root CA'")
    assert build_path((PKI.root,), (PKI.root,))[1] == "there is nothing in the chain but a root"


def test_a_pck_needs_intels_ca_between() -> None:
    ca = issue("Intel SGX Something CA", KEY, PKI.root.subject, PKI.root_key, path_length=0)
    chain = b"".join(c.public_bytes(Encoding.PEM) for c in (leaf(ca), ca, PKI.root))
    quote = parse_quote(VENDOR.quote(td_body(), lies=Lies(chain=chain, signer=LEAF_KEY)))
    crypto = examine_quote(quote, (PKI.root,))
    assert crypto.qe_signature
    assert crypto.path is None
    assert "Something" in crypto.path_problem


def test_only_the_tcb_signer_signs_documents() -> None:
    document = VENDOR.document({"a": 1}, KEY)
    text = document.text.encode()

    def found(*chain: x509.Certificate) -> str:
        return document_problem(chain, document.signature, text, (PKI.root,))[1]

    assert found(issue("Intel SGX TCB Signing", KEY, PKI.root.subject, PKI.root_key)) == ""
    assert "not by Intel SGX TCB Signing" in found(issue("Someone", KEY, PKI.root.subject, PKI.root_key))
    below_ca = issue("Intel SGX TCB Signing", KEY, PKI.authority.subject, PKI.authority_key)
    assert "not by Intel SGX TCB Signing" in found(below_ca, PKI.authority)
    other_key = issue("Intel SGX TCB Signing", LEAF_KEY, PKI.root.subject, PKI.root_key)
    assert "its signature is not" in found(other_key)


def test_crls_and_their_issuers() -> None:
    crl = crl_of(PKI.crl(PKI.authority, (), VENDOR.issued, END), "CRL")
    assert crl_problem(crl, PKI.authority) == ""
    renamed = issue("Intel SGX PCK Processor CA", PKI.authority_key, PKI.root.subject, PKI.root_key, path_length=0)
    assert "not one of Intel SGX PCK Processor CA" in crl_problem(crl, renamed)
    mute = issue(
        "Intel SGX PCK Platform CA",
        PKI.authority_key,
        PKI.root.subject,
        PKI.root_key,
        path_length=0,
        usage=key_usage(authority=True, crl_sign=False),
    )
    assert "may not sign CRLs" in crl_problem(crl, mute)
    assert "is not signed by it" in crl_problem(crl, authority())


@pytest.mark.parametrize(("days", "word"), [(-2, "later than"), (0, ""), (40, "expired")])
def test_crl_dates(days: int, word: str) -> None:
    crl = crl_of(PKI.crl(PKI.root, (), VENDOR.issued, END), "CRL")
    found = crl_dated(crl, VENDOR.now + timedelta(days=days))
    assert word in found
    assert bool(found) == bool(word)


def test_the_pck_crl_comes_with_the_chain_of_a_pck_ca() -> None:
    key = PKI.authority_key
    other = issue("Intel SGX Something CA", key, PKI.root.subject, PKI.root_key, path_length=0)
    crl = PKI.crl(other, (), VENDOR.issued, END)
    chain = other.public_bytes(Encoding.PEM).decode()
    findings = examine_collateral(
        parse_collateral(VENDOR.collateral(pck_crl=crl.hex(), pck_crl_issuer_chain=chain)), (PKI.root,), VENDOR.now
    )
    assert list(findings.forged) == ["PCK CRL"]
    assert "not of a PCK CA" in findings.forged["PCK CRL"]


def test_a_root_that_revoked_itself() -> None:
    raw = VENDOR.collateral(revoked=[PKI.root])
    assert list(examine_collateral(parse_collateral(raw), (PKI.root,), VENDOR.now).forged) == ["root CRL"]
