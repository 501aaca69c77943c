"""Intel's collateral in every form in which it travels."""

from __future__ import annotations

import base64
import json
from datetime import datetime, timedelta
from urllib.parse import quote as url_quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.devkit.intel import Document, IntelVendor, enclave_report, td_body
from cosmian_vm.inspection import identify
from cosmian_vm.inspection.model import Inspection, Roots

VENDOR = IntelVendor.create()
OTHER = IntelVendor.create()
PKI = VENDOR.pki
ROOTS = Roots((VENDOR.root.public_bytes(Encoding.DER),))
WHOLE = json.loads(VENDOR.collateral())
QUOTE = VENDOR.quote(td_body())


def inspected(raw: bytes, *beside: bytes, roots: Roots = ROOTS, at: datetime = VENDOR.now) -> Inspection:
    material = identify.material_of((f"beside {n}", content) for n, content in enumerate(beside))
    return identify.inspect(raw, material, verify=(at, roots))


def statuses(found: Inspection) -> dict[str, str]:
    return {check.id: str(check.status) for check in found.checks or ()}


def answer(name: str, document: Document) -> bytes:
    """As the service sends it: the signed text, and its signature behind it."""
    return f'{{"{name}":{document.text},"signature":"{document.signature.hex()}"}}'.encode()


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


def crl_pem(der: bytes) -> str:
    return f"-----BEGIN X509 CRL-----\n{base64.encodebytes(der).decode()}-----END X509 CRL-----\n"


def camel(name: str) -> str:
    first, *rest = name.split("_")
    return first + "".join(part.capitalize() for part in rest)


ROOT_CRL, PCK_CRL = bytes.fromhex(WHOLE["root_ca_crl"]), bytes.fromhex(WHOLE["pck_crl"])
TCB_INFO, QE_IDENTITY = VENDOR.tcb_info(), VENDOR.qe_identity()
TCB_ANSWER, QE_ANSWER = answer("tcbInfo", TCB_INFO), answer("enclaveIdentity", QE_IDENTITY)
FORMS: dict[str, dict[str, object]] = {
    "camel": {camel(name): value for name, value in WHOLE.items()},
    "answers inside": {
        **{name: value for name, value in WHOLE.items() if not name.endswith("_signature")},
        "tcb_info": TCB_ANSWER.decode(),
        "qe_identity": QE_ANSWER.decode(),
    },
    "crls in base64": {
        **WHOLE,
        "root_ca_crl": base64.b64encode(ROOT_CRL).decode(),
        "pck_crl": base64.b64encode(PCK_CRL).decode(),
    },
    "crls in PEM": {**WHOLE, "root_ca_crl": crl_pem(ROOT_CRL), "pck_crl": crl_pem(PCK_CRL)},
    "crls as arrays": {**WHOLE, "root_ca_crl": list(ROOT_CRL), "pck_crl": list(PCK_CRL)},
    "crls in hex of hex": {**WHOLE, "root_ca_crl": (ROOT_CRL.hex() + "\0").encode().hex()},
    "chains as in the header": {
        name: url_quote(value) if name.endswith("_chain") else value for name, value in WHOLE.items()
    },
    "signatures in base64": {
        **WHOLE,
        "tcb_info_signature": base64.b64encode(bytes.fromhex(WHOLE["tcb_info_signature"])).decode(),
    },
}


@pytest.mark.parametrize("members", FORMS.values(), ids=FORMS)
def test_one_object(members: dict[str, object]) -> None:
    raw = json.dumps(members).encode()
    found = inspected(raw)
    assert (found.kind, found.problem, found.authentic()) == ("intel-collateral", "", True)
    assert inspected(QUOTE, raw).authentic(policy=True)


def test_one_object_of_objects() -> None:
    """TCB info and QE identity not as text but as they are: signed is what stands there, byte for byte."""
    text = json.dumps({name: value for name, value in WHOLE.items() if name not in ("tcb_info", "qe_identity")})
    raw = f'{text[:-1]}, "tcb_info": {WHOLE["tcb_info"]}, "qe_identity": {WHOLE["qe_identity"]}}}'.encode()
    assert inspected(raw).authentic()


def test_a_form_does_not_hide_a_forgery() -> None:
    forged = {**FORMS["answers inside"], "tcb_info": answer("tcbInfo", OTHER.tcb_info()).decode()}
    assert not inspected(json.dumps(forged).encode()).authentic()


SIGNER = pem(PKI.signer, PKI.root)
PARTS = (TCB_ANSWER, QE_ANSWER, SIGNER, ROOT_CRL, PCK_CRL)


def test_separate_answers_make_a_collateral() -> None:
    assert statuses(inspected(QUOTE, *PARTS)) == dict.fromkeys(
        ("tee.signature", "tee.chain", "tee.revocation", "tee.tcb", "tee.debug"), "ok"
    )
    assert inspected(QUOTE, *PARTS).authentic(policy=True)


@pytest.mark.parametrize("missing", range(5))
def test_with_a_part_missing_there_is_no_level(missing: int) -> None:
    found = inspected(QUOTE, *(part for number, part in enumerate(PARTS) if number != missing))
    assert statuses(found)["tee.tcb"] == "skip"
    assert found.authentic() is (missing not in (3, 4))  # of two lists that are needed, one was not given


def test_separate_answers_of_another_tee_do_not_fit() -> None:
    assert statuses(inspected(VENDOR.quote(enclave_report()), *PARTS))["tee.tcb"] == "skip"


def test_a_forged_answer_fails_the_chain() -> None:
    forged = answer("tcbInfo", OTHER.tcb_info())
    assert statuses(inspected(QUOTE, forged, *PARTS[1:]))["tee.chain"] == "fail"


@pytest.mark.parametrize(
    ("raw", "kind"), [(TCB_ANSWER, "intel-tcb-info"), (QE_ANSWER, "intel-qe-identity")], ids=["tcb", "qe"]
)
class TestOneAnswer:
    def test_signed_and_current(self, raw: bytes, kind: str) -> None:
        found = inspected(raw, SIGNER)
        assert (found.kind, found.authentic()) == (kind, True)
        assert found.facts["version"] in (2, 3)
        assert found.facts["issue_date"]

    def test_in_pretty_print_it_is_another_text(self, raw: bytes, kind: str) -> None:
        assert not inspected(json.dumps(json.loads(raw), indent=1).encode(), SIGNER).authentic()

    def test_needs_its_signer(self, raw: bytes, kind: str) -> None:
        assert not inspected(raw).authentic()

    def test_foreign_root(self, raw: bytes, kind: str) -> None:
        assert not inspected(raw, SIGNER, roots=Roots()).authentic()

    def test_dates(self, raw: bytes, kind: str) -> None:
        assert not inspected(raw, SIGNER, at=VENDOR.now + timedelta(days=400)).authentic()
        assert not inspected(raw, SIGNER, at=VENDOR.issued - timedelta(days=1)).authentic()

    def test_changed(self, raw: bytes, kind: str) -> None:
        for position in range(0, len(raw), 29):
            changed = raw[:position] + bytes([raw[position] ^ 4]) + raw[position + 1 :]
            assert not inspected(changed, SIGNER).authentic(), position
