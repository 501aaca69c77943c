"""The Ansible tree: complete, and the same from whichever side it is looked at."""

from __future__ import annotations

import os
import re
from pathlib import Path

import jinja2
import pytest

from cosmian_vm.agent.config import parse
from cosmian_vm.luks.sizes import FIRST_SIZE

from .conftest import ROOT, Run

RELEASES = ["debian-12", "ubuntu-22", "ubuntu-24", "redhat-9", "amazon-2023"]
ROLES = {"ima", "tpm", "tmpfs", "no_updates", "agent", "supervisor"}
ELSEWHERE = {"selinux"}  # comes with its own tests, and only where it is asked for
# What the manual promises to be in a machine, beside what programs write.
PROMISED = {
    "supervisor": ["etc/supervisor/supervisord.conf", "etc/supervisor/conf.d/cosmian_vm_agent.conf"],
    "no_updates": ["etc/apt/apt.conf.d/10periodic"],
}


def test_every_role_that_is_named_is_there(ansible: Path) -> None:
    playbook = (ansible / "playbook.yml").read_text()
    listed = re.search(r"^  roles: \[(.*)\]$", playbook, re.MULTILINE)
    assert listed is not None
    assert set(listed.group(1).split(", ")) == ROLES
    included = re.findall(r"_role:\n +name: (\w+)\n", playbook)
    for role in ROLES | set(included) - ELSEWHERE:
        assert (ansible / "roles" / role / "tasks" / "main.yml").is_file(), role
    assert set(included) >= ELSEWHERE
    assert re.search(r"name: selinux\n +when: cosmian_vm_selinux", playbook)


def test_the_agents_configuration_is_one_that_it_takes(ansible: Path) -> None:
    template = (ansible / "roles" / "agent" / "templates" / "agent.toml.j2").read_text()
    config = parse(jinja2.Template(template).render(cosmian_vm_container_size="500MB").encode(), "agent.toml")
    assert config.container == Path("/var/lib/cosmian_vm/container")
    assert config.container_size == FIRST_SIZE
    assert (config.host, config.tpm_device, config.owners) == ("0.0.0.0", "/dev/tpmrm0", None)


def test_every_role_is_named(ansible: Path) -> None:
    playbook = (ansible / "playbook.yml").read_text()
    for role in (ansible / "roles").iterdir():
        assert re.search(rf"\b{role.name}\b", playbook), role.name


def test_no_file_is_where_no_role_takes_it(ansible: Path) -> None:
    """What was once copied from image/files is copied from the folder `files` of a role."""
    assert not (ansible.parent / "files").exists()
    for files in ansible.glob("roles/*/files"):
        tasks = "".join(path.read_text() for path in files.parent.glob("tasks/*.yml"))
        assert 'src: "{{ role_path }}/files"' in tasks, files


@pytest.mark.parametrize(("role", "name"), [(role, name) for role, names in PROMISED.items() for name in names])
def test_what_the_manual_promises_is_there(ansible: Path, role: str, name: str) -> None:
    assert (ansible / "roles" / role / "files" / name).is_file()


@pytest.mark.parametrize("release", RELEASES)
def test_every_distribution_says_all_that_the_roles_ask_for(ansible: Path, release: str) -> None:
    text = (ansible / "vars" / f"{release}.yml").read_text()
    python = re.search(r"^cosmian_vm_python: /usr/bin/python3(\.\d+)?$", text, re.MULTILINE)
    service = re.search(r"^cosmian_vm_service: (\w+)$", text, re.MULTILINE)
    assert python is not None
    assert service is not None
    groups = {"agent", "tpm"} | ({"supervisor"} if service.group(1) == "supervisor" else set())
    assert set(re.findall(r"^  (\w+): \[.+\]$", text, re.MULTILINE)) == groups
    assert re.search(r"^cosmian_vm_build_packages: \[.+\]$", text, re.MULTILINE)
    assert re.search(r"^cosmian_vm_compiled: \[.*\]$", text, re.MULTILINE)
    assert sorted(path.stem for path in (ansible / "vars").glob("*.yml")) == sorted(RELEASES)


def test_nothing_starts_the_agent(ansible: Path) -> None:
    """An agent that ran would leave its keys in the image."""
    for path in ansible.rglob("*.yml"):
        text = path.read_text()
        assert not re.search(r"state: (re)?(started|loaded)|systemctl (--now|start|restart)|enable --now", text), path


@pytest.mark.image
def test_the_playbook_is_understood(ansible: Path, run: Run) -> None:
    done = run(
        *("ansible-playbook", "--syntax-check", "-i", "machine,", ansible / "playbook.yml"),
        ANSIBLE_CONFIG=str(ansible / "ansible.cfg"),
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.image
@pytest.mark.slow
def test_applied_again_it_changes_nothing(run: Run) -> None:
    if os.getuid() != 0:
        pytest.skip("image/build needs root")
    # From the packages that the booted machine's image is made of, so that they are unpacked once.
    done = run(ROOT / "image" / "build", "--check", "--simulated-tee", "--selinux")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "applied again, the playbook changes nothing\n"
