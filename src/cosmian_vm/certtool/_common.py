"""What the commands share: a group whose commands are imported when called, the machine, exit statuses, hex, files.

``cosmian_certtool --help`` loads this module: what costs milliseconds to import is imported where it is used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, ClassVar, Protocol

import click

from cosmian_vm.errors import (
    AttesterError,
    CosmianVmError,
    InputError,
    IssuanceError,
    NotAvailableError,
    TransportError,
)

if TYPE_CHECKING:
    from pathlib import Path

    from cosmian_vm.attester.derived_key import TeeKey
    from cosmian_vm.attester.platform import TeeDevice

__all__ = [
    "DONE",
    "FAILED",
    "NO_EVIDENCE",
    "USAGE",
    "LazyGroup",
    "Machine",
    "RealMachine",
    "exit_status",
    "hex_bytes",
    "machine_of",
    "make_folder",
    "write_file",
]

DONE = 0
FAILED = 1
USAGE = 2
NO_EVIDENCE = 3

_MAX_SALT = 1024


class Machine(Protocol):
    """What the commands ask of the machine that they run on."""

    def tee(self) -> TeeDevice:
        """The processor's attestation interface. Raises NotAvailableError where there is none."""
        ...

    def key(self) -> TeeKey:
        """The key that only this TEE derives. Raises NotAvailableError where the platform has none, AttesterError."""
        ...


class RealMachine:
    """This one."""

    def tee(self) -> TeeDevice:
        """See Machine."""
        import logging

        from cosmian_vm.attester.platform import detect

        logging.getLogger("cosmian_vm").addHandler(logging.NullHandler())  # what the agent logs at its start
        logging.getLogger("cosmian_vm").propagate = False
        found = detect(None).tee
        if found is None:
            raise NotAvailableError(
                "this machine has no confidential hardware that can be asked: no AMD SEV-SNP, Intel TDX or SGX device "
                "was found (in a confidential VM: run this as root)"
            )
        return found

    def key(self) -> TeeKey:
        """See Machine."""
        from cosmian_vm.attester.derived_key import tee_key

        return tee_key()


def machine_of(context: click.Context) -> Machine:
    """The machine that the program was started for."""
    found: Machine | None = context.find_root().obj
    return RealMachine() if found is None else found


class LazyGroup(click.Group):
    """Commands whose modules are imported when they are called; their one-line help is known without."""

    lazy: ClassVar[Mapping[str, tuple[str, str]]] = {}
    """Command name to module (which has a ``command``) and help."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """In their order."""
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - likewise
        """Import it."""
        if cmd_name not in self.lazy:
            return None
        command: click.Command = import_module(self.lazy[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - likewise
        """Without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.lazy.items()])


def exit_status(error: CosmianVmError) -> int:
    """The exit status that an error stands for."""
    if isinstance(error, TransportError):
        return NO_EVIDENCE
    return FAILED if isinstance(error, AttesterError | IssuanceError) else USAGE


def hex_bytes(text: str, option: str, size: int | None = None) -> bytes:
    """Bytes given in hex: exactly ``size`` of them, or at most 1024. Raises InputError naming the option."""
    expected = f"{size} bytes in hex ({2 * size} digits)" if size is not None else "bytes in hex"
    try:
        raw = bytes.fromhex(text)
    except ValueError as exc:
        raise InputError(f"{option}: expected are {expected}, this is no hex: {text[:100]!r}") from exc
    if size is not None and len(raw) != size:
        raise InputError(f"{option}: expected are {expected}, these are {len(raw)}")
    if len(raw) > _MAX_SALT:
        raise InputError(f"{option}: longer than {_MAX_SALT} bytes")
    return raw


def make_folder(path: Path) -> None:
    """The folder, with those above it. Raises InputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise InputError(f"{path}: cannot be made: {exc.strerror or exc}") from exc


def write_file(path: Path, content: bytes, mode: int) -> None:
    """Write a whole file or nothing, never readable by more than ``mode`` says. Raises InputError."""
    import tempfile
    from pathlib import Path

    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")  # 0600
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        temporary = None
    except (OSError, ValueError) as exc:
        raise InputError(f"{path}: cannot be written: {getattr(exc, 'strerror', None) or exc}") from exc
    finally:
        if temporary is not None:
            with suppress(OSError):
                Path(temporary).unlink()
