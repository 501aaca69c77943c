"""``python -m cosmian_vm.devkit vm COMMAND --folder F``: a simulated confidential VM to try things on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

import click

from cosmian_vm.devkit.hostile import ATTACKS
from cosmian_vm.devkit.vm import SimulatedVm
from cosmian_vm.errors import CosmianVmError
from cosmian_vm.evidence.bundle import TeeKind

__all__ = ["main"]

_FOLDER = click.option(
    "--folder",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Everything the VM is: its files, TPM, keys and logs.",
)
_PATH = click.argument("path")


class _OneLineErrors(click.Group):
    """Our own errors, and the system's about a folder, are one line and exit status 1."""

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except (CosmianVmError, OSError) as exc:
            _stop(str(exc))


def _stop(line: str) -> NoReturn:
    click.echo(line, err=True)
    sys.exit(1)


@click.group()
def main() -> None:
    """Simulated hardware for Cosmian VM. Nothing of it passes a verification without --trust-root."""


@main.group(cls=_OneLineErrors)
def vm() -> None:
    """One simulated confidential VM."""


@vm.command()
@_FOLDER
@click.option(
    "--tee",
    type=click.Choice([str(kind) for kind in TeeKind]),
    help=f"What a new one is (default: {TeeKind.SNP}). An SGX enclave has neither TPM nor IMA.",
)
def start(folder: Path, tee: str | None) -> None:
    """Create the VM where it is new, and power it on."""
    machine = SimulatedVm(folder, tee=TeeKind(tee or TeeKind.SNP))
    if tee is not None and (folder / "vm.json").exists() and machine.tee != tee:
        _stop(f"{folder}: this VM is {machine.tee}; --tee says what a new one is: give another folder")
    url = machine.start()
    click.echo(f"url         {url}\ntrust root  {machine.trust_root}\nfile system {machine.rootfs}")
    if machine.collateral.exists():
        click.echo(f"collateral  {machine.collateral}")


@vm.command()
@_FOLDER
def stop(folder: Path) -> None:
    """Power it off; nothing of it runs afterwards."""
    SimulatedVm(folder).stop()


@vm.command()
@_FOLDER
@click.option("--new-instance", is_flag=True, help="The host launches the guest anew: its report_id changes.")
def reboot(folder: Path, *, new_instance: bool) -> None:
    """A power cycle."""
    machine = SimulatedVm(folder)
    machine.url  # noqa: B018 - says in plain words that the VM is off
    click.echo(machine.reboot(new_instance=new_instance))


@vm.command(context_settings={"ignore_unknown_options": True})
@_FOLDER
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Copy this program of your computer to PATH first.",
)
@_PATH
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run(folder: Path, source: Path | None, path: str, arguments: tuple[str, ...]) -> None:
    """Execute the program PATH of the VM, as /usr/bin/ls: it is measured, then it really runs."""
    sys.stdout.buffer.write(SimulatedVm(folder).run(path, arguments, source=source))


@vm.command()
@_FOLDER
@_PATH
def change(folder: Path, path: str) -> None:
    """Change the program PATH of the VM, and run it (the kernel notices a change when a file is used)."""
    machine = SimulatedVm(folder)
    machine.change(path)
    sys.stdout.buffer.write(machine.run(path))


@vm.command()
@_FOLDER
@_PATH
def violate(folder: Path, path: str) -> None:
    """Record an IMA violation for PATH, as when it is open for writing while it is run."""
    SimulatedVm(folder).violate(path)


@vm.command()
@_FOLDER
@click.argument("name", type=click.Choice([*ATTACKS, "none"]), metavar="NAME")
def attack(folder: Path, name: str) -> None:
    """Replace the agent by one that tells the lie NAME (see `attacks`); `none` brings the honest one back."""
    machine = SimulatedVm(folder)
    machine.url  # noqa: B018 - says in plain words that the VM is off
    click.echo(machine.restart_agent(attack=None if name == "none" else name))


@vm.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@_FOLDER
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def certtool(folder: Path, arguments: tuple[str, ...]) -> None:
    """Run cosmian_certtool with the TEE of the VM: vm certtool --folder F ratls generate.

    Its certificates are verified with --trust-root F/trust_root.pem --with F/crl.der (Intel: F/collateral.json).
    """
    from cosmian_vm.devkit.certtool import run_in

    sys.exit(run_in(folder, arguments))


@vm.command()
@_FOLDER
def url(folder: Path) -> None:
    """Where the agent answers."""
    click.echo(SimulatedVm(folder).url)


@main.command()
def attacks() -> None:
    """Every lie that `vm attack` knows, and the check that finds it out."""
    for name, lie in ATTACKS.items():
        click.echo(f"{name:22} {lie.check:18} {lie.what}")


if __name__ == "__main__":
    main()
