"""The role `cloud`: what it lays down says no, each cloud's template applies it, and its checks of keys are strict."""

from __future__ import annotations

import configparser
import json
import re
import subprocess
from pathlib import Path

import pytest

from .conftest import ROOT, Run

CLOUDS = ("gcp", "aws", "azure")
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJjk8S8VbkH0JdLrQ0cB8ZlGJvTWN7RmyYcVv4vdaN5x admin@example"
NO_KEYS = {
    "private": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "options": f"no-pty {KEY}",
    "certificate": f"ssh-ed25519-cert-v01@openssh.com {KEY.split()[1]}",
    "second line": f"{KEY}\nPermitRootLogin yes",
}
PLAYBOOK = """
- hosts: all
  gather_facts: false
  pre_tasks:
    - ansible.builtin.setup: {gather_subset: ["!all", "!min", distribution, pkg_mgr]}
  roles: [cloud]
"""


@pytest.fixture(scope="module")
def role(ansible: Path) -> Path:
    return ansible / "roles" / "cloud"


def test_cloud_init_asks_nobody_and_makes_nobody(role: Path) -> None:
    """In one line, as ds-identify reads it, and in the file that comes last."""
    (path,) = (role / "files/etc/cloud/cloud.cfg.d").iterdir()
    assert path.name > "99-anything.cfg"
    lines = path.read_text().splitlines()
    assert {"datasource_list: [ None ]", "users: []", "allow_public_ssh_keys: false"} <= set(lines)
    modules = {name for line in lines if "_modules: [" in line for name in re.findall(r"[\w-]+", line.split(":")[1])}
    assert modules == {"growpart", "resizefs", "ssh"}
    assert sum("_modules: [" in line for line in lines) == 3
    assert (role / "files/etc/cloud/ds-identify.cfg").read_text().splitlines()[-1] == "datasource: None"


def test_googles_agent_would_have_nothing_to_do(role: Path) -> None:
    config = configparser.ConfigParser()
    config.read_string((role / "gcp/etc/default/instance_configs.cfg").read_text())
    assert config.sections() == ["Daemons", "InstanceSetup", "MetadataScripts", "OSLogin"]
    assert {value for name in config.sections() for value in config[name].values()} == {"false"}
    assert {"accounts_daemon", "startup", "shutdown"} <= {key for name in config.sections() for key in config[name]}


def test_sshd_is_asked_for_what_it_was_told(role: Path) -> None:
    """First of all files, and what the role then expects of `sshd -T` is what stands there."""
    (path,) = (role / "ssh/etc/ssh/sshd_config.d").iterdir()
    assert path.name.startswith("00-")
    told = {line.lower() for line in path.read_text().splitlines() if not line.startswith("#")}
    expected = re.search(r"^cloud_sshd:\n((?:  - .*\n)+)", (role / "vars/main.yml").read_text(), re.MULTILINE)
    assert expected is not None
    asked = re.findall(r"  - (.*)\n", expected.group(1))
    assert len(asked) == 5
    assert {line.lower() for line in asked} <= told
    tasks = (role / "tasks/main.yml").read_text()
    assert re.findall(r"^- name: (.*)$", tasks, re.MULTILINE)[-3:] == [
        "Nobody else's keys are taken",
        "Sshd reads that file, and before its own settings",
        "What sshd makes of it",
    ]


@pytest.mark.parametrize("cloud", CLOUDS)
def test_each_template_applies_it_with_the_administrators_key(cloud: str) -> None:
    text = (ROOT / "packer" / f"{cloud}.pkr.hcl").read_text()
    (arguments,) = re.findall(r"^    extra_arguments += (.*)$", text, re.MULTILINE)
    wanted = f'cosmian_vm_cloud = "{cloud}", cosmian_vm_admin_key = var.admin_key, cosmian_vm_owners = var.owners'
    assert arguments == f'["--extra-vars", jsonencode({{ {wanted} }})]'


def test_the_local_image_is_none_of_a_cloud(ansible: Path) -> None:
    assert re.search(r'name: cloud\n +when: cosmian_vm_cloud != ""\n', (ansible / "playbook.yml").read_text())
    assert '    cosmian_vm_cloud: ""\n' in (ansible / "playbook.yml").read_text()
    assert "cosmian_vm_cloud" not in (ROOT / "image/build").read_text()


@pytest.mark.image
@pytest.mark.parametrize("cloud", CLOUDS)
def test_a_template_takes_a_public_key_and_no_private_one(cloud: str, run: Run) -> None:
    folder = ROOT / "packer"
    assert run("packer", "validate", f"-var=admin_key={KEY}", f"{cloud}.pkr.hcl", folder=folder).returncode == 0
    done = run("packer", "validate", f"-var=admin_key={NO_KEYS['private']}", f"{cloud}.pkr.hcl", folder=folder)
    assert done.returncode != 0
    assert "The variable admin_key must be " in done.stdout + done.stderr


def _check(run: Run, ansible: Path, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """The role against this computer as it would be, in check mode: nothing is changed."""
    (folder / "playbook.yml").write_text(PLAYBOOK)
    return run(
        *("ansible-playbook", "--check", "-i", "localhost,", "-c", "local", folder / "playbook.yml"),
        *("-e", json.dumps({"cosmian_vm_install_packages": False, **variables})),
        ANSIBLE_CONFIG=str(ansible / "ansible.cfg"),
        ANSIBLE_ROLES_PATH=str(ansible / "roles"),
        ANSIBLE_ACTION_PLUGINS=str(ansible / "action_plugins"),
        ANSIBLE_LIBRARY=str(ansible / "library"),
        ANSIBLE_REMOTE_TEMP=str(folder / "tmp"),
    )


@pytest.mark.image
def test_the_role_says_what_it_would_do(run: Run, ansible: Path, tmp_path: Path) -> None:
    laid_down = [Path("/etc/ssh/authorized_keys.d"), Path("/etc/default/instance_configs.cfg")]
    before = [path.exists() for path in laid_down]
    done = _check(run, ansible, tmp_path, cosmian_vm_cloud="gcp", cosmian_vm_admin_key=f"{KEY}\n{KEY}\n")
    assert done.returncode == 0, done.stdout + done.stderr
    changed = re.findall(r"TASK \[cloud : (.*?)\] \*+\nchanged", done.stdout)
    assert {"Who may log in", "Nobody else's keys are taken"} <= set(changed)
    assert [path.exists() for path in laid_down] == before


@pytest.mark.image
@pytest.mark.parametrize("kind", NO_KEYS)
def test_what_is_no_public_key_is_refused(run: Run, ansible: Path, tmp_path: Path, kind: str) -> None:
    done = _check(run, ansible, tmp_path, cosmian_vm_cloud="aws", cosmian_vm_admin_key=NO_KEYS[kind])
    assert done.returncode != 0
    assert "public SSH keys without options" in done.stdout


@pytest.mark.image
def test_another_cloud_is_refused(run: Run, ansible: Path, tmp_path: Path) -> None:
    done = _check(run, ansible, tmp_path, cosmian_vm_cloud="elsewhere")
    assert done.returncode != 0
    assert "must be gcp, aws or azure" in done.stdout
