"""``inspect`` on the reference values of an image."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.inspection import identify
from cosmian_vm.inspection.model import Inspection, Material, Roots
from cosmian_vm.reference import snapshot as snapshots
from cosmian_vm.reference.build_reference import serialise

KEYS = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"
NOW = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine.create(AmdVendor.create(keys=VendorKeys.load(KEYS), now=NOW), now=NOW)


def inspected(raw: bytes) -> Inspection:
    return identify.inspect(raw, Material(()), verify=(NOW, Roots()))


def test_its_facts(machine: Machine) -> None:
    raw = serialise(machine.build_reference())
    found = inspected(raw)
    assert (found.kind, found.problem) == ("reference", "")
    whole = json.loads(raw)
    assert found.facts["files"] == 6
    assert found.facts["pcrs"] == whole["pcrs"]
    assert found.facts["image"] == whole["image"]
    assert json.loads(json.dumps(found.facts["launches"])) == whole["launches"]
    assert "filehashes" not in found.facts


def test_nothing_proves_who_wrote_it(machine: Machine) -> None:
    found = inspected(serialise(machine.build_reference()))
    assert not found.authentic()
    assert found.checks is not None
    assert [(check.id, check.status) for check in found.checks] == [
        ("reference.format", "ok"),
        ("reference.origin", "skip"),
    ]


def test_indented_it_is_the_same(machine: Machine) -> None:
    raw = json.dumps(json.loads(serialise(machine.build_reference())), indent=2).encode()
    assert inspected(raw).kind == "reference"


def test_a_snapshot_is_a_snapshot(machine: Machine) -> None:
    assert inspected(snapshots.serialise(machine.snapshot())).kind == "snapshot"


def test_a_broken_one_is_named(machine: Machine) -> None:
    found = inspected(serialise(machine.build_reference()).replace(b'"version":1', b'"version":7'))
    assert found.kind == "reference"
    assert "version" in found.problem
    assert not found.authentic()
