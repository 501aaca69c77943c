"""Lists that lie about what ran, and programs that should not have run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256

import msgspec
import pytest

from cosmian_vm.devkit.ima import IMA_POLICY_PATH
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.evidence.ima import ImaEntry, make_entry, serialise_binary
from cosmian_vm.reference.whitelist import parse_whitelist
from cosmian_vm.verifier.result import CHECK_IDS, Check, Status

from .conftest import NONCE, Judge

IMA_IDS = {check_id for check_id in CHECK_IDS if check_id.startswith("ima.")}


def _entries(machine: Machine) -> list[ImaEntry]:
    assert machine.ima is not None
    return machine.ima.entries


def _forge(machine: Machine, entries: list[ImaEntry]) -> None:
    machine.forged_ima_log = serialise_binary(entries)


def _names(check: Check, text: str) -> bool:
    return any(text in line for line in (check.line, *check.details))


# What ran


def test_an_unknown_program(machine: Machine, judge: Judge) -> None:
    machine.run("/usr/bin/miner", b"unknown")
    assert judge.failed(machine.evidence(NONCE)) == {"ima.files"}
    check = judge.verdict(machine.evidence(NONCE)).of("ima.files")[0]
    assert _names(check, "/usr/bin/miner")
    assert _names(check, sha256(b"unknown").hexdigest())


def test_a_changed_program(machine: Machine, judge: Judge) -> None:
    machine.run("/usr/bin/ls", b"backdoor")
    assert judge.failed(machine.evidence(NONCE)) == {"ima.files"}
    check = judge.verdict(machine.evidence(NONCE)).of("ima.files")[0]
    assert _names(check, "/usr/bin/ls")
    assert _names(check, "changed")


def test_a_known_program_under_another_name(machine: Machine, judge: Judge) -> None:
    """The digest is known, the path is not: a renamed interpreter is not expected there."""
    machine.run("/opt/x", machine.files["/usr/bin/bash"])
    assert judge.failed(machine.evidence(NONCE)) == {"ima.files"}


def test_whitelisted_programs_are_expected(machine: Machine, judge: Judge) -> None:
    machine.run("/usr/bin/a new tool", b"tool")
    digest = sha256(b"tool").hexdigest()
    allowed = replace(judge, whitelist=parse_whitelist(f"/usr/bin/a new tool {digest}\n".encode(), "whitelist"))
    assert allowed.failed(machine.evidence(NONCE)) == set()
    other = replace(judge, whitelist=parse_whitelist(f"/usr/bin/a new tool {'0' * 64}\n".encode(), "whitelist"))
    assert other.failed(machine.evidence(NONCE)) == {"ima.files"}


def test_what_ran_after_the_quote_is_judged_too(machine: Machine, judge: Judge) -> None:
    """The list grew between the quote and its reading: the prefix replays, the rest is compared all the same."""
    evidence = machine.evidence(NONCE)
    machine.run("/usr/bin/miner", b"unknown")
    late = replace(evidence, ima_log=machine.ima_log())
    assert judge.failed(late) == {"ima.files"}


def test_spaces_and_underscores_are_one(machine: Machine, judge: Judge) -> None:
    machine.run("/usr/bin/a program with spaces")
    assert judge.failed(machine.evidence(NONCE)) == set()


# Lists that lie


def test_an_entry_removed(machine: Machine, judge: Judge) -> None:
    machine.run("/usr/bin/miner", b"unknown")
    _forge(machine, [e for e in _entries(machine) if e.path != b"/usr/bin/miner"][:-1])
    assert judge.failed(machine.evidence(NONCE)) == {"ima.replay"}


def test_the_last_entry_removed(machine: Machine, judge: Judge) -> None:
    machine.run("/usr/bin/miner", b"unknown")
    _forge(machine, _entries(machine)[:-1])
    assert judge.failed(machine.evidence(NONCE)) == {"ima.replay"}


def test_an_entry_changed(machine: Machine, judge: Judge) -> None:
    machine.run("/usr/bin/ls", b"backdoor")
    forged = [
        make_entry("ima-ng", "sha256", sha256(b"list").digest(), b"/usr/bin/ls")
        if e.digest == sha256(b"backdoor").digest()
        else e
        for e in _entries(machine)
    ]
    _forge(machine, forged)
    assert judge.failed(machine.evidence(NONCE)) == {"ima.replay"}


def test_entries_reordered(machine: Machine, judge: Judge) -> None:
    entries = list(_entries(machine))
    entries[2], entries[3] = entries[3], entries[2]
    _forge(machine, entries)
    assert judge.failed(machine.evidence(NONCE)) == {"ima.replay"}


def test_an_entry_inserted(machine: Machine, judge: Judge) -> None:
    entries = list(_entries(machine))
    entries.insert(2, make_entry("ima-ng", "sha256", sha256(b"application").digest(), b"/opt/app/server"))
    _forge(machine, entries)
    assert judge.failed(machine.evidence(NONCE)) == {"ima.replay"}


def test_an_entry_appended_that_was_never_extended(machine: Machine, judge: Judge) -> None:
    """It can't be told from one that came after the quote; so it is judged by the snapshot, and blames the machine."""
    entry = make_entry("ima-ng", "sha256", sha256(b"unknown").digest(), b"/usr/bin/miner")
    _forge(machine, [*_entries(machine), entry])
    assert judge.failed(machine.evidence(NONCE)) == {"ima.files"}


def test_a_template_hash_that_does_not_match_its_data(machine: Machine, judge: Judge) -> None:
    """The hash is the true one, the data beside it is not: whoever trusts the hash is shown another story."""
    machine.run("/usr/bin/ls", b"backdoor")
    entries = list(_entries(machine))
    innocent = make_entry("ima-ng", "sha256", sha256(b"list").digest(), b"/usr/bin/ls")
    entries[-1] = entries[-1]._replace(data=innocent.data)
    _forge(machine, entries)
    assert judge.failed(machine.evidence(NONCE)) == {"ima.replay"}


def test_a_template_hash_behind_the_prefix_that_does_not_match(machine: Machine, judge: Judge) -> None:
    evidence = machine.evidence(NONCE)
    late = make_entry("ima-ng", "sha256", sha256(b"application").digest(), b"/opt/app/server")
    forged = serialise_binary([*_entries(machine), late._replace(template_hash=b"\1" * 20)])
    assert judge.failed(replace(evidence, ima_log=forged)) == {"ima.replay"}


def test_a_list_that_hides_a_violation(machine: Machine, judge: Judge) -> None:
    assert machine.ima is not None
    machine.ima.violate("/usr/bin/bash")
    _forge(machine, _entries(machine)[:-1])
    assert judge.failed(machine.evidence(NONCE)) == {"ima.replay"}


def test_a_violation_shown_as_an_ordinary_entry(machine: Machine, judge: Judge) -> None:
    assert machine.ima is not None
    machine.ima.violate("/opt/app/server")
    entries = list(_entries(machine))
    entries[-1] = make_entry("ima-ng", "sha256", sha256(b"application").digest(), b"/opt/app/server")
    _forge(machine, entries)
    assert judge.failed(machine.evidence(NONCE)) == {"ima.replay"}


def test_an_empty_list(machine: Machine, judge: Judge) -> None:
    """The empty prefix "replays" to a PCR that was never extended."""
    machine.forged_ima_log = b""
    assert machine.tpm is not None
    machine.tpm.pcrs["sha256"][10] = bytes(32)
    failed = judge.failed(machine.evidence(NONCE))
    assert "ima.replay" in failed


def test_a_zero_pcr_with_a_true_list(machine: Machine, judge: Judge) -> None:
    assert machine.tpm is not None
    machine.tpm.pcrs["sha256"][10] = bytes(32)
    assert "ima.replay" in judge.failed(machine.evidence(NONCE))


def test_a_prefix_that_stops_before_boot_aggregate(machine: Machine, judge: Judge) -> None:
    """PCR 10 as it was before IMA started: no entry replays to it, and the list that follows proves nothing."""
    assert machine.tpm is not None
    machine.tpm.pcrs["sha256"][10] = bytes(32)
    _forge(machine, _entries(machine)[1:])
    failed = judge.failed(machine.evidence(NONCE))
    assert "ima.replay" in failed


def test_a_list_without_boot_aggregate_that_replays(machine: Machine, judge: Judge) -> None:
    """A kernel that somebody else booted could extend PCR 10 with a list of its own making."""
    assert machine.tpm is not None
    machine.tpm.pcrs["sha256"][10] = bytes(32)
    from cosmian_vm.devkit.ima import extend_entry

    rest = _entries(machine)[1:]
    for entry in rest:
        extend_entry(entry, machine.tpm)
    _forge(machine, rest)
    failed = judge.failed(machine.evidence(NONCE))
    assert failed
    assert failed <= {"ima.replay", "ima.boot_aggregate"}


def test_boot_aggregate_of_another_boot(machine: Machine, judge: Judge) -> None:
    assert machine.tpm is not None
    from cosmian_vm.devkit.ima import extend_entry

    machine.tpm.pcrs["sha256"][10] = bytes(32)
    forged = [make_entry("ima-ng", "sha256", bytes(range(32)), b"boot_aggregate"), *_entries(machine)[1:]]
    for entry in forged:
        extend_entry(entry, machine.tpm)
    _forge(machine, forged)
    assert judge.failed(machine.evidence(NONCE)) == {"ima.boot_aggregate"}


@pytest.mark.parametrize("padding", [0, 2000])
def test_another_kernel_started_with_kexec(machine: Machine, judge: Judge, padding: int) -> None:
    """It puts a boot_aggregate into the list anew. The agent's snapshots name all that the list named, and so the
    first one, of the same PCRs: that must not excuse the second. (``padding``: both ways of looking files up.)
    """
    assert judge.snapshot is not None
    assert judge.snapshot.filehashes is not None
    digest = _entries(machine)[0].digest
    assert digest is not None
    many = [(f"/usr/share/{number}", "00" * 32) for number in range(padding)]
    listed = (*judge.snapshot.filehashes, *many, ("boot_aggregate", digest.hex()))
    known = replace(judge, snapshot=msgspec.structs.replace(judge.snapshot, filehashes=listed))
    assert known.failed(machine.evidence(NONCE)) == set()
    assert machine.ima is not None
    machine.ima.boot()
    assert known.failed(machine.evidence(NONCE)) == {"ima.files"}
    assert "kexec" in known.verdict(machine.evidence(NONCE)).of("ima.files")[0].line
    allowed = parse_whitelist(b"boot_aggregate " + digest.hex().encode(), "whitelist")
    assert replace(known, whitelist=allowed).failed(machine.evidence(NONCE)) == set()


def test_an_entry_for_a_resettable_pcr(machine: Machine, judge: Judge) -> None:
    """An entry moved to a PCR that nobody quoted would be judged by nobody."""
    machine.run("/usr/bin/miner", b"unknown")
    entries = list(_entries(machine))
    entries[-1] = entries[-1]._replace(pcr=16)
    _forge(machine, entries)
    assert "ima.replay" in judge.failed(machine.evidence(NONCE))


@pytest.mark.parametrize("cut", [1, 3, 19, 30])
def test_a_truncated_list(machine: Machine, judge: Judge, cut: int) -> None:
    log = machine.ima_log()
    assert log is not None
    machine.forged_ima_log = log[:-cut]
    # The machine's own evidence can't be made from a list that does not parse, so it is put in afterwards.
    machine_log, machine.forged_ima_log = machine.forged_ima_log, None
    assert "ima.replay" in judge.failed(replace(machine.evidence(NONCE), ima_log=machine_log))


def test_an_agent_that_denies_having_ima(machine: Machine, judge: Judge) -> None:
    evidence = replace(machine.evidence(NONCE), ima_log=None)
    assert judge.failed(evidence) == IMA_IDS
    assert "ima.replay" in replace(judge, snapshot=None).failed(evidence)


def test_a_snapshot_without_file_hashes_where_the_machine_has_ima(machine: Machine, judge: Judge) -> None:
    assert judge.snapshot is not None
    stripped = msgspec.structs.replace(judge.snapshot, filehashes=None, path_bytes={})
    failed = replace(judge, snapshot=stripped).failed(machine.evidence(NONCE))
    assert "ima.files" in failed
    assert failed <= {"ima.files", "ima.policy"}


# The policy


def test_a_policy_that_was_never_loaded(
    machine: Machine, judge: Judge, remake: Callable[[list[ImaEntry]], None]
) -> None:
    """A boot in which the policy file was not loaded: its entry is missing, and all the rest is in order."""
    remake([e for e in _entries(machine) if e.path != IMA_POLICY_PATH.encode()])
    assert judge.failed(machine.evidence(NONCE)) == {"ima.policy"}


def test_another_policy(machine: Machine, judge: Judge, remake: Callable[[list[ImaEntry]], None]) -> None:
    lax = make_entry("ima-ng", "sha256", sha256(b"dont_measure\n").digest(), IMA_POLICY_PATH.encode())
    remake([lax if e.path == IMA_POLICY_PATH.encode() else e for e in _entries(machine)])
    failed = judge.failed(machine.evidence(NONCE))
    assert failed == {"ima.policy", "ima.files"}


def test_a_policy_that_comes_after_the_quote_counts_for_nothing(
    machine: Machine, judge: Judge, remake: Callable[[list[ImaEntry]], None]
) -> None:
    policy = [e for e in _entries(machine) if e.path == IMA_POLICY_PATH.encode()]
    remake([e for e in _entries(machine) if e.path != IMA_POLICY_PATH.encode()])
    evidence = machine.evidence(NONCE)
    assert evidence.ima_log is not None
    assert judge.failed(replace(evidence, ima_log=evidence.ima_log + serialise_binary(policy))) == {"ima.policy"}


@pytest.fixture
def remake(machine: Machine) -> Callable[[list[ImaEntry]], None]:
    """The same boot with another list, honestly extended."""
    from cosmian_vm.devkit.ima import extend_entry

    def change(entries: list[ImaEntry]) -> None:
        assert machine.tpm is not None
        assert machine.ima is not None
        machine.tpm.pcrs["sha256"][10] = bytes(32)
        machine.ima.entries[:] = entries
        for entry in entries:
            extend_entry(entry, machine.tpm)

    return change


# Violations


def test_a_violation_of_a_file_of_the_snapshot(machine: Machine, judge: Judge) -> None:
    assert machine.ima is not None
    machine.ima.violate("/usr/bin/bash")
    assert judge.failed(machine.evidence(NONCE)) == {"ima.violations"}


def test_a_violation_of_another_file_is_a_warning_and_with_strict_a_failure(machine: Machine, judge: Judge) -> None:
    assert machine.ima is not None
    machine.ima.violate("/home/notes")
    verdict = judge.verdict(machine.evidence(NONCE))
    assert verdict.trusted
    assert verdict.of("ima.violations")[0].status is Status.WARNING
    assert _names(verdict.of("ima.violations")[0], "/home/notes")
    assert judge.with_policy(strict=True).failed(machine.evidence(NONCE)) == {"ima.violations"}


# Going on from a stored state


def test_continuing_needs_the_verifier_s_own_state(machine: Machine, judge: Judge) -> None:
    """An answer that starts in the middle of the list, to a verifier that stored nothing."""
    assert "ima.replay" in judge.failed(machine.evidence(NONCE, ima_from=2))


@pytest.mark.parametrize("template", ["ima-ng", "ima-sig"])
def test_both_common_templates_are_trusted(judge: Judge, machine: Machine, template: str) -> None:
    other = Machine.create(machine.vendor, template=template)
    assert replace(judge, snapshot=other.snapshot()).failed(other.evidence(NONCE)) == set()
