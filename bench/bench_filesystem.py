"""How fast the walk and hashing of a file system is, beside ``find -print0 | xargs -0 sha256sum`` on the same tree.

Makes a tree of 60,000 files and 2.8 GB, sizes spread as on a server, in a temporary folder, and removes it. Both sides
run at the same priority, one after the other, several times, with the files in the page cache. Meanwhile an event loop
in the process that asks ticks each millisecond: how late it is, is how late an agent would answer.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _table import row

FILES = 60_000
BYTES = 2_800_000_000
RUNS = 5
NICE = 10  # what the helper gives itself
RATIO_GOAL = 0.4
MEMORY_GOAL = 40.0  # MiB
LATE_GOAL = 5.0  # milliseconds
LARGEST = 120e6
WORDS = ("lib", "python3", "dist-packages", "share", "doc", "modules", "drivers", "locale", "include", "perl5", "icons")


def make_tree(root: Path, files: int, total: int) -> None:
    """``files`` files of log-normal sizes, ``total`` bytes, some thirteen to a folder; the same each time."""
    rng = random.Random(1)
    sizes = [rng.lognormvariate(8.4, 2.1) for _ in range(files)]
    for _ in range(8):  # what is cut off the largest goes to the others
        sizes = [min(size, LARGEST) for size in sizes]
        factor = total / sum(sizes)
        sizes = [size * factor for size in sizes]
    folders = [root / "/".join(f"{rng.choice(WORDS)}{rng.randint(0, 9)}" for _ in range(rng.randint(2, 6)))]
    folders += [folders[0] / f"{rng.choice(WORDS)}{number // 20}" / str(number) for number in range(files // 13)]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    pool = memoryview(os.urandom(8 << 20))
    for number, size in enumerate(sizes):
        name = f"{rng.choice(WORDS)}_{rng.choice(WORDS)}_{number:06}.bin"
        with (rng.choice(folders) / name).open("wb") as file:
            left = int(size)
            while left > 0:
                start = rng.randrange(4 << 20)
                left -= file.write(pool[start : start + min(left, 4 << 20)])


def baseline(root: Path) -> float:
    """Seconds of the shell's way, two processes at once."""
    command = "find . -type f -print0 | xargs -0 -P2 sha256sum >/dev/null"
    start = time.perf_counter()
    subprocess.run(["nice", "-n", str(NICE), "sh", "-c", command], cwd=root, check=True)
    return time.perf_counter() - start


def ours(root: Path) -> dict[str, float]:
    """One measurement in a process of its own, so that memory is this run's."""
    command = [sys.executable, str(Path(__file__).with_name("_walk_once.py")), str(root)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(root: Path, runs: int) -> None:
    """Take turns, and print the table's rows."""
    baseline(root)  # fills the page cache
    shell, found = [], []
    for _ in range(runs):
        shell.append(baseline(root))
        found.append(ours(root))
    seconds = statistics.median(one["seconds"] for one in found)
    ratio = statistics.median(one["seconds"] / other for one, other in zip(found, shell, strict=True))
    late, idle = (statistics.median(one[name] for one in found) for name in ("late", "idle"))
    caller, helpers = (max(one[name] for one in found) for name in ("caller", "helpers"))
    size = f"{found[0]['files']:,.0f} files, {found[0]['bytes'] / 1e9:.1f} GB"
    row(f"file system: {size}", seconds, "s", None, True)
    row("file system: find | xargs -P2 sha256sum", statistics.median(shell), "s", None, True)
    row("file system: ratio of the two", ratio, "x", f"<= {RATIO_GOAL}", ratio <= RATIO_GOAL)
    for name, memory in (("the process that asks", caller), ("helper and workers", helpers)):
        row(f"file system: memory of {name}", memory, "MiB", f"<= {MEMORY_GOAL:.0f}", memory <= MEMORY_GOAL)
    row("file system: event loop late, no walk (99th percentile)", idle, "ms", None, True)
    row("file system: event loop late (99th percentile)", late, "ms", f"< {LATE_GOAL:.0f}", late < LATE_GOAL)


def main(arguments: list[str] | None = None) -> None:
    """Make the tree, measure, remove it."""
    parser = argparse.ArgumentParser(description="walk and hash a file system, beside find | xargs sha256sum")
    parser.add_argument("--files", type=int, default=FILES)
    parser.add_argument("--bytes", type=float, default=BYTES)
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--tree", type=Path, help="measure this folder instead; it is only read")
    options = parser.parse_args(arguments)
    if options.tree:
        measure(options.tree, options.runs)
    else:
        root = Path(tempfile.mkdtemp(prefix="cosmian-vm-bench-"))
        try:
            make_tree(root, options.files, int(options.bytes))
            measure(root, options.runs)
        finally:
            shutil.rmtree(root)


if __name__ == "__main__":
    main()
