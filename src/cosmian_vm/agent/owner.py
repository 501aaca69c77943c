"""Who may give orders: the front asks for nothing here, the collector decides."""

from __future__ import annotations

from typing import Literal

import msgspec

from cosmian_vm.errors import OrderError
from cosmian_vm.wire import ORDER_HEADER

__all__ = ["Caller", "Owners"]


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who gives an order, as far as the front can tell. ``api``: 2 where the client says that it speaks version 2.

    ``address`` is for the log only. A proof of ownership will stand here too.
    """

    api: int
    address: str


class Owners:
    """The owners of this machine. ``configured``: "anyone" takes orders from any client, as 1.3.x does."""

    def __init__(self, configured: Literal["anyone"] | None) -> None:
        self._configured = configured

    @property
    def names(self) -> tuple[str, ...]:
        """As evidence shows them: ("anyone",), or () for an unclaimed machine."""
        return () if self._configured is None else (self._configured,)

    def check(self, caller: Caller) -> None:
        """Let the order pass, or raise OrderError (403) with the remedy.

        An unclaimed machine obeys clients of version 2, which verify it before they tell it anything. Clients of
        version 1 verify nothing and prove nothing.
        """
        if self._configured == "anyone" or caller.api >= 2:
            return
        raise OrderError(
            "orders of API version 1 carry no proof of who gives them: use a client of version 2 (header "
            f'{ORDER_HEADER}: 2), or set owners = "anyone" in the section [agent] of the agent\'s configuration',
            status=403,
        )
