"""How many bytes an IMA list costs on the wire, and how long making them takes.

Goal: at most 0.8 bytes a byte of list, where the client takes zstd. The list is of the kernel's form: 10,000 ima-sig
entries with random digests, which do not compress, and paths as a real system has them.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

import msgspec
from _table import row

from cosmian_vm.agent.answers import compressed
from cosmian_vm.evidence.ima import make_entry, serialise_binary
from cosmian_vm.wire import EvidenceAnswer

ENTRIES = 10_000
RUNS = 7
GOAL = 0.8
_FOLDERS = ("/usr/bin", "/usr/lib/x86_64-linux-gnu", "/usr/lib/python3/dist-packages/module", "/usr/share/app/scripts")


def ima_list() -> bytes:
    """A list as long as that of a busy server."""
    rng = random.Random(1)
    return serialise_binary(
        make_entry(
            "ima-sig", "sha256", rng.randbytes(32), f"{rng.choice(_FOLDERS)}/name-{rng.randrange(10**6)}".encode()
        )
        for _ in range(ENTRIES)
    )


def answer(log: bytes) -> EvidenceAnswer:
    """An evidence bundle that holds the list and nothing else of any size."""
    return EvidenceAnswer(
        api=2,
        agent_version="bench",
        tee_kind=None,
        tee_quote=None,
        endorsements=[],
        tpm=None,
        boot_event_log=None,
        ima_log=log,
        ima_from=0,
        owners=[],
        cloud=None,
    )


def median_ms(call: Callable[[], object]) -> float:
    """Milliseconds, median of RUNS."""
    taken = []
    for _ in range(RUNS):
        start = time.perf_counter()
        call()
        taken.append((time.perf_counter() - start) * 1e3)
    return statistics.median(taken)


def main() -> None:
    """Print the table."""
    log = ima_list()
    bundle = answer(log)
    plain = msgspec.json.encode(bundle)
    small = compressed(plain, zstd=True).body
    row("IMA list", len(log) / 1e6, "MB")
    row("as JSON (base64)", len(plain) / len(log), "bytes a byte")
    row("with zstd", len(small) / len(log), "bytes a byte", f"<= {GOAL}", len(small) / len(log) <= GOAL)
    row("encode", median_ms(lambda: msgspec.json.encode(bundle)), "ms")
    row("encode and compress", median_ms(lambda: compressed(msgspec.json.encode(bundle), zstd=True)), "ms")


if __name__ == "__main__":
    main()
