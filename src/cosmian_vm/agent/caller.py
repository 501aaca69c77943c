"""Who gives an order, as far as the front can tell."""

from __future__ import annotations

import msgspec

__all__ = ["MAX_TARGET", "Caller"]

MAX_TARGET = 256
"""Longest path with query of an order, in characters."""


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """``api``: 2 where the client says that it speaks version 2. ``address`` is for the log only.

    ``proof``: the owner's proof as it came, empty where there is none. ``target``: path and query as they came.
    ``leaf``: certificate (DER) of the order's connection, empty where that is not known. The collector verifies the
    proof: nothing here is believed.
    """

    api: int
    address: str
    proof: str = ""
    target: str = ""
    leaf: bytes = b""
