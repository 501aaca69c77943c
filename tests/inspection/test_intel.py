"""``inspect`` on Intel's and Azure's formats with a simulated vendor, and on damaged real ones."""

from __future__ import annotations

import json
import random
from datetime import UTC, datetime
from hashlib import sha256, sha384
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.devkit.intel import IntelVendor, Lies, enclave_report, td_body
from cosmian_vm.evidence import boot_log
from cosmian_vm.evidence.azure import parse_hcl_report
from cosmian_vm.evidence.cc_event_log import parse_ccel, parse_rtmr_log, replay_ccel, replay_rtmrs
from cosmian_vm.evidence.tdx import parse_tdreport
from cosmian_vm.inspection import identify
from cosmian_vm.inspection.model import Inspection, Roots

VENDOR = IntelVendor.create()
OTHER = IntelVendor.create()
ROOTS = Roots(extra=(b"no certificate", VENDOR.root.public_bytes(Encoding.DER)))
QUOTE = VENDOR.quote(td_body(report_data=b"\x42" * 64))
COLLATERAL = VENDOR.collateral()


def inspected(raw: bytes, *material: bytes, roots: Roots = ROOTS, at: datetime = VENDOR.now) -> Inspection:
    files = ((f"file {number}", content) for number, content in enumerate(material))
    return identify.inspect(raw, identify.material_of(files), verify=(at, roots))


def statuses(inspection: Inspection) -> dict[str, str]:
    return {check.id: str(check.status) for check in inspection.checks or ()}


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (QUOTE, "tdx-quote"),
        (VENDOR.quote(td_body(td_1_5=True)), "tdx-quote"),
        (VENDOR.quote(enclave_report()), "sgx-quote"),
        (VENDOR.quote(enclave_report(), version=4), "sgx-quote"),
        (QUOTE[:200], "tdx-quote"),
        (b"\x03" + QUOTE[1:], "tdx-quote"),
        (COLLATERAL, "intel-collateral"),
        (COLLATERAL[:-30], "intel-collateral"),
        (b"HCLA" + bytes(100), "hcl-report"),
        (b"\x81\x00\x00\x00" + bytes(1020), "tdreport"),
    ],
    ids=range(10),
)
def test_kinds(raw: bytes, kind: str) -> None:
    inspection = inspected(raw)
    assert inspection.kind == kind
    assert inspection.facts
    assert json.loads(json.dumps(inspection.facts)) == inspection.facts


def test_a_quote_is_authentic_only_under_the_users_own_root() -> None:
    assert inspected(QUOTE).authentic()
    assert inspected(QUOTE, COLLATERAL).authentic(policy=True)
    assert not inspected(QUOTE, COLLATERAL, roots=Roots()).authentic()


def test_the_material_never_makes_a_root() -> None:
    assert not inspected(QUOTE, VENDOR.root.public_bytes(Encoding.DER), COLLATERAL, roots=Roots()).authentic()


def test_the_fitting_collateral_is_chosen() -> None:
    wrong = VENDOR.collateral(tcb_info=VENDOR.tcb_info(fmspc="00" * 6))
    found = statuses(
        inspected(QUOTE, wrong, b'{"tcb_info": 1, "qe_identity": 1}', VENDOR.collateral("SGX"), COLLATERAL)
    )
    assert found["tee.tcb"] == "ok"


def test_crls_beside_a_quote_count() -> None:
    pki = VENDOR.pki
    crls = [pki.crl(issuer, [pki.pck], VENDOR.issued, VENDOR.now) for issuer in (pki.root, pki.authority)]
    assert statuses(inspected(QUOTE, *crls))["tee.revocation"] == "fail"
    assert not inspected(QUOTE, *crls).authentic()


def test_report_data_beside_a_quote() -> None:
    assert statuses(inspected(QUOTE, b"\x42" * 64))["tee.report_data"] == "ok"
    assert statuses(inspected(QUOTE, b"\x43" * 64))["tee.report_data"] == "fail"
    assert "tee.report_data" not in statuses(inspected(QUOTE, b"\x43" * 63))


def test_bytes_behind_a_quote_are_told() -> None:
    inspection = inspected(VENDOR.quote(td_body(), lies=Lies(trailing=b"hello")))
    assert (inspection.facts["trailing_bytes"], inspection.facts["trailing_zeros"]) == (5, False)
    assert statuses(inspection)["trailing_bytes"] == "warning"
    assert inspection.authentic()


def test_facts_of_a_quote_whose_chain_is_unreadable() -> None:
    facts = inspected(VENDOR.quote(td_body(), lies=Lies(chain=b"garbage"))).facts
    assert facts["chain_problem"]
    assert "pck" not in facts


def test_debug_is_policy() -> None:
    inspection = inspected(VENDOR.quote(td_body(td_attributes=b"\x01")), COLLATERAL)
    assert inspection.authentic()
    assert not inspection.authentic(policy=True)


def test_collateral() -> None:
    assert inspected(COLLATERAL).authentic()
    assert not inspected(COLLATERAL, roots=Roots()).authentic()
    assert not inspected(COLLATERAL, at=datetime(2027, 1, 1, tzinfo=UTC)).authentic()
    assert not inspected(VENDOR.collateral(tcb_info=OTHER.tcb_info())).authentic()
    assert not inspected(COLLATERAL[:-30]).authentic()


def ccel(*registers: int) -> bytes:
    return boot_log.make_log(["sha384"], [(r, 4, bytes(4), bytes(4)) for r in registers]) + b"\xff" * 40


def quote_of(values: tuple[bytes, ...], vendor: IntelVendor = VENDOR) -> bytes:
    return vendor.quote(td_body({f"rtmr{index}": value for index, value in enumerate(values)}))


def test_ccel() -> None:
    log = ccel(1, 2, 3, 3)
    values = replay_ccel(parse_ccel(log))
    good = inspected(log, QUOTE, quote_of(values))
    assert good.kind == "cc-event-log"
    assert good.authentic()
    assert not inspected(log).authentic()
    assert not inspected(log, QUOTE).authentic()
    assert not inspected(log, quote_of(values, OTHER)).authentic()
    assert not inspected(ccel(1, 2, 3), quote_of(values)).authentic()
    assert not inspected(log[:-60], quote_of(values)).authentic()
    assert inspected(log[:-60]).kind == "cc-event-log"


def test_a_log_is_of_its_quotes_time() -> None:
    log = ccel(1)
    late = datetime(2050, 1, 1, tzinfo=UTC)
    inspection = inspected(log, quote_of(replay_ccel(parse_ccel(log))), at=late)
    assert statuses(inspection)["tee.chain"] == "warning"
    assert inspection.authentic()


def rtmr_log(payload: str = "abcd") -> bytes:
    digest = sha384(b"\x01\x00\x00\x08:app:\xab\xcd").hexdigest()
    entry = {"imr": 3, "event_type": 0x08000001, "digest": digest, "event": "app", "event_payload": payload}
    return json.dumps([entry]).encode()


def test_rtmr_log() -> None:
    values = replay_rtmrs(parse_rtmr_log(rtmr_log()))
    assert inspected(rtmr_log(), quote_of(values)).authentic()
    assert not inspected(rtmr_log()).authentic()
    assert not inspected(rtmr_log(), QUOTE).authentic()
    assert not inspected(rtmr_log("abce"), quote_of(values)).authentic()
    assert not inspected(rtmr_log()[:-3], quote_of(values)).authentic()


@pytest.mark.evidence
def test_hcl_with_a_td_quote(evidence: Path) -> None:
    raw = (evidence / "azure/kinvolk-tdx/hcl.bin").read_bytes()
    report = parse_hcl_report(raw)
    bound = {"report_data": report.report_data, "mr_td": parse_tdreport(report.tee_report).body.mr_td}
    assert statuses(inspected(raw, VENDOR.quote(td_body(bound))))["tee.signature"] == "ok"
    assert inspected(raw, VENDOR.quote(td_body(bound))).authentic()
    assert not inspected(raw, QUOTE).authentic()
    assert not inspected(raw, OTHER.quote(td_body(bound))).authentic()


DAMAGED = ("tdx/*/quote.bin", "sgx/*/quote.bin", "azure/*/hcl.bin", "tdx/*/event_log.json", "collateral/intel/*.json")


@pytest.mark.evidence
@pytest.mark.parametrize("pattern", DAMAGED)
def test_damaged_real_files_raise_nothing(evidence: Path, pattern: str) -> None:
    """Whatever is wrong is a failed check or a problem; and a bit flip in what is signed is never authentic."""
    generator = random.Random(sha256(pattern.encode()).digest())
    for path in sorted(evidence.glob(pattern)):
        raw = path.read_bytes()
        for _ in range(20):
            damaged = bytearray(raw)
            for _ in range(generator.choice((1, 1, 3, 30))):
                damaged[generator.randrange(len(raw))] = generator.choice((0, 0xFF, 0x30, generator.randrange(256)))
            size = generator.choice((len(raw), len(raw), generator.randrange(len(raw))))
            inspection = inspected(bytes(damaged[:size]), at=datetime(2025, 7, 19, tzinfo=UTC))
            json.dumps(inspection.facts)


@pytest.mark.evidence
@pytest.mark.parametrize("name", ["tdx/phala-v4", "tdx/google-v5", "sgx/phala"])
def test_a_flipped_bit_in_what_is_signed_is_never_authentic(evidence: Path, name: str) -> None:
    raw = (evidence / name / "quote.bin").read_bytes()
    at = datetime(2026, 2, 1, tzinfo=UTC)
    assert inspected(raw, at=at).authentic()
    generator = random.Random(7)
    end = len(raw.rstrip(b"\x00")) - len("-----END CERTIFICATE-----\n")
    for _ in range(60):
        position, bit = generator.randrange(end), generator.randrange(8)
        changed = raw[:position] + bytes([raw[position] ^ 1 << bit]) + raw[position + 1 :]
        if raw[position : position + 1] in b"\r\n" or changed[position : position + 1] in b" \t\r\n":
            continue  # a line break of the PEM text means nothing
        assert not inspected(changed, at=at).authentic(), position
