"""``cosmian_vm policy show``: what is in force, and whether what a policy file names is there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cosmian_vm.devkit.amd import AmdVendor
from cosmian_vm.verifier.policy_file import parse_policy

Run = Callable[..., Any]


def test_what_it_prints_is_a_policy_file(run: Run, tmp_path: Path) -> None:
    shown = run("policy", "show")
    assert (shown.status, shown.err) == (0, "")
    (tmp_path / "policy.toml").write_text(shown.out)
    again = run("policy", "show", "--policy", tmp_path / "policy.toml")
    assert (again.status, again.out) == (0, shown.out)
    assert parse_policy(shown.out.encode(), "shown") == parse_policy(b"", "none")


@pytest.mark.parametrize("table", ["", "[tpm]\n", "[tpm]\noperator_"])
def test_certificates_that_it_names_are_opened(run: Run, vendor: AmdVendor, tmp_path: Path, table: str) -> None:
    """Found beside the policy file, wherever the command is called."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "policy.toml").write_text(f'{table}roots = ["mine.pem"]\n')
    show = ("policy", "show", "--policy", folder / "policy.toml")
    ran = run(*show)
    assert (ran.status, ran.out) == (2, "")
    assert f"{folder / 'mine.pem'}: cannot be read: No such file or directory" in ran.err
    (folder / "mine.pem").write_text("nothing")
    ran = run(*show)
    assert (ran.status, ran.out) == (2, "")
    assert str(folder / "mine.pem") in ran.err
    (folder / "mine.pem").write_bytes(vendor.root_pem)
    ran = run(*show)
    assert (ran.status, ran.err) == (0, "")
    assert 'roots = ["mine.pem"]' in ran.out


def test_a_root_of_the_policy_file_is_named_as_one(
    run: Run, agent: Any, taken: Path, root: Path, tmp_path: Path
) -> None:
    (tmp_path / "policy.toml").write_text(f'roots = ["{root.name}"]\n')
    verify = ("--url", agent.url, "--allow-insecure-tls", "verify", "-s", taken, "--policy", tmp_path / "policy.toml")
    ran = run(*verify)
    assert ran.status == 0, ran
    assert [f"{root} (roots in the policy file), which is no chip maker's" in line for line in ran.lines].count(
        True
    ) == 1
