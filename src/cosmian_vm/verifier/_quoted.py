"""PCR values that a TPM quote vouches for: the one form in which the other rooms of the verifier meet them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from hashlib import sha256

import msgspec

__all__ = ["NOTHING_QUOTED", "QuotedPcrs", "listed_pcrs"]


class QuotedPcrs(msgspec.Struct, frozen=True):
    """What the sha256 bank held, by the TPM's word.

    Version 2: ``values`` holds the PCR values (32 bytes each, by index) whose digest is the one in the quote; the
    other two are None. Version 1: ``values`` is empty, exactly one PCR was quoted, ``digest_pcr``, and only
    ``digest`` = SHA-256(its value) is known. All empty: nothing usable was quoted, so nothing can replay to it.
    """

    values: Mapping[int, bytes] = msgspec.field(default_factory=dict)
    digest: bytes | None = None
    digest_pcr: int | None = None

    @property
    def indices(self) -> frozenset[int]:
        """The PCRs about which the quote says something."""
        return frozenset(self.values) if self.digest_pcr is None else frozenset((*self.values, self.digest_pcr))

    def matches(self, pcr: int, value: bytes) -> bool:
        """Whether PCR ``pcr`` was quoted and held exactly ``value`` (32 bytes). False where it was not quoted."""
        if pcr in self.values:
            return self.values[pcr] == value
        return self.digest is not None and pcr == self.digest_pcr and sha256(value).digest() == self.digest


NOTHING_QUOTED = QuotedPcrs()
"""No quote, or none that can be used."""


@lru_cache(maxsize=64)
def listed_pcrs(pcrs: frozenset[int]) -> str:
    """``0-9, 11``."""
    runs: list[list[int]] = []
    for pcr in sorted(pcrs):
        if runs and pcr == runs[-1][1] + 1:
            runs[-1][1] = pcr
        else:
            runs.append([pcr, pcr])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs) or "none"
