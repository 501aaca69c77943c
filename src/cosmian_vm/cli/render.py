"""A verdict as lines and as JSON. The wording of the first lines is what people grep for: it stays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime

import click
import msgspec

from cosmian_vm.reference.snapshot import Anchor
from cosmian_vm.verifier.result import Check, Status, Verdict

__all__ = [
    "BuiltImage",
    "Group",
    "Outcome",
    "as_data",
    "as_json",
    "checks_data",
    "group_status",
    "groups",
    "lines",
    "printable",
    "tag",
]

_LABELS = {Status.OK: "OK", Status.FAIL: "FAIL", Status.WARNING: "WARNING", Status.SKIP: "SKIP"}
_COLOURS = {Status.OK: "green", Status.FAIL: "red", Status.WARNING: "yellow", Status.SKIP: "cyan"}
_MAX_DETAILS = 20
_INDENT = "         "
_OWNED_BY = "The machine is owned by "
"""How ``vm.owner`` begins where it names somebody."""


class BuiltImage(msgspec.Struct, frozen=True, kw_only=True):
    """Reference values that were compared with: their file, the image's name and hash, and how much they pin."""

    file: str
    created: str
    image: str
    image_sha256: str
    files: int
    pcrs: tuple[int, ...]
    launches: int


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """One appraisal and what it was about.

    ``snapshot``: the file compared with; None where there was none to compare with. ``files``: how many files it has,
    None where it has no file hashes. ``built``: the image's reference values, None where none were given.
    ``applications``: addresses, in the order of their checks. ``notes``: warnings that are not checks (roots of the
    user's own, endorsements that could not be had). ``anchor``: who vouches for the AK.
    """

    verdict: Verdict
    url: str
    moment: datetime
    api: int
    agent_version: str
    tls_sha256: str
    snapshot: str | None = None
    snapshot_created: str | None = None
    files: int | None = None
    built: BuiltImage | None = None
    applications: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    anchor: Anchor | None = None


class Group(msgspec.Struct, frozen=True):
    """Checks that answer one question of the administrator's, under one line."""

    title: str
    status: Status
    checks: tuple[Check, ...]


def printable(text: str) -> str:
    """Text that may come from the other side, fit for a terminal: what does not print is shown as its code."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def tag(status: Status) -> str:
    """``[ OK ]`` and so on, coloured where the output is a terminal."""
    return click.style(f"[ {_LABELS[status]} ]", fg=_COLOURS[status], bold=True if status is Status.FAIL else None)


OK = tag(Status.OK)
WARNING = tag(Status.WARNING)
"""The labels of lines that belong to no check."""


def groups(outcome: Outcome) -> tuple[Group, ...]:
    """The verdict in the order of the manual: files, TPM, TEE, TLS, applications, owner."""
    checks = outcome.verdict.checks
    compared = outcome.files if outcome.snapshot is not None or outcome.built is None else outcome.built.files
    against = f" (against {compared} files)" if compared is not None else ""
    parts = [
        (f"Verifying VM integrity{against}", _under(checks, "ima.")),
        ("Verifying TPM attestation", _under(checks, "tpm.")),
        ("Verifying TEE attestation", _under(checks, "tee.")),
        (f"Verifying TLS certificate of {outcome.url}", _under(checks, "tls.certificate")),
    ]
    applications = _under(checks, "tls.application")
    for index, check in enumerate(applications):
        address = outcome.applications[index] if index < len(outcome.applications) else outcome.url
        parts.append((f"Verifying TLS application for {address}", (check,)))
    owner = _under(checks, "vm.owner")
    parts.append((f"Verifying owner{_named(owner)}", owner))
    known = {id(check) for _, part in parts for check in part}
    rest = tuple(check for check in checks if id(check) not in known)
    parts.append(("Verifying the rest", rest))
    return tuple(Group(title, group_status(part), part) for title, part in parts if part)


def _named(owner: tuple[Check, ...]) -> str:
    """Whose it is, where that is as it should be: seen on every run, so that a change is noticed."""
    named = [check.line.removeprefix(_OWNED_BY) for check in owner if check.line.startswith(_OWNED_BY)]
    return f" ({printable(named[0])})" if named and owner[0].status is Status.OK else ""


def _under(checks: Iterable[Check], prefix: str) -> tuple[Check, ...]:
    return tuple(check for check in checks if check.id.startswith(prefix))


def group_status(checks: Iterable[Check]) -> Status:
    """What the group's line says: FAIL if one failed, or was required and not made; else OK if one passed.

    A warning does not take the OK from a group that passed, for that line is what people grep for: it stands below, as
    a line of its own. A group that is nothing but a warning says so.
    """
    checks = tuple(checks)
    statuses = {check.status for check in checks}
    if Status.FAIL in statuses or any(check.required and check.status is Status.SKIP for check in checks):
        return Status.FAIL
    if statuses <= {Status.SKIP}:
        return Status.SKIP
    return Status.OK if Status.OK in statuses else Status.WARNING


def lines(outcome: Outcome, *, verbose: bool = False) -> Iterator[str]:
    """What ``verify`` prints: a line for each group, below it what one must know, at the end the answer."""
    for note in outcome.notes:
        yield f"{tag(Status.WARNING)} {printable(note)}"
    if outcome.snapshot is not None and outcome.files is None:
        yield f"{tag(Status.WARNING)} No files hash in the snapshot"
    for group in groups(outcome):
        yield f"{tag(group.status)} {printable(group.title)}"
        for check in group.checks:
            yield from _check_lines(check, verbose=verbose)
    yield _answer(outcome)


def _check_lines(check: Check, *, verbose: bool) -> Iterator[str]:
    notable = check.status in (Status.FAIL, Status.WARNING) or (check.required and check.status is Status.SKIP)
    if not (verbose or notable):
        return
    label = tag(check.status) if verbose else f"{_LABELS[check.status].lower()}:"
    unmade = " (required: without it there is no trust)" if check.required and check.status is Status.SKIP else ""
    yield f"{_INDENT}{label} {check.id}: {printable(check.line)}{unmade}"
    # A line that names its one thing says all of it.
    details = () if len(check.details) == 1 and check.details[0] in check.line else check.details
    shown = details if verbose else details[:_MAX_DETAILS]
    for detail in shown:
        yield f"{_INDENT}    {printable(detail)}"
    if hidden := len(details) - len(shown):
        yield f"{_INDENT}    ... and {hidden} more (--verbose shows all)"


def _answer(outcome: Outcome) -> str:
    verdict = outcome.verdict
    built = outcome.built
    if verdict.trusted:
        if outcome.snapshot is None and built is None:
            return f"{tag(Status.OK)} {outcome.url} is genuine; whose machine it is, only a snapshot tells"
        if outcome.snapshot is None and built is not None:
            image = f"{outcome.url} booted the image of {printable(built.file)} ({printable(built.image)})"
            return f"{tag(Status.OK)} Trusted: {image}; which machine it is, only a snapshot tells"
        also = "" if built is None else f", and as the image of {printable(built.file)} was built"
        return f"{tag(Status.OK)} Trusted: {outcome.url} is the machine of {printable(str(outcome.snapshot))}{also}"
    reasons = []
    if verdict.failures:
        reasons.append(f"failed: {', '.join(_unique(verdict.failures))}")
    if verdict.skipped_required:
        reasons.append(f"could not be checked: {', '.join(_unique(verdict.skipped_required))}")
    return f"{tag(Status.FAIL)} Not trusted: {outcome.url}: {'; '.join(reasons) or 'nothing was checked'}"


def _unique(checks: Iterable[Check]) -> list[str]:
    return list(dict.fromkeys(check.id for check in checks))


def checks_data(checks: Iterable[Check], *, full: bool) -> list[dict[str, object]]:
    """Checks for JSON; ``full`` adds details and whether they are required."""
    found: list[dict[str, object]] = []
    for check in checks:
        data: dict[str, object] = {"id": check.id, "status": str(check.status), "line": check.line}
        if full:
            data |= {"details": list(check.details), "required": check.required}
        found.append(data)
    return found


def as_data(outcome: Outcome) -> Mapping[str, object]:
    """The verdict as plain data."""
    snapshot = outcome.snapshot and {
        "file": outcome.snapshot,
        "created": outcome.snapshot_created,
        "files": outcome.files,
    }
    return {
        "trusted": outcome.verdict.trusted,
        "url": outcome.url,
        "at": outcome.moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "api": outcome.api,
        "agent_version": outcome.agent_version,
        "tls_certificate_sha256": outcome.tls_sha256,
        "snapshot": snapshot,
        "reference": None if outcome.built is None else msgspec.to_builtins(outcome.built),
        "notes": list(outcome.notes),
        "checks": checks_data(outcome.verdict.checks, full=True),
    }


def as_json(data: Mapping[str, object]) -> str:
    """Indented JSON, ASCII only: names of files may be anything."""
    import json

    return json.dumps(data, indent=2)
