"""``cosmian_certtool ratls verify``: gather what vouches for the hardware, have it appraised, show the verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cosmian_vm.certtool._common import DONE, FAILED, hex_bytes
from cosmian_vm.certtool.ratls_generate import read_extra_data
from cosmian_vm.cli._common import read_file
from cosmian_vm.cli._options import pccs_option
from cosmian_vm.errors import EvidenceFormatError, InputError

if TYPE_CHECKING:
    from cryptography import x509

    from cosmian_vm.endorsements.intel_collateral import IntelCollateral
    from cosmian_vm.endorsements.store import EndorsementStore
    from cosmian_vm.inspection.model import Material, Roots
    from cosmian_vm.ra_tls import Embedded
    from cosmian_vm.verifier.ra_tls import Pins, Vouchers
    from cosmian_vm.verifier.result import Check, Verdict

__all__ = ["command"]

_MAX_FILE = 2 << 20
_MAX_CERTIFICATE = 1 << 20
_MAX_FOLDER = 256
_MRSIGNER_BITS = 3072
_MAX_DETAILS = 20
# As verifier.ra_tls.NOT_ALWAYS_TO_BE_HAD, which --help does without loading; a test compares them.
_UNCHECKED = ("tee.revocation", "tee.tcb")

_EPILOG = """\b
Examples:
  SEV-SNP, with the launch measurement that the machine must have:
    cosmian_certtool ratls verify --cert cert.ratls.pem --measurement 5feee3...
  SGX: this very enclave, signed by this key:
    cosmian_certtool ratls verify --cert cert.ratls.pem --mrenclave 72009e... \\
        --public-signer-key signer.pub.pem
  As of a given day, with Intel's collateral of then from a file:
    cosmian_certtool ratls verify --cert cert.ratls.pem --mrtd 5f53c3... \\
        --with collateral.json --at 2025-10-02T00:00:00Z

\b
What is asked: is the certificate valid now, did the hardware sign evidence over its key,
does the evidence lead to the hardware maker's pinned root, is nothing revoked, is the
firmware current, is debugging off, and is it what you pinned. What you did not pin is a
warning: any genuine machine, somebody else's too, passes that question.

\b
Exit status: 0 trusted, 1 not trusted, 2 wrong usage or unreadable file.
"""


@click.command(name="verify", epilog=_EPILOG)
@click.option("--cert", "-c", metavar="FILE", required=True, help="The certificate, PEM or DER (- for standard input).")
@click.option("--measurement", metavar="HEX", help="Launch measurement that a SEV-SNP machine must have (48 bytes).")
@click.option("--mrenclave", metavar="HEX", help="MRENCLAVE that an SGX enclave must have (32 bytes).")
@click.option("--public-signer-key", metavar="PEM", help="Public key (RSA-3072) that must have signed the SGX enclave.")
@click.option("--mrtd", metavar="HEX", help="MRTD that a TDX machine must have (48 bytes).")
@click.option(
    "--extra-data",
    metavar="FILE",
    help="What the evidence must carry behind the key's hash (at most 32 bytes) [default: nothing].",
)
@click.option(
    "--with",
    "beside",
    metavar="PATH",
    multiple=True,
    help="Certificates, revocation lists, Intel collateral that the certificate does not carry: a file, or a folder of "
    "them. Repeatable.",
)
@click.option(
    "--at",
    metavar="TIME",
    help="Verify as of this instant (RFC 3339, as 2025-10-02T00:00:00Z), not now. Implies --offline: what is published "
    "today is not of then.",
)
@click.option("--trust-root", "trust_roots", metavar="PEM", multiple=True, help="Trust this root too, and say so.")
@pccs_option
@click.option("--offline", is_flag=True, help="Do not ask the hardware's maker for what is missing.")
@click.option(
    "--allow-unchecked",
    "unchecked",
    type=click.Choice(_UNCHECKED),
    multiple=True,
    help="Trust without this check where what it takes is not to be had; it becomes a warning.",
)
@click.option("--json", "as_json_data", is_flag=True, help="Print the verdict as JSON.")
def command(
    *,
    cert: str,
    measurement: str | None,
    mrenclave: str | None,
    public_signer_key: str | None,
    mrtd: str | None,
    extra_data: str | None,
    beside: tuple[str, ...],
    at: str | None,
    trust_roots: tuple[str, ...],
    pccs: str | None,
    offline: bool,
    unchecked: tuple[str, ...],
    as_json_data: bool,
) -> int:
    """Is the key of an RA-TLS certificate that of a genuine confidential machine, and of the one that you expect?

    The key is always bound to the evidence, and the evidence appraised as cosmian_vm verify does.
    """
    from cosmian_vm.cli._vendors import endorsement_store
    from cosmian_vm.inspection.identify import material_of
    from cosmian_vm.ra_tls import embedded
    from cosmian_vm.verifier.ra_tls import Pins, appraise_certificate

    pins = Pins(
        measurement=None if measurement is None else hex_bytes(measurement, "--measurement", 48),
        mr_enclave=None if mrenclave is None else hex_bytes(mrenclave, "--mrenclave", 32),
        mr_signer=None if public_signer_key is None else _mr_signer(public_signer_key),
        mr_td=None if mrtd is None else hex_bytes(mrtd, "--mrtd", 48),
        extra_data=None if extra_data is None else read_extra_data(extra_data),
    )
    now = _moment(at)
    certificate = _certificate(cert)
    material = material_of((path, read_file(path)) for path in _files(beside))
    roots, notes = _roots(trust_roots)
    try:
        found = embedded(certificate)
    except EvidenceFormatError as exc:
        raise InputError(f"{cert}: {exc}") from exc
    store, said = endorsement_store(pccs=pccs, offline=offline or at is not None), list(notes)
    evidence = [(item, _vouchers(item, material, roots, store, now=now, notes=said)) for item in found]
    verdict = appraise_certificate(certificate, evidence, pins, now=now, unchecked=unchecked)
    if as_json_data:
        from cosmian_vm.cli.render import as_json

        click.echo(as_json(_data(certificate, found, verdict, now, said)))
    else:
        for line in _lines(cert, certificate, verdict, pins, said):
            click.echo(line)
    return DONE if verdict.trusted else FAILED


def _moment(at: str | None) -> datetime:
    """The instant of --at, or the one reading of the clock. Raises InputError."""
    if at is None:
        return datetime.now(UTC)
    try:
        moment = datetime.fromisoformat(at)
        if moment.tzinfo is None:
            raise InputError(f"--at {at}: the offset is missing; add Z for UTC")
        return moment.astimezone(UTC)
    except ValueError as exc:
        raise InputError(f"--at {at}: not a time in the form of RFC 3339, as 2025-10-02T00:00:00Z") from exc
    except OverflowError as exc:
        raise InputError(f"--at {at}: out of range") from exc


def _certificate(path: str) -> x509.Certificate:
    """The first certificate of the file. Raises InputError."""
    from cosmian_vm.endorsements.amd import load_certificate
    from cosmian_vm.errors import EndorsementError

    raw = read_file(path, limit=_MAX_FILE)
    der = raw
    if b"-----BEGIN" in raw[:65536]:
        from cosmian_vm.inspection.material import first_certificate

        block = first_certificate(raw)
        if block is None:
            raise InputError(f"{path}: no certificate in it")
        der = block
    if len(der) > _MAX_CERTIFICATE:
        raise InputError(f"{path}: a certificate of {len(der)} bytes; more than {_MAX_CERTIFICATE} are refused")
    try:
        return load_certificate(der)
    except EndorsementError as exc:
        raise InputError(f"{path}: not a certificate: {exc}") from exc


def _mr_signer(path: str) -> bytes:
    """MRSIGNER of the enclaves that a key signs: SHA-256 of its modulus, 384 bytes little-endian (Intel SDM 3D,
    "SIGSTRUCT"). Raises InputError.
    """
    from hashlib import sha256

    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    raw = read_file(path, limit=1 << 16)
    if b"PRIVATE KEY" in raw:
        raise InputError(f"{path}: this is the private key; give the public one (openssl rsa -pubout)")
    try:
        key = load_pem_public_key(raw)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise InputError(f"{path}: expected is the signer's public key in PEM") from exc
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size != _MRSIGNER_BITS:
        raise InputError(f"{path}: enclaves are signed with RSA-{_MRSIGNER_BITS}, this is another key")
    return sha256(key.public_numbers().n.to_bytes(_MRSIGNER_BITS // 8, "little")).digest()


def _files(paths: Sequence[str]) -> Iterator[str]:
    """The files named, and those in the folders named. Raises InputError."""
    for path in paths:
        if path == "-" or not Path(path).is_dir():
            yield path
            continue
        inside = sorted(str(entry) for entry in Path(path).iterdir() if entry.is_file())
        if len(inside) > _MAX_FOLDER:
            raise InputError(f"{path}: more than {_MAX_FOLDER} files")
        yield from inside


def _roots(paths: Sequence[str]) -> tuple[Roots, tuple[str, ...]]:
    from cosmian_vm.inspection.model import Roots

    if not paths:
        return Roots(), ()
    from cryptography.hazmat.primitives.serialization import Encoding

    from cosmian_vm.cli._roots import load_roots

    certificates, notes = load_roots(paths)
    return Roots(tuple(certificate.public_bytes(Encoding.DER) for certificate in certificates)), notes


def _vouchers(
    item: Embedded, material: Material, roots: Roots, store: EndorsementStore, *, now: datetime, notes: list[str]
) -> Vouchers:
    """For one piece of evidence: what was given, and what is missing then. ``notes`` grows by what cannot be had."""
    from cosmian_vm.endorsements.store import REMEDY
    from cosmian_vm.evidence.bundle import TeeKind
    from cosmian_vm.evidence.intel_quote import parse_quote
    from cosmian_vm.inspection.certificate import all_roots
    from cosmian_vm.inspection.intel import fitting_collateral, intel_roots
    from cosmian_vm.inspection.model import CERTIFICATE, CRL
    from cosmian_vm.verifier.ra_tls import Vouchers

    collateral: IntelCollateral | None = None
    crls: list[x509.CertificateRevocationList] = []
    unusable: list[str] = []
    if item.kind in (TeeKind.SGX, TeeKind.TDX):
        try:
            collateral, unusable = fitting_collateral(parse_quote(item.raw), material, intel_roots(roots))
            crls = _intel_crls(material, unusable)
        except EvidenceFormatError as exc:
            unusable = [str(exc)]
    blobs = [entry.raw for entry in material.items if entry.kind in (CERTIFICATE, CRL)]
    gathered = store.gather(item.raw if collateral is None else None, (), now=now, given=blobs)
    remedy = REMEDY.replace("EVIDENCE", "CERTIFICATE").replace("--endorsements", "--with")
    said = [note.replace(REMEDY, remedy) for note in gathered.notes]
    notes += [note for note in (*unusable, *said) if note not in notes]
    return Vouchers(
        amd=gathered.endorsements,
        collateral=collateral or gathered.collateral,
        crls=crls,
        amd_roots=all_roots(roots),
        intel_roots=intel_roots(roots),
    )


def _intel_crls(material: Material, unusable: list[str]) -> list[x509.CertificateRevocationList]:
    """Intel's among the CRLs given; ``unusable`` grows by those that cannot be read."""
    from cosmian_vm.endorsements.intel import crl_of
    from cosmian_vm.inspection.model import CRL

    found = []
    for item in material.of(CRL):
        try:
            crl = crl_of(item.raw, item.name)
        except EvidenceFormatError as exc:
            unusable.append(str(exc))
            continue
        if "Intel SGX" in crl.issuer.rfc4514_string():  # AMD's in the same folder say nothing of this chain
            found.append(crl)
    return found


def _lines(
    path: str, certificate: x509.Certificate, verdict: Verdict, pins: Pins, notes: Sequence[str]
) -> Iterator[str]:
    from cosmian_vm.cli.render import printable, tag
    from cosmian_vm.verifier.result import Status

    yield f"{printable(path)}: {printable(certificate.subject.rfc4514_string()[:300])}"
    for note in notes:
        yield f"{tag(Status.WARNING)} {printable(note)}"
    for check in verdict.checks:
        unmade = " (required: without it there is no trust)" if check.required and check.status is Status.SKIP else ""
        yield f"{tag(check.status)} {check.id}: {printable(check.line)}{unmade}"
        for detail in check.details[:_MAX_DETAILS]:
            yield f"         {printable(detail)}"
    if verdict.trusted:
        whose = "the machine that you pinned" if _is_pinned(pins) else "a genuine one; whose, only what you pin tells"
        yield f"{tag(Status.OK)} Trusted: the machine that holds this certificate's key is {whose}"
        return
    reasons = []
    if verdict.failures:
        reasons.append(f"failed: {_ids(verdict.failures)}")
    if verdict.skipped_required:
        reasons.append(f"could not be checked: {_ids(verdict.skipped_required)}")
    yield f"{tag(Status.FAIL)} Not trusted: {'; '.join(reasons) or 'nothing was checked'}"


def _is_pinned(pins: Pins) -> bool:
    return any(pin is not None for pin in (pins.measurement, pins.mr_enclave, pins.mr_signer, pins.mr_td))


def _ids(checks: Sequence[Check]) -> str:
    return ", ".join(dict.fromkeys(check.id for check in checks))


def _data(
    certificate: x509.Certificate, found: Sequence[Embedded], verdict: Verdict, now: datetime, notes: Sequence[str]
) -> Mapping[str, object]:
    from cryptography.hazmat.primitives import hashes

    from cosmian_vm.cli.render import checks_data
    from cosmian_vm.inspection.model import rfc3339

    return {
        "trusted": verdict.trusted,
        "at": rfc3339(now),
        "certificate": {
            "subject": certificate.subject.rfc4514_string(),
            "not_before": rfc3339(certificate.not_valid_before_utc),
            "not_after": rfc3339(certificate.not_valid_after_utc),
            "sha256": certificate.fingerprint(hashes.SHA256()).hex(),
        },
        "evidence": [
            {"oid": item.oid, "tee": None if item.kind is None else str(item.kind), "bytes": len(item.raw)}
            for item in found
        ],
        "notes": list(notes),
        "checks": checks_data(verdict.checks, full=True),
    }
