"""``cosmian_vm known``: the machines that are remembered."""

from __future__ import annotations

import click

from cosmian_vm.cli._common import TRUSTED
from cosmian_vm.errors import InputError

__all__ = ["command"]

_EPILOG = """\b
Examples:
  cosmian_vm known list
  A machine was set up anew on purpose, and shall be remembered again:
    cosmian_vm known remove https://vm.example.com:5355
"""


_LIST_EPILOG = """\b
Example:
  cosmian_vm known list
"""

_REMOVE_EPILOG = """\b
Example:
  cosmian_vm known remove https://vm.example.com:5355
"""


@click.group(name="known", epilog=_EPILOG)
def command() -> None:
    """The machines that are remembered, by URL."""


@command.command(name="list", epilog=_LIST_EPILOG)
def list_() -> int:
    """Show them."""
    from cosmian_vm.cli._machines import Machines
    from cosmian_vm.cli.render import printable
    from cosmian_vm.client.owner_key import config_folder

    for url, identity in Machines(config_folder()).known().items():
        click.echo(printable(f"{url}  since {identity.since or 'long'}"))
        for line in identity.lines():
            click.echo(printable(f"    {line}"))
    return TRUSTED


@command.command(epilog=_REMOVE_EPILOG)
@click.argument("url", metavar="URL")
def remove(*, url: str) -> int:
    """Forget one: the next order meets it as a new machine."""
    from cosmian_vm.cli._machines import Machines
    from cosmian_vm.cli.render import OK
    from cosmian_vm.client import AgentClient
    from cosmian_vm.client.owner_key import config_folder

    short = AgentClient(url, allow_insecure_tls=True).url
    if not Machines(config_folder()).forget(short):
        raise InputError(f"{short} is not remembered (cosmian_vm known list)")
    click.echo(f"{OK} Forgotten: {short}")
    return TRUSTED
