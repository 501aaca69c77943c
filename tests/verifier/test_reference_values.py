"""Reference values come from the evidence that was appraised; a draft that says otherwise is refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.endorsements.amd import collect
from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.reference.snapshot import Snapshot, TpmPolicy, parse, serialise
from cosmian_vm.verifier.appraisal import appraise, required_checks
from cosmian_vm.verifier.ima import ImaState
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.reference_values import reference_from
from cosmian_vm.verifier.result import CHECK_IDS

KEYS = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
NONCE = sha256(b"nonce").digest()


@pytest.fixture(scope="module")
def vendor() -> AmdVendor:
    return AmdVendor.create(keys=VendorKeys.load(KEYS), now=NOW - timedelta(days=30))


@pytest.fixture
def machine(vendor: AmdVendor) -> Machine:
    return Machine.create(vendor, now=NOW - timedelta(days=1))


def _trusted(machine: Machine, snapshot: Snapshot, policy: Policy | None = None, api: int = 2) -> bool:
    evidence = machine.evidence(NONCE, api=api)
    return appraise(
        evidence,
        machine.vendor.endorsements(),
        snapshot,
        policy or Policy(),
        nonce=NONCE,
        roots=machine.roots,
        now=NOW,
    ).verdict.trusted


def test_what_is_kept_verifies_and_survives_its_file(machine: Machine) -> None:
    values = reference_from(machine.evidence(NONCE), machine.snapshot(), Policy(), now=NOW)
    assert values.differences == ()
    again = parse(serialise(values.snapshot), "snapshot")
    assert again == values.snapshot
    assert _trusted(machine, again)
    assert again.created == "2026-06-01T12:00:00Z"
    assert again.version == 2
    assert again.ima_policy


def test_values_are_the_evidence_s_and_not_the_draft_s(machine: Machine) -> None:
    draft = msgspec.structs.replace(machine.snapshot(), ak_name=None, boot_pcrs=None, clock=None, owners=None)
    kept = reference_from(machine.evidence(NONCE), draft, Policy(), now=NOW).snapshot
    own = machine.snapshot()
    assert (kept.ak_name, kept.boot_pcrs, kept.tpm_policy) == (own.ak_name, own.boot_pcrs, own.tpm_policy)
    assert kept.owners == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ak_name", "000b" + "11" * 32),
        ("tpm_policy", TpmPolicy(reset_count=9, restart_count=0)),
        ("host_data", "22" * 32),
    ],
)
def test_a_draft_that_says_otherwise_is_told(machine: Machine, name: str, value: object) -> None:
    draft = msgspec.structs.replace(machine.snapshot(), **{name: value})
    differences = reference_from(machine.evidence(NONCE), draft, Policy(), now=NOW).differences
    assert len(differences) == 1
    assert differences[0].startswith(name)


def test_a_draft_of_another_guest_is_told(machine: Machine, vendor: AmdVendor) -> None:
    other = Machine.create(vendor, instance=b"second", now=NOW)
    differences = reference_from(machine.evidence(NONCE), other.snapshot(), Policy(), now=NOW).differences
    assert {line.partition(":")[0] for line in differences} == {"tee_policy", "ak_name"}


def test_a_draft_without_file_hashes_is_told(machine: Machine) -> None:
    draft = msgspec.structs.replace(machine.snapshot(), filehashes=None, path_bytes={})
    assert "filehashes" in reference_from(machine.evidence(NONCE), draft, Policy(), now=NOW).differences[0]


def test_without_a_tpm_it_is_kept_that_there_is_none(machine: Machine) -> None:
    machine.tpm = machine.ima = None
    kept = reference_from(machine.evidence(NONCE), machine.snapshot(), Policy(without_tpm=True), now=NOW)
    assert kept.differences == ()
    assert kept.snapshot.without_tpm
    assert kept.snapshot.filehashes is None
    assert _trusted(machine, kept.snapshot)


def test_version_1_keeps_what_1_3_keeps(machine: Machine) -> None:
    values = reference_from(machine.evidence(NONCE, api=1), machine.snapshot(), Policy(api=1), now=NOW)
    assert values.differences == ()
    assert values.snapshot.version == 1
    assert values.snapshot.ak_name is None
    assert values.snapshot.boot_pcrs is None
    assert _trusted(machine, values.snapshot, Policy(api=1), api=1)
    assert not _trusted(machine, values.snapshot, Policy(), api=1)


def test_evidence_without_a_report_is_an_error(machine: Machine) -> None:
    with pytest.raises(EvidenceFormatError):
        reference_from(replace(machine.evidence(NONCE), tee=None), machine.snapshot(), Policy(), now=NOW)


def test_what_is_required(machine: Machine) -> None:
    snapshot = machine.snapshot()
    everything = {i for i in CHECK_IDS if i.startswith(("tee.", "tpm.", "ima."))}
    assert required_checks(snapshot, Policy()) == everything | {"vm.owner"}
    assert required_checks(None, Policy()) < everything
    assert {i for i in everything if i.startswith("tee.")} - required_checks(None, Policy()) == {
        "tee.measurement",
        "tee.instance",
    }
    assert not any(i.startswith(("tpm.", "ima.")) for i in required_checks(snapshot, Policy(without_tpm=True)))


def test_a_verifier_goes_on_from_its_own_state_only(machine: Machine, vendor: AmdVendor) -> None:
    snapshot = machine.snapshot()

    def judge(
        machine: Machine, ima_from: int, prior: ImaState | None = None, reference_id: bytes = b"s"
    ) -> tuple[bool, ImaState | None]:
        evidence = machine.evidence(NONCE, ima_from=ima_from)
        appraisal = appraise(
            evidence,
            collect(evidence.endorsements),
            snapshot,
            Policy(),
            nonce=NONCE,
            roots=machine.roots,
            now=NOW,
            prior=prior,
            reference_id=reference_id,
        )
        return appraisal.verdict.trusted, appraisal.ima_state

    trusted, state = judge(machine, 0)
    assert trusted
    assert state is not None
    machine.run("/opt/app/server")
    assert judge(machine, state.entries, state)[0]
    assert not judge(machine, state.entries, None)[0]
    assert not judge(machine, state.entries, state, b"another snapshot")[0]
    assert not judge(machine, state.entries - 1, state)[0]
    machine.run("/usr/bin/miner", b"unknown")
    assert not judge(machine, state.entries, state)[0]
    machine.reboot()
    assert not judge(machine, state.entries, state)[0]
