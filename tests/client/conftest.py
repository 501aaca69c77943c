from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def _module() -> Any:
    path = Path(__file__).parent / "fake_agent.py"
    spec = importlib.util.spec_from_file_location("client_fake_agent", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def agent() -> Iterator[Any]:
    agent = _module().FakeAgent()
    yield agent
    agent.close()
