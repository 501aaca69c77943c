"""``cosmian_vm policy``: the verifier's choices, shown."""

from __future__ import annotations

from pathlib import Path

import click

from cosmian_vm.cli._common import TRUSTED, read_file

__all__ = ["command"]

_EPILOG = """\b
Examples:
  Begin a policy file of your own, every key explained:
    cosmian_vm policy show > policy.toml
  What is in force with it:
    cosmian_vm policy show --policy policy.toml
  Use it:
    cosmian_vm --url https://vm.example.com verify -s cosmian_vm.snapshot --policy policy.toml
"""


_SHOW_EPILOG = """\b
Examples:
  cosmian_vm policy show > policy.toml
  cosmian_vm policy show --policy policy.toml
"""


@click.group(name="policy", epilog=_EPILOG)
def command() -> None:
    """What is accepted beyond the snapshot: minimum firmware, TCB statuses, anchors of the TPM, required checks."""


@command.command(epilog=_SHOW_EPILOG)
@click.option("--policy", "policy_file", metavar="FILE", help="The policy file. None: the defaults.")
def show(policy_file: str | None) -> int:
    """Print the policy in force, defaults included, as a policy file.

    The certificates that it names are opened: what is wrong with them is told now and not when a machine is judged.
    """
    from cosmian_vm.verifier.policy_file import MAX_POLICY_SIZE, PolicyFile, parse_policy, show_policy

    file = PolicyFile()
    if policy_file is not None:
        from cosmian_vm.cli._roots import check_roots

        file = parse_policy(read_file(policy_file, MAX_POLICY_SIZE), policy_file)
        check_roots(file, Path(policy_file).parent)
    click.echo(show_policy(file), nl=False)
    return TRUSTED
