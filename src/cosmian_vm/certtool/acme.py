"""``cosmian_certtool acme``: a certificate from Let's Encrypt or another ACME CA; called daily, it renews when due."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cosmian_vm.certtool._common import DONE, Machine, hex_bytes, machine_of, make_folder
from cosmian_vm.errors import InputError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec

    from cosmian_vm.certtool._http01 import ChallengeServer
    from cosmian_vm.certtool._pair import Pair

__all__ = ["command"]

_PRODUCTION = "https://acme-v02.api.letsencrypt.org/directory"
_STAGING = "https://acme-staging-v02.api.letsencrypt.org/directory"
_MAX_NAMES = 100  # Let's Encrypt's bound for one certificate
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_LABEL = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)")

_EPILOG = """\b
Examples:
  As root, on the machine that the name leads to and whose port 80 is free and reachable:
    cosmian_certtool acme --domain vm.example.com --email me@example.com \\
        --workspace /var/lib/cosmian_vm/data/acme --output /var/lib/cosmian_vm/data/vm.example.com
  Two names; for a try, from the staging CA, whose certificates no browser trusts:
    cosmian_certtool acme --domain vm.example.com --san www.example.com --email me@example.com \\
        --workspace acme --output tls --staging
  A key that the TEE derives, and a CA of your own:
    cosmian_certtool acme --domain vm.corp --email me@corp --workspace acme --output tls \\
        --derived-from-tee 0badc0de --directory https://ca.corp/acme --ca-bundle corp.pem

\b
Then name the two files in agent.toml (ssl_certificate, ssl_private_key). Call the same
command daily: nothing happens until renewal is due or the names change, and the agent
picks new files up by itself. On a Cosmian VM, systemctl enable --now
cosmian_certtool.timer does so, with what /etc/cosmian_vm/acme.env says.

\b
What fails leaves the old files as they are. The two files are links to one folder that
changes at once, so no program ever sees a key that does not fit its certificate.
By ordering you agree to the CA's terms of service.
"""


@click.command(name="acme", epilog=_EPILOG)
@click.option("--domain", "-d", metavar="NAME", required=True, help="The name that the certificate is for.")
@click.option("--san", "-s", "sans", metavar="NAME", multiple=True, help="A further name. Repeatable.")
@click.option("--email", "-e", metavar="ADDRESS", required=True, help="Where the CA writes to.")
@click.option("--workspace", "-w", metavar="DIR", required=True, help="Where the account's key is kept between runs.")
@click.option(
    "--output", "-o", metavar="DIR", required=True, help="Where key.pem (mode 0600) and cert.pem are written."
)
@click.option("--staging", is_flag=True, help="Let's Encrypt's staging CA: for trying, no browser trusts it.")
@click.option("--directory", metavar="URL", help="Directory of another ACME CA.")
@click.option("--ca-bundle", metavar="PEM", help="CAs to check the ACME server with, instead of the system's.")
@click.option(
    "--http-port",
    type=click.IntRange(1, 65535),
    default=80,
    show_default=True,
    help="Where challenges are answered. The CA always comes to port 80: another one must be forwarded from there.",
)
@click.option("--http-address", metavar="IP", default="", help="Answer them on this address only [default: all].")
@click.option("--derived-from-tee", metavar="SALT", help="Derive the key in the TEE with this salt (hex).")
@click.option(
    "--renew-before",
    metavar="TIME",
    default="30d",
    show_default=True,
    help="Renew when less than this is left: 30d, 12h.",
)
@click.pass_context
def command(
    context: click.Context,
    *,
    domain: str,
    sans: tuple[str, ...],
    email: str,
    workspace: str,
    output: str,
    staging: bool,
    directory: str | None,
    ca_bundle: str | None,
    http_port: int,
    http_address: str,
    derived_from_tee: str | None,
    renew_before: str,
) -> int:
    """Get a certificate that browsers trust (ACME, HTTP-01), or renew it when that is due.

    The CA fetches a proof from port 80 of each name: only that is served there, and only while the order lasts.
    """
    if staging and directory is not None:
        raise click.UsageError("--staging is Let's Encrypt's; leave it or --directory out")
    url = _directory(directory, staging=staging)
    names = tuple(dict.fromkeys(_name(text, option) for text, option in ((domain, "--domain"), *_with(sans, "--san"))))
    if len(names) > _MAX_NAMES:
        raise InputError(f"{len(names)} names; a certificate is for at most {_MAX_NAMES}")
    if not re.fullmatch(r"[^@\s,?]{1,64}@[^@\s,?]{1,253}", email):
        raise InputError(f"--email {email!r}: not an address")
    before = _duration(renew_before)
    salt = None if derived_from_tee is None else hex_bytes(derived_from_tee, "--derived-from-tee")

    from cosmian_vm.certtool._http01 import ChallengeServer
    from cosmian_vm.certtool._pair import CERTIFICATE, Pair, PairFolder

    work = Path(workspace)
    make_folder(work)
    with _alone(work):
        folder = PairFolder(Path(output))
        key = _key(machine_of(context), salt)
        present = folder.present()
        now = datetime.now(UTC)
        derived = None if salt is None else key
        if present is not None and (until := _still_good(present, names, url, derived, now + before)) is not None:
            click.echo(f"{Path(output) / CERTIFICATE} is valid until {until:%Y-%m-%d %H:%M} UTC: nothing to do yet")
            return DONE
        with ChallengeServer(http_address, http_port) as server:
            chain = _issue(url, names, email, key, server, work=work, ca_bundle=ca_bundle)
        folder.install(Pair(chain, _pem(key), url))
    _say(Path(output), chain, before)
    return DONE


def _issue(
    url: str,
    names: Sequence[str],
    email: str,
    key: ec.EllipticCurvePrivateKey,
    server: ChallengeServer,
    *,
    work: Path,
    ca_bundle: str | None,
) -> bytes:
    """Raises InputError where what ACME takes is not installed."""
    try:
        from cosmian_vm.certtool._order import Order, account_key
    except ModuleNotFoundError as exc:
        raise InputError(f"{exc.name} is not installed: pip install '.[certtool]' in the source folder") from exc
    account = account_key(work / _account_file(url))
    return Order(url, account, ca_bundle=ca_bundle).issue(names, email, key, server)


def _say(output: Path, chain: bytes, before: timedelta) -> None:
    from cosmian_vm.certtool._pair import CERTIFICATE, KEY, Pair

    leaf = Pair(chain, b"").leaf
    click.echo(f"Certificate: {output / CERTIFICATE}, valid until {leaf.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    click.echo(f"Key: {output / KEY}")
    if leaf.not_valid_after_utc - leaf.not_valid_before_utc <= before:
        click.echo(
            "cosmian_certtool: certificates of this CA live shorter than --renew-before: every run renews", err=True
        )


def _still_good(
    present: Pair,
    names: Sequence[str],
    url: str,
    derived: ec.EllipticCurvePrivateKey | None,
    then: datetime,
) -> datetime | None:
    """Until when the present certificate is valid; None where it is not what is wanted, or will not be at ``then``."""
    from cosmian_vm.certtool._pair import names_of

    leaf = present.leaf
    if present.directory != url or names_of(leaf) != frozenset(names) or then >= leaf.not_valid_after_utc:
        return None
    if derived is not None and leaf.public_key() != derived.public_key():
        return None
    return leaf.not_valid_after_utc


def _key(machine: Machine, salt: bytes | None) -> ec.EllipticCurvePrivateKey:
    """The certificate's key: derived, or a fresh one. Raises what Machine.key does."""
    if salt is not None:
        from cosmian_vm.certtool._derive import p256_key

        return p256_key(machine.key(), salt)
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _with(texts: Sequence[str], option: str) -> Iterator[tuple[str, str]]:
    return ((text, option) for text in texts)


def _name(text: str, option: str) -> str:
    """A DNS name in lower case, ASCII. Raises InputError."""
    import ipaddress

    if "*" in text:
        raise InputError(f"{option} {text!r}: HTTP-01 cannot prove a wildcard; name each host")
    try:
        ipaddress.ip_address(text)
    except ValueError:
        pass
    else:
        raise InputError(f"{option} {text!r}: expected is a name, not an address")
    try:
        name = (text if text.isascii() else text.encode("idna").decode("ascii")).lower().removesuffix(".")
    except UnicodeError:
        name = ""
    if len(name) > 253 or not all(_LABEL.fullmatch(label) for label in name.split(".")):
        raise InputError(f"{option} {text!r}: not a DNS name")
    return name


def _directory(given: str | None, *, staging: bool) -> str:
    from urllib.parse import urlsplit

    if given is None:
        return _STAGING if staging else _PRODUCTION
    try:
        parts = urlsplit(given)
        usable = parts.scheme == "https" and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable or not given.isascii() or not given.isprintable() or " " in given:
        raise InputError(f"--directory {given!r}: expected is the https URL of an ACME directory")
    return given


def _duration(text: str) -> timedelta:
    found = re.fullmatch(r"(\d{1,6})([dhms]?)", text)
    if found is None:
        raise InputError(f"--renew-before {text!r}: expected is a time as 30d, 12h")
    return timedelta(seconds=int(found[1]) * _UNITS[found[2] or "d"])


def _account_file(url: str) -> str:
    """An account is one CA's: its key is kept under the directory's name."""
    from hashlib import sha256
    from urllib.parse import urlsplit

    host = re.sub(r"[^a-z0-9.-]", "_", (urlsplit(url).hostname or "").lower())[:100]
    return f"account.{host}.{sha256(url.encode()).hexdigest()[:8]}.pem"


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """One run at a time in a workspace. Raises InputError."""
    import fcntl
    import os

    path = work / ".lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise InputError(f"{path}: cannot be written: {exc.strerror or exc}") from exc
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            raise InputError(f"{work}: another cosmian_certtool is at work here") from exc
        except OSError:
            pass  # a file system without locks (Gramine's)
        yield
    finally:
        os.close(descriptor)
