from __future__ import annotations

from pathlib import Path

import pytest

from .machine import ROOT, build_once, skip_without_tools


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image of this tree, with SELinux enforcing; with warm caches it takes half a minute."""
    skip_without_tools()
    return build_once(tmp_path_factory, ROOT / "image" / "build", "--simulated-tee", "--selinux")
