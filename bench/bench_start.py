"""How long the programs take to start, in times of ``python -c pass``.

Every round runs each program once, in turn, so that whatever else the machine does weighs on all alike; the ratio is
the median over the rounds. Byte code is compiled beforehand into a folder of its own, as an installed package has it.
Programs run as installed ones do: they collect no cycles, and end without taking their modules apart.
What verify imports is all of it, of which the verifier itself is imported while the agent takes its quotes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from _table import row

SOURCE = Path(__file__).resolve().parent.parent / "src"
BASE = "python -c pass"
PROGRAMS: Mapping[str, tuple[str, float | None]] = {
    BASE: ("pass", None),
    "cosmian_vm --help": (
        "import sys; sys.argv = ['cosmian_vm', '--help']; from cosmian_vm.cli.main import main; main()",
        4.5,
    ),
    "imports of cosmian_vm verify": (
        "import gc; gc.disable(); import os; from cosmian_vm.cli import main, verify, _session, _judge; os._exit(0)",
        8.5,
    ),
    "of these, before the agent is asked": (
        "import gc; gc.disable(); import os; from cosmian_vm.cli import main, verify, _session; "
        "import cosmian_vm.reference.snapshot, cosmian_vm.verifier.policy; os._exit(0)",
        None,
    ),
    # neither the agent nor its front ends by itself
    "imports of cosmian_vm_agent --first-launch": (
        "import gc; gc.disable(); import os, cosmian_vm.agent.main; os._exit(0)",
        None,
    ),
    "imports of cosmian_vm_agent": (
        "import gc; gc.disable(); import os, cosmian_vm.agent.main; import cosmian_vm.agent.privileges; "
        "import cosmian_vm.agent.serving, cosmian_vm.agent.front_parent; os._exit(0)",
        11.5,
    ),
    "imports of its front": ("import gc; gc.disable(); import os, cosmian_vm.agent.front_process; os._exit(0)", None),
    "with its TPM, a first launch": (
        "import gc; gc.disable(); import os, cosmian_vm.agent.main; from cosmian_vm.attester import _detect, tpm; "
        "from cosmian_vm.luks import first; os._exit(0)",
        None,
    ),
}
"""What is run, and the goal in times of the first."""


def seconds(code: str, environment: Mapping[str, str]) -> float:
    """Wall time of one process that runs ``code``."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def measure(rounds: int) -> dict[str, list[float]]:
    """Wall times of each program, one for each round."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        environment |= {"PYTHONPATH": str(SOURCE), "PYTHONPYCACHEPREFIX": cache}
        for code, _ in PROGRAMS.values():
            seconds(code, environment)
        times: dict[str, list[float]] = {name: [] for name in PROGRAMS}
        for _ in range(rounds):
            for name, (code, _) in PROGRAMS.items():
                times[name].append(seconds(code, environment))
    return times


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25, help="how often each program is started (default: 25)")
    times = measure(parser.parse_args().rounds)
    row(f"start: {BASE}", statistics.median(times[BASE]) * 1000, "ms", None, True)
    for name, (_, goal) in PROGRAMS.items():
        if name != BASE:
            ratio = statistics.median(one / base for one, base in zip(times[name], times[BASE], strict=True))
            row(f"start: {name}", ratio, "x", goal and f"<= {goal}", goal is None or ratio <= goal)


if __name__ == "__main__":
    main()
