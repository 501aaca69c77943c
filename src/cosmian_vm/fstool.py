"""The program ``cosmian_fstool``: arguments only. The work is ``cosmian_vm.luks``, loaded when a command needs it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from cosmian_vm import __version__
from cosmian_vm._program import USAGE, end, run_program
from cosmian_vm.errors import CosmianVmError, InputError

if TYPE_CHECKING:
    from cosmian_vm.luks.container import Container

__all__ = ["main", "run"]

_OK, _FAILED = 0, 1
_ASK = "\0ask"
_MAX_PASSWORD = 4096
_LOCATION = "/var/lib/cosmian_vm/container"
_MOUNT = "/var/lib/cosmian_vm/data"
_DEVICE = "/dev/tpmrm0"
_DEFAULT_PCRS = "4+7+8+9+12+14"

_EPILOG = """\b
Without a command, --size makes a container and leaves it open:
  cosmian_fstool --size 500MB
  cosmian_fstool --size 20GB --location /mnt/backup/container --password
\b
Passwords. Without --password one is generated and kept inside the container
(container.password, for root alone); copy it to a safe place before an update of
the system. --password alone asks for it, --password - takes the first line of
standard input, --password-fd N reads descriptor N. In the arguments it could be
read by every process of the machine.
\b
What opens it. The TPM does, as long as the machine boots the same system. The
header beside the container (FILE.header) is believed only if its SHA-256 stands
in the TPM. After an update of the system the container stays locked: verify the
machine (cosmian_vm verify), then
  cosmian_fstool reseal --password
\b
Exit status: 0 done (status: open), 1 refused or failed (status: not open),
2 wrong usage, or no room, or there is one already.
"""


class _Options(NamedTuple):
    location: str | None
    mount: str | None
    tpm: str | None
    pcrs: str | None

    def container(self) -> Container:
        """What the options mean; what they leave open, agent.toml says, and where there is none, the manual."""
        from cosmian_vm.luks.container import Container
        from cosmian_vm.luks.pcrs import parse_pcrs
        from cosmian_vm.luks.place import Place

        for option, value in (("--location", self.location), ("--mount", self.mount), ("--tpm2-device", self.tpm)):
            if value == "":
                raise InputError(f"{option} is empty; leave it out for the default")
        chosen = None if self.pcrs is None else parse_pcrs(self.pcrs)
        location, mount, device, pcrs = _configured()
        place = Place.at(
            Path(self.location).absolute() if self.location else location,
            Path(self.mount).absolute() if self.mount else mount,
        )
        return Container(place, self.tpm or device, pcrs=pcrs if chosen is None else chosen)


def _configured() -> tuple[Path, Path, str, tuple[int, ...]]:
    """Container, folder, TPM and PCRs of agent.toml. Raises ConfigError."""
    from cosmian_vm.agent.config import CONFIG_VARIABLE, DEFAULT_CONFIG, load
    from cosmian_vm.luks.pcrs import DEFAULT_PCRS

    named = os.environ.get(CONFIG_VARIABLE)
    path = Path(named) if named else DEFAULT_CONFIG
    if not named and not path.exists():
        return Path(_LOCATION), Path(_MOUNT), _DEVICE, DEFAULT_PCRS
    config = load(path)
    container = config.container or config.data_storage / "container"
    return container, config.data, config.tpm_device or _DEVICE, config.container_pcrs


def _common(function: Callable[..., int]) -> Callable[..., int]:
    """The options that every command has, before the command or after it: ``function(options, ...)``."""

    def with_options(
        context: click.Context,
        *,
        location: str | None,
        mount: str | None,
        tpm: str | None,
        pcrs: str | None,
        **rest: object,
    ) -> int:
        own = _Options(location, mount, tpm, pcrs)
        before = context.find_object(_Options) or own
        merged = _Options(*(mine if mine is not None else theirs for mine, theirs in zip(own, before, strict=True)))
        context.obj = merged
        return function(merged, **rest)

    wrapped: Callable[..., int] = click.pass_context(update_wrapper(with_options, function))
    for option in (
        click.option(
            "--tpm2-pcrs",
            "pcrs",
            metavar="LIST",
            help=f"What must be unchanged for the TPM to open it (default: agent.toml, or {_DEFAULT_PCRS}).",
        ),
        click.option("--tpm2-device", "tpm", metavar="PATH", help=f"The TPM (default: agent.toml, or {_DEVICE})."),
        click.option("--mount", metavar="FOLDER", help=f"Where it appears (default: agent.toml, or {_MOUNT})."),
        click.option("--location", metavar="FILE", help=f"The container's file (default: agent.toml, or {_LOCATION})."),
    ):
        wrapped = option(wrapped)
    return wrapped


def _password_options(function: Callable[..., int]) -> Callable[..., int]:
    function = click.option(
        "--password-fd", type=click.IntRange(0, 1023), metavar="N", help="Read it from descriptor N."
    )(function)
    return click.option(
        "--password",
        is_flag=False,
        flag_value=_ASK,
        metavar="[-]",
        help="Your own password: asked for, or with - the first line of standard input.",
    )(function)


def _password(given: str | None, descriptor: int | None, *, twice: bool) -> str | None:
    """Raises InputError, UsageError."""
    if given is not None and descriptor is not None:
        raise click.UsageError("--password or --password-fd, not both")
    if descriptor is not None:
        return _first_line(descriptor, f"descriptor {descriptor}")
    if given is None:
        return None
    if given == "-":
        return _first_line(sys.stdin.fileno(), "standard input")
    if given != _ASK:
        click.echo(
            "cosmian_fstool: warning: a password in the arguments can be read by every process of this machine and "
            "stays in the shell's history; use --password, --password - or --password-fd",
            err=True,
        )
        return given
    if not sys.stdin.isatty():
        raise click.UsageError("no terminal to ask for the password: --password - reads it from standard input")
    return str(click.prompt("Password of the container", hide_input=True, confirmation_prompt=twice, err=True))


def _first_line(descriptor: int, name: str) -> str:
    raw = b""
    try:
        while b"\n" not in raw and len(raw) <= _MAX_PASSWORD and (more := os.read(descriptor, _MAX_PASSWORD)):
            raw += more
        text = raw.partition(b"\n")[0].removesuffix(b"\r").decode()
    except OSError as exc:
        raise InputError(f"{name}: the password cannot be read: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise InputError(f"{name}: the password is no text in UTF-8") from exc
    if not text:
        raise InputError(f"{name}: expected is the password in the first line, nothing is there")
    return text


@click.group(
    invoke_without_command=True,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
    name="cosmian_fstool",
)
@click.option("--size", metavar="SIZE", help="Make a container of this size: 500MB, 2GB, 512MiB.")
@_password_options
@click.version_option(__version__, "--version", "-V", message="%(prog)s %(version)s")
@_common
def cosmian_fstool(options: _Options, *, size: str | None, password: str | None, password_fd: int | None) -> int:
    """An encrypted container that the TPM opens again at reboot, and only for the same system.

    Secrets of the application lie in it: LUKS2, AES-XTS with HMAC-SHA-256, ext4. Run it as root.
    """
    command = click.get_current_context().invoked_subcommand
    if command is not None:
        if size is not None or password is not None or password_fd is not None:
            raise click.UsageError(f"--size and --password before {command}: they make a new container")
        return _OK
    if size is None:
        raise click.UsageError("what is to be done? --size 500MB makes a container; or a command, see --help")
    from cosmian_vm.luks.sizes import parse_size, show_size

    wanted = parse_size(size)
    container = options.container()
    chosen = _password(password, password_fd, twice=True)
    container.create(wanted, chosen)
    click.echo(f"A container of {show_size(wanted)} was made. {container.status().line}")
    if chosen is None:
        click.echo(
            "Its password is in it, in container.password: copy it to a safe place before the system is updated."
        )
    return _OK


@cosmian_fstool.command(
    name="open",
    epilog="""\b
Examples:
  At boot, and after `close`: the TPM opens it:
    cosmian_fstool open
  One on a second disk:
    cosmian_fstool --location /mnt/disk2/box --mount /srv/secret open
""",
)
@_common
def open_(options: _Options) -> int:
    """Open the container with the TPM and mount it. Nothing happens where it is open."""
    options.container().open()
    return _OK


@cosmian_fstool.command(
    epilog="""\b
Examples:
  Before the disk is copied or moved:
    cosmian_fstool close
"""
)
@_common
def close(options: _Options) -> int:
    """Unmount and close the container. Stop what uses it first."""
    options.container().close()
    return _OK


@cosmian_fstool.command(
    epilog="""\b
Examples:
  Is it open, and what is it sealed to (exit status 1 where it is not open):
    cosmian_fstool status
"""
)
@_common
def status(options: _Options) -> int:
    """Is it open, and if not, would the TPM open it, or why not? Exit status 0 if open, else 1."""
    found = options.container().status()
    click.echo(found.line)
    return _OK if found.open else _FAILED


@cosmian_fstool.command(
    epilog="""\b
Examples:
  After an update of kernel or firmware, once the machine was verified:
    cosmian_fstool reseal
  While it is locked, with the password:
    cosmian_fstool reseal --password
"""
)
@_password_options
@_common
def reseal(options: _Options, *, password: str | None, password_fd: int | None) -> int:
    """After an update: let the TPM open it for the system that runs now.

    Whoever runs the machine gets the password typed here: verify the machine first (cosmian_vm verify). An open
    container with a generated password needs none.
    """
    container = options.container()
    container.reseal(_password(password, password_fd, twice=False))
    click.echo(container.status().line)
    return _OK


@cosmian_fstool.command(
    epilog="""\b
Examples:
  Container, header and the TPM's record of it, for good:
    cosmian_fstool remove
"""
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@_common
def remove(options: _Options, *, yes: bool) -> int:
    """Give the container up: everything in it is lost, and the TPM forgets it."""
    container = options.container()
    if not yes:
        if not sys.stdin.isatty():
            raise click.UsageError("no terminal to ask on: say --yes if everything in the container may be lost")
        click.confirm("Everything in the container will be lost. Go on?", abort=True, err=True)
    container.remove()
    return _OK


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status. Whatever goes wrong is one line on standard error."""
    said = "interrupted; what was begun has been undone"
    return run_program(
        cosmian_fstool, "cosmian_fstool", arguments, status_of=_status_of, interrupted=said, of_system=_FAILED
    )


def _status_of(error: CosmianVmError) -> int:
    return USAGE if isinstance(error, InputError) else _FAILED


def main() -> None:
    """Entry point of the program: no core files, nothing readable by others.

    It lives for one answer, and a boot may wait for it: no cycles are collected, as in ``cli.main``.
    """
    import gc
    import resource

    gc.disable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    os.umask(0o077)
    end(run())


if __name__ == "__main__":
    main()
