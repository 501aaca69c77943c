"""The entry point of cosmian_vm_agent: says what is not installed; all else is ``main``."""

from __future__ import annotations

import gc
import sys
from importlib.util import find_spec

__all__ = ["main"]

_EXTRA = ("httptools", "uvicorn", "uvloop")
"""Packages of the extra ``[agent]`` (pyproject.toml), as they are imported. Not the TPM's: it is loaded where there is
a TPM, and what is wrong with it is said then.
"""


def main() -> None:
    """Run the agent; status 2 and one line where the extra ``[agent]`` is not installed. Raises SystemExit.

    While modules are loaded no cycles are collected: there are none, and to look for them takes its time.
    """
    gc.disable()
    for package in _EXTRA:
        if find_spec(package) is None:  # looked for, not imported: a first launch needs none of them
            remedy = "the agent needs the extra [agent]: pip install '.[agent]' in its source folder"
            print(f"cosmian_vm_agent: {package} is not installed: {remedy}", file=sys.stderr)
            sys.exit(2)
    from cosmian_vm.agent.main import main as run

    run()
