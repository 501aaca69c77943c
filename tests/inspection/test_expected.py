"""``inspect`` and ``inspect --verify`` are right about every file of the folder of real evidence."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cosmian_vm.inspection import identify
from cosmian_vm.inspection.model import Inspection, Roots

pytestmark = pytest.mark.evidence

ANY_TIME = datetime(2026, 1, 1, tzinfo=UTC)
"""For rows whose answer does not depend on time."""


def bytes_of(row: dict[str, Any], folder: Path) -> bytes:
    raw = bytearray((folder / row["file"]).read_bytes())
    assert hashlib.sha256(raw).hexdigest() == row["sha256"]
    for change in row["verify"].get("mutate", ()):
        at = change["offset"]
        if "set" in change:
            raw[at] = change["set"]
        elif "add" in change:
            raw[at] = (raw[at] + change["add"]) % 256
        else:
            raw[at] ^= change["xor"]
    return bytes(raw)


def inspected(row: dict[str, Any], folder: Path) -> Inspection:
    material = identify.material_of((name, (folder / name).read_bytes()) for name in row["verify"]["with"])
    at = row["verify"]["at"]
    moment = datetime.fromisoformat(at) if at else ANY_TIME
    return identify.inspect(bytes_of(row, folder), material, name=row["file"], verify=(moment, Roots()))


def differences(expected: Any, found: Any, place: str = "") -> list[str]:
    """Where ``found`` lacks or contradicts something of ``expected``; it may say more."""
    if isinstance(expected, dict) and isinstance(found, dict):
        lines = [f"{place}/{k}: missing" for k in expected if k not in found]
        return lines + [d for k in expected if k in found for d in differences(expected[k], found[k], f"{place}/{k}")]
    if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        return [
            d for i, (e, f) in enumerate(zip(expected, found, strict=True)) for d in differences(e, f, f"{place}/{i}")
        ]
    return [] if expected == found else [f"{place}: {found!r} is not {expected!r}"]


def best_match(expected: dict[str, Any], facts: Any) -> list[str]:
    """A row about the second certificate of a PEM file finds it in the list of all."""
    return min((differences(expected, f) for f in (facts, *facts.get("certificates", ()))), key=len)


def test_kind_and_facts(row: dict[str, Any], evidence: Path) -> None:
    inspection = inspected(row, evidence)
    assert inspection.kind == row["kind"]
    assert best_match(row["facts"], inspection.facts) == []


def test_authentic(row: dict[str, Any], evidence: Path) -> None:
    inspection = inspected(row, evidence)
    assert inspection.checks
    told = [f"{c.id} {c.status}: {c.line}" for c in inspection.checks]
    assert inspection.authentic() == (row["verify"]["expect"] == "ok"), (inspection.problem, told)


def test_checks(row: dict[str, Any], evidence: Path) -> None:
    inspection = inspected(row, evidence)
    statuses: dict[str, set[str]] = {}
    for check in inspection.checks or ():
        statuses.setdefault(check.id, set()).add(str(check.status))
    wanted = row["verify"].get("checks", {})
    assert {k: statuses.get(k) for k in wanted} == {k: {v} for k, v in wanted.items()}, inspection.checks


def test_plain_data(row: dict[str, Any], evidence: Path) -> None:
    """Facts print as JSON and come back the same; checks are single lines."""
    inspection = inspected(row, evidence)
    assert json.loads(json.dumps(inspection.facts)) == inspection.facts
    for check in inspection.checks or ():
        assert check.line
        assert "\n" not in check.line
        assert not any("\n" in detail for detail in check.details)
