from __future__ import annotations

from pathlib import Path

import pytest

from .machine import ROOT, build_once, skip_without_tools


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image of this tree, with SELinux enforcing; built unless it is there from an earlier run."""
    skip_without_tools()
    return build_once(tmp_path_factory, "first.img", ROOT / "image" / "build", "--simulated-tee", "--selinux")
