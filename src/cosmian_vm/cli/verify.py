"""``cosmian_vm verify``: is it still exactly the machine of the snapshot, did it boot the image as it was built?"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import click

from cosmian_vm.cli._common import NOT_TRUSTED, TRUSTED, check_writable, read_file, target_of, write_atomically
from cosmian_vm.cli._options import Chosen, api_option, appraisal_options

if TYPE_CHECKING:
    from cosmian_vm.cli._session import Examined
    from cosmian_vm.cli.render import Outcome
    from cosmian_vm.reference.build_reference import BuildReference
    from cosmian_vm.reference.snapshot import Snapshot

__all__ = ["command"]

_EPILOG = """\b
Examples:
  cosmian_vm --url https://vm.example.com:5355 verify --snapshot cosmian_vm.snapshot
\b
  Programs installed since then, and two services that must be on this very machine:
    cosmian_vm --url https://vm.example.com:5355 verify -s cosmian_vm.snapshot \\
        --whitelist updates.txt --application vm.example.com --application vm.example.com:8443
\b
  After a planned reboot, with a page for the auditor:
    cosmian_vm --url https://vm.example.com:5355 verify -s cosmian_vm.snapshot \\
        --allow-reboot --report verdict.html
\b
  On a computer without network, with what endorsements fetch has written elsewhere:
    cosmian_vm --url https://10.0.0.7:5355 verify -s cosmian_vm.snapshot \\
        --offline --endorsements web-1
\b
  A machine of which there is no snapshot yet, against the reference values of its image:
    cosmian_vm --url https://vm.example.com:5355 verify --reference cosmian_vm.reference.json
\b
Exit status: 0 trusted, 1 not trusted, 2 wrong usage or unreadable file, 3 no evidence to be had.
"""


@click.command(name="verify", epilog=_EPILOG)
@click.option("--snapshot", "-s", "snapshot_file", metavar="FILE", help="The snapshot to compare with.")
@click.option(
    "--reference",
    "-r",
    "reference_file",
    metavar="FILE",
    help="Reference values of the image (image/build writes them), instead of a snapshot or beside it: then both must "
    "hold. Alone they do not tell which machine it is.",
)
@click.option(
    "--whitelist",
    metavar="FILE",
    help="Files that may have run beside those of the snapshot: lines of PATH DIGEST; # starts a comment.",
)
@click.option(
    "--application",
    "-a",
    "applications",
    metavar="HOST[:PORT]",
    multiple=True,
    help="A service that must serve the agent's certificate (port 443 if none). May be given several times.",
)
@click.option("--allow-reboot", is_flag=True, help="A reboot since the snapshot is a warning, if all else holds.")
@click.option("--strict", is_flag=True, help="Every IMA violation (file changed while it was open) is a failure.")
@click.option("--owner", metavar="FINGERPRINT", help="Who must own the machine.")
@api_option
@appraisal_options
@click.option("--verbose", "-v", is_flag=True, help="Show every check.")
@click.option("--json", "as_json_data", is_flag=True, help="Print the verdict as JSON.")
@click.option("--report", metavar="FILE", help="Write the verdict as one self-contained HTML page.")
@click.option(
    "--save-evidence", metavar="FILE", help="Keep what the machine showed; inspect and endorsements fetch read it."
)
@click.pass_context
def command(
    context: click.Context,
    *,
    snapshot_file: str | None,
    reference_file: str | None,
    whitelist: str | None,
    applications: tuple[str, ...],
    allow_reboot: bool,
    strict: bool,
    owner: str | None,
    api: str,
    chosen: Chosen,
    verbose: bool,
    as_json_data: bool,
    report: str | None,
    save_evidence: str | None,
) -> int:
    """Ask the machine for fresh evidence and compare it with a snapshot, with the reference values of its image, or
    with both.

    The answer is yes only if the hardware is genuine, the connection ends in it, and everything that booted and ran
    is in there.
    """
    from cosmian_vm.cli._session import examine, setup_from
    from cosmian_vm.client import parse_address
    from cosmian_vm.reference.whitelist import parse_whitelist

    target = target_of(context)
    for address in applications:
        parse_address(address, "--application")
    _check_usage(snapshot_file, reference_file, owner, allow_reboot=allow_reboot, api=api)
    check_writable(report, save_evidence)
    reference, build = _load(snapshot_file, reference_file)
    allowed = None if whitelist is None else parse_whitelist(read_file(whitelist), whitelist)
    lacking = reference is not None and reference.without_tpm
    setup = setup_from(chosen)
    policy = replace(
        setup.policy,
        allow_reboot=allow_reboot,
        strict=strict or setup.policy.strict,
        without_tpm=lacking,
        api=int(api),
        owner=owner,
    )
    with target.client() as client:
        examined = examine(
            client,
            setup,
            policy,
            reference=reference,
            reference_name=snapshot_file,
            build=build,
            build_name=reference_file,
            whitelist=allowed,
            applications=applications,
            quiet=as_json_data,
        )
    _show(examined.outcome, verbose=verbose, as_json_data=as_json_data)
    _keep(examined, report, save_evidence)
    return TRUSTED if examined.outcome.verdict.trusted else NOT_TRUSTED


def _keep(examined: Examined, report: str | None, save_evidence: str | None) -> None:
    """Write the files that --report and --save-evidence name."""
    if report is not None:
        from cosmian_vm.cli.report import page

        write_atomically(report, page(examined.outcome))
    if save_evidence is not None:
        from cosmian_vm.cli._saved import evidence_file

        write_atomically(save_evidence, evidence_file(examined.evidence, examined.nonce))


def _check_owner(owner: str | None) -> None:
    from cosmian_vm.errors import EvidenceFormatError
    from cosmian_vm.owner_proof import parse_fingerprint

    try:
        if owner is not None:
            parse_fingerprint(owner)
    except EvidenceFormatError as exc:
        raise click.UsageError(f"--owner {owner!r} is no owner's fingerprint: {exc.problem}") from exc


def _check_usage(
    snapshot_file: str | None, reference_file: str | None, owner: str | None, *, allow_reboot: bool, api: str
) -> None:
    _check_owner(owner)
    if snapshot_file is None and reference_file is None:
        raise click.UsageError(
            "compare with what? Give --snapshot FILE (cosmian_vm snapshot takes one), --reference FILE (image/build "
            "writes it beside the image), or both"
        )
    if snapshot_file is None and allow_reboot:
        raise click.UsageError("--allow-reboot is about the time since a snapshot, and there is no --snapshot")
    if reference_file is not None and api == "1":
        raise click.UsageError("--reference compares PCRs that version 1 of the API does not quote: leave --api 1 out")


def _load(snapshot_file: str | None, reference_file: str | None) -> tuple[Snapshot | None, BuildReference | None]:
    """What the two options name. Raises InputError."""
    from cosmian_vm.reference import build_reference
    from cosmian_vm.reference import snapshot as snapshots

    reference = None if snapshot_file is None else snapshots.load(snapshot_file)
    if reference_file is None:
        return reference, None
    if reference is not None and reference.without_tpm:
        raise click.UsageError(
            f"{snapshot_file} is of a machine without TPM, and reference values are compared with what a TPM quotes: "
            "leave --reference out"
        )
    raw = read_file(reference_file, build_reference.MAX_REFERENCE_SIZE)
    return reference, build_reference.parse(raw, reference_file)


def _show(outcome: Outcome, *, verbose: bool, as_json_data: bool) -> None:
    from cosmian_vm.cli.render import as_data, as_json, lines

    if as_json_data:
        click.echo(as_json(as_data(outcome)))
        return
    for line in lines(outcome, verbose=verbose):
        click.echo(line)
