"""The front's own SELinux domain. What it executes is python3, which has none to give: the domain is asked for."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cosmian_vm.agent.log import LOGGER

__all__ = ["executing_the_front"]

_ATTRIBUTES = Path("/proc/thread-self/attr")
_COLLECTOR = "cosmian_vm_agent_t"
_FRONT = "cosmian_vm_front_t"


@contextmanager
def executing_the_front(attributes: Path = _ATTRIBUTES) -> Iterator[None]:
    """What this thread starts in the block has the front's domain, where the agent itself has the collector's.

    Elsewhere (no SELinux, no policy for the agent, another security module) nothing happens. Where the policy does not
    know the front, it starts in the collector's domain, and the log says so.
    """
    context = _context(attributes / "current").split(":", 3)
    asked = len(context) == 4 and context[2] == _COLLECTOR
    if asked:
        asked = _ask(attributes / "exec", ":".join((*context[:2], _FRONT, context[3])))
    try:
        yield
    finally:
        if asked:
            _ask(attributes / "exec", "")


def _context(path: Path) -> str:
    """``user:role:type:level``; empty where there is none."""
    try:
        return path.read_text(encoding="ascii", errors="replace").rstrip("\0\n")
    except OSError:
        return ""


def _ask(path: Path, context: str) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, context.encode() or b"\n")  # a bare line takes the wish back
        finally:
            os.close(descriptor)
    except OSError as exc:
        LOGGER.warning("SELinux: the front does not get its own domain: %s: %s", path, exc.strerror or exc)
        return False
    return True
