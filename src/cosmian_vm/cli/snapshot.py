"""``cosmian_vm snapshot``: record what a machine is, after having made sure that it is genuine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click

from cosmian_vm.cli._common import NOT_TRUSTED, TRUSTED, check_writable, target_of, write_atomically
from cosmian_vm.cli._options import Chosen, api_option, appraisal_options
from cosmian_vm.errors import InputError, PeerChangedError, TransportError

if TYPE_CHECKING:
    from cosmian_vm.cli._session import Examined, Setup
    from cosmian_vm.client import AgentClient
    from cosmian_vm.evidence.bundle import Evidence
    from cosmian_vm.reference.snapshot import Snapshot
    from cosmian_vm.verifier.policy import Policy
    from cosmian_vm.wire import SnapshotProgress

__all__ = ["command"]

_MAX_WARNINGS = 50

_EPILOG = """\b
Examples:
  cosmian_vm --url https://vm.example.com:5355 snapshot
  cosmian_vm --url https://10.0.0.7:5355 --allow-insecure-tls snapshot --output web-1.snapshot
\b
Take it when the machine is set up and should change no more: all that has run until then, and all
that is on its disks, will be trusted. Keep the file where nobody else can change it.
\b
  Where this computer has no network but the machine's: keep the evidence, fetch what AMD or Intel
  say about it elsewhere, and try again
    cosmian_vm --url https://10.0.0.7:5355 snapshot --offline --save-evidence evidence.json
    cosmian_vm endorsements fetch evidence.json --output web-1
    cosmian_vm --url https://10.0.0.7:5355 snapshot --offline --endorsements web-1
\b
Exit status: 0 written, 1 the machine is not trusted (nothing is written), 2 wrong usage,
3 no evidence to be had.
"""


@click.command(name="snapshot", epilog=_EPILOG)
@click.option(
    "--output", "-o", metavar="FILE", default="cosmian_vm.snapshot", show_default=True, help="The file to write."
)
@click.option("--without-tpm", is_flag=True, help="The machine has no TPM and no IMA: only its TEE will be verified.")
@click.option(
    "--allow-reboot",
    is_flag=True,
    help="It was stopped and started since it was remembered: a new launch is a warning, if all else is the same.",
)
@api_option
@appraisal_options
@click.option("--verbose", "-v", is_flag=True, help="Show every check.")
@click.option(
    "--save-evidence", metavar="FILE", help="Keep what the machine showed; inspect and endorsements fetch read it."
)
@click.pass_context
def command(
    context: click.Context,
    *,
    output: str,
    without_tpm: bool,
    allow_reboot: bool,
    api: str,
    chosen: Chosen,
    verbose: bool,
    save_evidence: str | None,
) -> int:
    """Record what a machine is, into a file that verify compares with.

    First the machine shows that it is genuine; only then, over the same TLS key, it lists its files.
    """
    from cosmian_vm.cli._session import examine, setup_from
    from cosmian_vm.cli.render import OK, lines
    from cosmian_vm.reference.snapshot import serialise

    check_writable(output)
    if save_evidence is not None:
        check_writable(save_evidence)
    setup = setup_from(chosen)
    policy = replace(setup.policy, without_tpm=without_tpm, allow_reboot=allow_reboot, api=int(api))
    with target_of(context).client() as client:
        examined = examine(client, setup, policy)
        for line in lines(examined.outcome, verbose=verbose):
            click.echo(line)
        if save_evidence is not None:
            from cosmian_vm.cli._saved import evidence_file

            write_atomically(save_evidence, evidence_file(examined.evidence, examined.nonce))
        if not examined.outcome.verdict.trusted:
            click.echo("cosmian_vm: no snapshot was taken of a machine that is not trusted", err=True)
            return NOT_TRUSTED
        evidence = _made_ours(client, examined, policy, setup)
        draft = _fetch(client, policy.api)
    from cosmian_vm.verifier.reference_values import reference_from

    values = reference_from(evidence, draft, policy, now=datetime.now(UTC), anchor=examined.outcome.anchor)
    if values.differences:
        raise PeerChangedError(
            f"{client.url}: the snapshot is not of the machine that was appraised a moment ago, nothing was written: "
            + "; ".join(values.differences)
        )
    _warn(values.snapshot)
    write_atomically(output, serialise(values.snapshot))
    count = "no" if values.snapshot.filehashes is None else str(len(values.snapshot.filehashes))
    click.echo(f"{OK} Snapshot written: {output} ({count} files)")
    return TRUSTED


def _made_ours(client: AgentClient, examined: Examined, policy: Policy, setup: Setup) -> Evidence:
    """The evidence, with the owners as they are when the machine takes the order. It is remembered by its URL."""
    client.pin(examined.evidence.tls.leaf)
    if examined.evidence.api == 1:  # an agent of 1.3 knows no owners, and proves no identity
        return examined.evidence
    from cosmian_vm.cli._orders import Means, own, recognise, remember
    from cosmian_vm.client.owner_key import config_folder

    folder = config_folder()
    means = Means(policy, setup, remember=True)
    seen = recognise(client, examined, means, folder)
    owners = own(client, examined.evidence.owners, folder)
    remember(client, seen, means, folder)
    return replace(examined.evidence, owners=owners)


def _fetch(client: AgentClient, api: int) -> Snapshot:
    """The agent's snapshot. What is wrong with it is the agent's fault, not that of a file of the user's."""
    from cosmian_vm.reference.snapshot import parse

    with _progress() as progress:
        raw = client.snapshot(progress, api=api)
    try:
        return parse(raw, "the agent's snapshot")
    except InputError as exc:
        raise TransportError(f"{client.url}: {exc}") from exc


@contextmanager
def _progress() -> Iterator[Callable[[SnapshotProgress], None] | None]:
    """A line that moves, on a terminal; nothing in a pipe."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("Hashing files", total=None)

        def show(told: SnapshotProgress) -> None:
            total = "" if told.files_total is None else f" of {told.files_total}"
            text = f"Hashing files: {told.files_done}{total}, {told.bytes_done / 1e6:.0f} MB"
            bar.update(task, completed=told.files_done, total=told.files_total, description=text)

        yield show


def _warn(snapshot: Snapshot) -> None:
    """Each file that the snapshot does not cover, or trusts although nobody can look at it any more."""
    from cosmian_vm.cli.render import WARNING, printable

    unread = [f"{path} could not be read ({reason}): it is not covered" for path, reason in snapshot.unreadable]
    gone = [
        f"{path} ({digest}) has run but is not on disk in that form: it will be trusted"
        for path, digest in snapshot.not_on_disk
    ]
    for part in (unread, gone):
        for text in part[:_MAX_WARNINGS]:
            click.echo(f"{WARNING} {printable(text)}")
        if len(part) > _MAX_WARNINGS:
            click.echo(f"{WARNING} ... and {len(part) - _MAX_WARNINGS} more, listed in the snapshot")
