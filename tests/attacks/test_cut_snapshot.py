"""A snapshot of ours from which one value was taken: what compares with it is not left out, nor a mere warning."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from cosmian_vm.devkit.amd import AmdVendor
from cosmian_vm.devkit.intel import IntelVendor
from cosmian_vm.devkit.intel_tee import SimulatedEnclave, SimulatedTd
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.endorsements.intel_collateral import parse_collateral
from cosmian_vm.errors import InputError
from cosmian_vm.evidence.bundle import TeeKind
from cosmian_vm.reference.snapshot import parse, serialise

from .conftest import NONCE, Judge

INTEL = IntelVendor.create()
_COMPARED_WITH_NOTHING = {"version", "created", "agent_version", "hash_algorithm", "report_data", "without_tpm"}


def _machine(vendor: AmdVendor, judge: Judge, kind: TeeKind) -> tuple[Machine, Judge]:
    if kind is TeeKind.SNP:
        machine = Machine.create(vendor)
        return machine, replace(judge, snapshot=machine.snapshot())
    machine = Machine.create(vendor, now=INTEL.now - timedelta(days=1))
    if kind is TeeKind.TDX:
        machine.device = SimulatedTd(vendor=INTEL)
    else:
        machine.tee = machine.tpm = machine.ima = None
        machine.device = SimulatedEnclave(vendor=INTEL)
    collateral = parse_collateral(INTEL.collateral(kind.upper()))
    return machine, Judge(roots=(INTEL.root,), snapshot=machine.snapshot(), now=INTEL.now, collateral=collateral)


def _without_one(document: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every value's path, and the document with a null there, and with nothing there."""

    def paths(part: Mapping[str, Any], above: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        for key, value in part.items():
            yield (*above, key)
            if isinstance(value, dict):
                yield from paths(value, (*above, key))

    for *above, name in paths(document, ()):
        for remove in (False, True):
            cut = copy.deepcopy(dict(document))
            part = cut
            for key in above:
                part = part[key]
            part[name] = None
            if remove:
                del part[name]
            yield ".".join((*above, name)), cut


@pytest.mark.parametrize("kind", list(TeeKind))
def test_every_value(vendor: AmdVendor, judge: Judge, kind: TeeKind) -> None:
    machine, knowing = _machine(vendor, judge, kind)
    evidence = machine.evidence(NONCE, trusted=True)
    assert knowing.failed(evidence) == set()
    assert knowing.snapshot is not None
    passed: set[str] = set()
    refused: set[str] = set()
    for path, cut in _without_one(json.loads(serialise(knowing.snapshot))):
        try:
            snapshot = parse(json.dumps(cut).encode(), "snapshot")
        except InputError:
            continue
        if snapshot != knowing.snapshot:
            trusted = replace(knowing, snapshot=snapshot).verdict(evidence).trusted
            (passed if trusted else refused).add(path)
    assert {path.rpartition(".")[2] for path in passed} <= _COMPARED_WITH_NOTHING
    assert "owners" in refused
