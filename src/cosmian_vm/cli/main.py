"""The program ``cosmian_vm``: global options, and the commands, each loaded only when it is called."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from importlib import import_module

import click

from cosmian_vm import __version__
from cosmian_vm._program import end, run_program
from cosmian_vm.cli._common import Target, exit_status

__all__ = ["main", "run"]

_COMMANDS = {
    "snapshot": "Record what a machine is, into a file.",
    "verify": "Is it still exactly the machine of the snapshot, or of the image as built?",
    "app": "Give the application its configuration; restart it; ask how it is.",
    "policy": "What is accepted beyond the snapshot; show it.",
    "endorsements": "Fetch what the hardware maker says about a machine, for verifying offline.",
    "owner": "The key that owns your machines; who owns a machine.",
    "known": "The machines that are remembered, by URL.",
    "inspect": "What is this evidence file, and is it authentic? Offline.",
}

_EPILOG = """\b
Examples:
  Record a machine that is set up, once:
    cosmian_vm --url https://vm.example.com:5355 snapshot
  Ask at any later time whether it still is exactly that:
    cosmian_vm --url https://vm.example.com:5355 verify --snapshot cosmian_vm.snapshot
  The agent's certificate is its own, self-signed (the default of a fresh machine):
    cosmian_vm --url https://10.0.0.7:5355 --allow-insecure-tls verify -s cosmian_vm.snapshot
  Hand the application its secrets, only if the machine is the one of the snapshot:
    cosmian_vm --url https://vm.example.com:5355 app init --conf app.json -s cosmian_vm.snapshot
  Look at a file of evidence:
    cosmian_vm inspect report.bin --verify --with vcek.der
  Fetch what AMD or Intel say about the processor, for a computer without network:
    cosmian_vm endorsements fetch evidence.json --output web-1
  Begin a policy of your own: minimum firmware, TCB statuses, who may vouch for the TPM:
    cosmian_vm policy show > policy.toml
  Keep a backup of the key that owns your machines:
    cosmian_vm owner export owner.backup

\b
Exit status:
  0  trusted (or done)
  1  not trusted
  2  wrong usage, or a file that cannot be read
  3  no evidence to be had: unreachable, timed out, refused
  4  (app status) the application does not run
"""


class _Commands(click.Group):
    """Commands whose modules are imported when they are called; their one-line help is known without."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's signature
        if cmd_name not in _COMMANDS:
            return None
        command: click.Command = import_module(f"cosmian_vm.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - likewise
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.command(cls=_Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--url", metavar="URL", help="The agent, for instance https://vm.example.com:5355 (port 443 if none).")
@click.option(
    "--allow-insecure-tls",
    is_flag=True,
    help="Do not ask a CA about the agent's certificate. What the machine is then rests on the snapshot alone.",
)
@click.option("--ca-file", metavar="PEM", help="CAs to check the agent's certificate with, instead of the system's.")
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(min=0.1, max=3600),
    default=30.0,
    show_default=True,
    help="How long the agent may take for each answer on the network.",
)
@click.version_option(__version__, "--version", "-V", message="%(prog)s %(version)s")
@click.pass_context
def cosmian_vm(
    context: click.Context, url: str | None, allow_insecure_tls: bool, ca_file: str | None, timeout: float
) -> None:
    """Is my confidential machine still exactly the one that I set up, on real confidential hardware?

    Global options come before the command.
    """
    context.obj = Target(url=url, allow_insecure_tls=allow_insecure_tls, ca_file=ca_file, timeout=timeout)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status. Whatever goes wrong is one line on standard error."""
    return run_program(cosmian_vm, "cosmian_vm", arguments, status_of=exit_status)


def main() -> None:
    """Entry point of the program.

    A process that lives for one answer: collecting cycles while modules are loaded, and taking every module apart at
    the end, would cost a third of its time.
    """
    gc.disable()
    end(run())


if __name__ == "__main__":
    main()
