"""``cosmian_certtool ratls generate``: a certificate with the evidence of the machine that it is made on."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cosmian_vm.certtool._common import DONE, Machine, hex_bytes, machine_of, make_folder, write_file
from cosmian_vm.cli._common import read_file
from cosmian_vm.errors import AttesterError, CosmianVmError, EvidenceFormatError, InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

    from cosmian_vm.attester.platform import TeeQuote

__all__ = ["KEY_FILE", "command"]

CERTIFICATE_FILE = "cert.ratls.pem"
KEY_FILE = "key.ratls.pem"

_EPILOG = """\b
Examples:
  cosmian_certtool ratls generate --subject "CN=vm.example.com,O=Example" --san vm.example.com
  With bytes of your own in the evidence, and a key that comes out again at each start:
    cosmian_certtool ratls generate --extra-data nonce.bin --tee-secret-key 0badc0de

\b
The key. --random-secret-key (the default) makes a fresh one. --tee-secret-key HEX derives
it from the TEE's own key and a salt, --tee-secret-key-no-salt without a salt: the same
machine gets the same key again (see cosmian_certtool key --help for what that is worth).
"""


@click.command(name="generate", epilog=_EPILOG)
@click.option(
    "--subject", "-s", metavar="NAME", default="CN=localhost", show_default=True, help="As RFC 4514 writes it."
)
@click.option(
    "--san",
    metavar="NAME",
    multiple=True,
    help="DNS name or IP address of the server [default: localhost]. Repeatable.",
)
@click.option("--days", "-d", type=int, default=365, show_default=True, help="How long it is valid.")
@click.option(
    "--extra-data", "-e", metavar="FILE", help="At most 32 bytes to put into the evidence behind the key's hash."
)
@click.option("--output", "-o", metavar="DIR", default=".", show_default=True, help="Where the two files are written.")
@click.option("--random-secret-key", is_flag=True, help="A fresh key (the default).")
@click.option("--tee-secret-key", metavar="SALT", help="A key derived in the TEE with this salt (hex).")
@click.option("--tee-secret-key-no-salt", is_flag=True, help="A key derived in the TEE without salt.")
@click.pass_context
def command(
    context: click.Context,
    *,
    subject: str,
    san: tuple[str, ...],
    days: int,
    extra_data: str | None,
    output: str,
    random_secret_key: bool,
    tee_secret_key: str | None,
    tee_secret_key_no_salt: bool,
) -> int:
    """Make a key and a certificate that proves whose it is: key.ratls.pem (mode 0600) and cert.ratls.pem.

    Run it in the confidential machine. The TEE signs evidence over the SHA-256 of the key (of its uncompressed point,
    P-256), and the certificate, which the key itself signs, carries that evidence.
    """
    if random_secret_key + (tee_secret_key is not None) + tee_secret_key_no_salt > 1:
        raise click.UsageError("--random-secret-key, --tee-secret-key, --tee-secret-key-no-salt: one of them")
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    from cosmian_vm.ra_tls import make_certificate

    extra = b"" if extra_data is None else read_extra_data(extra_data)
    machine = machine_of(context)
    key = _key(machine, tee_secret_key, no_salt=tee_secret_key_no_salt)
    evidence = _evidence(machine, key.public_key(), extra)
    names = san or ("localhost",)
    certificate = make_certificate(
        key, evidence, subject=subject, sans=names, days=days, now=datetime.now(UTC).replace(microsecond=0)
    )
    folder = Path(output)
    make_folder(folder)
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_file(folder / KEY_FILE, key_pem, 0o600)
    write_file(folder / CERTIFICATE_FILE, certificate, 0o644)
    click.echo(f"RA-TLS key: {folder / KEY_FILE}")
    click.echo(f"RA-TLS certificate: {folder / CERTIFICATE_FILE}")
    return DONE


def read_extra_data(path: str) -> bytes:
    """What --extra-data names. Raises InputError."""
    from cosmian_vm.ra_tls import EXTRA_DATA_SIZE

    raw = read_file(path, limit=1 << 20)
    if len(raw) > EXTRA_DATA_SIZE:
        raise InputError(f"{path}: extra data are at most {EXTRA_DATA_SIZE} bytes, these are {len(raw)}")
    return raw


def _key(machine: Machine, salt: str | None, *, no_salt: bool) -> ec.EllipticCurvePrivateKey:
    if salt is None and not no_salt:
        from cryptography.hazmat.primitives.asymmetric import ec

        return ec.generate_private_key(ec.SECP256R1())
    from cosmian_vm.certtool._derive import p256_key

    salted = None if salt is None else hex_bytes(salt, "--tee-secret-key")
    return p256_key(machine.key(), salted)


def _evidence(machine: Machine, key: ec.EllipticCurvePublicKey, extra: bytes) -> bytes:
    """A quote for this key, in the form that the certificate carries. Raises AttesterError."""
    from cosmian_vm.evidence.bundle import TeeKind, tee_kind
    from cosmian_vm.evidence.snp import serialise_v1
    from cosmian_vm.ra_tls import report_data_for

    wanted = report_data_for(key, extra)
    quote = machine.tee().quote(wanted)
    if quote.hcl_report is not None:
        raise AttesterError(
            "on Azure the evidence cannot be bound to a key of ours (its report_data is the hash of the HCL data): no "
            "RA-TLS certificate can be made here"
        )
    if _report_data(quote) != wanted:
        raise AttesterError("the TEE's evidence is not over the key that it was asked for")
    if tee_kind(quote.raw) is TeeKind.SNP:
        return serialise_v1(quote.raw, _certificates(quote))
    return quote.raw


def _report_data(quote: TeeQuote) -> bytes:
    from cosmian_vm.evidence.bundle import TeeKind, tee_kind
    from cosmian_vm.evidence.intel_quote import parse_quote
    from cosmian_vm.evidence.snp import parse_evidence

    try:
        if tee_kind(quote.raw) is TeeKind.SNP:
            return parse_evidence(quote.raw).report.report_data
        return parse_quote(quote.raw).body.report_data
    except EvidenceFormatError as exc:
        raise AttesterError(f"the TEE's evidence cannot be read: {exc}") from exc


def _certificates(quote: TeeQuote) -> list[bytes]:
    """The certificates (DER) that came beside a report; what cannot be read is left out, it proves nothing."""
    from cosmian_vm.evidence.snp import split_objects

    found: list[bytes] = []
    for blob in quote.endorsements:
        try:
            found += split_objects(blob)[0]
        except CosmianVmError:
            continue
    return found
