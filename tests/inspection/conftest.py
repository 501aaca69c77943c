"""The rows of expected.json, one test each, through the same function as the command line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load_rows() -> list[dict[str, Any]]:
    named = os.environ.get("COSMIAN_VM_EVIDENCE")
    folder = Path(named) if named else ROOT.parent / "shared" / "evidence"
    expected = folder / "expected.json"
    if not expected.is_file():
        return []
    rows: list[dict[str, Any]] = json.loads(expected.read_bytes())
    return rows


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "row" not in metafunc.fixturenames:
        return
    if rows := load_rows():
        metafunc.parametrize("row", rows, ids=[f"{row['kind']}:{row['name']}" for row in rows])
    else:
        absent = pytest.mark.skip(reason="the folder of real evidence is absent")
        metafunc.parametrize("row", [pytest.param(None, marks=absent, id="absent")])
