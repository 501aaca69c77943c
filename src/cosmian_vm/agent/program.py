"""The entry point of cosmian_vm_agent: says what is not installed; all else is ``main``."""

from __future__ import annotations

import sys

__all__ = ["main"]

_EXTRA = frozenset({"httptools", "uvicorn", "uvloop"})
"""Packages of the extra ``[agent]`` (pyproject.toml), as they are imported. Not the TPM's: it is loaded where there is
a TPM, and what is wrong with it is said then.
"""


def main() -> None:
    """Run the agent; status 2 and one line where the extra ``[agent]`` is not installed. Raises SystemExit."""
    try:
        from cosmian_vm.agent.main import main as run
    except ModuleNotFoundError as exc:
        package = (exc.name or "").partition(".")[0]
        if package not in _EXTRA:
            raise
        remedy = "the agent needs the extra [agent]: pip install '.[agent]' in its source folder"
        print(f"cosmian_vm_agent: {package} is not installed: {remedy}", file=sys.stderr)
        sys.exit(2)
    run()
