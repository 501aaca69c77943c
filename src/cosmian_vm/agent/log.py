"""What the agent's log says. One line an event, never a secret, and never a file read to say it.

A traceback as Python prints it quotes source lines: it would read files that IMA has perhaps not measured yet, in the
middle of a call. Ours names file, line and function, which is enough.
"""

from __future__ import annotations

import logging
import secrets
import sys
from types import TracebackType

__all__ = ["LOGGER", "configure", "describe", "new_error_id"]

LOGGER = logging.getLogger("cosmian_vm.agent")

_MAX_FRAMES = 40


class _Formatter(logging.Formatter):
    def formatException(self, ei: object) -> str:  # noqa: N802 - the name is logging's
        exc = ei[1] if isinstance(ei, tuple) else None
        return describe(exc) if isinstance(exc, BaseException) else ""


def configure() -> None:
    """Log to standard error, one line an event; the server library's own chatter is left out."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    LOGGER.setLevel(logging.INFO)


def new_error_id() -> str:
    """What an answer of status 500 and the log have in common."""
    return secrets.token_hex(6)


def describe(exc: BaseException) -> str:
    """One line: what happened and where, causes after it."""
    parts: list[str] = []
    seen: BaseException | None = exc
    while seen is not None and len(parts) < 8:
        text = " ".join(str(seen).split())
        parts.append(f"{type(seen).__name__}: {text} [{_places(seen.__traceback__)}]")
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return " <- ".join(parts)


def _places(traceback: TracebackType | None) -> str:
    places: list[str] = []
    while traceback is not None and len(places) < _MAX_FRAMES:
        code = traceback.tb_frame.f_code
        places.append(f"{code.co_filename.rpartition('/')[2]}:{traceback.tb_lineno} {code.co_name}")
        traceback = traceback.tb_next
    return ", ".join(places)
