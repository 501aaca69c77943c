"""``cosmian_vm endorsements``: what the hardware makers say about a machine, in files, for verifying offline."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple

import click

from cosmian_vm.cli._common import NO_EVIDENCE, TRUSTED, moment_of, read_file, write_atomically
from cosmian_vm.cli._options import pccs_option
from cosmian_vm.errors import EvidenceFormatError, InputError

if TYPE_CHECKING:
    from cryptography import x509

    from cosmian_vm.endorsements.store import Gathered

__all__ = ["command"]

_MAX_EVIDENCE = 256 << 20

_EPILOG = """\b
Examples:
  cosmian_vm endorsements fetch evidence.json --output web-1
  cosmian_vm --url https://vm.example.com:5355 verify -s cosmian_vm.snapshot \\
      --endorsements web-1 --offline
"""

_FETCH_EPILOG = """\b
Examples:
  On a computer with network, for one without: the evidence of a verification that was kept
    cosmian_vm --url https://vm.example.com:5355 verify -s cosmian_vm.snapshot \\
        --offline --save-evidence evidence.json
    cosmian_vm endorsements fetch evidence.json --output web-1
    cosmian_vm --url https://vm.example.com:5355 verify -s cosmian_vm.snapshot \\
        --offline --endorsements web-1
\b
  A TDX or SGX quote, by way of the PCCS of your own data centre:
    cosmian_vm endorsements fetch quote.bin --output web-2 --pccs https://pccs.example.com:8081
\b
What is written:
  AMD SEV-SNP       vcek.der         certificate of the chip at its firmware level; when the host
                                     updates its firmware, fetch it again (vlek.der: a VLEK, which
                                     the machine alone can send)
                    ask_ark.pem      the certificates above it
                    crl.der          AMD's revocation list: fetch it again before it runs out
  Intel TDX, SGX    collateral.json  TCB info, QE identity, revocation lists and their signers:
                                     fetch it again every month
\b
Nothing of it is trusted for being there: verify checks every signature and date.
\b
Exit status: 0 all that a verification needs is written, 2 wrong usage or no report or quote in
the file, 3 something could not be had (what could be is written).
"""


class _File(NamedTuple):
    name: str
    what: str
    content: bytes


@click.group(name="endorsements", epilog=_EPILOG)
def command() -> None:
    """What the hardware makers say about a machine's processor: certificates, revocation lists, collateral.

    Every verification needs it. It comes along with the evidence, or is looked up on AMD's and Intel's servers and
    kept; where there is no network, fetch it elsewhere.
    """


@command.command(epilog=_FETCH_EPILOG, short_help="Fetch all that a verification needs into a folder.")
@click.argument("evidence", metavar="EVIDENCE")
@click.option("--output", "-o", metavar="DIR", required=True, help="The folder to write to; one for each machine.")
@pccs_option
@click.option("--at", metavar="TIME", help="It has to hold at this instant (RFC 3339, 2025-10-02T00:00:00Z), not now.")
@click.option("--json", "as_json_data", is_flag=True, help="Print what was written as JSON.")
def fetch(*, evidence: str, output: str, pccs: str | None, at: str | None, as_json_data: bool) -> int:
    """Fetch all that a verification of EVIDENCE needs from the hardware maker, into the folder DIR.

    EVIDENCE is any file with a report or quote in it (- for standard input): an SNP report, a TDX or SGX quote, an
    Azure HCL report, what verify --save-evidence wrote, an RA-TLS certificate. It is only looked at to learn which
    processor it is about; whether it is genuine, verify and inspect say.
    """
    from cosmian_vm.cli._vendors import endorsement_store
    from cosmian_vm.cli.render import OK, WARNING, as_json, printable, tag
    from cosmian_vm.endorsements.store import REMEDY
    from cosmian_vm.inspection.carried import quote_in
    from cosmian_vm.verifier.result import Status

    moment = moment_of(at)
    try:
        carried = quote_in(read_file(evidence, _MAX_EVIDENCE))
    except EvidenceFormatError as exc:
        raise InputError(f"{evidence}: {exc.problem if exc.what == 'evidence' else exc}") from exc
    store = endorsement_store(pccs=pccs, offline=False)
    gathered = store.gather(carried.quote, carried.beside, now=moment, renew=True)
    notes = [note.removesuffix(f"; {REMEDY}") for note in gathered.notes]  # it is what is being done
    files, lacking = _selected(carried.quote, gathered, moment)
    written = _write(output, files)
    if as_json_data:
        shown = [{"file": path, "what": file.what} for path, file in zip(written, files, strict=True)]
        data = {"kind": carried.kind, "written": shown, "lacking": lacking, "notes": notes}
        click.echo(as_json(data))
    else:
        click.echo(f"{printable(evidence)}: {carried.title}")
        for path, file in zip(written, files, strict=True):
            click.echo(f"{OK} Written: {printable(path)} ({file.what})")
        for note in notes:
            click.echo(f"{WARNING} {printable(note)}")
        for what in lacking:
            click.echo(f"{tag(Status.FAIL)} Not to be had: {what}")
    if lacking:
        what = "not all that a verification needs could be had"
        click.echo(f"cosmian_vm: {what}: {'; '.join(lacking)}; run this where there is network", err=True)
    return NO_EVIDENCE if lacking else TRUSTED


def _write(folder: str, files: list[_File]) -> list[str]:
    """Write each file whole or not at all, and return their paths. Raises InputError."""
    from pathlib import Path

    try:
        if files:
            Path(folder).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as exc:
        raise InputError(f"{folder}: cannot be made: {getattr(exc, 'strerror', None) or exc}") from exc
    paths = [str(Path(folder, file.name)) for file in files]
    for path, file in zip(paths, files, strict=True):
        write_atomically(path, file.content)
    return paths


def _selected(quote: bytes, gathered: Gathered, moment: datetime) -> tuple[list[_File], list[str]]:
    """The files for this quote out of all that was gathered, and what is lacking or no longer current."""
    from cosmian_vm.evidence.bundle import TeeKind, tee_kind
    from cosmian_vm.evidence.intel_quote import parse_quote
    from cosmian_vm.evidence.snp import parse_evidence

    if tee_kind(quote) is TeeKind.SNP:
        return _amd(gathered, parse_evidence(quote).report.raw, moment)
    parse_quote(quote)
    return _intel(gathered, moment)


def _amd(gathered: Gathered, report_raw: bytes, moment: datetime) -> tuple[list[_File], list[str]]:
    from cryptography.hazmat.primitives.serialization import Encoding

    from cosmian_vm.endorsements.amd import is_chip_certificate, parse_chip_certificate, pinned_roots
    from cosmian_vm.endorsements.store import fits, issuers
    from cosmian_vm.evidence.snp import parse_report

    report = parse_report(report_raw)
    among = (*gathered.endorsements.certificates, *pinned_roots())
    chips = [c for c in among if is_chip_certificate(c) and fits(c, report)]
    chip, chain = max(((c, issuers(c, among)) for c in chips), key=lambda found: len(found[1]), default=(None, []))
    files: list[_File] = []
    lacking: list[str] = []
    if chip is None:
        lacking.append("the certificate of the chip at this firmware level")
    else:
        kind = parse_chip_certificate(chip).kind.name
        files.append(_File(f"{kind.lower()}.der", f"the chip's certificate, {kind}", chip.public_bytes(Encoding.DER)))
    if chain:
        pem = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)
        files.append(_File("ask_ark.pem", "the certificates above it", pem))
    elif chip is not None:
        lacking.append("the certificates above the chip's")
    crl = _newest(gathered.endorsements.crls, chain)
    if crl is None:
        lacking.append("AMD's revocation list")
    else:
        until = crl.next_update_utc or crl.last_update_utc
        what = f"the revocation list, holds until {until:%Y-%m-%d}"
        files.append(_File("crl.der", what, crl.public_bytes(Encoding.DER)))
        if moment >= until:
            lacking.append(f"a revocation list that holds at {moment:%Y-%m-%d}")
    return files, lacking


def _newest(
    crls: tuple[x509.CertificateRevocationList, ...], chain: list[x509.Certificate]
) -> x509.CertificateRevocationList | None:
    """The newest list that the root of ``chain`` signed. Without a root the newest at all: verify will judge it."""
    from cryptography.hazmat.primitives.asymmetric import rsa

    from cosmian_vm.endorsements.amd import UNUSABLE

    root = chain[-1] if len(chain) > 1 else None

    def signed(crl: x509.CertificateRevocationList) -> bool:
        key = None if root is None else root.public_key()
        try:
            return key is None or (isinstance(key, rsa.RSAPublicKey) and crl.is_signature_valid(key))
        except UNUSABLE:
            return False

    return max(filter(signed, crls), key=lambda crl: crl.last_update_utc, default=None)


def _intel(gathered: Gathered, moment: datetime) -> tuple[list[_File], list[str]]:
    from cosmian_vm.endorsements.intel_collateral import serialise_collateral

    collateral = gathered.collateral
    if collateral is None:
        return [], ["Intel's collateral of this platform"]
    window = collateral.window
    day = f"{moment:%Y-%m-%d}"
    if window is None:
        what, lacking = "the collateral, whose parts never hold together", [f"collateral that holds at {day}"]
    else:
        what = f"the collateral, holds from {window[0]:%Y-%m-%d} to {window[1]:%Y-%m-%d}"
        lacking = [] if window[0] <= moment <= window[1] else [f"collateral that holds at {day}"]
    return [_File("collateral.json", what, serialise_collateral(collateral))], lacking
