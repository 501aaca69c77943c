"""The program ``cosmian_certtool``: its commands, each loaded only when it is called."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import ClassVar

import click

from cosmian_vm import __version__
from cosmian_vm._program import run_program
from cosmian_vm.certtool._common import LazyGroup, Machine, exit_status

__all__ = ["main", "run"]


class _Commands(LazyGroup):
    lazy: ClassVar = {
        "acme": ("cosmian_vm.certtool.acme", "A certificate that browsers trust: Let's Encrypt, or any ACME CA."),
        "ratls": ("cosmian_vm.certtool.ratls", "A certificate that carries its own proof: generate, fetch, verify."),
        "key": ("cosmian_vm.certtool.key", "An X25519 key pair that only this machine's TEE derives."),
    }


_EPILOG = """\b
Examples:
  A certificate by Let's Encrypt; called daily, it renews when due (run it as root):
    cosmian_certtool acme --domain vm.example.com --email me@example.com \\
        --workspace /var/lib/cosmian_vm/data/acme --output /var/lib/cosmian_vm/data/vm.example.com
  In a confidential VM or an enclave, a certificate whose key is proven to live there:
    cosmian_certtool ratls generate --subject CN=vm.example.com --san vm.example.com
  On your computer, fetch and judge it:
    cosmian_certtool ratls fetch --hostname vm.example.com --port 5355
    cosmian_certtool ratls verify --cert cert.ratls.pem --measurement 5feee3...
  A key for the application that comes out the same at each start:
    cosmian_certtool key --salt 0badc0de --output /run/app

\b
Exit status:
  0  done (verify: trusted)
  1  failed (verify: not trusted)
  2  wrong usage, or a file that cannot be read or written
  3  unreachable: no certificate to be had, no answer of the CA
"""


@click.command(cls=_Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version", "-V", message="%(prog)s %(version)s")
def cosmian_certtool() -> None:
    """Certificates and keys for confidential machines: by ACME, by the hardware's own proof, out of the TEE."""


def run(arguments: Sequence[str] | None = None, machine: Machine | None = None) -> int:
    """Run one command line and return its exit status. Whatever goes wrong is one line on standard error.

    ``machine``: whose TEE is used; None: that of this machine.
    """
    return run_program(cosmian_certtool, "cosmian_certtool", arguments, status_of=exit_status, given=machine)


def main() -> None:
    """Entry point of the program: no core files, since keys pass through."""
    with suppress(ImportError, OSError, ValueError):  # there are no such limits on Windows
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    sys.exit(run())


if __name__ == "__main__":
    main()
