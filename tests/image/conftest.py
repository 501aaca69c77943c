"""What the tests of the image share: the tree, and the tools, without which tests of the mark `image` skip visibly."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TOOL_SECONDS = 600

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def ansible() -> Path:
    """The folder of the playbook."""
    return ROOT / "image" / "ansible"


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run an installed tool without what this environment knows: no login, no project, no settings of the user's."""
    home = tmp_path_factory.mktemp("home")

    def run(*command: str | Path, folder: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
        name = str(command[0])
        if "/" not in name and shutil.which(name) is None:
            pytest.skip(f"{name} is not installed (script/test installs it)")
        return subprocess.run(
            [str(word) for word in command],
            cwd=folder,
            env={"PATH": os.environ["PATH"], "HOME": str(home), "LC_ALL": "C.UTF-8", **variables},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TOOL_SECONDS,
            check=False,
        )

    return run
