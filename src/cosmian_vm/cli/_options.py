"""Options that several commands share. Part of every --help: nothing but click is imported."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, TypeVar, cast

import click

__all__ = ["Chosen", "api_option", "appraisal_options", "order_options", "pccs_option"]

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


class Chosen(NamedTuple):
    """What the user gave beside the agent's answer: values of the options of ``appraisal_options``."""

    trust_roots: tuple[str, ...]
    tpm_roots: tuple[str, ...]
    endorsements: tuple[str, ...]
    policy: str | None
    pccs: str | None
    offline: bool


def appraisal_options(function: _Function) -> _Function:
    """What a verdict is based on beside the machine's answer: the command gets it as ``chosen``."""
    options = (
        click.option(
            "--policy",
            metavar="FILE",
            help="What to accept beyond the snapshot: minimum firmware, TCB statuses, required checks, roots "
            "(cosmian_vm policy show prints one, every key explained).",
        ),
        click.option(
            "--trust-root",
            "trust_roots",
            metavar="PEM",
            multiple=True,
            help="Trust this root certificate too, beside the hardware makers' (a simulated machine's, say). Every "
            "verdict says so. May be given several times.",
        ),
        click.option(
            "--tpm-root",
            "tpm_roots",
            metavar="PEM",
            multiple=True,
            help="Root certificate of a maker of TPMs: a TPM that it certified is trusted against the cloud's operator "
            "too. May be given several times.",
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

    @wraps(function)
    def packed(*args: object, **kwargs: object) -> object:
        chosen = Chosen._make(kwargs.pop(name) for name in Chosen._fields)
        return function(*args, chosen=chosen, **kwargs)

    command: Any = packed
    for option in reversed(options):
        command = option(command)
    return cast(_Function, command)


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
