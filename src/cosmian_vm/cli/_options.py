"""Options that several commands share. Part of every --help: nothing but click is imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["api_option", "appraisal_options"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

api_option = click.option(
    "--api",
    type=click.Choice(["1", "2"]),
    default="2",
    show_default=True,
    help="Version of the agent's API. 1, for an agent of 1.3, proves less: another machine may answer in its place.",
)


def appraisal_options(function: _Function) -> _Function:
    """What a verdict is based on beside the machine's answer: roots and endorsements."""
    options = (
        click.option(
            "--trust-root",
            "trust_roots",
            metavar="PEM",
            multiple=True,
            help="Trust this root certificate too, beside the hardware makers' (a simulated machine's, say). Every "
            "verdict says so. May be given several times.",
        ),
        click.option(
            "--endorsements",
            metavar="FILE",
            multiple=True,
            help="Certificates and revocation lists (PEM or DER) that the agent did not send. May be given several "
            "times.",
        ),
        click.option("--offline", is_flag=True, help="Do not ask the hardware maker for what is missing."),
    )
    for option in reversed(options):
        function = option(function)
    return function
