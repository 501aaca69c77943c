"""Work that is whole or not at all: what an error or a signal ends is undone, and that is not interrupted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import ParamSpec

from cosmian_vm.errors import CosmianVmError

__all__ = ["EndedBySignal", "Undo", "undoing"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_P = ParamSpec("_P")


class EndedBySignal(KeyboardInterrupt):
    """SIGINT, SIGTERM or SIGHUP came; everything begun has been undone when this leaves ``undoing``."""


class Undo:
    """What would have to be undone, last first. Register each *before* what it undoes: it bears to find nothing."""

    def __init__(self) -> None:
        self._actions: list[Callable[[], object]] = []
        self.held = False

    def add(self, action: Callable[_P, object], *args: _P.args, **kwargs: _P.kwargs) -> None:
        """Undo by calling ``action``; errors of ours and of the operating system in it do not stop the others."""
        self._actions.append(partial(action, *args, **kwargs))

    def hold(self) -> None:
        """From now on until the end signals wait: the last steps, which belong together."""
        self.held = True

    def done(self) -> None:
        """Nothing is to be undone any more."""
        self._actions.clear()

    def run(self) -> None:
        """Undo."""
        self.held = True
        while self._actions:
            try:
                self._actions.pop()()
            except (CosmianVmError, OSError):
                continue


@contextmanager
def undoing() -> Iterator[Undo]:
    """``Undo`` for a block: undone on every exception, and on the first of the signals, which raises EndedBySignal.

    Signals are only ours to handle in the main thread; elsewhere the block is undone on exceptions alone.
    """
    undo = Undo()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if not undo.held:
            undo.held = True  # a second one does not interrupt the undoing
            raise EndedBySignal(f"ended by {signal.Signals(number).name}")

    before = {}
    if threading.current_thread() is threading.main_thread():
        # what nohup or a shell has set to be ignored stays ignored
        heard = [one for one in _SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]
        before = {one: signal.signal(one, on_signal) for one in heard}
    try:
        try:
            yield undo
        finally:
            undo.run()
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
