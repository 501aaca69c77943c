"""The measurement policy in each of its forms, and the files that are given to `measured`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jinja2 import Environment, StrictUndefined

EXECUTION = {
    *("KEXEC_KERNEL_CHECK", "KEXEC_INITRAMFS_CHECK", "KEXEC_CMDLINE", "FIRMWARE_CHECK", "MODULE_CHECK"),
    *("POLICY_CHECK", "BPRM_CHECK", "MMAP_CHECK"),
}
READ_RULES = {"fgroup": "fgroup=535", "fowner": "fowner=537", "obj_type": "obj_type=some_t"}
MEASURED = 4321, 4322  # group and user


def render(ansible: Path, selector: str) -> str:
    template = (ansible / "roles/ima/templates/ima-policy.j2").read_text()
    environment = Environment(
        trim_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined
    )  # as Ansible has it
    return environment.from_string(template).render(
        ima_selector=selector,
        cosmian_vm_measured_gid=535,
        cosmian_vm_measured_uid=537,
        cosmian_vm_ima_obj_type="some_t",
    )


def rules(policy: str) -> list[str]:
    return [line for line in policy.splitlines() if line and not line.startswith("#")]


@pytest.mark.parametrize("selector", READ_RULES)
def test_what_is_executed_comes_first_and_nothing_is_left_out(ansible: Path, selector: str) -> None:
    lines = rules(render(ansible, selector))
    assert {re.findall(r"func=(\w+)", line)[0] for line in lines[: len(EXECUTION)]} == EXECUTION
    assert lines[len(EXECUTION) :] == [f"measure func=FILE_CHECK mask=^MAY_READ {READ_RULES[selector]}"]
    assert all(line.startswith("measure ") for line in lines)


@pytest.mark.parametrize("selector", READ_RULES)
def test_the_policy_says_how_it_names_files_and_what_it_does_not_see(ansible: Path, selector: str) -> None:
    policy = render(ansible, selector)
    # selector.yml reads this line back, so that a machine keeps its way.
    pattern = re.search(r"s/(\^# .*)\$/", (ansible / "roles/ima/tasks/selector.yml").read_text())
    assert pattern is not None
    written = pattern.group(1).replace(r"\(", "(").replace(r"\)", ")").replace(r"\.", r"[.]")
    assert re.findall(written + "$", policy, re.MULTILINE) == [selector]
    assert "python -c" in policy
    assert "eBPF" in policy


def test_the_command_line_is_the_same_here_and_there(ansible: Path) -> None:
    defaults = (ansible / "roles/ima/defaults/main.yml").read_text()
    wanted = re.search(r"^cosmian_vm_kernel_arguments: \[(.*)\]$", defaults, re.MULTILINE)
    assert wanted is not None
    arguments = wanted.group(1).split(", ")
    assert {"ima_policy=tcb", "ima_hash=sha256", "lockdown=integrity", "systemd.import_credentials=no"} == set(
        arguments
    )
    assert set(arguments) <= set((ansible.parent / "cmdline.txt").read_text().splitlines())


TREE = {
    "usr/bin/tool": b"#!/bin/sh\n",
    "usr/bin/program": b"\x7fELF",
    "usr/lib/python3/a.py": b"",
    "etc/sudoers": b"",
    "etc/cosmian_vm/agent.toml": b"",
    "etc/machine-id": b"",
    "etc/shadow": b"",
    "var/lib/script": b"#!/bin/sh\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    if os.getuid() != 0:
        pytest.skip("changing owners needs root")
    for name, content in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
        os.chown(tmp_path / name, 0, 0)
    return tmp_path


def give(ansible: Path, tree: Path, *ids: int) -> str:
    script = ansible / "roles/ima/scripts/_measured.py"
    command = [sys.executable, "-IB", str(script), str(tree), *map(str, ids)]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stderr


def with_ids(tree: Path, ids: tuple[int, int]) -> set[str]:
    return {name for name in TREE if ((tree / name).stat().st_gid, (tree / name).stat().st_uid) == ids}


def test_files_given_to_the_group(ansible: Path, tree: Path) -> None:
    gid = MEASURED[0]
    assert give(ansible, tree, gid) == "4 files given to measured\n"
    measured = {"usr/bin/tool", "usr/lib/python3/a.py", "etc/sudoers", "etc/cosmian_vm/agent.toml"}
    assert with_ids(tree, (gid, 0)) == measured
    assert give(ansible, tree, gid) == "0 files given to measured\n"


def test_files_given_to_the_owner_but_not_what_has_to_be_roots(ansible: Path, tree: Path) -> None:
    give(ansible, tree, *MEASURED)
    assert with_ids(tree, MEASURED) == {"usr/bin/tool", "usr/lib/python3/a.py", "etc/cosmian_vm/agent.toml"}
    assert with_ids(tree, (MEASURED[0], 0)) == {"etc/sudoers"}
    assert give(ansible, tree, *MEASURED) == "0 files given to measured\n"


def test_a_group_of_its_own_is_kept(ansible: Path, tree: Path) -> None:
    os.chown(tree / "etc/sudoers", 0, 77)
    give(ansible, tree, *MEASURED)
    assert (tree / "etc/sudoers").stat().st_gid == 77
