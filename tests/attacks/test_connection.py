"""Downgrades, relays, and what else the wire allows."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from cosmian_vm.certificates import leaf_der, self_signed, spki_sha256
from cosmian_vm.devkit.amd import AmdVendor
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.evidence.binding import compute_binding
from cosmian_vm.evidence.bundle import ApplicationPeer, TlsPeer
from cosmian_vm.reference.snapshot import Snapshot, TpmPolicy
from cosmian_vm.verifier.result import Status

from .conftest import NONCE, NOW, Judge


def _as_1_3(snapshot: Snapshot) -> Snapshot:
    """The same snapshot as a 1.3.x client would have taken it."""
    return Snapshot(
        cloud_type=snapshot.cloud_type,
        tee_policy=snapshot.tee_policy,
        tpm_policy=snapshot.tpm_policy,
        filehashes=snapshot.filehashes,
        path_bytes=snapshot.path_bytes,
    )


def test_an_agent_that_speaks_only_version_1(machine: Machine, judge: Judge) -> None:
    """A downgrade: nobody asked for version 1, whose answers also bring no revocation list."""
    verdict = judge.verdict(machine.evidence(NONCE, api=1))
    assert not verdict.trusted
    assert "tee.report_data" in {c.id for c in verdict.failures}


def test_a_downgrade_with_a_snapshot_of_1_3_fails_by_its_version_alone(machine: Machine, judge: Judge) -> None:
    assert judge.snapshot is not None
    old = replace(judge, snapshot=_as_1_3(judge.snapshot))
    assert old.failed(machine.evidence(NONCE, api=1)) == {"tee.report_data"}


def test_version_1_when_told_warns_on_what_it_weakens(machine: Machine, judge: Judge) -> None:
    assert judge.snapshot is not None
    told = replace(judge, snapshot=_as_1_3(judge.snapshot)).with_policy(api=1)
    verdict = told.verdict(machine.evidence(NONCE, api=1), machine.vendor.endorsements())
    assert verdict.trusted, [(c.id, c.status, c.line) for c in verdict.checks]
    weak = {c.id for c in verdict.checks if c.status is Status.WARNING}
    assert {"tee.report_data", "tpm.nonce", "tpm.boot_pcrs", "ima.boot_aggregate"} <= weak


@pytest.mark.parametrize("api", [1, 2])
def test_an_old_snapshot_excuses_no_missing_revocation_list(machine: Machine, judge: Judge, api: int) -> None:
    """Its age excuses what it has no values for, and nothing else."""
    assert judge.snapshot is not None
    assert machine.tee is not None
    machine.tee.endorsements = machine.vendor.certificates
    told = replace(judge, snapshot=_as_1_3(judge.snapshot)).with_policy(api=api)
    assert told.failed(machine.evidence(NONCE, api=api)) == {"tee.revocation"}


def test_the_relay_that_version_1_allows(machine: Machine, judge: Judge, vendor: AmdVendor) -> None:
    """The operator answers with a genuine machine of its own and fetches the TPM quote from the administrator's.

    Version 1 can't tell, which is why it must be asked for; version 2 tells.
    """
    assert judge.snapshot is not None
    operators = Machine.create(vendor, instance=b"operator", now=NOW)
    assert operators.tee is not None
    assert machine.tee is not None
    relayed = replace(
        operators.evidence(NONCE, api=1),
        tpm=machine.evidence(NONCE, api=1).tpm,
        ima_log=machine.ima_log(),
    )
    without_instance = msgspec.structs.replace(
        _as_1_3(judge.snapshot),
        tee_policy=operators.snapshot().tee_policy,
    )
    fooled = replace(judge, snapshot=without_instance).with_policy(api=1)
    assert fooled.failed(relayed, vendor.endorsements()) == set()

    relayed = replace(operators.evidence(NONCE), tpm=machine.evidence(NONCE).tpm, ima_log=machine.ima_log())
    same_instance = msgspec.structs.replace(judge.snapshot, tee_policy=operators.snapshot().tee_policy)
    assert replace(judge, snapshot=same_instance).failed(relayed) == {"tee.report_data", "tpm.nonce"}


def test_version_1_is_no_signing_oracle_for_version_2(machine: Machine, judge: Judge, vendor: AmdVendor) -> None:
    """The operator asks the administrator's machine, by version 1, to quote with a version 2 binding as its nonce."""
    assert machine.tpm is not None
    operators = Machine.create(vendor, instance=b"operator", now=NOW)
    # A binding for the operator's own connection, naming the administrator's AK.
    binding = compute_binding(NONCE, spki_sha256(operators.leaf), machine.tpm.ak_public())
    quote = machine.tpm.quote(binding, [10])  # what the version 1 call signs
    honest = machine.evidence(NONCE)
    assert honest.tpm is not None
    assert operators.tee is not None
    from cosmian_vm.evidence.binding import report_data

    forged = replace(
        honest,
        tee=operators.tee.quote(report_data(NONCE, binding)).raw,
        tls=TlsPeer(leaf=operators.leaf, trusted=None),
        tpm=replace(honest.tpm, quote=quote.quote, signature=quote.signature),
    )
    assert judge.snapshot is not None
    same_instance = msgspec.structs.replace(judge.snapshot, tee_policy=operators.snapshot().tee_policy)
    assert "tpm.pcr_selection" in replace(judge, snapshot=same_instance).failed(forged)


def test_version_1_quote_over_a_resettable_pcr(machine: Machine, judge: Judge) -> None:
    """A list that says PCR 16, and a quote over PCR 16, which anybody may reset and extend."""
    assert machine.ima is not None
    assert machine.tpm is not None
    assert judge.snapshot is not None
    from cosmian_vm.devkit.ima import extend_entry

    machine.ima.entries[:] = [entry._replace(pcr=16) for entry in machine.ima.entries]
    for entry in machine.ima.entries:
        extend_entry(entry, machine.tpm)
    told = replace(judge, snapshot=_as_1_3(judge.snapshot)).with_policy(api=1)
    assert "tpm.pcr_selection" in told.failed(machine.evidence(NONCE, api=1))


def test_a_certificate_that_the_usual_checks_refuse(machine: Machine, judge: Judge) -> None:
    tls = TlsPeer(leaf=machine.leaf, trusted=False, problem="self-signed certificate")
    assert judge.failed(replace(machine.evidence(NONCE), tls=tls)) == {"tls.certificate"}


def test_a_connection_to_another_certificate(machine: Machine, judge: Judge) -> None:
    """The evidence is genuine and fresh, but this connection ends somewhere else."""
    other = self_signed("attacker", ["127.0.0.1"], now=NOW)
    tls = TlsPeer(leaf=leaf_der(other.certificate_pem), trusted=None)
    assert judge.failed(replace(machine.evidence(NONCE), tls=tls)) == {"tee.report_data", "tpm.nonce"}


def test_a_connection_whose_certificate_is_garbage(machine: Machine, judge: Judge) -> None:
    tls = TlsPeer(leaf=b"garbage", trusted=None)
    assert "tee.report_data" in judge.failed(replace(machine.evidence(NONCE), tls=tls))


def test_an_application_that_serves_another_certificate(machine: Machine, judge: Judge) -> None:
    other = leaf_der(self_signed("elsewhere", ["127.0.0.1"], now=NOW).certificate_pem)
    good = ApplicationPeer(address="app.example:443", leaf=machine.leaf)
    bad = ApplicationPeer(address="db.example:5432", leaf=other)
    evidence = machine.evidence(NONCE, applications=[good, bad])
    assert judge.failed(evidence) == {"tls.application"}
    lines = [c.line for c in judge.verdict(evidence).of("tls.application") if c.status is Status.FAIL]
    assert len(lines) == 1
    assert "db.example:5432" in lines[0]


def test_an_application_that_cannot_be_reached(machine: Machine, judge: Judge) -> None:
    peer = ApplicationPeer(address="app.example:443", leaf=None, problem="connection refused")
    assert judge.failed(machine.evidence(NONCE, applications=[peer])) == {"tls.application"}


def test_another_owner(machine: Machine, judge: Judge) -> None:
    machine.owners = ("ed25519:mallory",)
    assert judge.failed(machine.evidence(NONCE)) == {"vm.owner"}
    assert judge.with_policy(owner="ed25519:alice").failed(machine.evidence(NONCE)) == {"vm.owner"}


def test_owners_that_the_agent_cannot_read(machine: Machine, judge: Judge) -> None:
    """Its container is locked: that is no machine without an owner."""
    machine.owners = ("unknown",)
    assert judge.failed(machine.evidence(NONCE)) == {"vm.owner"}
    taking = replace(judge, snapshot=None)
    assert taking.failed(machine.evidence(NONCE)) == set()
    assert "locked" in taking.verdict(machine.evidence(NONCE)).of("vm.owner")[0].line
    assert taking.with_policy(owner="ed25519:alice").failed(machine.evidence(NONCE)) == {"vm.owner"}


def test_a_claimed_machine_that_is_unclaimed_again(machine: Machine, judge: Judge) -> None:
    machine.owners = ("ed25519:alice",)
    judge = replace(judge, snapshot=machine.snapshot())
    machine.owners = ()
    assert judge.failed(machine.evidence(NONCE)) == {"vm.owner"}


def test_version_1_does_not_say_that_nobody_owns_it(machine: Machine, judge: Judge) -> None:
    """Whose it is that version does not tell at all: where an owner is expected, that is missing."""
    machine.owners = ("ed25519:alice",)
    judge = replace(judge, snapshot=machine.snapshot()).with_policy(api=1)
    (check,) = judge.verdict(machine.evidence(NONCE, api=1, trusted=True)).of("vm.owner")
    assert check.status is Status.FAIL
    assert "does not tell" in check.line


def test_counts_of_a_1_3_snapshot_are_compared(machine: Machine, judge: Judge) -> None:
    assert judge.snapshot is not None
    other = msgspec.structs.replace(_as_1_3(judge.snapshot), tpm_policy=TpmPolicy(reset_count=99, restart_count=0))
    told = replace(judge, snapshot=other).with_policy(api=1)
    assert told.failed(machine.evidence(NONCE, api=1), machine.vendor.endorsements()) == {"tpm.clock"}


def test_a_required_check_that_nobody_made(machine: Machine, judge: Judge) -> None:
    """The policy wants the application looked at; a verification that was not told where it is proves nothing of it."""
    evidence = machine.evidence(NONCE, trusted=True)
    assert judge.failed(evidence) == set()
    verdict = judge.with_policy(required=frozenset({"tls.application"})).verdict(evidence)
    assert not verdict.trusted
    assert [check.id for check in verdict.skipped_required] == ["tls.application"]
