"""What is installed is pinned by its hash, also what builds it; and the lists agree with each other."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PINNED = ROOT / "requirements"
INSTALLERS = [
    "image/build",
    "image/ansible/roles/agent/tasks/wheels.yml",
    "script/_setup.sh",
    "tests/vm/second/build",
    "tests/vm/second/wheel.sh",
    "sgx/_prepare.sh",
]
# What its setup.cfg asks for when it is built (setup_requires) and pyproject.toml (build-system).
BUILDS_TPM2_PYTSS = {"cffi", "cryptography", "packaging", "pkgconfig", "pycparser", "setuptools", "setuptools-scm"}


def _pins(name: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+) ", (PINNED / f"{name}.txt").read_text(), re.MULTILINE))


def _calls(name: str) -> list[str]:
    text = (ROOT / name).read_text().replace("\\\n", " ")
    return re.findall(r"pip\S* (?:install|wheel|download) .*", text)


def test_what_builds_is_pinned_and_the_same_as_what_runs() -> None:
    build, runtime = _pins("build"), _pins("runtime")
    assert set(build) >= BUILDS_TPM2_PYTSS
    assert {name: build[name] for name in set(build) & set(runtime)} == {
        name: runtime[name] for name in set(build) & set(runtime)
    }


@pytest.mark.parametrize("path", sorted(PINNED.glob("*.txt")), ids=lambda path: path.name)
def test_every_pin_has_hashes_and_none_names_a_place(path: Path) -> None:
    text = path.read_text()
    assert "://" not in text
    assert not re.search(r"^-", text, re.MULTILINE)
    for line in re.findall(r"^\w\S+==.*(?:\n .*)*", text, re.MULTILINE):
        assert "--hash=sha256:" in line


@pytest.mark.parametrize("name", INSTALLERS)
def test_no_call_of_pip_fetches_what_is_not_pinned(name: str) -> None:
    """By itself pip makes an environment for each build, and fetches into it, unhashed, what the source asks for."""
    calls = _calls(name)
    assert len(calls) > 1
    for call in calls:
        if "-r " in call:
            assert "--require-hashes" in call, call
            assert "--no-build-isolation" in call or "--only-binary=:all:" in call, call
        else:  # this project, or a source that was checked before
            assert "--no-deps" in call, call
            assert "--no-build-isolation" in call, call
    assert "requirements/build.txt" in calls[0] or "-r build.txt" in calls[0]


def test_every_file_that_calls_pip_is_looked_at() -> None:
    """But for the developers' tools (script/lock, script/bench) and install.yml, which has files alone."""
    found = {
        str(path.relative_to(ROOT))
        for folder in ("image", "script", "packer", "tests/vm", "sgx")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in {".md", ".pyc"} and _calls(str(path.relative_to(ROOT)))
    }
    others = {"script/lock", "script/bench", "image/ansible/roles/agent/tasks/install.yml"}
    assert found == set(INSTALLERS) | others


def test_the_help_of_the_lock_pins_nothing() -> None:
    done = subprocess.run(["script/lock", "--help"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert "script/lock --upgrade" in done.stdout
    assert done.stderr == ""
