"""Everything executed since boot, against the snapshot: the checks ``ima.*``. Pure.

The procedure (DESIGN of the checks: docs/architecture):

1. ``ima.replay``: every template hash is recomputed from its data; a prefix of the list, with boot_aggregate at its
   head, leads to the quoted PCR. Entries behind it came after the quote.
2. ``ima.boot_aggregate``: the first entry is the hash of the quoted boot PCRs.
3. ``ima.files``: every entry is in the snapshot or the whitelist, those behind the prefix too; none contradicts the
   image's reference values, which stand in the place of a snapshot where there is none.
4. ``ima.policy``: the IMA policies that the snapshot's list had measured (that the image loads) are in the prefix,
   unchanged.
5. ``ima.violations``: files that were written while they were read or executed.

A verifier that calls often keeps an :class:`ImaState` and asks for what is new (``ima_from``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.ima import IMA_PCR, ImaEntry, format_path, read_entry, replay
from cosmian_vm.reference.snapshot import Snapshot
from cosmian_vm.verifier._ima_checks import (
    Listed,
    check_boot_aggregate,
    check_files,
    check_policy,
    check_violations,
    is_boot_aggregate,
    violation_name,
)
from cosmian_vm.verifier._ima_known import KnownFiles
from cosmian_vm.verifier._ima_lookup import prepare_lookup
from cosmian_vm.verifier._ima_walk import Walk, walk
from cosmian_vm.verifier._quoted import QuotedPcrs
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.result import Check, Status, fail, ok, skip

if TYPE_CHECKING:
    from cosmian_vm.reference.build_reference import BuildReference
    from cosmian_vm.reference.whitelist import Whitelist

__all__ = ["IMA_CHECKS", "ImaAppraisal", "ImaSession", "ImaState", "KnownFiles", "appraise_ima"]

IMA_CHECKS = ("ima.replay", "ima.boot_aggregate", "ima.files", "ima.policy", "ima.violations")
"""The checks made here, in this order."""


_CONFIGURABLE_PCRS = range(8, 15)
"""CONFIG_IMA_MEASURE_PCR_IDX; none of these can be reset without a reboot."""


class ImaSession(msgspec.Struct, frozen=True, kw_only=True):
    """What a kept state belongs to. A state of another session is worth nothing.

    ``ak_name``: TPM name of the AK; ``reset_count`` and ``restart_count``: as quoted. ``reference``: whatever
    identifies snapshot, whitelist and reference values that the kept part was judged by (a hash of the files, say).
    """

    ak_name: bytes
    reset_count: int
    restart_count: int
    reference: bytes = b""


class ImaState(msgspec.Struct, frozen=True, kw_only=True):
    """What a verifier stores to go on from: a part of the list that passed every check, and was quoted.

    ``entries``: how many. ``pcrs``: their PCRs then (sha256). ``first``: the boot_aggregate entry. ``violations``:
    the names of the violations among them, which are warned of on every run.
    """

    entries: int
    pcrs: Mapping[int, bytes]
    first: ImaEntry
    violations: tuple[bytes, ...]
    session: ImaSession | None


class ImaAppraisal(msgspec.Struct, frozen=True, kw_only=True):
    """The checks in the order of IMA_CHECKS; the state to keep, None unless all of them passed against a snapshot.

    ``matched``: entries (from the first of the list) that the quote vouches for. ``total``: entries of the list.
    """

    checks: list[Check]
    state: ImaState | None
    matched: int
    total: int


def appraise_ima(
    log: bytes | None,
    *,
    ima_from: int,
    quoted: QuotedPcrs,
    boot_pcrs: Mapping[int, bytes],
    reference: Snapshot | None,
    whitelist: Whitelist | None,
    policy: Policy,
    prior: ImaState | None = None,
    session: ImaSession | None = None,
    known: KnownFiles | None = None,
    build: BuildReference | None = None,
) -> ImaAppraisal:
    """Judge the binary list ``log``, whose first entry is number ``ima_from`` of the machine's list.

    ``quoted``: PCRs vouched for by the TPM. ``boot_pcrs``: claimed values of PCRs 0-9 (they count only as far as they
    were quoted). ``prior``: what this verifier kept of ``session``, needed where ``ima_from`` is not 0. ``known``:
    the files of ``reference``, ``whitelist`` and ``build`` (the image's reference values), for callers that judge many
    lists by them. Never raises.
    """
    if policy.without_tpm:
        return _unread([skip(c, "No TPM is expected of this machine (--without-tpm)") for c in IMA_CHECKS], ima_from)
    if log is None:
        return _unread(_all_fail("The machine gave no IMA list: no IMA in its kernel, or its agent hides it"), ima_from)
    if problem := _cannot_continue(ima_from, prior, session):
        return _unread(_all_fail(problem), ima_from)
    kept = prior if ima_from else None
    pcr = _ima_pcr(quoted)
    if known is None or not known.is_of(reference, whitelist, build):
        known = KnownFiles(reference, whitelist, build)
    try:
        lookup = prepare_lookup(log, known)
        found = walk(
            log,
            known=lookup.fast,
            start={} if kept is None else kept.pcrs,
            main=pcr,
            quoted=quoted,
            first=ima_from,
        )
        listed = Listed.read(log, found, ima_from, None if kept is None else kept.first)
    except EvidenceFormatError as exc:
        return _unread(_all_fail(str(exc)), ima_from)
    earlier = () if kept is None else kept.violations
    checks = [
        _check_replay(log, found, listed.first, quoted, pcr=pcr, ima_from=ima_from),
        check_boot_aggregate(listed.first, quoted, boot_pcrs),
        check_files(listed, known, lookup),
        check_policy(listed, known, continued=kept is not None),
        check_violations(listed, earlier, known, strict=policy.strict),
    ]
    matched = ima_from + (found.matched or 0)
    return ImaAppraisal(
        checks=checks,
        state=_state(checks, listed, found, matched=matched, earlier=earlier, session=session),
        matched=matched,
        total=ima_from + found.total,
    )


def _all_fail(problem: str) -> list[Check]:
    first, *others = IMA_CHECKS
    return [
        fail(first, problem),
        *(fail(c, "There is no IMA list that can be judged (see ima.replay)") for c in others),
    ]


def _unread(checks: list[Check], ima_from: int) -> ImaAppraisal:
    return ImaAppraisal(checks=checks, state=None, matched=0, total=ima_from)


def _cannot_continue(ima_from: int, prior: ImaState | None, session: ImaSession | None) -> str:
    """Why the list cannot be judged from entry ``ima_from`` on; empty where it can."""
    if ima_from == 0:
        return ""
    if prior is None:
        return f"The list begins at entry {ima_from}, and nothing is known of those before it: ask for all of it"
    if prior.entries != ima_from:
        return f"The list begins at entry {ima_from}, what was kept of it ends at {prior.entries}: ask for all of it"
    if session is None or prior.session != session:
        return "What was kept of the list is of another AK, another boot or another snapshot: ask for all of it"
    return ""


def _ima_pcr(quoted: QuotedPcrs) -> int:
    """The PCR that IMA extends: version 1 quotes that one alone, and the kernel may have been built for another."""
    alone = quoted.digest_pcr
    return alone if alone is not None and alone in _CONFIGURABLE_PCRS else IMA_PCR


def _state(
    checks: list[Check],
    listed: Listed,
    found: Walk,
    *,
    matched: int,
    earlier: tuple[bytes, ...],
    session: ImaSession | None,
) -> ImaState | None:
    """What to keep: only what was quoted, and only where nothing failed and nothing was left out."""
    if any(check.status in (Status.FAIL, Status.SKIP) for check in checks) or listed.first is None:
        return None
    new = tuple(violation_name(other) for other in listed.violations if other.quoted)
    return ImaState(entries=matched, pcrs=found.values, first=listed.first, violations=earlier + new, session=session)


def _check_replay(
    log: bytes, found: Walk, first: ImaEntry | None, quoted: QuotedPcrs, *, pcr: int, ima_from: int
) -> Check:
    """A prefix replays to the quoted PCR, and each template hash is that of its data."""
    name = "ima.replay"
    if quoted.matches(pcr, bytes(32)):
        return fail(
            name,
            f"The quoted PCR {pcr} is zero: nothing was ever measured into this TPM; IMA finds it only if the "
            "TPM's driver is built into the kernel",
        )
    if pcr not in quoted.indices:
        return fail(name, f"No usable TPM quote covers PCR {pcr}, so nothing vouches for the IMA list")
    if first is None or not is_boot_aggregate(first):
        return fail(name, "The IMA list does not begin with boot_aggregate: its beginning is missing")
    if found.bad:
        details = tuple(_describe(log, place.index + ima_from, place.offset) for place in found.bad)
        return fail(
            name,
            f"The list was altered: the template hash of {_entries(len(details))} is not that of its data: "
            f"{details[0]}",
            details,
        )
    if found.strays:
        pcrs = ", ".join(str(pcr) for pcr in sorted(found.strays))
        return fail(name, f"The IMA list has entries for PCR {pcrs}, which do not replay to what was quoted of it")
    if found.matched is None:
        return fail(name, _no_prefix(log, quoted, pcr, is_whole=ima_from == 0))
    total = ima_from + found.total
    matched = ima_from + found.matched
    later = f", {total - matched} came after the quote" if total != matched else ""
    return ok(name, f"The first {matched} of {total} entries of the IMA list replay to the quoted PCR {pcr}{later}")


def _entries(count: int) -> str:
    return "one entry" if count == 1 else f"{count} entries"


def _describe(log: bytes, number: int, offset: int) -> str:
    entry, _ = read_entry(log, offset, number)
    path = entry.path
    return f"entry {number}" if path is None else f"entry {number} ({format_path(path)})"


def _no_prefix(log: bytes, quoted: QuotedPcrs, pcr: int, *, is_whole: bool) -> str:
    if is_whole and _replays_padded(log, quoted, pcr):
        return (
            f"PCR {pcr} was extended with SHA-1 hashes, as kernels before 5.8 do; SHA-1 is not accepted: "
            "use Linux 5.8 or newer"
        )
    return (
        f"No prefix of the IMA list replays to the quoted PCR {pcr}: entries were removed, changed or reordered, "
        "or the list is not of the boot that was quoted"
    )


def _replays_padded(log: bytes, quoted: QuotedPcrs, pcr: int) -> bool:
    """Whether a prefix replays the way it did before Linux 5.8."""
    value: bytes | None = None
    at = index = 0
    while at < len(log):
        entry, at = read_entry(log, at, index)
        index += 1
        value = replay((entry,), "sha256", pcr, start=value, padded_sha1=True)
        if quoted.matches(pcr, value):
            return True
    return False
