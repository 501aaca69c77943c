"""A verdict is data: every check under its stable id; exit status, lines and JSON derive from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

import msgspec

__all__ = ["CHECK_IDS", "Check", "Status", "Verdict", "both", "fail", "ok", "skip", "warning", "with_required"]

CHECK_IDS = (
    "tee.signature",
    "tee.chain",
    "tee.revocation",
    "tee.tcb",
    "tee.debug",
    "tee.report_data",
    "tee.measurement",
    "tee.instance",
    "tpm.ak",
    "tpm.signature",
    "tpm.nonce",
    "tpm.pcr_selection",
    "tpm.clock",
    "tpm.boot_pcrs",
    "ima.replay",
    "ima.boot_aggregate",
    "ima.files",
    "ima.policy",
    "ima.violations",
    "tls.certificate",
    "tls.application",
    "vm.owner",
)
"""Every check of an appraisal, in the order in which a verdict lists them."""


class Status(StrEnum):
    """What a check found."""

    OK = "ok"
    FAIL = "fail"
    WARNING = "warning"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer.

    ``line``: one line in plain words that names the thing and, on failure, the remedy. ``details``: further lines,
    one thing each (a file, a PCR). ``required``: without an answer to it there is no trust.
    """

    id: str
    status: Status
    line: str
    details: tuple[str, ...] = ()
    required: bool = False


def ok(check_id: str, line: str, details: Iterable[str] = ()) -> Check:
    """A check that passed."""
    return Check(check_id, Status.OK, line, tuple(details))


def fail(check_id: str, line: str, details: Iterable[str] = ()) -> Check:
    """A check that failed."""
    return Check(check_id, Status.FAIL, line, tuple(details))


def warning(check_id: str, line: str, details: Iterable[str] = ()) -> Check:
    """A check that passed, with something the administrator must know."""
    return Check(check_id, Status.WARNING, line, tuple(details))


def skip(check_id: str, line: str, details: Iterable[str] = ()) -> Check:
    """A check that could not be made; if it is required, there is no trust."""
    return Check(check_id, Status.SKIP, line, tuple(details))


_WORSE = (Status.FAIL, Status.SKIP, Status.WARNING, Status.OK)


def both(first: Check, second: Check) -> Check:
    """The answers to one question that was asked of two references, as one: the worse of the two counts, and nothing
    that either says is lost.
    """
    worse, other = sorted((first, second), key=lambda check: _WORSE.index(check.status))
    if other.status is Status.FAIL:
        return fail(first.id, f"{first.line}; {second.line}", (*first.details, *second.details))
    return replace(worse, details=(*worse.details, other.line, *other.details))


class Verdict(msgspec.Struct, frozen=True):
    """The outcome of one appraisal, checks in the order of CHECK_IDS."""

    checks: tuple[Check, ...]

    @property
    def trusted(self) -> bool:
        """True only if there are checks, none failed, and no required one was skipped."""
        return bool(self.checks) and not self.failures and not self.skipped_required

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(c for c in self.checks if c.status is Status.FAIL)

    @property
    def skipped_required(self) -> tuple[Check, ...]:
        """Required checks that were not made."""
        return tuple(c for c in self.checks if c.required and c.status is Status.SKIP)

    def of(self, check_id: str) -> tuple[Check, ...]:
        """All checks under ``check_id`` (``tls.application`` may stand there several times)."""
        return tuple(c for c in self.checks if c.id == check_id)


def with_required(checks: Iterable[Check], required: frozenset[str]) -> tuple[Check, ...]:
    """The same checks with ``required`` set from the ids given."""
    return tuple(replace(c, required=c.id in required) for c in checks)
