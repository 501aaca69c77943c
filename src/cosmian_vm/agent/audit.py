"""What was ordered, by whom, and what came of it: one line an order in the agent's log, never its content."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from cosmian_vm.agent.caller import Caller
from cosmian_vm.agent.log import LOGGER
from cosmian_vm.agent.rates import Rates
from cosmian_vm.errors import CosmianVmError, OrderError

__all__ = ["Audit"]

_MAX_REFUSED = 60
"""Refusals of one client that are written down at once, and in a minute: a stranger must not fill the disk."""


class Audit:
    """Keeps the log of orders."""

    def __init__(self) -> None:
        self._refused = Rates(burst=_MAX_REFUSED, each_minute=_MAX_REFUSED)
        self._untold = 0

    @contextmanager
    def order(self, what: str, caller: Caller) -> Iterator[list[str]]:
        """Around one order. Who gives it is put into the list as soon as that is known."""
        who: list[str] = []
        try:
            yield who
        except OrderError as exc:
            self._say(what, caller, who, f"refused ({exc.status}): {exc}")
            raise
        except CosmianVmError as exc:
            self._say(what, caller, who, f"failed: {exc}")
            raise
        except BaseException as exc:
            self._say(what, caller, who, f"failed: {type(exc).__name__}")
            raise
        self._say(what, caller, who, "done")

    def _say(self, what: str, caller: Caller, who: list[str], result: str) -> None:
        if not who:
            if not self._refused.allows(caller.address):
                self._untold += 1
                return
            if self._untold:
                LOGGER.warning("order: %d more refusals of strangers were not written down", self._untold)
                self._untold = 0
        named = who[0] if who else "nobody known"
        line = "".join(c if c.isprintable() else " " for c in result)
        LOGGER.info("order: %s by %s from %s: %s", what, named, caller.address, line)
