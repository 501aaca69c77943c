"""Intel quotes: a genuine one passes, and of each lie the one check that names it fails."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.devkit._intel_certificates import issue, sgx_extension
from cosmian_vm.devkit.intel import Document, IntelVendor, Lies, Platform, enclave_report, td_body
from cosmian_vm.endorsements.intel import crl_of, pinned_root
from cosmian_vm.endorsements.intel_collateral import parse_collateral
from cosmian_vm.evidence.intel_quote import parse_quote
from cosmian_vm.evidence.sgx import EnclaveReport
from cosmian_vm.evidence.tdx import TdReportBody
from cosmian_vm.verifier.intel import examine_collateral, examine_quote, verify_quote
from cosmian_vm.verifier.result import Check, Status

VENDOR = IntelVendor.create()
OTHER = IntelVendor.create()
TD = td_body(report_data=b"\x42" * 64)
TD15 = td_body(td_1_5=True)
ENCLAVE = enclave_report(mr_enclave=b"\x11" * 32)
KEY = ec.generate_private_key(ec.SECP256R1())
IDS = ["tee.signature", "tee.chain", "tee.revocation", "tee.tcb", "tee.debug"]


def verified(
    quote: bytes,
    collateral: bytes | None = None,
    *,
    vendor: IntelVendor = VENDOR,
    roots: tuple[x509.Certificate, ...] | None = None,
    now: datetime | None = None,
) -> dict[str, Check]:
    checks = verify_quote(
        parse_quote(quote),
        None if collateral is None else parse_collateral(collateral),
        (vendor.root,) if roots is None else roots,
        now or vendor.now,
    )
    assert [check.id for check in checks] == IDS
    assert all(check.line and "\n" not in check.line for check in checks)
    return {check.id: check for check in checks}


def failing(checks: dict[str, Check]) -> list[str]:
    return [check.id for check in checks.values() if check.status is Status.FAIL]


def pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in certificates)


@pytest.mark.parametrize(("body", "version"), [(TD, None), (TD15, None), (TD, 5), (ENCLAVE, None)])
def test_genuine(body: TdReportBody | EnclaveReport, version: int | None) -> None:
    tee = "SGX" if isinstance(body, EnclaveReport) else "TDX"
    checks = verified(VENDOR.quote(body, version=version), VENDOR.collateral(tee))
    assert {check.status for check in checks.values()} == {Status.OK}


def test_without_collateral_revocation_and_tcb_are_open() -> None:
    checks = verified(VENDOR.quote(TD))
    assert failing(checks) == []
    for check_id in ("tee.revocation", "tee.tcb"):
        assert checks[check_id].status is Status.SKIP
        assert "PCS" in checks[check_id].line


def test_a_root_of_ones_own_is_named_as_such() -> None:
    assert "a root of your own" in verified(VENDOR.quote(TD))["tee.chain"].line


@pytest.mark.parametrize("at", [8, 30, 48, 48 + 136, 48 + 583, 48 + 584 + 4, 48 + 584 + 4 + 64])
def test_every_signed_byte_counts(at: int) -> None:
    raw = bytearray(VENDOR.quote(TD))
    raw[at] ^= 1
    assert failing(verified(bytes(raw))) == ["tee.signature"]


def test_bytes_of_the_qe_report_and_its_signature_count() -> None:
    genuine = VENDOR.quote(TD)
    start = 48 + 584 + 4 + 128 + 6
    for at in (start, start + 64, start + 128, start + 320, start + 383, start + 384, start + 447, start + 450):
        raw = bytearray(genuine)
        raw[at] ^= 1
        assert failing(verified(bytes(raw))) == ["tee.signature"], at


@pytest.mark.parametrize(
    "lies",
    [
        Lies(vendor_id=bytes(16)),
        Lies(signer=KEY),
        Lies(qe={"report_data": bytes(64)}),
        Lies(qe={"mr_signer": b"\x01" * 32}),
        Lies(qe={"isv_prod_id": 9}),
        Lies(qe={"attributes": bytes.fromhex("1300000000000000e700000000000000")}),
    ],
)
@pytest.mark.parametrize("collateral", [None, VENDOR.collateral()], ids=["alone", "collateral"])
def test_another_enclave_than_intels_quoting_enclave(lies: Lies, collateral: bytes | None) -> None:
    assert failing(verified(VENDOR.quote(TD, lies=lies), collateral)) == ["tee.signature"]


def test_the_hash_of_the_attestation_key_must_be_followed_by_zeros() -> None:
    genuine = parse_quote(VENDOR.quote(TD)).signature.qe_report.report_data
    quote = VENDOR.quote(TD, lies=Lies(qe={"report_data": genuine[:32] + b"\x01"}))
    assert failing(verified(quote)) == ["tee.signature"]


def test_an_attestation_key_that_is_no_point_signs_nothing() -> None:
    raw = bytearray(VENDOR.quote(TD))
    raw[48 + 584 + 4 + 64 : 48 + 584 + 4 + 128] = b"\xff" * 64
    assert failing(verified(bytes(raw))) == ["tee.signature"]


def test_a_root_that_the_verifier_was_not_given() -> None:
    for roots in ((), (pinned_root(),), (OTHER.root,)):
        checks = verified(VENDOR.quote(TD), VENDOR.collateral(), roots=roots)
        assert checks["tee.chain"].status is Status.FAIL
        assert checks["tee.signature"].status is Status.OK
        assert checks["tee.tcb"].status is Status.SKIP


def test_a_pck_chain_of_another_root() -> None:
    """Another vendor's platform: its chain, signed by its PCK, under names that are all right."""
    quote = VENDOR.quote(TD, lies=Lies(chain=OTHER.pki.pck_chain, signer=OTHER.pki.pck_key))
    assert failing(verified(quote)) == ["tee.chain"]


def test_a_root_re_signed_or_damaged_is_not_the_root() -> None:
    key = VENDOR.pki.root_key
    twin = issue("Intel SGX Root CA", key, VENDOR.root.subject, key, path_length=1)
    chain = pem(VENDOR.pki.pck, VENDOR.pki.authority, twin)
    assert failing(verified(VENDOR.quote(TD, lies=Lies(chain=chain)))) == ["tee.chain"]


def test_a_chain_without_its_root_is_enough() -> None:
    chain = pem(VENDOR.pki.pck, VENDOR.pki.authority)
    assert failing(verified(VENDOR.quote(TD, lies=Lies(chain=chain)))) == []


def chains() -> dict[str, bytes]:
    pki = VENDOR.pki
    extension = sgx_extension(Platform())
    by_pck = issue("Intel SGX PCK Certificate", KEY, pki.pck.subject, pki.pck_key, extension=extension)
    by_signer = issue("Intel SGX PCK Certificate", KEY, pki.signer.subject, pki.signer_key, extension=extension)
    by_root = issue("Intel SGX PCK Certificate", KEY, pki.root.subject, pki.root_key, extension=extension)
    authority = issue("Intel SGX PCK Certificate", KEY, pki.authority.subject, pki.authority_key, path_length=0)
    bare = issue("Intel SGX PCK Certificate", KEY, pki.authority.subject, pki.authority_key)
    wrong_name = issue("Intel SGX TCB Signing", KEY, pki.authority.subject, pki.authority_key, extension=extension)
    forged = issue("Intel SGX PCK Certificate", KEY, pki.authority.subject, KEY, extension=extension)
    second = ec.generate_private_key(ec.SECP256R1())
    too_deep = issue("Intel SGX PCK Platform CA", second, pki.authority.subject, pki.authority_key, path_length=0)
    below = issue("Intel SGX PCK Certificate", KEY, too_deep.subject, second, extension=extension)
    return {
        "issued by a PCK": pem(by_pck, pki.pck, pki.authority, pki.root),
        "issued by the TCB signer": pem(by_signer, pki.signer, pki.root),
        "issued by the root itself": pem(by_root, pki.root),
        "an authority": pem(authority, pki.authority, pki.root),
        "without SGX extension": pem(bare, pki.authority, pki.root),
        "of another name": pem(wrong_name, pki.authority, pki.root),
        "signed by somebody": pem(forged, pki.authority, pki.root),
        "below a path length": pem(below, too_deep, pki.authority, pki.root),
        "the root alone": pem(pki.root),
        "in the wrong order": pem(pki.pck, pki.root, pki.authority),
    }


@pytest.mark.parametrize("chain", chains().values(), ids=chains())
def test_chains_that_are_not_those_of_a_pck(chain: bytes) -> None:
    quote = VENDOR.quote(TD, lies=Lies(chain=chain, signer=KEY))
    assert "tee.chain" in failing(verified(quote, VENDOR.collateral()))


@pytest.mark.parametrize("chain", [b"", b"garbage", VENDOR.pki.pck_chain[:-20]])
def test_a_chain_that_cannot_be_read(chain: bytes) -> None:
    checks = verified(VENDOR.quote(TD, lies=Lies(chain=chain)), VENDOR.collateral())
    assert failing(checks) == ["tee.signature", "tee.chain"]


def test_certification_data_of_another_type_is_named() -> None:
    checks = verified(VENDOR.quote(TD, lies=Lies(cert_data_type=3, chain=bytes(404))))
    assert "certification data type 3" in checks["tee.chain"].line


def test_dates() -> None:
    quote = VENDOR.quote(TD)
    early, late = VENDOR.now - timedelta(days=4000), VENDOR.now + timedelta(days=4000)
    assert failing(verified(quote, now=early)) == ["tee.chain"]
    assert failing(verified(quote, now=late)) == ["tee.chain"]
    assert "expired" in verified(quote, now=late)["tee.chain"].line


def test_stale_collateral() -> None:
    checks = verified(VENDOR.quote(TD), VENDOR.collateral(), now=VENDOR.now + timedelta(days=30))
    assert failing(checks) == ["tee.chain", "tee.revocation"]
    assert checks["tee.tcb"].status is Status.SKIP
    checks = verified(VENDOR.quote(TD), VENDOR.collateral(), now=VENDOR.issued - timedelta(days=1))
    assert failing(checks) == ["tee.chain", "tee.revocation"]


def with_document(part: str, document: Document) -> bytes:
    if part == "tcb_info":
        return VENDOR.collateral(tcb_info=document)
    return VENDOR.collateral(qe_identity=document)


@pytest.mark.parametrize("part", ["tcb_info", "qe_identity"])
def test_expired_document(part: str) -> None:
    for dates in ({"nextUpdate": "2026-01-01T12:00:00Z"}, {"issueDate": "2026-01-05T00:00:00Z"}):
        collateral = with_document(part, getattr(VENDOR, part)(**dates))
        assert failing(verified(VENDOR.quote(TD), collateral)) == ["tee.chain"]


@pytest.mark.parametrize("part", ["tcb_info", "qe_identity"])
def test_document_signed_by_another_key(part: str) -> None:
    value = json.loads(getattr(VENDOR, part)().text)
    for key in (KEY, VENDOR.pki.pck_key, VENDOR.pki.root_key):
        collateral = with_document(part, VENDOR.document(value, key))
        assert failing(verified(VENDOR.quote(TD), collateral)) == ["tee.chain"]


def test_document_signed_by_a_pck_that_names_itself() -> None:
    """A PCK certificate hangs on the same root: it must not be taken for the TCB signer."""
    document = VENDOR.document(json.loads(VENDOR.tcb_info().text), VENDOR.pki.pck_key)
    chain = pem(VENDOR.pki.pck, VENDOR.pki.authority, VENDOR.root).decode()
    collateral = VENDOR.collateral(tcb_info=document, tcb_info_issuer_chain=chain)
    assert failing(verified(VENDOR.quote(TD), collateral)) == ["tee.chain"]


def test_a_changed_document() -> None:
    document = VENDOR.tcb_info()
    changed = replace(document, text=document.text.replace('"pcesvn":13', '"pcesvn":12'))
    assert changed != document
    assert failing(verified(VENDOR.quote(TD), VENDOR.collateral(tcb_info=changed))) == ["tee.chain"]


def test_collateral_of_another_vendor() -> None:
    checks = verified(VENDOR.quote(TD), OTHER.collateral())
    assert failing(checks) == ["tee.chain", "tee.revocation"]


def test_collateral_of_another_platform() -> None:
    checks = verified(VENDOR.quote(TD), VENDOR.collateral(tcb_info=VENDOR.tcb_info(fmspc="00" * 6)))
    assert failing(checks) == ["tee.tcb"]
    assert "FMSPC" in checks["tee.tcb"].line
    checks = verified(VENDOR.quote(TD), VENDOR.collateral(tcb_info=VENDOR.tcb_info(pceId="0001")))
    assert failing(checks) == ["tee.tcb"]


def test_collateral_of_the_other_tee() -> None:
    checks = verified(VENDOR.quote(TD), VENDOR.collateral("SGX"))
    assert "tee.signature" in failing(checks)
    checks = verified(VENDOR.quote(TD), VENDOR.collateral(tcb_info=VENDOR.tcb_info("SGX")))
    assert failing(checks) == ["tee.tcb"]
    assert "is for 'SGX'" in checks["tee.tcb"].line


@pytest.mark.parametrize("who", ["pck", "authority"])
def test_revoked(who: str) -> None:
    checks = verified(VENDOR.quote(TD), VENDOR.collateral(revoked=[getattr(VENDOR.pki, who)]))
    assert "tee.revocation" in failing(checks)
    assert "revoked" in checks["tee.revocation"].line
    if who == "pck":
        assert failing(checks) == ["tee.revocation"]


def test_a_revoked_tcb_signer() -> None:
    checks = verified(VENDOR.quote(TD), VENDOR.collateral(revoked=[VENDOR.pki.signer]))
    assert failing(checks) == ["tee.chain"]
    assert "revoked" in checks["tee.chain"].line


def test_crls_that_their_issuers_did_not_sign() -> None:
    end = VENDOR.now + timedelta(days=9)
    foreign_root = OTHER.pki.crl(OTHER.root, (), VENDOR.issued, end).hex()
    foreign_pck = OTHER.pki.crl(OTHER.pki.authority, (), VENDOR.issued, end).hex()
    for collateral in (VENDOR.collateral(root_ca_crl=foreign_root), VENDOR.collateral(pck_crl=foreign_pck)):
        checks = verified(VENDOR.quote(TD), collateral)
        assert failing(checks) == ["tee.chain", "tee.revocation"]
        assert "not signed" in checks["tee.revocation"].line


def test_crls_alone_decide_revocation() -> None:
    pki, quote = VENDOR.pki, parse_quote(VENDOR.quote(TD))
    end = VENDOR.now + timedelta(days=9)

    def revocation(*ders: bytes) -> Check:
        crls = [crl_of(der, "CRL") for der in ders]
        return verify_quote(quote, None, (VENDOR.root,), VENDOR.now, crls=crls)[2]

    root_crl, pck_crl = (pki.crl(issuer, (), VENDOR.issued, end) for issuer in (pki.root, pki.authority))
    revoked = pki.crl(pki.authority, [pki.pck], VENDOR.issued, end)
    old = pki.crl(pki.authority, (), VENDOR.issued, VENDOR.issued)
    assert revocation(root_crl, pck_crl).status is Status.OK
    assert revocation(root_crl).status is Status.FAIL
    assert revocation(pck_crl).status is Status.FAIL
    assert revocation(root_crl, pck_crl, revoked).status is Status.FAIL
    assert revocation(root_crl, old).status is Status.FAIL
    assert revocation(root_crl, old, pck_crl).status is Status.OK


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("UpToDate", Status.OK),
        ("SWHardeningNeeded", Status.WARNING),
        ("ConfigurationNeeded", Status.WARNING),
        ("ConfigurationAndSWHardeningNeeded", Status.FAIL),
        ("OutOfDate", Status.FAIL),
        ("OutOfDateConfigurationNeeded", Status.FAIL),
        ("Revoked", Status.FAIL),
        ("SomethingNew", Status.FAIL),
    ],
)
@pytest.mark.parametrize("tee", ["TDX", "SGX"])
def test_tcb_statuses(status: str, expected: Status, tee: str) -> None:
    body = TD if tee == "TDX" else ENCLAVE
    info = VENDOR.tcb_info(tee, status=status, advisories=["INTEL-SA-00001"])
    check = verified(VENDOR.quote(body), VENDOR.collateral(tee, tcb_info=info))["tee.tcb"]
    assert check.status is expected
    if status != "SomethingNew":
        assert check.details == ("INTEL-SA-00001",)
    if expected is Status.WARNING:
        assert "INTEL-SA-00001" in check.line


@pytest.mark.parametrize(
    ("platform", "reason"),
    [
        (Platform(pce_svn=12), "below every TCB level"),
        (Platform(components=(3, *Platform().components[1:])), "below every TCB level"),
        (Platform(components=(255, *Platform().components[1:])), ""),
    ],
)
def test_tcb_levels_are_reached_component_by_component(platform: Platform, reason: str) -> None:
    vendor = IntelVendor.create(platform)
    level = json.loads(VENDOR.tcb_info().text)
    collateral = vendor.collateral(tcb_info=vendor.document(level))
    check = verified(vendor.quote(TD), collateral, vendor=vendor)["tee.tcb"]
    assert check.status is (Status.FAIL if reason else Status.OK)
    assert reason in check.line


def svn(*first: int) -> bytes:
    return bytes(first).ljust(16, b"\x00")


def tcb_of(body: TdReportBody, info: dict[str, Any] | None = None) -> Check:
    document = VENDOR.tcb_info() if info is None else VENDOR.document(info)
    checks = verified(VENDOR.quote(body), VENDOR.collateral(tcb_info=document))
    assert set(failing(checks)) <= {"tee.tcb"}
    return checks["tee.tcb"]


def test_the_tdx_module_has_levels_of_its_own() -> None:
    assert tcb_of(td_body(tee_tcb_svn=svn(4, 1, 3))).status is Status.FAIL
    assert tcb_of(td_body(tee_tcb_svn=svn(6, 1, 3))).status is Status.OK
    assert "below every TCB level" in tcb_of(td_body(tee_tcb_svn=svn(5, 1, 2))).line
    assert "version 9" in tcb_of(td_body(tee_tcb_svn=svn(5, 9, 3))).line
    assert "signed by" in tcb_of(td_body(mr_signer_seam=b"\x01")).line
    assert "attributes" in tcb_of(td_body(seam_attributes=b"\x01")).line
    info = json.loads(VENDOR.tcb_info().text)
    info["tdxModuleIdentities"][0]["attributesMask"] = "00" * 8
    assert "attributes" in tcb_of(td_body(seam_attributes=b"\x01"), info).line


def test_an_old_module_drags_the_platform_with_it() -> None:
    info = json.loads(VENDOR.tcb_info().text)
    level = info["tdxModuleIdentities"][0]["tcbLevels"][0]
    info["tdxModuleIdentities"][0]["tcbLevels"] = [{**level, "tcbStatus": "OutOfDate", "advisoryIDs": ["INTEL-SA-7"]}]
    check = tcb_of(TD, info)
    assert check.line.startswith("OutOfDate ")
    assert "INTEL-SA-7" in check.line


def test_an_old_quoting_enclave_drags_the_platform_with_it() -> None:
    for status in ("OutOfDate", "Revoked"):
        identity = VENDOR.qe_identity(status=status)
        checks = verified(VENDOR.quote(TD), VENDOR.collateral(qe_identity=identity))
        assert failing(checks) == ["tee.tcb"]
        assert checks["tee.tcb"].line.startswith(status)
    quote = VENDOR.quote(TD, lies=Lies(qe={"isv_svn": 1}))
    assert failing(verified(quote, VENDOR.collateral())) == ["tee.tcb"]


def test_a_td_that_outlived_an_update_must_be_launched_again() -> None:
    info = json.loads(VENDOR.tcb_info().text)
    levels = info["tdxModuleIdentities"][0]["tcbLevels"]
    levels.append({**levels[0], "tcb": {"isvsvn": 2}, "tcbStatus": "OutOfDate"})
    launched_old = td_body(td_1_5=True, tee_tcb_svn=svn(2, 1, 3))
    assert tcb_of(launched_old, info).line.startswith("TDRelaunchAdvised ")
    still_old = td_body(td_1_5=True, tee_tcb_svn=svn(2, 1, 3), tee_tcb_svn2=svn(2, 1, 3))
    assert tcb_of(still_old, info).line.startswith("OutOfDate ")
    levels[1]["tcbStatus"] = "Revoked"
    now_revoked = td_body(td_1_5=True, tee_tcb_svn2=svn(2, 1, 3))
    assert tcb_of(now_revoked, info).line.startswith("Revoked ")


def test_levels_are_tried_highest_first_whatever_their_order() -> None:
    info = json.loads(VENDOR.tcb_info().text)
    low = json.loads(json.dumps(info["tcbLevels"][0]))
    low["tcb"]["pcesvn"], low["tcbStatus"] = 1, "OutOfDate"
    info["tcbLevels"] = [low, *info["tcbLevels"]]
    assert tcb_of(TD, info).status is Status.OK


@pytest.mark.parametrize(
    ("attributes", "word"),
    [
        ("0100001000000000", "debug"),
        ("1000001000000000", "profiled"),
        ("0000003000000000", "migrated"),
        ("0000021000000000", "service TD"),
        ("0200001000000000", "reserved"),
    ],
)
def test_td_attributes_that_let_the_host_in(attributes: str, word: str) -> None:
    body = td_body(td_attributes=bytes.fromhex(attributes))
    checks = verified(VENDOR.quote(body), VENDOR.collateral())
    assert failing(checks) == ["tee.debug"]
    assert word in checks["tee.debug"].line
    assert checks["tee.tcb"].status is Status.OK


def test_a_service_td() -> None:
    checks = verified(VENDOR.quote(td_body(td_1_5=True, mr_service_td=b"\x01")), VENDOR.collateral())
    assert failing(checks) == ["tee.debug"]


def test_a_td_without_sept_ve_disable_as_on_azure_is_judged_all_the_same() -> None:
    checks = verified(VENDOR.quote(td_body(td_attributes=bytes(8))), VENDOR.collateral())
    assert failing(checks) == []
    assert checks["tee.tcb"].status is Status.OK
    assert any("SEPT_VE_DISABLE" in detail for detail in checks["tee.debug"].details)


def test_a_debug_enclave() -> None:
    body = enclave_report(attributes=bytes.fromhex("0700000000000000e700000000000000"))
    assert failing(verified(VENDOR.quote(body), VENDOR.collateral("SGX"))) == ["tee.debug"]


def test_what_stands_behind_a_quote_changes_nothing() -> None:
    checks = verified(VENDOR.quote(TD, lies=Lies(trailing=b"whatever")), VENDOR.collateral())
    assert failing(checks) == []


def test_two_procedures_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    quote, collateral = VENDOR.quote(TD), VENDOR.collateral()

    for theirs in (("SWHardeningNeeded", ()), ("UpToDate", ("INTEL-SA-1",))):
        answer = SimpleNamespace(status=theirs[0], advisory_ids=theirs[1])
        monkeypatch.setattr("dcap_qvl.verify_with_root_ca", lambda *_, answer=answer: answer)
        assert failing(verified(quote, collateral)) == ["tee.tcb"]

    def refuses(*_: object) -> None:
        raise ValueError("Verification failed: something else")

    monkeypatch.setattr("dcap_qvl.verify_with_root_ca", refuses)
    checks = verified(quote, collateral)
    assert failing(checks) == ["tee.tcb"]
    assert "dcap-qvl refuses the quote: something else" in checks["tee.tcb"].line


def test_examine_quote_tells_the_signatures_apart() -> None:
    crypto = examine_quote(parse_quote(VENDOR.quote(TD, lies=Lies(signer=KEY))), (VENDOR.root,))
    assert (crypto.quote_signature, crypto.qe_binding, crypto.qe_signature) == (True, True, False)
    assert crypto.path is not None


def test_examine_collateral_names_each_document() -> None:
    collateral = parse_collateral(VENDOR.collateral(tcb_info=OTHER.tcb_info()))
    checks = examine_collateral(collateral, (VENDOR.root,), VENDOR.now).checks()
    assert {c.id: str(c.status) for c in checks} == {
        "collateral.tcb_info": "fail",
        "collateral.qe_identity": "ok",
        "collateral.root_crl": "ok",
        "collateral.pck_crl": "ok",
    }
