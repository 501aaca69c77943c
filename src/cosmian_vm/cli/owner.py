"""``cosmian_vm owner``: the key that owns machines, and who owns one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cosmian_vm.cli._common import TRUSTED, read_file, target_of
from cosmian_vm.cli._options import order_options
from cosmian_vm.errors import EvidenceFormatError, InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from cosmian_vm.client.owner_key import OwnerKey

__all__ = ["command"]

_EPILOG = """\b
Examples:
  Your fingerprint, for a colleague who adds you, or for owners = [...] in agent.toml:
    cosmian_vm owner show
  Who owns a machine:
    cosmian_vm --url https://vm.example.com:5355 owner show
  Let a colleague give orders to it too:
    cosmian_vm --url https://vm.example.com:5355 owner add ed25519:Rm0w...
  Keep a backup of your key; whoever loses it cannot give orders any more:
    cosmian_vm owner export owner.backup
"""


_SHOW_EPILOG = """\b
Examples:
  cosmian_vm owner show
  cosmian_vm --url https://vm.example.com:5355 owner show
"""

_ADD_EPILOG = """\b
Example:
  cosmian_vm --url https://vm.example.com:5355 owner add ed25519:Rm0w... -s cosmian_vm.snapshot
\b
Snapshots that were taken before name the owners of then: take a new one.
"""

_REMOVE_EPILOG = """\b
Example:
  cosmian_vm --url https://vm.example.com:5355 owner remove ed25519:Rm0w... -s cosmian_vm.snapshot
\b
Snapshots that were taken before name the owners of then: take a new one.
"""

_EXPORT_EPILOG = """\b
Example:
  cosmian_vm owner export owner.backup
"""

_IMPORT_EPILOG = """\b
Examples:
  cosmian_vm owner import owner.backup
  On a computer that has a key of its own already:
    cosmian_vm owner export other.backup
    cosmian_vm owner import --replace owner.backup
"""


@click.group(name="owner", epilog=_EPILOG)
def command() -> None:
    """The key that owns your machines; who owns a machine."""


@command.command(short_help="Your key, and with --url who owns that machine.", epilog=_SHOW_EPILOG)
@click.option("--make", is_flag=True, help="Make your key if there is none yet.")
@click.pass_context
def show(context: click.Context, *, make: bool) -> int:
    """Your key's fingerprint and file; with --url, who owns that machine, as its agent says (verify proves it)."""
    from cosmian_vm.cli.render import printable
    from cosmian_vm.client.owner_key import config_folder, create, load

    folder = config_folder()
    key = create(folder) if make else load(folder)
    if key is None:
        click.echo(f"You have no owner's key yet ({folder}): your first order makes one, or --make")
    else:
        click.echo(f"{key.fingerprint}  {key.path}")
    target = target_of(context)
    if target.url is not None:
        with target.client() as client:
            told = client.owners()
        nobody = "nobody yet: the first order claims it" if told.claimable else "nobody"
        click.echo(printable(f"{client.url} is owned by {', '.join(told.owners) or nobody}"))
    return TRUSTED


@command.command(epilog=_ADD_EPILOG)
@click.argument("fingerprint", metavar="FINGERPRINT")
@click.pass_context
@order_options
def add(context: click.Context, *, fingerprint: str, given: Mapping[str, Any]) -> int:
    """Let somebody else give orders to the machine too."""
    from cosmian_vm.wire import OWNER_ADD

    return _change(context, OWNER_ADD, fingerprint, given)


@command.command(epilog=_REMOVE_EPILOG)
@click.argument("fingerprint", metavar="FINGERPRINT")
@click.pass_context
@order_options
def remove(context: click.Context, *, fingerprint: str, given: Mapping[str, Any]) -> int:
    """Take an owner's rights on the machine away. The last one stays."""
    from cosmian_vm.wire import OWNER_REMOVE

    return _change(context, OWNER_REMOVE, fingerprint, given)


def _change(context: click.Context, what: str, fingerprint: str, given: Mapping[str, Any]) -> int:
    from cosmian_vm.cli._orders import means_from, prove
    from cosmian_vm.cli.render import OK, WARNING, printable
    from cosmian_vm.owner_proof import parse_fingerprint

    try:
        parse_fingerprint(fingerprint)
    except EvidenceFormatError as exc:
        raise click.UsageError(f"{fingerprint!r} is no owner's fingerprint: {exc.problem}") from exc
    target = target_of(context)
    with target.client() as client:
        prove(client, target, means_from(given))
        told = client.change_owners(what, fingerprint)
    click.echo(f"{OK} " + printable(f"{client.url} is owned by {', '.join(told.owners)}"))
    click.echo(f"{WARNING} Snapshots that were taken before name other owners, and verify says so: take a new one")
    return TRUSTED


@command.command(short_help="Write a backup of your key to a new file.", epilog=_EXPORT_EPILOG)
@click.argument("file", metavar="FILE")
@click.option("--plain", is_flag=True, help="Without a passphrase: whoever gets the file owns your machines.")
def export(*, file: str, plain: bool) -> int:
    """Write a backup of your key to a new file, under a passphrase that you are asked for."""
    from cosmian_vm.cli.render import OK
    from cosmian_vm.client import owner_key

    key = owner_key.load(owner_key.config_folder())
    if key is None:
        raise InputError("you have no owner's key yet: your first order makes one")
    passphrase = None if plain else _asked("Passphrase for the backup", confirm=True)
    owner_key.export(key, Path(file), passphrase)
    click.echo(f"{OK} {file} has your owner's key {key.fingerprint}" + (", not encrypted" if plain else ""))
    return TRUSTED


@command.command(name="import", epilog=_IMPORT_EPILOG)
@click.argument("file", metavar="FILE")
@click.option("--replace", is_flag=True, help="Although there is another key, which is lost then.")
def import_(*, file: str, replace: bool) -> int:
    """Take the key of a backup (-: standard input) for yours."""
    from cosmian_vm.cli.render import OK
    from cosmian_vm.client import owner_key

    folder = owner_key.config_folder()
    private = _of_backup(file)
    wanted = owner_key.OwnerKey(private, folder / owner_key.KEY_NAME)
    present = None if replace else owner_key.load(folder)
    if present is not None and present.fingerprint != wanted.fingerprint:
        raise InputError(
            f"{present.path}: you have the key {present.fingerprint} already; export it if you may need it, then add "
            "--replace"
        )
    owner_key.store(folder, private, replace=replace)  # else one that was made meanwhile stays
    stored: OwnerKey | None = owner_key.load(folder)
    if stored is None or stored.fingerprint != wanted.fingerprint:
        raise InputError(f"{wanted.path}: the key did not stay there")
    click.echo(f"{OK} You are {stored.fingerprint} now ({stored.path})")
    return TRUSTED


def _of_backup(file: str) -> Ed25519PrivateKey:
    from cosmian_vm.client import owner_key

    raw = read_file(file, 64 * 1024)
    found = owner_key.read_backup(raw, None, file)
    if found is None:
        found = owner_key.read_backup(raw, _asked("Passphrase of the backup", confirm=False), file)
    if found is None:
        raise InputError(f"{file}: this is no owner's key")
    return found


def _asked(text: str, *, confirm: bool) -> bytes:
    """A passphrase, from the terminal alone. Raises InputError where there is none, or it is empty."""
    if not sys.stdin.isatty():
        raise InputError("a passphrase is asked for on a terminal, and there is none (export --plain does without)")
    given: str = click.prompt(
        text, hide_input=True, confirmation_prompt=confirm, err=True, default="", show_default=False
    )
    if not given:
        raise InputError("an empty passphrase protects nothing (export --plain does without)")
    return given.encode()
