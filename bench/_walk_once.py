"""One walk, with an event loop that ticks beside it, in a process that loads nothing else."""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from cosmian_vm.reference.filesystem import WalkResult, walk_and_hash

TICK = 0.001
IDLE_TICKS = 500


@dataclass(frozen=True)
class Tree:
    """The scope that is measured."""

    root: Path
    excluded: tuple[str, ...] = ()


async def ticks(done: Callable[[], bool], least: int = 1) -> float:
    """How late the loop comes to its ticks until ``done``, ``least`` of them: 99th percentile, milliseconds."""
    loop = asyncio.get_running_loop()
    late: list[float] = []
    while len(late) < least or not done():
        due = loop.time() + TICK
        await asyncio.sleep(TICK)
        late.append(loop.time() - due)
    late.sort()
    return late[len(late) * 99 // 100] * 1000


async def walk_once(root: Path) -> dict[str, float]:
    """Seconds, files and bytes; lateness of the loop, before it too; memory of both sides (MiB)."""
    idle = await ticks(lambda: True, IDLE_TICKS)
    start = time.perf_counter()
    task = asyncio.create_task(asyncio.to_thread(walk_and_hash, Tree(root)))
    late = await ticks(task.done)
    result: WalkResult = await task
    seconds = time.perf_counter() - start
    if result.unreadable:
        raise SystemExit(f"not everything was read: {result.unreadable[:3]}")
    return {
        "seconds": seconds,
        "files": len(result.files),
        "bytes": result.bytes_read,
        "late": late,
        "idle": idle,
        "caller": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "helpers": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024,
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(walk_once(Path(sys.argv[1])))))
