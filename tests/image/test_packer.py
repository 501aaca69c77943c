"""The Packer templates: accepted as they are, for every choice and no other; no secrets in them."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest

from .conftest import ROOT, Run

PACKER = ROOT / "packer"
UBUNTUS = ("24.04", "22.04")
CHOICES = {
    "gcp": [*product(["ubuntu"], UBUNTUS, ["sev", "tdx"]), *product(["rhel"], [""], ["sev", "tdx"])],
    "aws": list(product(["ubuntu", "rhel", "amazonlinux"], [""], ["sev"])),
    "azure": [*product(["ubuntu"], UBUNTUS, ["sev", "tdx"]), *product(["rhel"], [""], ["sev", "tdx"])],
}
WRONG = [
    ("gcp", "os", "amazonlinux"),
    ("gcp", "tee", "sgx"),
    ("gcp", "ubuntu_version", "20.04"),
    ("aws", "os", "debian"),
    ("aws", "tee", "tdx"),
    ("aws", "instance_type", "t3.large"),
    ("azure", "os", "amazonlinux"),
    ("azure", "tee", "sgx"),
    ("azure", "image_version", "2.0"),
]
SECRETS = re.compile(
    r"AKIA[0-9A-Z]{16}|-----BEGIN|(?:secret|password|token|access_key)\w*\s*[=:]\s*[\"'][^\"'$]+[\"']", re.I
)
REGISTRIES = re.compile(
    r"pypi\.org|pythonhosted\.org|(?:deb|security)\.debian\.org|archive\.ubuntu\.com|fedoraproject\.org"
)


def _files() -> list[Path]:
    folders = (PACKER, ROOT / "image")
    return [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"]


@pytest.mark.image
@pytest.mark.parametrize("template", [*CHOICES, "qemu"])
def test_a_template_is_accepted_as_it_is(template: str, run: Run) -> None:
    """The manual's call, without a login and without a network."""
    done = run("packer", "validate", f"{template}.pkr.hcl", folder=PACKER)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.image
@pytest.mark.parametrize(
    ("cloud", "system", "version", "tee"),
    [(cloud, *choice) for cloud, choices in CHOICES.items() for choice in choices],
)
def test_every_choice_is_accepted(cloud: str, system: str, version: str, tee: str, run: Run) -> None:
    chosen = [f"-var=os={system}", f"-var=tee={tee}", *([f"-var=ubuntu_version={version}"] if version else [])]
    done = run("packer", "validate", *chosen, f"{cloud}.pkr.hcl", folder=PACKER)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.image
@pytest.mark.parametrize(("cloud", "variable", "value"), WRONG)
def test_another_choice_is_refused_by_its_name(cloud: str, variable: str, value: str, run: Run) -> None:
    done = run("packer", "validate", f"-var={variable}={value}", f"{cloud}.pkr.hcl", folder=PACKER)
    assert done.returncode != 0
    assert f"The variable {variable} must be " in done.stdout + done.stderr


@pytest.mark.parametrize("template", CHOICES)
def test_every_variable_is_described(template: str) -> None:
    text = (PACKER / f"{template}.pkr.hcl").read_text()
    variables = re.findall(r'^variable "(\w+)" \{\n(.*?)^\}', text, re.MULTILINE | re.DOTALL)
    assert len(variables) > 3
    for name, body in variables:
        assert re.search(r"^  description = \"..+\.\"$", body, re.MULTILINE), name


@pytest.mark.parametrize("template", [*CHOICES, "qemu"])
def test_the_playbook_comes_first_and_the_cleaning_last(template: str) -> None:
    text = (PACKER / f"{template}.pkr.hcl").read_text()
    provisioners = re.findall(r'^  provisioner "(\w+)" \{\n(.*?)^  \}', text, re.MULTILINE | re.DOTALL)
    assert [kind for kind, _ in provisioners] == ["ansible", "shell"]
    assert '"${path.root}/../image/ansible/playbook.yml"' in provisioners[0][1]
    assert '"${path.root}/clean.sh"' in provisioners[1][1]
    assert (ROOT / "image/ansible/playbook.yml").is_file()
    assert (PACKER / "clean.sh").is_file()


def test_what_the_old_packer_refuses_is_in_a_file_of_its_own() -> None:
    holders = [path.relative_to(PACKER) for path in PACKER.rglob("*.hcl") if "required_plugins" in path.read_text()]
    assert holders == [Path("plugins/plugins.pkr.hcl")]


def test_no_secrets_and_no_registry_in_any_file() -> None:
    assert SECRETS.search('client_secret = "abc"')
    for path in _files():
        text = path.read_text()
        assert not SECRETS.search(text), path
        assert not REGISTRIES.search(text), path
