from __future__ import annotations

from pathlib import Path

import pytest

from .machine import ROOT, build, skip_without_tools


@pytest.fixture(scope="session")
def image() -> Path:
    """The image of this tree; with warm caches it takes half a minute."""
    skip_without_tools()
    return build(ROOT / "image" / "build", "--simulated-tee")
