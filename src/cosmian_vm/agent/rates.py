"""How often one client may ask: a bucket of tokens for each, filled anew at an even pace."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from cosmian_vm.agent.answers import network
from cosmian_vm.errors import OrderError

__all__ = ["Rates"]

_MAX_CLIENTS = 8192


class _Bucket(NamedTuple):
    tokens: float
    at: float


class Rates:
    """``burst`` calls at once, and ``each_minute`` in the long run, for each client: an IPv4 address, or the network
    (/64) of an IPv6 one. Of more clients than can be kept, those that were quiet longest are forgotten.
    """

    def __init__(self, *, burst: int, each_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = float(burst)
        self._pace = each_minute / 60
        self._clock = clock
        self._buckets: OrderedDict[bytes, _Bucket] = OrderedDict()

    def allows(self, address: str) -> bool:
        """Take a token; False where there is none left."""
        client, now = network(address), self._clock()
        bucket = self._buckets.pop(client, None)
        tokens = self._burst if bucket is None else min(self._burst, bucket.tokens + (now - bucket.at) * self._pace)
        allowed = tokens >= 1
        self._buckets[client] = _Bucket(tokens - 1 if allowed else tokens, now)
        if len(self._buckets) > _MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return allowed

    def take(self, address: str) -> None:
        """Raises OrderError (503) where the client has to wait."""
        if not self.allows(address):
            raise OrderError("too many requests from this address in a short time, try again later", status=503)
