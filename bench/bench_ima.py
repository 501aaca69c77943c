"""The judgement of an IMA list: parse, recompute every template hash, replay, compare with the snapshot.

Goals, all ratios within one run, medians of several rounds that take turns:

- a list of 100,000 entries of ima-sig against a snapshot of 300,000 files: at most 3 times two bare SHA-256 over the
  data of each entry, and at least 6 times faster than keylime on the same list (``--keylime-python``: an interpreter
  that has it). On both sides the reference values are loaded before: ours as :class:`KnownFiles`, keylime's as its
  policy. The time with that work, as a single call has it, is shown too.
- reading a snapshot of 44 MB and judging a list of 10,000 entries: at most 0.35 s.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _table import row

from cosmian_vm.evidence import ima
from cosmian_vm.reference.snapshot import SevPolicy, Snapshot, TeePolicy, TpmPolicy, parse, serialise
from cosmian_vm.verifier._quoted import QuotedPcrs
from cosmian_vm.verifier.ima import KnownFiles, appraise_ima
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.result import Status

FILES = 300_000
ENTRIES = 100_000
SHORT = 10_000
SNAPSHOT_BYTES = 44_000_000
BARE_GOAL, KEYLIME_GOAL, READ_GOAL = 3.0, 6.0, 0.35
POLICY_FILE = "/etc/ima/ima-policy"
_SEV_FIELDS = SevPolicy.sizes


@dataclass(frozen=True)
class Machine:
    """A list that was honestly quoted, and the snapshot of the machine."""

    entries: Sequence[ima.ImaEntry]
    log: bytes
    quoted: QuotedPcrs
    snapshot: Snapshot

    def judge(self, snapshot: Snapshot, known: KnownFiles | None = None) -> None:
        """One appraisal; everything must be found in order."""
        found = appraise_ima(
            self.log,
            ima_from=0,
            quoted=self.quoted,
            boot_pcrs=self.quoted.values,
            reference=snapshot,
            whitelist=None,
            policy=Policy(),
            known=known,
        )
        if found.matched != len(self.entries) or any(check.status is not Status.OK for check in found.checks):
            sys.exit(f"what is measured went wrong: {found.checks}")


def make_machine(files: int, entries: int, total_bytes: int = 0) -> Machine:
    """``entries`` of ``files`` have run, in any order. ``total_bytes``: size of the snapshot file, by longer names."""
    chance = random.Random(1)
    longer = "" if not total_bytes else "x" * max(0, total_bytes // files - 132)
    named = [
        (f"/usr/lib/python3/dist-packages/package_{n % 997}/{longer}module_{n:06d}.py", sha256(b"%d" % n).hexdigest())
        for n in range(files - 1)
    ]
    named.append((POLICY_FILE, sha256(b"policy").hexdigest()))
    boot = {pcr: sha256(bytes([pcr])).digest() for pcr in range(16)}
    aggregate = sha256(b"".join(boot[pcr] for pcr in range(10))).digest()
    ran = [named[-1], *chance.sample(named[:-1], entries - 2)]
    listed = [ima.make_entry("ima-sig", "sha256", aggregate, ima.BOOT_AGGREGATE)]
    listed += [ima.make_entry("ima-sig", "sha256", bytes.fromhex(digest), path.encode()) for path, digest in ran]
    boot[10] = ima.replay(listed, "sha256")
    chance.shuffle(named)
    snapshot = Snapshot(
        version=2,
        tee_policy=TeePolicy(sev=SevPolicy(**dict.fromkeys(_SEV_FIELDS))),
        tpm_policy=TpmPolicy(reset_count=1, restart_count=0),
        filehashes=tuple(named),
        hash_algorithm="sha256",
        ima_policy=((POLICY_FILE, sha256(b"policy").hexdigest()),),
    )
    read = parse(serialise(snapshot), "snapshot")  # lies in memory as it does in a verifier
    return Machine(listed, ima.serialise_binary(listed), QuotedPcrs(values=boot), read)


class Keylime:
    """keylime in a process of its own, that answers with its time when asked. OSError where it cannot be had."""

    def __init__(self, python: str, machine: Machine, folder: Path) -> None:
        listed, policy = folder / "list.txt", folder / "policy.json"
        listed.write_bytes(ima.serialise_ascii(machine.entries))
        digests = {path: [digest] for path, digest in machine.snapshot.filehashes or ()}
        aggregate = machine.entries[0].digest or b""
        policy.write_text(json.dumps({**digests, "boot_aggregate": [aggregate.hex()]}))
        script = Path(__file__).resolve().parent / "_keylime.py"
        arguments = [python, str(script), str(listed), str(policy), machine.quoted.values[10].hex()]
        self._process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.seconds()

    def seconds(self) -> float:
        """One processing of the list."""
        to, answers = self._process.stdin, self._process.stdout
        if to is None or answers is None:
            raise OSError("no pipe to keylime")
        to.write("\n")
        to.flush()
        answer = answers.readline()
        if not answer:
            raise OSError("keylime gave up")
        return float(answer)

    def close(self) -> None:
        """End it."""
        self._process.communicate()


def start_keylime(python: str | None, machine: Machine, folder: Path) -> Keylime | None:
    """None, and a word about it, where there is no keylime."""
    if python is None:
        return None
    try:
        return Keylime(python, machine, folder)
    except OSError as exc:
        print(f"without keylime: {exc}", file=sys.stderr)
        return None


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one call of ``work``: it waits for nothing, and so other programs do not count. What earlier
    calls left behind is cleared away before.
    """
    gc.collect()
    start = time.process_time()
    work()
    return time.process_time() - start


def bench_list(rounds: int, keylime_python: str | None) -> None:
    """A long list against a large snapshot."""
    machine = make_machine(FILES, ENTRIES)
    known = KnownFiles(machine.snapshot, None)
    machine.judge(machine.snapshot, known)  # prepares the keys
    data = [entry.data for entry in machine.entries]

    def bare() -> None:
        for piece in data:
            sha256(piece).digest()
            sha256(piece).digest()

    ours, bares, theirs = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        other = start_keylime(keylime_python, machine, Path(folder))
        for _ in range(rounds):
            bares.append(seconds(bare))
            ours.append(seconds(lambda: machine.judge(machine.snapshot, known)))
            if other is not None:
                theirs.append(other.seconds())
        fresh = [seconds(lambda: machine.judge(machine.snapshot)) for _ in range(min(3, rounds))]
        if other is not None:
            other.close()
    each = 1e6 / ENTRIES
    row("IMA: two bare SHA-256 an entry", statistics.median(bares) * each, "us", None, True)
    row("IMA: 100,000 entries, 300,000 files, an entry", statistics.median(ours) * each, "us", None, True)
    row("IMA: the same, reference values prepared each time", statistics.median(fresh) * each, "us", None, True)
    ratio = statistics.median(o / b for o, b in zip(ours, bares, strict=True))
    row("IMA: an entry in times of two bare SHA-256", ratio, "x", f"<= {BARE_GOAL}", ratio <= BARE_GOAL)
    if theirs:
        faster = statistics.median(t / o for t, o in zip(theirs, ours, strict=True))
        row("IMA: keylime, an entry", statistics.median(theirs) * each, "us", None, True)
        row("IMA: faster than keylime", faster, "x", f">= {KEYLIME_GOAL}", faster >= KEYLIME_GOAL)


def bench_read(rounds: int) -> None:
    """From the bytes of a snapshot file to the verdict on a short list."""
    machine = make_machine(FILES, SHORT, SNAPSHOT_BYTES)
    raw = serialise(machine.snapshot)
    times = [seconds(lambda: machine.judge(parse(raw, "snapshot"))) for _ in range(rounds)]
    median = statistics.median(times)
    name = f"IMA: read {len(raw) / 1e6:.0f} MB of snapshot, judge {SHORT:,} entries"
    row(name, median, "s", f"<= {READ_GOAL}", median <= READ_GOAL)


def main() -> None:
    """Print the rows."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=7, help="how often each is measured")
    arguments.add_argument("--keylime-python", metavar="PATH", help="an interpreter that has keylime")
    chosen = arguments.parse_args()
    bench_list(chosen.rounds, chosen.keylime_python)
    bench_read(chosen.rounds)


if __name__ == "__main__":
    main()
