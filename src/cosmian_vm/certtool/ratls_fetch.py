"""``cosmian_certtool ratls fetch``: save the certificate that a server shows."""

from __future__ import annotations

from pathlib import Path

import click

from cosmian_vm.certtool._common import DONE, make_folder, write_file
from cosmian_vm.errors import InputError, TransportError

__all__ = ["command", "leaf_of"]

CERTIFICATE_FILE = "cert.ratls.pem"

_EPILOG = """\b
Examples:
  cosmian_certtool ratls fetch --hostname vm.example.com --port 5355
  cosmian_certtool ratls verify --cert cert.ratls.pem --measurement 5feee3...
"""


@click.command(name="fetch", epilog=_EPILOG)
@click.option("--hostname", metavar="HOST", required=True, help="The server, a name or an IP address.")
@click.option("--port", "-p", type=click.IntRange(1, 65535), default=443, show_default=True)
@click.option("--output", "-o", metavar="DIR", default=".", show_default=True, help="Where cert.ratls.pem is written.")
@click.option("--timeout", metavar="SECONDS", type=click.FloatRange(min=0.1, max=3600), default=30.0, show_default=True)
def command(*, hostname: str, port: int, output: str, timeout: float) -> int:
    """Connect to a server and save the certificate that it shows as its own: cert.ratls.pem.

    Nothing about it is checked here: that is ratls verify.
    """
    import ssl

    pem = ssl.DER_cert_to_PEM_cert(leaf_of(hostname, port, timeout)).encode("ascii")
    folder = Path(output)
    make_folder(folder)
    write_file(folder / CERTIFICATE_FILE, pem, 0o644)
    click.echo(f"RA-TLS certificate: {folder / CERTIFICATE_FILE} (not verified yet)")
    return DONE


def leaf_of(host: str, port: int, timeout: float) -> bytes:
    """The certificate (DER) that the server shows. Raises InputError for a host that cannot be, TransportError."""
    import socket
    import ssl

    host = host.strip("[]")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # what it is worth, its evidence tells, not a CA
    try:
        with socket.create_connection((host, port), timeout=timeout) as connection:
            connection.settimeout(timeout)
            with context.wrap_socket(connection, server_hostname=host) as tls:
                leaf = tls.getpeercert(binary_form=True)
    except (UnicodeError, ValueError) as exc:
        raise InputError(f"--hostname {host!r}: not a name of a server") from exc
    except ssl.SSLError as exc:
        raise TransportError(f"{host}:{port}: no TLS connection: {exc.reason or exc}") from exc
    except OSError as exc:
        raise TransportError(f"{host}:{port} cannot be reached: {exc.strerror or exc or type(exc).__name__}") from exc
    if leaf is None:
        raise TransportError(f"{host}:{port} shows no certificate")
    return leaf
