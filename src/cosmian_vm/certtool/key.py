"""``cosmian_certtool key``: an X25519 key pair out of the TEE's own key."""

from __future__ import annotations

import click

from cosmian_vm.certtool._common import DONE, hex_bytes, machine_of, make_folder, write_file

__all__ = ["command"]

_EPILOG = """\b
Examples:
  cosmian_certtool key --output /run/app
  Another key for another purpose, of the same machine:
    cosmian_certtool key --salt 0badc0de --output /run/backup

\b
What such a key is worth. On SGX it is derived for this very enclave on this very
processor. On SEV-SNP it is derived for the chip, its firmware level, and the launch
measurement and policy; the measurement covers the virtual firmware only, so whoever
starts another machine of the same type on the same chip derives it too, and an
update of the host's firmware changes it. Do not let it be the only key to data.
Intel TDX and Azure's machines derive no key.
"""


@click.command(name="key", epilog=_EPILOG)
@click.option(
    "--salt", metavar="HEX", help="Derive another key for each salt; no secret. Without: always the same key."
)
@click.option("--output", "-o", metavar="DIR", default=".", show_default=True, help="Where the two files are written.")
@click.pass_context
def command(context: click.Context, *, salt: str | None, output: str) -> int:
    """Derive an X25519 key pair in the TEE: x25519_sk.bin is the secret key (mode 0600), x25519_pk.bin the public one.

    32 bytes each, as RFC 7748 has them. At each start of the same machine the same key comes out, and it is stored
    nowhere.
    """
    from pathlib import Path

    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from cosmian_vm.certtool._derive import x25519_secret

    salted = None if salt is None else hex_bytes(salt, "--salt")
    secret = x25519_secret(machine_of(context).key(), salted)
    public = X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
    folder = Path(output)
    make_folder(folder)
    write_file(folder / "x25519_sk.bin", secret, 0o600)
    write_file(folder / "x25519_pk.bin", public, 0o644)
    click.echo(f"Secret key: {folder / 'x25519_sk.bin'}")
    click.echo(f"Public key: {folder / 'x25519_pk.bin'}")
    return DONE
