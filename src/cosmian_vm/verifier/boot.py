"""Did the machine boot what it booted when the snapshot was taken, or what its image was built to boot? Pure.

PCRs 0 to 9 and 11 to 15 must equal the snapshot's, and those that an image's reference values predict must equal these:
that decides. The boot event log only explains: where it replays to
the quoted values its events are what was extended, so a difference can be named; where it does not, it is wrong or
forged, and that fails too, because it was sent as evidence. PCRs 11 and 15 are extended after the firmware's log was
closed (systemd: boot phases, machine identity), so the log need not replay to these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.boot_log import extensions, parse, startup_value
from cosmian_vm.reference.snapshot import BOOT_PCRS, Snapshot
from cosmian_vm.verifier._quoted import listed_pcrs
from cosmian_vm.verifier._steps import Steps, culprits, described, run
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.result import Check, both, fail, ok, skip, warning

if TYPE_CHECKING:
    from cosmian_vm.reference.build_reference import BuildReference

__all__ = ["EXTENDED_AFTER_BOOT", "PCR_ROLES", "appraise_boot"]

CHECK_ID = "tpm.boot_pcrs"

EXTENDED_AFTER_BOOT = frozenset({11, 15})
"""PCRs that a running system goes on extending without writing to the firmware's log."""

PCR_ROLES: Mapping[int, str] = {
    0: "firmware",
    1: "firmware settings and boot order",
    2: "option ROMs",
    3: "option ROM settings",
    4: "boot loader and kernel",
    5: "partition table and boot loader settings",
    6: "host platform",
    7: "Secure Boot keys and state",
    8: "boot loader commands",
    9: "files read by the boot loader, initrd, command line",
    11: "unified kernel image and boot phases",
    12: "kernel command line and credentials",
    13: "system extensions",
    14: "machine owner's keys (MOK)",
    15: "system identity",
}
"""What each PCR measures (PC Client Platform Firmware Profile 3.3.4; Linux TPM PCR Registry)."""

_BANK = "sha256"
_OF_THE_KERNEL = frozenset({4, 11})
_MAX_SHOWN = 12

_NO_LOG = "the agent sent no boot event log, so nothing could explain a later difference"


class _Whose(NamedTuple):
    """Whose values are compared, in words: the failure, what to do, who has another value, what an event was not."""

    failure: str
    remedy: str
    has: str
    absent: str


_SNAPSHOT = _Whose(
    "the machine did not boot as at the snapshot",
    "if you changed this, take a new snapshot",
    "the snapshot has",
    "was not there at the snapshot",
)
_BUILD = _Whose(
    "the machine did not boot the image as it was built",
    "it is another image, a changed one, or firmware that starts it in another way",
    "the reference values have",
    "is not of the image",
)


class _Boot(NamedTuple):
    """What the machine showed. ``steps``, ``start``: events by PCR, and where each PCR began. ``problem``: why the log
    cannot be used, empty if it can. ``contradictions``: PCRs that it covers and does not replay to.
    """

    pcrs: Mapping[int, bytes]
    steps: Mapping[int, Steps]
    start: Mapping[int, bytes]
    problem: str
    contradictions: Sequence[int]


def appraise_boot(
    boot_event_log: bytes | None,
    pcrs: Mapping[int, bytes],
    reference: Snapshot | None,
    policy: Policy,
    build: BuildReference | None = None,
) -> list[Check]:
    """The check ``tpm.boot_pcrs``.

    ``boot_event_log``: as the agent sent it. ``pcrs``: sha256 values that the TPM's quote covers (QuotedPcrs.values);
    empty where nothing usable was quoted. ``reference``, ``build``: both None while a snapshot is being taken.
    """
    expected = reference.boot_pcr_values() if reference is not None else {}
    if not pcrs:
        return [_nothing_quoted(expected or build, policy)]
    steps, start, problem = _read_log(boot_event_log)
    contradictions = [] if problem else _contradictions(steps, start, pcrs)
    boot = _Boot(pcrs, steps, start, problem, contradictions)
    check = _differences(boot, expected, _SNAPSHOT) or _bad_log(boot)
    if check is None:
        note = [] if boot_event_log is not None else [_NO_LOG]
        if reference is None and build is not None:
            check = ok(CHECK_ID, "the boot event log contradicts no quoted PCR", note)
        else:
            check = _all_equal(expected, pcrs, note, reference, policy)
    return [check if build is None else both(check, _as_built(boot, build, alone=reference is None))]


def _bad_log(boot: _Boot) -> Check | None:
    """The log was sent as evidence: that it is none is a failure."""
    if boot.problem:
        return fail(CHECK_ID, f"the boot event log cannot be used: {boot.problem}")
    if boot.contradictions:
        listed = ", ".join(map(str, boot.contradictions))
        line = f"the boot event log does not replay to the quoted value of PCR {listed}: it is incomplete or forged"
        return fail(CHECK_ID, line)
    return None


def _differences(boot: _Boot, expected: Mapping[int, bytes], whose: _Whose) -> Check | None:
    """The failure that names each PCR with another value than expected; None if there is none."""
    differing = [pcr for pcr in sorted(expected) if boot.pcrs.get(pcr) != expected[pcr]]
    if not differing:
        return None
    details = []
    for pcr in differing:
        details += _explain(pcr, expected[pcr], boot, whose)
    if boot.problem:
        details.append(f"the boot event log cannot be used: {boot.problem}")
    roles = "; ".join(f"PCR {pcr} ({PCR_ROLES.get(pcr, 'unknown')})" for pcr in differing)
    return fail(CHECK_ID, f"{whose.failure}: {roles}; {whose.remedy}", details)


def _as_built(boot: _Boot, build: BuildReference, *, alone: bool) -> Check:
    """The PCRs against those that were predicted. ``alone``: there is no snapshot, which would have the others."""
    expected = build.pcr_values()
    if alone and not expected.keys() & _OF_THE_KERNEL:
        line = "the reference values predict neither PCR 4 nor PCR 11"
        return fail(CHECK_ID, f"{line}, so which kernel was booted is not proven; verify with a snapshot")
    if not expected:
        return ok(CHECK_ID, "the reference values predict no PCR")
    failure = _differences(boot, expected, _BUILD)
    if failure is not None:
        hint = ["PCR 11 is predicted for the time from the end of the boot to the beginning of the shutdown"]
        return fail(CHECK_ID, failure.line, [*failure.details, *hint * (boot.pcrs.get(11) != expected.get(11))])
    line = f"the machine booted the image as it was built (PCR {listed_pcrs(frozenset(expected))})"
    if not alone:
        return ok(CHECK_ID, line)
    others = listed_pcrs(frozenset(BOOT_PCRS) - frozenset(expected))
    if others == "none":
        return ok(CHECK_ID, line)
    return warning(CHECK_ID, f"{line}; nothing is expected of PCR {others}, so what they measure may be anything")


def _nothing_quoted(expected: object, policy: Policy) -> Check:
    if policy.without_tpm:
        return skip(CHECK_ID, "no TPM is expected on this machine (--without-tpm)")
    if policy.api == 1 and not expected:
        return warning(CHECK_ID, "version 1 of the API quotes no boot PCRs: what was booted is not proven")
    return fail(CHECK_ID, "no boot PCRs were quoted, so what was booted is not proven; see the other tpm checks")


def _all_equal(
    expected: Mapping[int, bytes],
    pcrs: Mapping[int, bytes],
    note: Sequence[str],
    reference: Snapshot | None,
    policy: Policy,
) -> Check:
    """No difference and no contradiction: how much was there to compare?"""
    if reference is None:
        if note:
            return warning(CHECK_ID, f"{_NO_LOG} from the snapshot that is being taken")
        return ok(CHECK_ID, "the boot event log replays to the quoted PCRs that it covers")
    if not expected:
        if policy.api == 1:
            return warning(CHECK_ID, "the snapshot is of version 1 and has no boot PCRs: what was booted is not proven")
        return skip(
            CHECK_ID, "the snapshot has no boot PCRs, so what was booted is not proven; take a new snapshot", note
        )
    missing = [pcr for pcr in BOOT_PCRS if pcr in pcrs and pcr not in expected]
    if missing:
        listed = ", ".join(map(str, missing))
        return fail(CHECK_ID, f"the snapshot has no value for PCR {listed}: it was cut; take a new snapshot")
    return ok(CHECK_ID, f"the machine booted as at the snapshot ({len(expected)} boot PCRs)", note)


def _read_log(raw: bytes | None) -> tuple[dict[int, Steps], Mapping[int, bytes], str]:
    """Events and digests by PCR, each PCR's value at start, and what is wrong with the log (empty: nothing)."""
    if raw is None:
        return {}, {}, ""
    try:
        log = parse(raw)
        if _BANK not in log.banks:
            # A log of SHA-1 alone says nothing about the bank that we trust: it explains nothing, it denies nothing.
            return {}, {}, ""
        steps: dict[int, Steps] = dict(extensions(log, _BANK))
        return steps, {pcr: startup_value(log, _BANK, pcr) for pcr in steps}, ""
    except EvidenceFormatError as exc:
        return {}, {}, str(exc)


def _contradictions(steps: Mapping[int, Steps], start: Mapping[int, bytes], pcrs: Mapping[int, bytes]) -> list[int]:
    """PCRs that the log covers and does not replay to."""
    covered = [pcr for pcr in sorted(steps) if pcr in BOOT_PCRS and pcr in pcrs and pcr not in EXTENDED_AFTER_BOOT]
    return [pcr for pcr in covered if run(start[pcr], [digest for _, digest in steps[pcr]], _BANK) != pcrs[pcr]]


def _explain(pcr: int, before: bytes, boot: _Boot, whose: _Whose) -> list[str]:
    """What is known about one PCR that differs from ``before``, one thing a line."""
    role = PCR_ROLES.get(pcr, "unknown")
    now, steps, start = boot.pcrs.get(pcr), boot.steps.get(pcr, ()), boot.start
    if now is None:
        return [f"PCR {pcr} ({role}) was not quoted"]
    lines = [f"PCR {pcr} ({role}) is {now.hex()}, {whose.has} {before.hex()}"]
    if not steps:
        return [*lines, f"PCR {pcr}: the boot event log does not cover it"]
    if pcr in boot.contradictions:
        return [*lines, f"PCR {pcr}: the boot event log does not replay to it, so its events explain nothing"]
    if pcr in EXTENDED_AFTER_BOOT and run(start[pcr], [digest for _, digest in steps], _BANK) != now:
        lines.append(f"PCR {pcr}: the running system extended it too, beyond what the boot event log says")
    found = culprits(start[pcr], steps, before, _BANK)
    if found:
        return [*lines, *(f"PCR {pcr}: {described(event)} {whose.absent}" for event in found[:_MAX_SHOWN])]
    lines.append(f"PCR {pcr}: one of these {len(steps)} events changed, or one is missing:")
    return [*lines, *(f"PCR {pcr}: {described(event)}" for event, _ in steps[:_MAX_SHOWN])]
