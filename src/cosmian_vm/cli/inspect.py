"""``cosmian_vm inspect``: what is this evidence file, what does it say, is it authentic. Offline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import click

from cosmian_vm.cli._common import NOT_TRUSTED, TRUSTED, USAGE, moment_of, read_file
from cosmian_vm.cli.render import as_json, checks_data, printable, tag
from cosmian_vm.errors import InputError
from cosmian_vm.inspection import identify
from cosmian_vm.inspection.model import JSON, POLICY_IDS, Inspection, Roots, rfc3339
from cosmian_vm.verifier.result import Status

__all__ = ["command"]

_MAX_DETAILS = 20
MAX_FILES = 64
"""Most files of a folder that --with may name."""

_EPILOG = """\b
Examples:
  What is it, what does it say:
    cosmian_vm inspect report.bin
  Is it genuine? Certificates that it does not carry are given beside it:
    cosmian_vm inspect report.bin --verify --with vcek.der
    cosmian_vm inspect report.bin --verify --with web-1        # what endorsements fetch wrote
  A TPM quote with its signature, key, PCR values, nonce and the list behind PCR 10:
    cosmian_vm inspect quote.msg --verify --with quote.sig --with ak.pem --with quote.pcrs \\
        --with nonce --with binary_runtime_measurements
  As it was on a given day, for a program to read:
    cosmian_vm inspect quote.bin --verify --with collateral.json --at 2025-10-02T00:00:00Z --json
\b
Exit status: 0 authentic (without --verify: readable), 1 not authentic, 2 wrong usage, nothing
that can be read as evidence, or --verify of what nobody signs (snapshots, keys, ...).
What could not be checked for want of a file is a [ SKIP ]; where that is the signature of the
hardware, its chain or revocation, or a TPM's signature that vouches for a log, the last line
warns of it, and left_open in the JSON names it.
"""


@click.command(name="inspect", epilog=_EPILOG)
@click.argument("file", metavar="FILE")
@click.option("--verify", is_flag=True, help="Say whether it is authentic: signatures, chain, dates, bindings, replay.")
@click.option(
    "--with",
    "beside",
    metavar="PATH",
    multiple=True,
    help="Whatever else that takes, recognised by its content: certificates, revocation lists, Intel collateral, keys, "
    "signatures, PCR values, nonces, the quote a log belongs to; a file, or a folder of them. May be given several "
    "times.",
)
@click.option("--at", metavar="TIME", help="Verify as of this instant (RFC 3339, as 2025-10-02T00:00:00Z), not now.")
@click.option(
    "--trust-root", "trust_roots", metavar="PEM", multiple=True, help="Trust this root certificate too, and say so."
)
@click.option("--policy", is_flag=True, help="Let policy decide too: debug mode (tee.debug), firmware level (tee.tcb).")
@click.option("--kind", metavar="KIND", help="What the file is meant to be, instead of finding out.")
@click.option("--json", "as_json_data", is_flag=True, help="Print JSON: kind, facts and, with --verify, the checks.")
def command(
    *,
    file: str,
    verify: bool,
    beside: tuple[str, ...],
    at: str | None,
    trust_roots: tuple[str, ...],
    policy: bool,
    kind: str | None,
    as_json_data: bool,
) -> int:
    """Tell what an evidence FILE is (- for standard input), print its fields and, with --verify, judge it.

    Known are attestation reports and quotes (AMD SEV-SNP, Intel TDX and SGX, Azure HCL), TPM quotes, IMA lists and
    event logs, certificates, Intel collateral, snapshots, reference values of images and evidence bundles. Nothing is
    fetched from anywhere.
    """
    if not verify and (policy or at or trust_roots):
        raise click.UsageError("--policy, --at and --trust-root say how to verify: add --verify")
    names = sorted(known.name for known in identify.known_kinds())
    if kind is not None and kind not in names:
        raise click.UsageError(f"--kind {kind} is unknown; known are {', '.join(names)}")
    moment = moment_of(at)
    raw = read_file(file)
    material = identify.material_of((path, read_file(path)) for path in _beside(beside))
    roots, notes = _roots(trust_roots)
    inspection = identify.inspect(raw, material, name=file, verify=(moment, roots) if verify else None, kind=kind)
    authentic = None if inspection.undecidable else inspection.authentic(policy=policy)
    if as_json_data:
        click.echo(as_json(_data(inspection, authentic=authentic, notes=notes)))
    else:
        for line in _lines(inspection, file, moment, authentic=authentic, policy=policy, notes=notes):
            click.echo(line)
    if inspection.problem and (not verify or inspection.kind == identify.UNKNOWN):
        click.echo(f"cosmian_vm: {printable(file)}: {printable(inspection.problem)}", err=True)
        return USAGE
    if verify and authentic is None:
        return USAGE
    return TRUSTED if authentic or not verify else NOT_TRUSTED


def _beside(paths: Sequence[str]) -> Iterator[str]:
    """The files that ``--with`` names: of a folder, such as endorsements fetch writes, those right in it."""
    for path in paths:
        if path == "-" or not Path(path).is_dir():
            yield path
            continue
        try:
            found = sorted(entry for entry in Path(path).iterdir() if entry.is_file() and entry.name[:1] != ".")
        except OSError as exc:
            raise InputError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
        if not found or len(found) > MAX_FILES:
            raise InputError(f"--with {path}: {len(found)} files in this folder; expected are 1 to {MAX_FILES}")
        yield from map(str, found)


def _roots(paths: Sequence[str]) -> tuple[Roots, tuple[str, ...]]:
    if not paths:
        return Roots(), ()
    from cryptography.hazmat.primitives.serialization import Encoding

    from cosmian_vm.cli._roots import load_roots

    certificates, notes = load_roots(paths)
    return Roots(tuple(certificate.public_bytes(Encoding.DER) for certificate in certificates)), notes


def _data(inspection: Inspection, *, authentic: bool | None, notes: Sequence[str]) -> Mapping[str, object]:
    data: dict[str, object] = {"kind": inspection.kind, "facts": inspection.facts}
    if inspection.problem:
        data["problem"] = inspection.problem
    if inspection.checks is not None:
        checks = checks_data(inspection.checks, full=False)
        data["verify"] = {"authentic": authentic, "left_open": list(inspection.left_open), "checks": checks}
        if notes:
            data["notes"] = list(notes)
    return data


def _lines(
    inspection: Inspection, file: str, moment: datetime, *, authentic: bool | None, policy: bool, notes: Sequence[str]
) -> Iterator[str]:
    yield f"{printable(file)}: {inspection.title} ({inspection.kind})"
    yield from _tree(inspection.facts, 1)
    if inspection.checks is None:
        return
    yield ""
    for note in notes:
        yield f"{tag(Status.WARNING)} {printable(note)}"
    for check in inspection.checks:
        aside = " (policy: does not decide)" if check.id in POLICY_IDS and not policy else ""
        yield f"{tag(check.status)} {check.id}: {printable(check.line)}{aside}"
        for detail in check.details[:_MAX_DETAILS]:
            yield f"         {printable(detail)}"
        if len(check.details) > _MAX_DETAILS:
            yield f"         ... and {len(check.details) - _MAX_DETAILS} more"
    if authentic is None:
        problem = "nobody signs such a file, nothing in it can be authentic by itself"
        yield f"{tag(Status.SKIP)} Cannot be said: {printable(file)}: {problem}"
        return
    if authentic and inspection.left_open:
        verdict = f"Nothing speaks against it, but not all was checked ({', '.join(inspection.left_open)})"
        yield f"{tag(Status.WARNING)} {verdict}: {printable(file)} at {rfc3339(moment)}"
        return
    verdict = "Authentic" if authentic else "Not authentic"
    yield f"{tag(Status.OK if authentic else Status.FAIL)} {verdict}: {printable(file)} at {rfc3339(moment)}"


def _tree(value: JSON, depth: int) -> Iterator[str]:
    """Facts as indented lines; nothing is cut."""
    pad = "  " * depth
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if isinstance(inner, str | int | float | bool | None) or not inner:
                yield f"{pad}{printable(str(key))}: {_scalar(inner)}"
            else:
                yield f"{pad}{printable(str(key))}:"
                yield from _tree(inner, depth + 1)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for inner in value:
            if isinstance(inner, str | int | float | bool | None) or not inner:
                yield f"{pad}- {_scalar(inner)}"
            else:
                yield f"{pad}-"
                yield from _tree(inner, depth + 1)
    else:
        yield f"{pad}{_scalar(value)}"


def _scalar(value: JSON) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, str):
        return printable(value)
    return str(value) if isinstance(value, int | float) else "none"
