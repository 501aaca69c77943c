"""Event logs and the registers that they were extended into: which event makes the difference? Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from cosmian_vm.evidence.boot_log import BootEvent

__all__ = ["Steps", "culprits", "described", "run"]

Steps = Sequence[tuple[BootEvent, bytes]]
"""Events of one register, in order, each with the digest that was extended."""

_MAX_EXPLAINED = 256
"""Longest run of events of one register that is searched for the one that differs (quadratic)."""


def run(value: bytes, digests: Sequence[bytes], algorithm: str) -> bytes:
    """The register after these extensions."""
    for digest in digests:
        value = hashlib.new(algorithm, value + digest).digest()
    return value


def culprits(start: bytes, steps: Steps, before: bytes, algorithm: str) -> list[BootEvent]:
    """The events without which the register would be ``before``: the last ones, or any single one; else none."""
    value = start
    for done, (_, digest) in enumerate(steps):
        if value == before:
            return [event for event, _ in steps[done:]]
        value = run(value, (digest,), algorithm)
    if len(steps) > _MAX_EXPLAINED:
        return []
    digests = [digest for _, digest in steps]
    value = start
    for left_out, (event, digest) in enumerate(steps):
        if run(value, digests[left_out + 1 :], algorithm) == before:
            return [event]
        value = run(value, (digest,), algorithm)
    return []


def described(event: BootEvent) -> str:
    """One event in words."""
    return f"event {event.number}, {event.type_name}: {event.description}"
