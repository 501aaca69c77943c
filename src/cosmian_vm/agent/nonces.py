"""Nonces that an owner's proof answers: fresh, short-lived, usable once; strangers cannot make the agent keep any.

A nonce carries the moment of its issue and a MAC over it, so nothing is stored when one is issued: whoever asks for
millions of them uses up no memory and takes none from anybody. Only those that an owner has used are remembered, until
they have expired by themselves. Time is that of the monotonic clock; the wall clock, which the operator can set, is
never asked.

    0    8  milliseconds since the agent's start, big endian
    8    8  random
    16  16  HMAC-SHA-256 of the former, truncated, by a key of this process alone
"""

from __future__ import annotations

import hmac
import os
import time
from collections.abc import Callable
from hashlib import sha256

from cosmian_vm.errors import OrderError

__all__ = ["LIFE_SECONDS", "Nonces"]

LIFE_SECONDS = 150.0
"""From a nonce's issue to the end of the order that it is used for: as long as the largest body may take to arrive."""

_MAX_USED = 4096
_SIGNED = 16
_MAC = 16


class Nonces:
    """``clock``: seconds, monotonic."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, life: float = LIFE_SECONDS) -> None:
        self._clock = clock
        self._life = life
        self._start = clock()
        self._key = os.urandom(32)
        self._used: dict[bytes, float] = {}

    def issue(self) -> bytes:
        """A fresh nonce, 32 bytes."""
        signed = int(self._age() * 1000).to_bytes(8, "big") + os.urandom(8)
        return signed + self._mac(signed)

    def check(self, nonce: bytes) -> None:
        """Whether it can be used now. Raises OrderError (401)."""
        signed, mac = nonce[:_SIGNED], nonce[_SIGNED:]
        if not hmac.compare_digest(mac, self._mac(signed)):
            raise OrderError("the proof's nonce is not of this agent, or of before its last start", status=401)
        if self._age() - int.from_bytes(signed[:8], "big") / 1000 > self._life:
            raise OrderError(f"the proof's nonce is older than {self._life:g} s: ask for a new one", status=401)
        if nonce in self._used:
            raise OrderError("the proof has been used before", status=401)

    def use(self, nonce: bytes) -> None:
        """From now on it is used up. For proofs that have been verified. Raises OrderError (401, 503)."""
        self.check(nonce)
        now = self._clock()
        while self._used and (oldest := next(iter(self._used))) and self._used[oldest] < now:
            del self._used[oldest]
        if len(self._used) >= _MAX_USED:
            raise OrderError("too many orders in a short time, try again later", status=503)
        self._used[nonce] = now + self._life + 1  # longer than any nonce that is issued by now

    def _age(self) -> float:
        return self._clock() - self._start

    def _mac(self, signed: bytes) -> bytes:
        return hmac.new(self._key, signed, sha256).digest()[:_MAC]
