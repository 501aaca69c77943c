"""Options that several commands share. Part of every --help: nothing but click is imported."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import click

__all__ = ["api_option", "appraisal_options", "order_options"]

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


def order_options(function: _Function) -> _Function:
    """Which machine an order is meant for, and what proves it: a mapping, the argument ``given``."""
    options = (
        click.option(
            "--snapshot", "-s", "snapshot_file", metavar="FILE", help="Only for the machine of this snapshot."
        ),
        click.option(
            "--reference",
            "-r",
            "reference_file",
            metavar="FILE",
            help="Only for a machine that booted this image (image/build writes the file).",
        ),
        click.option(
            "--allow-reboot", is_flag=True, help="A reboot since the snapshot is a warning, if all else holds."
        ),
        click.option(
            "--without-tpm", is_flag=True, help="The machine has no TPM and no IMA; of no use with --snapshot."
        ),
        click.option(
            "--no-verify",
            is_flag=True,
            help="Do not verify the machine first: whoever answers under its name gets all that is sent.",
        ),
        click.option("--verbose", "-v", is_flag=True, help="Show every check."),
    )
    taken = function.__code__.co_varnames[: function.__code__.co_argcount + function.__code__.co_kwonlyargcount]

    @wraps(function)
    def packed(*arguments: object, **values: object) -> object:
        given = {name: values.pop(name) for name in list(values) if name not in taken}
        return function(*arguments, given=given, **values)

    wrapped: Any = packed
    for option in reversed(options):
        wrapped = option(wrapped)
    return cast("_Function", appraisal_options(wrapped))
