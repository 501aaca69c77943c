"""The checks of an IMA list but its replay: boot_aggregate, files, policy, violations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256

import msgspec

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.ima import (
    BOOT_AGGREGATE,
    ImaEntry,
    ImaFields,
    format_digest,
    format_path,
    is_policy_path,
    normalise_path,
    read_entry,
)
from cosmian_vm.verifier._ima_known import KnownFiles, text_of
from cosmian_vm.verifier._ima_lookup import Lookup
from cosmian_vm.verifier._ima_walk import Place, Walk
from cosmian_vm.verifier._quoted import QuotedPcrs
from cosmian_vm.verifier.result import Check, both, fail, ok, skip, warning

__all__ = [
    "Listed",
    "Other",
    "check_boot_aggregate",
    "check_files",
    "check_policy",
    "check_violations",
    "is_boot_aggregate",
]

_AGGREGATED = (10, 8)
"""boot_aggregate covers PCRs 0-9 since Linux 5.8, 0-7 before (ima_calc_boot_aggregate_tfm)."""
_POLICY_ON_DISK = "/etc/ima/ima-policy"
_PATH_MAX = 4096
_MAX_NAMED = 50
_WEAK = frozenset({16, 20})
_NEW_SNAPSHOT = "if the change is yours, take a new snapshot or list it with --whitelist"
_WHITELIST = "if the change is yours, list it with --whitelist"


class Other(msgspec.Struct, frozen=True):
    """An entry that was taken apart. ``number``: in the whole list. ``quoted``: whether the quote covers it."""

    number: int
    quoted: bool
    entry: ImaEntry
    fields: ImaFields | None
    problem: str = ""

    @property
    def name(self) -> str:
        """How it is called in a line."""
        return f"entry {self.number}" if self.fields is None else _shown(self.fields.path)


class Listed(msgspec.Struct, frozen=True):
    """What the list holds beside entries that are known. ``first``: entry 0 of the whole list, None: it is empty."""

    first: ImaEntry | None
    others: tuple[Other, ...]
    violations: tuple[Other, ...]

    @classmethod
    def read(cls, log: bytes, found: Walk, ima_from: int, first: ImaEntry | None) -> Listed:
        """Take the entries apart that the walk did not know. ``first``: from the kept state, where it goes on."""
        covered = found.total if found.matched is None else found.matched
        if ima_from == 0 and log:
            first = read_entry(log, 0, 0)[0]
        places: Iterable[Place] = found.unknown
        if ima_from == 0 and first is not None and is_boot_aggregate(first):
            places = (place for place in places if place.index)
        return cls(
            first,
            tuple(_take_apart(log, place, ima_from, covered) for place in places),
            tuple(_take_apart(log, place, ima_from, covered) for place in found.violations),
        )


def _take_apart(log: bytes, place: Place, ima_from: int, covered: int) -> Other:
    number = ima_from + place.index
    entry, _ = read_entry(log, place.offset, number)
    fields: ImaFields | None = None
    problem = ""
    try:
        fields = entry.fields()
        if fields is None:
            problem = f"its template {entry.template} is not known, so what it measured cannot be compared"
    except EvidenceFormatError as exc:
        problem = f"its data do not follow the template {entry.template}: {exc.problem}"
    return Other(number, place.index < covered, entry, fields, problem)


def is_boot_aggregate(entry: ImaEntry) -> bool:
    """Whether this is the hash of the boot PCRs, as the kernel puts it at the head of its list."""
    return not entry.is_violation and entry.path == BOOT_AGGREGATE


def check_boot_aggregate(first: ImaEntry | None, quoted: QuotedPcrs, claimed: Mapping[int, bytes]) -> Check:
    """The first entry is the hash of the quoted boot PCRs. ``claimed`` values count only where they were quoted."""
    name = "ima.boot_aggregate"
    fields = first.fields() if first is not None and is_boot_aggregate(first) else None
    if fields is None:
        return fail(name, "The IMA list has no boot_aggregate at its head")
    if not quoted.values and quoted.digest_pcr is not None:
        return warning(
            name, "Version 1 of the API quotes no boot PCRs: boot_aggregate, the hash over them, was not compared"
        )
    if fields.digest_algorithm != "sha256":
        return fail(
            name,
            f"boot_aggregate is a {fields.digest_algorithm} hash over that bank, and the quote covers the sha256 bank: "
            "boot the machine with ima_hash=sha256",
        )
    values = []
    for pcr in range(max(_AGGREGATED)):
        value = claimed.get(pcr)
        if value is None or not quoted.matches(pcr, value):
            return fail(name, f"boot_aggregate cannot be compared: PCR {pcr} was not quoted")
        values.append(value)
    for count in _AGGREGATED:
        if sha256(b"".join(values[:count])).digest() == fields.digest:
            return ok(name, f"boot_aggregate is the hash of the quoted PCRs 0-{count - 1}")
    return fail(
        name, "boot_aggregate is not the hash of the quoted boot PCRs: the IMA list is of another boot than the quote"
    )


def check_files(listed: Listed, known: KnownFiles, lookup: Lookup) -> Check:
    """Every entry, those behind the quoted prefix too, is in the snapshot or the whitelist; none contradicts the
    image's reference values, which stand in the place of the snapshot where there is none.
    """
    name = "ima.files"
    if known.base is None:
        return skip(name, "There is no snapshot to compare the IMA list with")
    if not known.has_files:
        return fail(
            name, "The snapshot holds no file hashes, and this machine has IMA: the snapshot is not one of this machine"
        )
    readable = [other for other in listed.others if other.fields is not None]
    found = lookup.recognised([other.fields for other in readable if other.fields is not None])
    unexpected = [other for other, is_known in zip(readable, found, strict=True) if not is_known]
    unexpected += (other for other in listed.others if other.fields is None)
    unexpected.sort(key=lambda other: other.number)
    if unexpected:
        details = _unexpected(unexpected, known)
        more = f" and {len(details) - 1} more" if len(details) > 1 else ""
        where = f"in {known.whose}" if known.base is not known.reference or known.build is None else "as expected"
        remedy = _NEW_SNAPSHOT if known.build is None else _WHITELIST
        return fail(name, f"Not {where}: {details[0]}{more}; {remedy}", details)
    if known.digest_size in _WEAK:
        return warning(
            name,
            "Every entry of the IMA list is in the snapshot, but the files were measured with SHA-1, for which other "
            "files with the same hash can be made: boot the machine with ima_hash=sha256 and take a new snapshot",
        )
    also = "" if known.build is None or known.reference is None else ", and none contradicts the reference values"
    return ok(name, f"Every entry of the IMA list is in {known.whose} or the whitelist ({len(known)} files){also}")


def _unexpected(entries: list[Other], known: KnownFiles) -> tuple[str, ...]:
    """One line for each: what, and whether it is new or changed."""
    names = {text_of(other.fields.path) for other in entries if other.fields is not None}
    digests, as_built = known.digests_of(names), known.as_built(names)
    lines: dict[str, None] = {}
    for other in entries:
        if other.fields is None:
            lines[f"entry {other.number}: {other.problem}"] = None
            continue
        what = f"{other.name} {format_digest(other.fields)}"
        expected = digests.get(text_of(other.fields.path), ())
        built = as_built.get(text_of(other.fields.path), ())
        if other.fields.digest_type == "verity":
            lines[f"{what} (an fs-verity digest, which a snapshot does not hold)"] = None
        elif other.fields.path == BOOT_AGGREGATE:
            lines[f"{what} (new: another kernel was started with kexec)"] = None
        elif built and other.fields.digest.hex() not in built:
            had = " or ".join(dict.fromkeys(built))
            lines[f"{what} (changed since the image was built: the reference values have {had})"] = None
        elif expected:
            lines[f"{what} (changed: {known.whose} {_have(known)} {' or '.join(dict.fromkeys(expected))})"] = None
        else:
            lines[f"{what} (new: {known.whose} {_have(known)} no such file)"] = None
    return tuple(lines)


def _have(known: KnownFiles) -> str:
    """The verb that goes with ``whose``."""
    return "has" if known.whose == "the snapshot" else "have"


def check_policy(listed: Listed, known: KnownFiles, *, continued: bool) -> Check:
    """The IMA policies that the snapshot's list had measured, and those that the image loads, are in the quoted prefix,
    unchanged.

    ``continued``: the prefix goes on from a part that has passed this check.
    """
    found = [
        _check_policy(listed, known, reference.ima_policy, whose, continued=continued)
        for reference, whose in ((known.reference, "snapshot"), (known.build, "image's reference values"))
        if reference is not None
    ]
    if known.reference is None and known.build is not None and not known.build.ima_policy:
        line = "The image's reference values have no IMA policy, so a machine that measures nothing would pass"
        return fail("ima.policy", f"{line}: verify with a snapshot")
    if not found:
        return skip("ima.policy", "There is no snapshot that says which IMA policy is expected")
    return found[0] if len(found) == 1 else both(*found)


def _check_policy(
    listed: Listed, known: KnownFiles, policy: tuple[tuple[str, str], ...] | None, whose: str, *, continued: bool
) -> Check:
    name = "ima.policy"
    present: dict[bytes, set[bytes]] = {}
    for other in listed.others:
        if other.quoted and other.fields is not None and is_policy_path(other.fields.path):
            present.setdefault(normalise_path(other.fields.path), set()).add(other.fields.digest)
    if policy is None:
        return warning(
            name,
            f"Which IMA policy is loaded, the {whose} cannot tell, so a missing one would not be noticed: "
            "take a new snapshot",
        )
    expected: dict[bytes, set[bytes]] = {}
    for path, digest in policy:
        key = path.encode("utf-8", "surrogatepass")
        expected.setdefault(normalise_path(key), set()).add(bytes.fromhex(digest))
    wrong = [f"{format_path(path)} (changed)" for path in expected if not present.get(path, set()) <= expected[path]]
    if not continued:
        wrong += [
            f"{format_path(path)} (missing)" for path in expected if not expected[path] & present.get(path, set())
        ]
    if wrong:
        return fail(
            name,
            f"The IMA policy is not the one of the {whose}: {', '.join(wrong)}; what IMA did not measure is not in "
            "its list, so the list proves little",
            wrong,
        )
    if extra := [format_path(path) for path in present if path not in expected]:
        return warning(name, f"An IMA policy was loaded of which the {whose} knew nothing: {', '.join(extra)}", extra)
    if expected:
        return ok(name, f"The IMA policy of the {whose} was loaded: {', '.join(map(format_path, expected))}")
    if known.digests_of({_POLICY_ON_DISK}):
        return warning(
            name,
            f"{_POLICY_ON_DISK} is on the machine's disk, but IMA did not measure that it was loaded, so its removal "
            "would not be noticed: boot with ima_policy=tcb and take a new snapshot",
        )
    return ok(name, f"No IMA policy file is expected by the {whose}, and none was loaded")


def check_violations(listed: Listed, earlier: Iterable[bytes], known: KnownFiles, *, strict: bool) -> Check:
    """Files that were open for writing while they were measured. ``earlier``: names from the kept state."""
    name = "ima.violations"
    names = [violation_name(other) for other in listed.violations]
    counted = Counter([*earlier, *names])
    if not counted:
        return ok(name, "No file was written while it was measured (no IMA violation)")
    texts = {text_of(path) for path in counted}
    held = {**known.digests_of(texts), **known.as_built(texts)}
    details = tuple(
        _shown(path) + (f" ({count} times)" if count > 1 else "") for path, count in sorted(counted.items())
    )
    total = counted.total()
    what = f"{'One IMA violation' if total == 1 else f'{total} IMA violations'} (a file open for writing while it was "
    what += f"read or executed): {_some(details)}"
    if bad := [path for path in counted if text_of(path) in held]:
        named = _some([_shown(path) for path in sorted(bad)])
        return fail(name, f"{what}; in {known.whose} and perhaps changed while it ran: {named}", details)
    if strict:
        return fail(name, f"{what}; --strict accepts none", details)
    return warning(name, f"{what}; the kernel protects the number of violations, not their names", details)


def _some(names: Sequence[str]) -> str:
    """The first of them, for a line: all of them are in the details."""
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def _shown(path: bytes) -> str:
    """A name for people. The kernel writes none that is longer than PATH_MAX; whoever forges a list may."""
    return format_path(path if len(path) <= _PATH_MAX else path[:_PATH_MAX] + b"...")


def violation_name(other: Other) -> bytes:
    """The name in a violation's entry; its number where it has none."""
    return b"entry %d" % other.number if other.fields is None else other.fields.path
