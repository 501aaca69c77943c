"""The record in a real (software) TPM, and what somebody else with the same TPM can do to it."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tpm2_pytss import ESAPI, ESYS_TR, TPM2B_AUTH, TPM2B_NV_PUBLIC, TPMA_NV, TPMS_NV_PUBLIC, TSS2_Exception
from tpm2_pytss.constants import TPM2_ALG

from cosmian_vm.errors import AttesterError, EvidenceFormatError, NotAvailableError
from cosmian_vm.luks import nv_index
from cosmian_vm.luks.nv_index import FIRST_INDEX, TpmRecords
from cosmian_vm.luks.record import (
    RECORD_SIZE,
    Record,
    make_record,
    parse_record,
    policy_digest,
    serialize_record,
)

Bench = Any  # the fixture's class, of conftest.py

PCRS = (4, 7, 8, 9, 12, 14)
HEADER = sha256(b"header").digest()
FORGED = sha256(b"forged").digest()


def forge(bench: Bench, attributes: int, policy: bytes, content: bytes | None, auth: str = "owner") -> None:
    """Delete the index and define another: the owner has no password."""
    with ESAPI(bench.tcti) as esys:
        esys.nv_undefine_space(esys.tr_from_tpmpublic(FIRST_INDEX))
        public = TPM2B_NV_PUBLIC(
            nvPublic=TPMS_NV_PUBLIC(
                nvIndex=FIRST_INDEX,
                nameAlg=TPM2_ALG.SHA256,
                attributes=attributes,
                authPolicy=policy,
                dataSize=RECORD_SIZE,
            )
        )
        handle = esys.nv_define_space(TPM2B_AUTH(), public)
        if content is not None:
            esys.nv_write(handle, content, 0, auth_handle=ESYS_TR.OWNER if auth == "owner" else handle)


@pytest.fixture
def written(bench: Bench) -> Bench:
    assert bench.records.write(bench.place.digest, HEADER, PCRS) == FIRST_INDEX
    return bench


def forged_content(bench: Bench) -> bytes:
    return serialize_record(make_record(bench.place.digest, FORGED, bench.records.pcr_values(PCRS)))


@pytest.mark.swtpm
def test_written_and_found(written: Bench) -> None:
    (found,) = written.records.find(written.place.digest)
    assert found.genuine
    assert found.changed == ()
    assert found.record.header == HEADER
    assert found.record.pcrs == PCRS
    assert written.records.find(sha256(b"elsewhere").digest()) == []


@pytest.mark.swtpm
def test_another_state_is_told(written: Bench) -> None:
    written.extend(10)  # none of ours
    assert written.records.find(written.place.digest)[0].genuine
    written.extend(12)
    written.extend(9)
    (found,) = written.records.find(written.place.digest)
    assert not found.genuine
    assert found.changed == (9, 12)


@pytest.mark.swtpm
@pytest.mark.parametrize("right", ["owner", "auth"])
def test_an_index_that_others_can_write_is_not_genuine(written: Bench, right: str) -> None:
    more = TPMA_NV.OWNERWRITE if right == "owner" else TPMA_NV.AUTHWRITE
    policy = policy_digest(written.records.pcr_values(PCRS))
    forge(
        written,
        TPMA_NV.POLICYWRITE | TPMA_NV.AUTHREAD | TPMA_NV.NO_DA | more,
        policy,
        forged_content(written),
        auth=right,
    )
    (found,) = written.records.find(written.place.digest)
    assert found.record.header == FORGED
    assert not found.genuine


@pytest.mark.swtpm
def test_with_the_same_public_area_nobody_else_can_write(written: Bench) -> None:
    """The attacker's system has other PCRs: it may define the very index, and the TPM does not let it write."""
    values = written.records.pcr_values(PCRS)
    content = forged_content(written)
    written.extend(4)
    attributes = TPMA_NV.POLICYWRITE | TPMA_NV.AUTHREAD | TPMA_NV.NO_DA
    for auth in ("owner", "index"):
        with pytest.raises(TSS2_Exception):
            forge(written, attributes, policy_digest(values), content, auth=auth)
    with ESAPI(written.tcti) as esys, pytest.raises(TSS2_Exception, match="policy"):
        nv_index._write(esys, esys.tr_from_tpmpublic(FIRST_INDEX), content, PCRS)
    assert written.records.find(written.place.digest) == []
    # an index that was defined and never written does not take its place away for ever
    assert written.records.write(written.place.digest, HEADER, PCRS) == FIRST_INDEX


@pytest.mark.swtpm
def test_a_policy_over_other_pcrs_names_itself(written: Bench) -> None:
    """PCR 15 is the same everywhere: the record says what it stands on, and opening asks for that."""
    values = written.records.pcr_values((15,))
    written.records.remove(written.place.digest)
    written.records.write(written.place.digest, FORGED, (15,))
    (found,) = written.records.find(written.place.digest)
    assert found.genuine
    assert found.record.pcrs == (15,)
    assert values[15] == bytes(32)
    written.place.location.touch()
    written.place.header.write_bytes(b"forged")
    with pytest.raises(AttesterError, match=r"sealed to the PCRs 15, expected are 4\+7"):
        written.container().open()


@pytest.mark.swtpm
def test_full(bench: Bench) -> None:
    digests = [bytes([i]) * 32 for i in range(8)]
    try:
        for digest in digests:
            bench.records.write(digest, HEADER, PCRS)
        with pytest.raises(AttesterError, match="all taken"):
            bench.records.write(bench.place.digest, HEADER, PCRS)
    finally:
        for digest in digests:
            bench.records.remove(digest)
    assert bench.records.write(bench.place.digest, HEADER, PCRS) == FIRST_INDEX


@pytest.mark.swtpm
def test_the_write_is_tried_again_while_pcrs_change(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real = ESAPI.policy_pcr
    times = iter(range(10))

    def policy_pcr(self: ESAPI, *arguments: Any, **more: Any) -> None:
        real(self, *arguments, **more)
        if next(times) < 3:
            from tpm2_pytss import TPML_DIGEST_VALUES
            from tpm2_pytss.types import TPMT_HA, TPMU_HA

            value = TPMT_HA(hashAlg=TPM2_ALG.SHA256, digest=TPMU_HA(sha256=HEADER))
            self.pcr_extend(ESYS_TR.PCR10, TPML_DIGEST_VALUES([value]))

    monkeypatch.setattr(ESAPI, "policy_pcr", policy_pcr)
    bench.records.write(bench.place.digest, HEADER, PCRS)
    assert bench.records.find(bench.place.digest)[0].genuine
    assert next(times) == 4


@pytest.mark.swtpm
def test_an_owner_with_a_password(bench: Bench) -> None:
    with ESAPI(bench.tcti) as esys:
        esys.hierarchy_change_auth(ESYS_TR.OWNER, TPM2B_AUTH(b"secret"))
    try:
        with pytest.raises(AttesterError, match="its owner has a password"):
            bench.records.write(bench.place.digest, HEADER, PCRS)
    finally:
        with ESAPI(bench.tcti) as esys:
            esys.tr_set_auth(ESYS_TR.OWNER, b"secret")
            esys.hierarchy_change_auth(ESYS_TR.OWNER, TPM2B_AUTH())


def test_no_tpm() -> None:
    with pytest.raises(NotAvailableError, match="cannot be opened"):
        TpmRecords("device:/dev/no-tpm-here").find(bytes(32))


RECORDS = st.builds(
    make_record,
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
    st.dictionaries(st.integers(0, 23), st.binary(min_size=32, max_size=32), min_size=1),
)


@given(RECORDS)
def test_round_trip(record: Record) -> None:
    raw = serialize_record(record)
    assert len(raw) == RECORD_SIZE
    assert parse_record(raw) == record
    for size in range(RECORD_SIZE):
        with pytest.raises(EvidenceFormatError):
            parse_record(raw[:size])
    with pytest.raises(EvidenceFormatError):
        parse_record(raw + b"\0")


@given(st.binary(min_size=RECORD_SIZE - 4, max_size=RECORD_SIZE - 4))
def test_any_record(raw: bytes) -> None:
    try:
        record = parse_record(b"CVM1" + raw)
    except EvidenceFormatError:
        return
    assert serialize_record(record) == b"CVM1" + raw
