"""A verdict as one self-contained HTML page: no script, no external resource, light and dark, fit for printing."""

from __future__ import annotations

from datetime import UTC
from importlib import resources

from jinja2 import Environment, StrictUndefined

from cosmian_vm import __version__
from cosmian_vm.cli.render import Group, Outcome, groups, printable
from cosmian_vm.verifier.result import Check, Status

__all__ = ["page"]

_COUNTED = {Status.OK: "passed", Status.FAIL: "failed", Status.WARNING: "with a warning", Status.SKIP: "skipped"}
_WORDS = {Status.OK: "OK", Status.FAIL: "Failed", Status.WARNING: "Warning", Status.SKIP: "Skipped"}


def page(outcome: Outcome) -> bytes:
    """The page, UTF-8. Every text is escaped: names of files come from the machine that is being judged."""
    # autoescape for everything: the template is not chosen by its name
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["printable"] = printable
    environment.filters["word"] = lambda status: _WORDS[Status(status)]
    template = environment.from_string(resources.files("cosmian_vm.cli").joinpath("report.html").read_text("utf-8"))
    found = groups(outcome)
    counted = {status: sum(c.status is status for g in found for c in g.checks) for status in Status}
    text = template.render(
        outcome=outcome,
        trusted=outcome.verdict.trusted,
        moment=outcome.moment.astimezone(UTC).strftime("%d %B %Y, %H:%M:%S UTC"),
        groups=found,
        notable=[check for group in found for check in group.checks if _withholds(check)],
        counts=[(str(status), _COUNTED[status], counted[status]) for status in Status if counted[status]],
        opened=_opened,
        version=__version__,
    )
    return text.encode("utf-8")


def _withholds(check: Check) -> bool:
    """Whether this check is why there is no trust."""
    return check.status is Status.FAIL or (check.required and check.status is Status.SKIP)


def _opened(group: Group) -> bool:
    """Groups with something to read are open when the page is."""
    return any(check.status is not Status.OK for check in group.checks)
