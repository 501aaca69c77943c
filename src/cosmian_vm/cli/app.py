"""``cosmian_vm app``: give the application its configuration, restart it, ask how it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from cosmian_vm.cli._common import NOT_RUNNING, TRUSTED, read_file, target_of
from cosmian_vm.cli._options import api_option, order_options
from cosmian_vm.errors import ConnectionLostError, RefusedError, TransportError

if TYPE_CHECKING:
    from cosmian_vm.cli._common import Target
    from cosmian_vm.cli._orders import Means
    from cosmian_vm.client import AgentClient

__all__ = ["command"]

_LAST_WORDS = 20

_EPILOG = """\b
Examples:
  cosmian_vm --url https://vm.example.com:5355 app init -c app.json -s cosmian_vm.snapshot
  cosmian_vm --url https://vm.example.com:5355 app restart
  cosmian_vm --url https://vm.example.com:5355 app logs --lines 50
"""

_INIT_EPILOG = """\b
Examples:
  Secrets for a machine that is set up and recorded (do this whenever you can):
    cosmian_vm --url https://vm.example.com:5355 app init -c app.json -s cosmian_vm.snapshot
  Before there is a snapshot: a machine that is not remembered yet is shown, and you are asked:
    cosmian_vm --url https://vm.example.com:5355 app init --conf app.json
\b
Exit status: 0 done, 1 the machine is not trusted, not the one meant, or not yours (nothing was
sent), 2 wrong usage or unreadable file, 3 no evidence to be had, or the agent refused.
"""


_RESTART_EPILOG = """\b
Examples:
  cosmian_vm --url https://vm.example.com:5355 app restart -s cosmian_vm.snapshot
  A machine with an agent of 1.3:
    cosmian_vm --url https://vm.example.com:5355 app restart --api 1
"""

_STATUS_EPILOG = """\b
Examples:
  cosmian_vm --url https://vm.example.com:5355 app status
  In a script:
    cosmian_vm --url https://vm.example.com:5355 app status >/dev/null || echo "status $?"
\b
Exit status: 0 it runs, 4 it does not, 1 the machine is not trusted, 2 wrong usage, 3 no evidence
to be had, or the agent refused.
"""

_LOGS_EPILOG = """\b
Example:
  cosmian_vm --url https://vm.example.com:5355 app logs --lines 50
"""


@click.group(name="app", epilog=_EPILOG)
def command() -> None:
    """Give the application its configuration; restart it; ask how it is."""


@command.command(epilog=_INIT_EPILOG, short_help="Write its configuration and (re)start it.")
@click.option(
    "--conf",
    "-c",
    "--configuration",
    "conf",
    metavar="FILE",
    required=True,
    help="What the application reads: any file.",
)
@click.option(
    "--trust-new",
    is_flag=True,
    help="Take a genuine machine that nothing tells to be yours for yours, without asking: for scripts.",
)
@click.pass_context
@order_options
def init(context: click.Context, *, conf: str, given: Mapping[str, Any]) -> int:
    """Write the application's configuration on the machine and start the application.

    The machine is verified first, and the file goes over the very TLS key that was attested. It replaces the one that
    was there.
    """
    from cosmian_vm.cli._orders import means_from
    from cosmian_vm.cli.render import OK
    from cosmian_vm.wire import MAX_APP_CONFIGURATION

    target = target_of(context)
    content = read_file(conf, MAX_APP_CONFIGURATION)
    means = means_from(given, secret=True, remember=True, quiet=False)
    with target.client() as client:
        try:
            _send(client, target, means, content)
        except ConnectionLostError:  # it was idle for too long, say while you were asked: verified again, then sent
            _send(client, target, means._replace(quiet=True), content)
    click.echo(f"{OK} The application has its configuration ({len(content)} bytes) and was started")
    return TRUSTED


@command.command(epilog=_RESTART_EPILOG)
@api_option
@click.pass_context
@order_options
def restart(context: click.Context, *, given: Mapping[str, Any]) -> int:
    """Restart the application, on a machine that has proved what it is."""
    from cosmian_vm.cli._orders import means_from, prove
    from cosmian_vm.cli.render import OK

    target = target_of(context)
    with target.client() as client:
        prove(client, target, means_from(given))
        try:
            client.app_restart()
        except RefusedError as exc:
            _show_last_words(client, exc)
            raise
    click.echo(f"{OK} The application was restarted")
    return TRUSTED


@command.command(epilog=_STATUS_EPILOG)
@click.pass_context
@order_options
def status(context: click.Context, *, given: Mapping[str, Any]) -> int:
    """Whether the application runs, and has its configuration."""
    from cosmian_vm.cli._orders import means_from, prove
    from cosmian_vm.cli.render import OK, WARNING, printable

    target = target_of(context)
    with target.client() as client:
        prove(client, target, means_from(given))
        told = client.app_status()
    what = printable(f"{told.service_name} ({told.service_type}): {told.state}")
    click.echo(f"{OK if told.running else WARNING} {what}")
    click.echo(
        f"{OK if told.configured else WARNING} Its configuration is {'there' if told.configured else 'not there'}"
    )
    if not told.encrypted:
        click.echo(f"{WARNING} {_PLAIN_DISK}")
    return TRUSTED if told.running else NOT_RUNNING


@command.command(epilog=_LOGS_EPILOG)
@click.option(
    "--lines",
    "-n",
    metavar="N",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    help="How many, counted from the end.",
)
@click.pass_context
@order_options
def logs(context: click.Context, *, lines: int, given: Mapping[str, Any]) -> int:
    """The last lines that the application wrote. They may quote its secrets."""
    from cosmian_vm.cli._orders import means_from, prove
    from cosmian_vm.cli.render import printable

    target = target_of(context)
    with target.client() as client:
        prove(client, target, means_from(given))
        told = client.app_logs(lines)
    for line in told:
        click.echo(printable(line))
    return TRUSTED


def _send(client: AgentClient, target: Target, means: Means, content: bytes) -> None:
    """Over the connection that was verified, and no other."""
    from cosmian_vm.cli._orders import prove

    prove(client, target, means)
    _warn_of_the_disk(client)
    try:
        client.app_init(content)
    except RefusedError as exc:
        _show_last_words(client, exc)
        raise


_PLAIN_DISK = (
    "Its configuration is not kept on the machine's encrypted container: whoever has the disk can read it (app_storage "
    "in agent.toml)"
)


def _warn_of_the_disk(client: AgentClient) -> None:
    """Said before the secret leaves; and a machine that has no application gets none."""
    from cosmian_vm.cli.render import WARNING

    if client.owner is None:  # an old agent, or one that obeys anyone: it may not know the question
        return
    if not client.app_status().encrypted:
        click.echo(f"{WARNING} {_PLAIN_DISK}")


def _show_last_words(client: AgentClient, refused: RefusedError) -> None:
    """Why the application did not come up, in its own words, for its owner."""
    from cosmian_vm.cli.render import printable

    if client.owner is None or refused.status < 500:
        return
    try:
        told = client.app_logs(_LAST_WORDS)
    except TransportError:
        return
    if told:
        click.echo("The application's last words:", err=True)
    for line in told:
        click.echo(f"  | {printable(line)}", err=True)
