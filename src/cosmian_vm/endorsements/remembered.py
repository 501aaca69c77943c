"""Results of pure functions of certificates, kept as long as the process lives: ARK and ASK are verified once."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

__all__ = ["MOST_REMEMBERED", "remembered"]

MOST_REMEMBERED = 512
"""How many results of one function are kept; beyond that all are forgotten."""

P = ParamSpec("P")
T = TypeVar("T")


def remembered(function: Callable[P, T]) -> Callable[P, T]:
    """Remember the results of a pure function of certificates for as long as the process lives.

    By the objects' identity, since hashing a certificate costs more than most of these functions; the objects are kept
    too, so that no identity comes back for another one. ``load_certificate`` gives one object for the same bytes.
    """
    known: dict[tuple[int, ...], tuple[tuple[object, ...], T]] = {}

    @wraps(function)
    def recall(*args: P.args, **kwargs: P.kwargs) -> T:
        key = tuple(map(id, args))
        entry = known.get(key)
        if entry is None:
            entry = (args, function(*args, **kwargs))
            if len(known) >= MOST_REMEMBERED:
                known.clear()
            known[key] = entry
        return entry[1]

    return recall
