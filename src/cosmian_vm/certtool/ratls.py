"""``cosmian_certtool ratls``: certificates that carry the TEE's evidence."""

from __future__ import annotations

from typing import ClassVar

import click

from cosmian_vm.certtool._common import LazyGroup

__all__ = ["command"]


class _Commands(LazyGroup):
    lazy: ClassVar = {
        "generate": ("cosmian_vm.certtool.ratls_generate", "Make one, in the confidential machine."),
        "fetch": ("cosmian_vm.certtool.ratls_fetch", "Save the one that a server shows."),
        "verify": (
            "cosmian_vm.certtool.ratls_verify",
            "Is its key that of a genuine confidential machine, and of which?",
        ),
    }


_EPILOG = """\b
Examples:
  cosmian_certtool ratls generate --subject CN=vm.example.com --san vm.example.com
  cosmian_certtool ratls fetch --hostname vm.example.com
  cosmian_certtool ratls verify --cert cert.ratls.pem --measurement 5feee3...
"""


@click.command(name="ratls", cls=_Commands, epilog=_EPILOG)
def command() -> None:
    """RA-TLS certificates (remotely attested TLS): the TEE's signed evidence is in the certificate and names its key.

    Whoever holds that key is the machine that the evidence is of; no CA has to be believed.
    """
