"""The checks ima.*: what replays, what is in the snapshot, and what each lie is called."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence import ima
from cosmian_vm.evidence.ima import ImaEntry, make_entry, make_violation
from cosmian_vm.reference.snapshot import SevPolicy, Snapshot, TeePolicy, TpmPolicy, file_entries
from cosmian_vm.reference.whitelist import Whitelist
from cosmian_vm.verifier._ima_known import KnownFiles
from cosmian_vm.verifier._ima_walk import walk
from cosmian_vm.verifier._quoted import NOTHING_QUOTED, QuotedPcrs
from cosmian_vm.verifier.ima import IMA_CHECKS, ImaAppraisal, ImaSession, ImaState, appraise_ima
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.result import Check, Status

POLICY_PATH = b"/etc/ima/ima-policy"
SESSION = ImaSession(ak_name=b"ak", reset_count=3, restart_count=0, reference=b"snapshot")
BOOT = {pcr: hashlib.sha256(bytes([pcr])).digest() for pcr in range(16)}
AGGREGATE = hashlib.sha256(b"".join(BOOT[pcr] for pcr in range(10))).digest()


def digest_of(path: bytes, algorithm: str = "sha256") -> bytes:
    return hashlib.new(algorithm, b"content of " + path).digest()


def entry(path: bytes, template: str = "ima-sig", **more: Any) -> ImaEntry:
    algorithm = "sha1" if template == "ima" else "sha256"
    return make_entry(template, algorithm, digest_of(path, algorithm), path, **more)


FIRST = make_entry("ima-sig", "sha256", AGGREGATE, b"boot_aggregate")
PATHS = [b"/usr/bin/true", b"/usr/bin/a program", b"/usr/lib/caf\xe9.so", b"/usr/lib/libc.so", POLICY_PATH]
_SEV = SevPolicy(
    measurement=None,
    report_data=None,
    family_id=None,
    image_id=None,
    id_key_digest=None,
    author_key_digest=None,
    report_id=None,
    report_id_ma=None,
)


def snapshot_of(files: Sequence[tuple[bytes, bytes]], **more: Any) -> Snapshot:
    hashes, exact = file_entries(files)
    values = {
        "version": 2,
        "hash_algorithm": "sha256",
        "ima_policy": ((POLICY_PATH.decode(), digest_of(POLICY_PATH).hex()),),
        "path_bytes": exact,
    }
    return Snapshot(
        tee_policy=TeePolicy(sev=_SEV),
        tpm_policy=TpmPolicy(),
        filehashes=hashes,
        **(values | more),  # type: ignore[arg-type]
    )


SNAPSHOT = snapshot_of([(path, digest_of(path)) for path in [*PATHS, b"/usr/bin/never_run"]])


@dataclass(frozen=True)
class Case:
    """A list, honestly quoted after ``quoted`` of its entries, and how it is judged."""

    entries: tuple[ImaEntry, ...] = (FIRST, *map(entry, PATHS))
    quoted: int | None = None
    pcrs: dict[int, bytes] = field(default_factory=dict)
    reference: Snapshot | None = SNAPSHOT
    whitelist: Whitelist | None = None
    policy: Policy = Policy()  # noqa: RUF009 - frozen

    def quote(self) -> QuotedPcrs:
        prefix = self.entries[: self.quoted]
        return QuotedPcrs(values={**BOOT, 10: ima.replay(prefix, "sha256"), **self.pcrs})

    def judge(self, log: bytes | None = None, **more: Any) -> ImaAppraisal:
        quoted = more.pop("quote", None) or self.quote()
        arguments: dict[str, Any] = {
            "ima_from": 0,
            "quoted": quoted,
            "boot_pcrs": BOOT,
            "reference": self.reference,
            "whitelist": self.whitelist,
            "policy": self.policy,
            "session": SESSION,
        }
        raw = ima.serialise_binary(self.entries) if log is None else log
        return appraise_ima(raw, **(arguments | more))


def failing(appraisal: ImaAppraisal) -> set[str]:
    assert [check.id for check in appraisal.checks] == list(IMA_CHECKS)
    return {check.id for check in appraisal.checks if check.status is Status.FAIL}


def check(appraisal: ImaAppraisal, name: str) -> Check:
    return next(c for c in appraisal.checks if c.id == name)


def test_all_is_well() -> None:
    appraisal = Case().judge()
    assert {c.status for c in appraisal.checks} == {Status.OK}
    assert (appraisal.matched, appraisal.total) == (6, 6)


def test_newer_entries_follow_the_quote() -> None:
    appraisal = Case(quoted=3).judge()
    assert failing(appraisal) == {"ima.policy"}  # it comes after the quote, so nothing vouches for it
    appraisal = Case(entries=(FIRST, entry(POLICY_PATH), *map(entry, PATHS[:3])), quoted=3).judge()
    assert failing(appraisal) == set()
    assert (appraisal.matched, appraisal.total) == (3, 5)
    assert "2 came after the quote" in check(appraisal, "ima.replay").line


# ima.replay


def log_of(entries: Sequence[ImaEntry]) -> bytes:
    return ima.serialise_binary(entries)


def test_removed_changed_reordered_inserted() -> None:
    case = Case()
    own = list(case.entries)
    assert failing(case.judge(log_of(own[:2] + own[3:]))) == {"ima.replay"}
    assert failing(case.judge(log_of([*own[:2], own[3], own[2], *own[4:]]))) == {"ima.replay"}
    assert failing(case.judge(log_of([*own[:2], entry(b"/usr/bin/never_run"), *own[2:]]))) == {"ima.replay"}
    assert failing(case.judge(log_of([*own[:2], entry(b"/usr/bin/never_run"), *own[3:]]))) == {"ima.replay"}
    assert failing(case.judge(log_of(own[:-2]))) == {"ima.replay", "ima.policy"}
    assert failing(case.judge(log_of([*own, entry(b"/usr/bin/never_run")]))) == set()
    assert failing(case.judge(log_of([*own, entry(b"/tmp/evil")]))) == {"ima.files"}


@pytest.mark.parametrize("index", range(6))
def test_a_template_hash_that_is_not_that_of_the_data(index: int) -> None:
    case = Case()
    own = list(case.entries)
    own[index] = own[index]._replace(template_hash=bytes(19) + b"\1")
    appraisal = case.judge(log_of(own))
    assert failing(appraisal) >= {"ima.replay"}
    assert f"entry {index} " in check(appraisal, "ima.replay").details[0]


def test_bad_hash_after_the_quote_fails_too() -> None:
    entries = (FIRST, entry(POLICY_PATH), entry(PATHS[0]), entry(PATHS[1])._replace(template_hash=b"x" * 20))
    assert failing(Case(entries=entries, quoted=3).judge()) == {"ima.replay"}


def test_hidden_violation() -> None:
    """The quote has a violation; the list shows an ordinary entry in its place, or none."""
    honest = (FIRST, entry(POLICY_PATH), make_violation("ima-sig", "sha256", 32, PATHS[0]), entry(PATHS[0]))
    case = Case(entries=honest)
    assert failing(case.judge()) == {"ima.violations"}
    hidden = honest[2]._replace(template_hash=ima.template_hash(honest[2], "sha1"))
    assert "ima.replay" in failing(case.judge(log_of([*honest[:2], hidden, honest[3]])))
    assert "ima.replay" in failing(case.judge(log_of([*honest[:2], honest[3]])))


def test_an_ordinary_entry_shown_as_violation() -> None:
    evil = entry(b"/tmp/evil")
    case = Case(entries=(FIRST, entry(POLICY_PATH), evil, entry(PATHS[0])))
    shown = evil._replace(template_hash=ima.VIOLATION_HASH)
    assert failing(case.judge()) == {"ima.files"}
    assert "ima.replay" in failing(case.judge(log_of([FIRST, entry(POLICY_PATH), shown, entry(PATHS[0])])))


def test_zero_pcr() -> None:
    appraisal = Case(pcrs={10: bytes(32)}).judge()
    assert failing(appraisal) == {"ima.replay"}
    assert "zero" in check(appraisal, "ima.replay").line


@pytest.mark.parametrize("log", [b"", log_of([entry(PATHS[0]), FIRST])])
def test_the_prefix_begins_with_boot_aggregate(log: bytes) -> None:
    entries = ima.parse_binary(log)
    quote = QuotedPcrs(values={**BOOT, 10: ima.replay(entries, "sha256", start=None if entries else b"\1" * 32)})
    assert failing(Case().judge(log, quote=quote)) >= {"ima.replay", "ima.boot_aggregate"}


def test_a_violation_is_no_boot_aggregate() -> None:
    """Nothing protects the data of a violation, so its digest may well be the right one."""
    first = FIRST._replace(template_hash=ima.VIOLATION_HASH)
    assert failing(Case(entries=(first, *Case().entries[1:])).judge()) == {"ima.replay", "ima.boot_aggregate"}


def test_a_prefix_of_boot_aggregate_alone_is_enough() -> None:
    snapshot = msgspec.structs.replace(SNAPSHOT, ima_policy=())
    assert failing(Case(quoted=1, reference=snapshot).judge()) == set()


def test_nothing_quoted() -> None:
    assert failing(Case().judge(quote=NOTHING_QUOTED)) == {"ima.replay", "ima.boot_aggregate"}
    without = {pcr: value for pcr, value in Case().quote().values.items() if pcr != 10}
    assert failing(Case().judge(quote=QuotedPcrs(values=without))) == {"ima.replay"}


def test_no_list() -> None:
    appraisal = appraise_ima(
        None,
        ima_from=0,
        quoted=Case().quote(),
        boot_pcrs=BOOT,
        reference=SNAPSHOT,
        whitelist=None,
        policy=Policy(),
    )
    assert failing(appraisal) == set(IMA_CHECKS)
    assert appraisal.state is None


def test_without_tpm() -> None:
    appraisal = Case(policy=Policy(without_tpm=True)).judge()
    assert {c.status for c in appraisal.checks} == {Status.SKIP}
    assert appraisal.state is None


@pytest.mark.parametrize("size", [1, 27, 100, 200])
def test_a_list_that_ends_early(size: int) -> None:
    appraisal = Case().judge(log_of(Case().entries)[:size])
    assert failing(appraisal) == set(IMA_CHECKS)
    assert "entry" in check(appraisal, "ima.replay").line
    assert "offset" in check(appraisal, "ima.replay").line


def test_an_old_kernel_is_named() -> None:
    entries = Case().entries
    quote = QuotedPcrs(values={**BOOT, 10: ima.replay(entries, "sha256", padded_sha1=True)})
    appraisal = Case().judge(quote=quote)
    assert failing(appraisal) == {"ima.replay"}
    assert "5.8" in check(appraisal, "ima.replay").line


def test_version_1() -> None:
    case = Case(quoted=5, entries=(FIRST, entry(POLICY_PATH), *map(entry, PATHS[:4])))
    value = case.quote().values[10]
    quote = QuotedPcrs(digest=hashlib.sha256(value).digest(), digest_pcr=10)
    appraisal = case.judge(quote=quote, boot_pcrs={})
    assert failing(appraisal) == set()
    assert check(appraisal, "ima.boot_aggregate").status is Status.WARNING
    assert appraisal.matched == 5
    assert failing(case.judge(log_of(case.entries[:4]), quote=quote, boot_pcrs={})) == {"ima.replay"}
    zero = QuotedPcrs(digest=hashlib.sha256(bytes(32)).digest(), digest_pcr=10)
    assert failing(case.judge(quote=zero, boot_pcrs={})) == {"ima.replay"}


def test_version_1_of_a_kernel_with_another_pcr() -> None:
    entries = tuple(e._replace(pcr=12) for e in Case().entries)
    value = ima.replay(entries, "sha256", pcr=12)
    quote = QuotedPcrs(digest=hashlib.sha256(value).digest(), digest_pcr=12)
    assert failing(Case(entries=entries).judge(quote=quote)) == set()
    resettable = tuple(e._replace(pcr=16) for e in Case().entries)
    quote = QuotedPcrs(digest=hashlib.sha256(value).digest(), digest_pcr=16)
    assert "ima.replay" in failing(Case(entries=resettable).judge(quote=quote))


# Entries for another PCR


def other(path: bytes, pcr: int) -> ImaEntry:
    return entry(path, pcr=pcr)


def test_another_pcr_replays_too() -> None:
    entries = (FIRST, entry(POLICY_PATH), other(PATHS[0], 12), entry(PATHS[1]))
    value = ima.replay(entries, "sha256", pcr=12)
    assert failing(Case(entries=entries, pcrs={12: value}).judge()) == set()
    appraisal = Case(entries=entries).judge()
    assert failing(appraisal) == {"ima.replay"}
    assert "PCR 12" in check(appraisal, "ima.replay").line


def test_another_pcr_behind_the_quote() -> None:
    """Extended between quote and list: PCR 12 was as PCR 10 says, or one entry further."""
    entries = (FIRST, entry(POLICY_PATH), other(PATHS[0], 12), other(PATHS[1], 12), entry(PATHS[3]))
    for count, matched in ((3, 3), (4, 4)):
        value = ima.replay(entries[:count], "sha256", pcr=12)
        appraisal = Case(entries=entries, quoted=2, pcrs={12: value}).judge()
        assert failing(appraisal) == set()
        assert appraisal.matched == matched
    appraisal = Case(entries=entries, quoted=2, pcrs={12: bytes(32)}).judge()
    assert (failing(appraisal), appraisal.matched) == (set(), 2)
    value = ima.replay(entries, "sha256", pcr=12)
    early = (*entries[:3], entries[4], entries[3])
    assert failing(Case(entries=early, quoted=2, pcrs={12: value}).judge()) == {"ima.replay"}


def test_a_pcr_that_was_not_quoted() -> None:
    entries = (FIRST, entry(POLICY_PATH), other(PATHS[0], 23), entry(PATHS[1]))
    assert failing(Case(entries=entries).judge()) == {"ima.replay"}
    entries = (FIRST, entry(POLICY_PATH), other(PATHS[0], 40), entry(PATHS[1]))
    assert failing(Case(entries=entries).judge()) == set(IMA_CHECKS)


# ima.boot_aggregate


def test_boot_aggregate_of_older_kernels() -> None:
    first = make_entry(
        "ima-sig", "sha256", hashlib.sha256(b"".join(BOOT[i] for i in range(8))).digest(), b"boot_aggregate"
    )
    appraisal = Case(entries=(first, *Case().entries[1:])).judge()
    assert failing(appraisal) == set()
    assert "0-7" in check(appraisal, "ima.boot_aggregate").line


def test_boot_aggregate_of_another_boot() -> None:
    appraisal = Case(pcrs={4: bytes(32)}).judge(boot_pcrs={**BOOT, 4: bytes(32)})
    assert failing(appraisal) == {"ima.boot_aggregate"}


def test_boot_pcrs_count_only_as_far_as_they_were_quoted() -> None:
    """Claimed values that would fit, while the quote says something else."""
    appraisal = Case(pcrs={4: bytes(32)}).judge()
    assert failing(appraisal) == {"ima.boot_aggregate"}
    assert "PCR 4 was not quoted" in check(appraisal, "ima.boot_aggregate").line


def test_boot_aggregate_of_another_algorithm() -> None:
    first = make_entry("ima-sig", "sha1", hashlib.sha1(b"").digest(), b"boot_aggregate")
    appraisal = Case(entries=(first, *Case().entries[1:])).judge()
    assert failing(appraisal) == {"ima.boot_aggregate"}
    assert "ima_hash=sha256" in check(appraisal, "ima.boot_aggregate").line


# ima.files


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize(
    "template", ["ima-ng", "ima-ngv2", "ima-sig", "ima-sigv2", "ima-buf", "evm-sig", "d-ng|n-ng|new"]
)
def test_known_and_unknown_in_every_template(template: str, many: bool) -> None:
    """Whichever way the lookup goes: few files, or so many that only those of the list are prepared."""
    ballast = [(b"/b/%d" % number, digest_of(b"%d" % number)) for number in range(2000 if many else 0)]
    snapshot = snapshot_of([*((path, digest_of(path)) for path in PATHS), *ballast])
    case = Case(entries=(FIRST, *(entry(path, template, signature=b"\x03") for path in PATHS)), reference=snapshot)
    assert failing(case.judge()) == set()
    case = replace(
        case,
        entries=(*case.entries, entry(b"/tmp/evil", template), make_entry(template, "sha256", bytes(32), PATHS[0])),
    )
    appraisal = case.judge()
    assert failing(appraisal) == {"ima.files"}
    details = check(appraisal, "ima.files").details
    assert len(details) == 2
    assert details[0].startswith("/tmp/evil ")
    assert "(new" in details[0]
    assert details[1].startswith("/usr/bin/true ")
    assert "(changed" in details[1]
    assert digest_of(PATHS[0]).hex() in details[1]


def test_the_legacy_template() -> None:
    paths = [b"/usr/bin/true", b"/usr/bin/a program"]
    snapshot = snapshot_of([(path, digest_of(path, "sha1")) for path in paths], hash_algorithm="sha1", ima_policy=())
    case = Case(entries=(FIRST, *(entry(path, "ima") for path in paths)), reference=snapshot)
    appraisal = case.judge()
    assert failing(appraisal) == set()
    assert check(appraisal, "ima.files").status is Status.WARNING  # SHA-1
    assert failing(replace(case, entries=(*case.entries, entry(b"/tmp/evil", "ima"))).judge()) == {"ima.files"}


def test_spaces_on_both_sides() -> None:
    data = entry(b"/usr/bin/a_program").data.replace(b"a_program", b"a program")
    spaced = ImaEntry(10, hashlib.sha1(data).digest(), "ima-sig", data)
    assert spaced.path == b"/usr/bin/a program"
    digest = digest_of(b"/usr/bin/a_program")
    for path in (b"/usr/bin/a program", b"/usr/bin/a_program"):
        snapshot = snapshot_of([(path, digest)], ima_policy=())
        assert failing(Case(entries=(FIRST, spaced), reference=snapshot).judge()) == set()
        assert (
            failing(Case(entries=(FIRST, make_entry("ima-ng", "sha256", digest, path)), reference=snapshot).judge())
            == set()
        )


def test_names_that_are_not_utf_8() -> None:
    ours = b"/usr/lib/caf\xe9.so"
    case = Case(entries=(FIRST, make_entry("ima-ng", "sha256", digest_of(ours), b"/usr/lib/caf\xe8.so")))
    case = replace(case, reference=msgspec.structs.replace(SNAPSHOT, ima_policy=()))
    assert failing(case.judge()) == {"ima.files"}  # the snapshot has the exact bytes
    genuine = "/usr/lib/caf\ufffd.so".encode()  # this very name, not one that could not be written
    named_so = snapshot_of([(genuine, digest_of(ours))], ima_policy=())
    assert failing(replace(case, reference=named_so).judge()) == {"ima.files"}
    old = msgspec.structs.replace(SNAPSHOT, ima_policy=None, path_bytes={}, version=1)
    assert failing(replace(case, reference=old).judge()) == set()  # 1.3.x knows no better
    assert failing(Case(entries=(FIRST, entry(ours)), reference=old).judge()) == set()


def test_an_fs_verity_digest_is_no_file_hash() -> None:
    verity = make_entry("ima-ngv2", "verity:sha256", digest_of(PATHS[0]), PATHS[0])
    appraisal = Case(entries=(*Case().entries, verity)).judge()
    assert failing(appraisal) == {"ima.files"}
    assert "fs-verity" in check(appraisal, "ima.files").line


def test_entries_that_cannot_be_read_are_named() -> None:
    opaque = ImaEntry(10, hashlib.sha1(b"x").digest(), "ima-cgn", b"x")
    broken = ImaEntry(10, hashlib.sha1(b"y").digest(), "ima-ng", b"y")
    details = check(Case(entries=(*Case().entries, opaque, broken)).judge(), "ima.files").details
    assert details[0].startswith("entry 6: its template ima-cgn is not known")
    assert details[1].startswith("entry 7: its data do not follow")


def test_the_name_of_a_template_is_no_excuse() -> None:
    """Relabelling does not change the data: an evil entry stays unknown whatever it is called."""
    evil = make_entry("ima-sig", "sha256", digest_of(b"evil"), b"/tmp/evil", signature=PATHS[0])
    for name in ("ima-ng", "ima-buf", "sig|d-ng|n-ng", "n-ng|sig|d-ng", "d-ng|sig|n-ng", "x"):
        case = Case(entries=(*Case().entries, evil._replace(template=name)))
        assert failing(case.judge()) == {"ima.files"}


def test_whitelist() -> None:
    spaced = Whitelist("w", ((b"/opt/my tool", digest_of(b"/opt/my tool")), (PATHS[0], bytes(32))))
    case = Case(entries=(*Case().entries, entry(b"/opt/my tool"), make_entry("ima-ng", "sha256", bytes(32), PATHS[0])))
    assert failing(case.judge()) == {"ima.files"}
    assert failing(replace(case, whitelist=spaced).judge()) == set()


def test_no_snapshot() -> None:
    appraisal = Case(reference=None).judge()
    assert failing(appraisal) == set()
    assert check(appraisal, "ima.files").status is Status.SKIP
    assert check(appraisal, "ima.policy").status is Status.SKIP
    assert appraisal.state is None  # nothing was compared: nothing to go on from


def test_a_snapshot_without_file_hashes() -> None:
    snapshot = msgspec.structs.replace(SNAPSHOT, filehashes=None, path_bytes={})
    assert "ima.files" in failing(Case(reference=snapshot).judge())


def test_another_kernel() -> None:
    again = make_entry("ima-sig", "sha256", bytes(32), b"boot_aggregate")
    appraisal = Case(entries=(*Case().entries, again)).judge()
    assert failing(appraisal) == {"ima.files"}
    assert "kexec" in check(appraisal, "ima.files").line


def test_a_name_cannot_forge_a_line() -> None:
    evil = make_entry("ima-ng", "sha256", bytes(32), b"/tmp/x\n[ OK ] fine\x1b[2J")
    appraisal = Case(entries=(*Case().entries, evil)).judge()
    for c in appraisal.checks:
        assert c.line.isprintable()
        assert all(detail.isprintable() for detail in c.details)


# ima.policy


@pytest.mark.parametrize("many", [False, True])
def test_policy(many: bool) -> None:
    ballast = [(b"/b/%d" % number, digest_of(b"%d" % number)) for number in range(2000 if many else 0)]
    lax = bytes(32)
    files = [*((path, digest_of(path)) for path in PATHS), (POLICY_PATH, lax), (b"/opt/ima-policy", lax), *ballast]
    case = Case(reference=snapshot_of(files))
    own = case.entries
    assert failing(case.judge()) == set()
    assert failing(replace(case, entries=own[:-1]).judge()) == {"ima.policy"}
    changed = make_entry("ima-sig", "sha256", lax, POLICY_PATH)  # known content, but not what was loaded then
    assert failing(replace(case, entries=(*own[:-1], changed)).judge()) == {"ima.policy"}
    assert failing(replace(case, entries=(*own, changed)).judge()) == {"ima.policy"}
    added = replace(case, entries=(*own, make_entry("ima-sig", "sha256", lax, b"/opt/ima-policy"))).judge()
    assert failing(added) == set()
    assert check(added, "ima.policy").status is Status.WARNING
    hidden = make_violation("ima-sig", "sha256", 32, POLICY_PATH)
    assert "ima.policy" in failing(replace(case, entries=(*own[:-1], hidden)).judge())


def test_policy_inside_another_entry_does_not_count() -> None:
    inner = entry(POLICY_PATH)
    carrier = make_entry("ima-buf", "sha256", digest_of(PATHS[0]), PATHS[0], signature=ima.serialise_entry(inner))
    assert failing(Case(entries=(*Case().entries[:-1], carrier)).judge()) == {"ima.policy"}


def test_policy_that_was_not_measured() -> None:
    none = msgspec.structs.replace(SNAPSHOT, ima_policy=())
    own = Case().entries[:-1]
    appraisal = Case(entries=own, reference=none).judge()
    assert failing(appraisal) == set()
    assert check(appraisal, "ima.policy").status is Status.WARNING  # it is on the disk
    bare = snapshot_of([(path, digest_of(path)) for path in PATHS[:-1]], ima_policy=())
    assert check(Case(entries=own, reference=bare).judge(), "ima.policy").status is Status.OK
    old = msgspec.structs.replace(SNAPSHOT, ima_policy=None)
    assert check(Case(entries=own, reference=old).judge(), "ima.policy").status is Status.WARNING


# ima.violations


def violated(path: bytes) -> Case:
    return Case(entries=(*Case().entries, make_violation("ima-sig", "sha256", 32, path)))


def test_violations() -> None:
    appraisal = violated(b"/srv/data").judge()
    assert failing(appraisal) == set()
    assert check(appraisal, "ima.violations").status is Status.WARNING
    assert check(appraisal, "ima.violations").details == ("/srv/data",)
    assert failing(replace(violated(b"/srv/data"), policy=Policy(strict=True)).judge()) == {"ima.violations"}
    assert failing(violated(PATHS[0]).judge()) == {"ima.violations"}
    assert failing(violated(b"/usr/bin/a program").judge()) == {"ima.violations"}
    assert failing(violated(b"/usr/lib/caf\xe9.so").judge()) == {"ima.violations"}
    assert failing(replace(violated(PATHS[0]), reference=None).judge()) == set()
    listed = Whitelist("w", ((b"/srv/data", bytes(32)),))
    assert failing(replace(violated(b"/srv/data"), whitelist=listed).judge()) == {"ima.violations"}


def test_violations_after_the_quote_count() -> None:
    assert failing(replace(violated(PATHS[0]), quoted=6).judge()) == {"ima.violations"}


# Going on from a kept state


def kept(case: Case) -> ImaState:
    state = case.judge().state
    assert state is not None
    return state


def test_going_on() -> None:
    early = replace(Case(), quoted=6)
    state = kept(early)
    assert (state.entries, state.pcrs) == (6, {10: early.quote().values[10]})
    later = replace(early, entries=(*early.entries, entry(b"/usr/bin/never_run")), quoted=7)
    new = log_of(later.entries[6:])
    appraisal = later.judge(new, ima_from=6, prior=state)
    assert failing(appraisal) == set()
    assert (appraisal.matched, appraisal.total) == (7, 7)
    assert appraisal.state is not None
    assert appraisal.state.entries == 7
    assert failing(early.judge(b"", ima_from=6, prior=state)) == set()
    assert failing(early.judge(new, ima_from=6, prior=state)) == set()
    evil = replace(early, entries=(*early.entries, entry(b"/tmp/evil")))
    assert failing(evil.judge(log_of(evil.entries[6:]), ima_from=6, prior=state)) == {"ima.files"}
    assert failing(later.judge(b"", ima_from=6, prior=state)) == {"ima.replay"}


def test_only_from_ones_own_state() -> None:
    case = Case()
    state = kept(case)
    all_of_them = set(IMA_CHECKS)
    assert failing(case.judge(b"", ima_from=6)) == all_of_them
    assert failing(case.judge(b"", ima_from=5, prior=state)) == all_of_them
    assert failing(case.judge(b"", ima_from=-1, prior=state)) == all_of_them
    for other_session in (
        None,
        msgspec.structs.replace(SESSION, ak_name=b"another"),
        msgspec.structs.replace(SESSION, reset_count=4),
        msgspec.structs.replace(SESSION, restart_count=1),
        msgspec.structs.replace(SESSION, reference=b"another"),
    ):
        assert failing(case.judge(b"", ima_from=6, prior=state, session=other_session)) == all_of_them


def test_a_state_of_no_session_is_worth_nothing() -> None:
    state = msgspec.structs.replace(kept(Case()), session=None)
    assert failing(Case().judge(b"", ima_from=6, prior=state, session=None)) == set(IMA_CHECKS)


def test_the_state_does_not_excuse_the_boot() -> None:
    case = Case()
    appraisal = case.judge(b"", ima_from=6, prior=kept(case), boot_pcrs={**BOOT, 3: bytes(32)})
    assert failing(appraisal) == {"ima.boot_aggregate"}


def test_violations_are_remembered() -> None:
    case = violated(b"/srv/data")
    state = kept(case)
    assert state.violations == (b"/srv/data",)
    appraisal = case.judge(b"", ima_from=7, prior=state)
    assert check(appraisal, "ima.violations").status is Status.WARNING
    strict = replace(case, policy=Policy(strict=True)).judge(b"", ima_from=7, prior=state)
    assert failing(strict) == {"ima.violations"}


def test_no_state_from_what_failed() -> None:
    assert Case(entries=(*Case().entries, entry(b"/tmp/evil"))).judge().state is None


def test_policy_changed_later() -> None:
    case = Case()
    changed = make_entry("ima-sig", "sha256", bytes(32), POLICY_PATH)
    later = replace(case, entries=(*case.entries, changed))
    new = log_of(later.entries[6:])
    assert failing(later.judge(new, ima_from=6, prior=kept(case))) == {"ima.files", "ima.policy"}


def test_other_pcrs_go_on() -> None:
    entries = (FIRST, entry(POLICY_PATH), other(PATHS[0], 12), entry(PATHS[1]))
    case = Case(entries=entries, pcrs={12: ima.replay(entries, "sha256", pcr=12)})
    state = kept(case)
    more = (*entries, other(PATHS[1], 12), entry(PATHS[3]))
    later = replace(case, entries=more, pcrs={12: ima.replay(more, "sha256", pcr=12)})
    assert failing(later.judge(log_of(more[4:]), ima_from=4, prior=state)) == set()
    assert failing(replace(later, pcrs=case.pcrs).judge(log_of(more[4:]), ima_from=4, prior=state)) == {"ima.replay"}


# The fast pass is the parser, only faster


_SOME = [
    FIRST,
    *map(entry, PATHS),
    *(entry(path, "ima-ng") for path in PATHS),
    entry(PATHS[0], "ima"),
    other(PATHS[1], 12),
    make_violation("ima-ng", "sha256", 32, PATHS[0]),
    entry(PATHS[0], signature=b"\x03\x02"),
]


@given(st.lists(st.sampled_from(_SOME), min_size=1, max_size=12), st.data())
def test_the_pass_finds_what_the_parser_finds(entries: list[ImaEntry], data: st.DataObject) -> None:
    raw = bytearray(log_of(entries))
    for _ in range(data.draw(st.integers(0, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.sampled_from([None, len(raw) - 3]))
    log = bytes(raw)[:cut]
    known = KnownFiles(SNAPSHOT, None).keys(bytes(4)).others
    problem = ""
    try:
        parsed = ima.parse_binary(log)
    except EvidenceFormatError as exc:
        problem = str(exc)
    if problem:
        with pytest.raises(EvidenceFormatError) as caught:
            walk(log, known=known, start={}, main=10, quoted=NOTHING_QUOTED)
        assert str(caught.value) == problem
        return
    quote = QuotedPcrs(values={pcr: ima.replay(parsed, "sha256", pcr=pcr) for pcr in range(32)})
    found = walk(log, known=known, start={}, main=10, quoted=quote)
    assert found.total == len(parsed)
    if any(e.pcr == 10 for e in parsed):
        assert found.matched == len(parsed)
    numbered = list(enumerate(parsed))
    assert [p.index for p in found.violations] == [i for i, e in numbered if e.is_violation]
    assert [p.index for p in found.bad] == [i for i, e in numbered if not e.hash_matches]
    ordinary = [(i, e) for i, e in numbered if e.hash_matches and not e.is_violation]
    assert [p.index for p in found.unknown] == [i for i, e in ordinary if e.data not in known]


@given(st.binary(max_size=300))
def test_any_bytes(raw: bytes) -> None:
    appraisal = Case().judge(raw)
    assert "ima.replay" in failing(appraisal)


@given(st.data())
def test_any_change_within_the_quote_fails(data: st.DataObject) -> None:
    raw = bytearray(log_of(Case().entries))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    appraisal = Case().judge(bytes(raw))
    # The name of a template is all that nothing protects; a changed one makes an entry unknown or changes nothing.
    if not failing(appraisal):
        assert [e.data for e in ima.parse_binary(bytes(raw))] == [e.data for e in Case().entries]
