"""``cosmian_vm app``: give the application its configuration, restart it."""

from __future__ import annotations

import click

from cosmian_vm.cli._common import NOT_TRUSTED, TRUSTED, read_file, target_of
from cosmian_vm.cli._options import appraisal_options

__all__ = ["command"]

_EPILOG = """\b
Examples:
  cosmian_vm --url https://vm.example.com:5355 app init -c app.json -s cosmian_vm.snapshot
  cosmian_vm --url https://vm.example.com:5355 app restart
"""

_INIT_EPILOG = """\b
Examples:
  Secrets for a machine that is set up and recorded (do this whenever you can):
    cosmian_vm --url https://vm.example.com:5355 app init -c app.json -s cosmian_vm.snapshot
  Before there is a snapshot (genuine hardware, but nothing proves whose machine it is):
    cosmian_vm --url https://vm.example.com:5355 app init --conf app.json
\b
Exit status: 0 done, 1 the machine is not trusted (nothing was sent), 2 wrong usage or
unreadable file, 3 no evidence to be had, or the agent refused.
"""


@click.group(name="app", epilog=_EPILOG)
def command() -> None:
    """Give the application its configuration; restart it."""


@command.command(epilog=_INIT_EPILOG)
@click.option(
    "--conf",
    "-c",
    "--configuration",
    "conf",
    metavar="FILE",
    required=True,
    help="What the application reads: any file.",
)
@click.option("--snapshot", "-s", "snapshot_file", metavar="FILE", help="Send it only to the machine of this snapshot.")
@click.option("--allow-reboot", is_flag=True, help="A reboot since the snapshot is a warning, if all else holds.")
@click.option("--without-tpm", is_flag=True, help="The machine has no TPM and no IMA; of no use with --snapshot.")
@appraisal_options
@click.option("--verbose", "-v", is_flag=True, help="Show every check.")
@click.pass_context
def init(
    context: click.Context,
    *,
    conf: str,
    snapshot_file: str | None,
    allow_reboot: bool,
    without_tpm: bool,
    trust_roots: tuple[str, ...],
    endorsements: tuple[str, ...],
    pccs: str | None,
    offline: bool,
    verbose: bool,
) -> int:
    """Write the application's configuration on the machine and start the application.

    The machine is verified first, and the file goes over the very TLS key that was attested. It replaces the one that
    was there.
    """
    from cosmian_vm.cli._session import examine, setup_from
    from cosmian_vm.cli.render import OK, WARNING, lines
    from cosmian_vm.reference import snapshot as snapshots
    from cosmian_vm.verifier.policy import Policy
    from cosmian_vm.wire import MAX_APP_CONFIGURATION

    target = target_of(context)
    if snapshot_file is None and target.allow_insecure_tls:
        # Genuine is not ours: whoever sits on the wire can have a genuine machine of their own answer.
        raise click.UsageError(
            "with --allow-insecure-tls nothing but a snapshot tells whose machine answers: give --snapshot (take one "
            "with cosmian_vm snapshot), or a certificate that a CA vouches for (--ca-file names your own)"
        )
    content = read_file(conf, MAX_APP_CONFIGURATION)
    reference = None if snapshot_file is None else snapshots.load(snapshot_file)
    lacking = without_tpm if reference is None else reference.without_tpm
    policy = Policy(allow_reboot=allow_reboot, without_tpm=lacking)
    setup = setup_from(trust_roots, endorsements, offline=offline, pccs=pccs)
    with target.client() as client:
        examined = examine(client, setup, policy, reference=reference, reference_name=snapshot_file)
        for line in lines(examined.outcome, verbose=verbose):
            click.echo(line)
        if not examined.outcome.verdict.trusted:
            click.echo("cosmian_vm: nothing was sent to a machine that is not trusted", err=True)
            return NOT_TRUSTED
        if reference is None:
            click.echo(f"{WARNING} Without --snapshot it may be anybody's genuine machine")
        client.pin(examined.evidence.tls.leaf)
        client.app_init(content)
    click.echo(f"{OK} The application has its configuration ({len(content)} bytes) and was started")
    return TRUSTED


@command.command()
@click.pass_context
def restart(context: click.Context) -> int:
    """Restart the application. Nothing secret is sent, so the machine is not verified."""
    from cosmian_vm.cli.render import OK

    with target_of(context).client() as client:
        peer = client.connect()
        if peer.trusted is False:
            click.echo(
                f"cosmian_vm: {client.url}: {peer.problem}; if it is the agent's own self-signed certificate, add "
                "--allow-insecure-tls before the command",
                err=True,
            )
            return NOT_TRUSTED
        client.app_restart()
    click.echo(f"{OK} The application was restarted")
    return TRUSTED
