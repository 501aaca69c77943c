"""Options that several commands share. Part of every --help: nothing but click is imported."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

__all__ = ["api_option", "appraisal_options", "pccs_option"]

_Function = TypeVar("_Function", bound=Callable[..., Any])

api_option = click.option(
    "--api",
    type=click.Choice(["1", "2"]),
    default="2",
    show_default=True,
    help="Version of the agent's API. 1, for an agent of 1.3, proves less: another machine may answer in its place.",
)

pccs_option = click.option(
    "--pccs",
    metavar="URL",
    help="Ask this PCCS for Intel's collateral, not Intel: https://pccs.example.com:8081. It need not be trusted.",
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
            metavar="FILE|DIR",
            multiple=True,
            help="Certificates, revocation lists (PEM or DER) and Intel collateral (JSON) that the agent did not send: "
            "a file, or a folder of them as endorsements fetch writes it. May be given several times.",
        ),
        pccs_option,
        click.option("--offline", is_flag=True, help="Do not ask the hardware maker for what is missing."),
    )
    for option in reversed(options):
        function = option(function)
    return function
