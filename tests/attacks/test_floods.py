"""Answers that are made to fill the administrator's memory, time or terminal: a few kilobytes, once compressed."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from hashlib import sha1
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm import wire
from cosmian_vm.certificates import leaf_der, self_signed
from cosmian_vm.devkit.amd import AmdVendor
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.endorsements.store import EndorsementStore
from cosmian_vm.evidence.bundle import Evidence
from cosmian_vm.verifier import _ima_walk
from cosmian_vm.verifier.reference_values import reference_from

from .conftest import NONCE, NOW, Judge


def _answer(**changes: Any) -> bytes:
    tpm = {"quote": "", "signature": "", "ak_public": "", "pcrs": [], **changes.pop("tpm", {})}
    values: dict[str, Any] = {
        "api": 2,
        "agent_version": "2",
        "tee_kind": None,
        "tee_quote": None,
        "endorsements": [],
        "tpm": tpm,
        "boot_event_log": None,
        "ima_log": None,
        "ima_from": 0,
        "owners": [],
        "cloud": None,
    }
    return msgspec.json.encode(values | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"endorsements": [""] * 65},
        {"endorsements": [bytes((1 << 20) + 1)]},
        {"tee_quote": bytes((1 << 20) + 1)},
        {"owners": ["x"] * 65},
        {"owners": ["x" * 257]},
        {"tpm": {"pcrs": [""] * 25}},
        {"tpm": {"quote": bytes((1 << 20) + 1)}},
    ],
)
def test_more_of_something_than_evidence_has(changes: dict[str, Any]) -> None:
    assert msgspec.json.decode(_answer(), type=wire.EvidenceAnswer).api == 2
    with pytest.raises(msgspec.ValidationError, match="length"):
        msgspec.json.decode(_answer(**changes), type=wire.EvidenceAnswer)


def test_a_hundred_certificates_beside_the_report(machine: Machine, judge: Judge, vendor: AmdVendor) -> None:
    """They neither hide the true ones that came before them nor end the verification without a verdict."""
    made = [leaf_der(self_signed(f"{number}", now=NOW).certificate_pem) for number in range(100)]
    evidence = machine.evidence(NONCE)
    store = EndorsementStore(cache=None, fetcher=None)
    gathered = store.gather(evidence.tee, [*evidence.endorsements, *made], now=NOW)
    assert len(gathered.notes) == 1
    assert judge.failed(evidence, gathered.endorsements) == set()
    gathered = store.gather(evidence.tee, [*made, *evidence.endorsements], now=NOW)
    assert judge.failed(evidence, gathered.endorsements) >= {"tee.chain"}


def test_certificates_in_a_few_large_pieces(machine: Machine, judge: Judge) -> None:
    pieces = []
    for batch in range(4):
        made = [self_signed(f"{batch}.{number}", now=NOW).certificate_pem for number in range(40)]
        pieces.append(b"".join(made))
    evidence = machine.evidence(NONCE)
    gathered = EndorsementStore(cache=None, fetcher=None).gather(
        evidence.tee, [*evidence.endorsements, *pieces], now=NOW
    )
    assert len(gathered.notes) == 1
    assert judge.failed(evidence, gathered.endorsements) == set()


def test_garbage_beside_the_report(machine: Machine) -> None:
    gathered = EndorsementStore(cache=None, fetcher=None).gather(None, [b""] * 10_000, now=NOW)
    assert len(gathered.notes) < 100


def test_a_list_without_end(
    machine: Machine, judge: Judge, honest: Callable[[], Evidence], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ima_walk, "MAX_ENTRIES", 5000)
    data = b"\0"
    entry = struct.pack("<I20sI", 10, sha1(data, usedforsecurity=False).digest(), 1) + b"x" + b"\1\0\0\0" + data
    evidence = honest()
    assert evidence.ima_log is not None
    endless = replace(evidence, ima_log=evidence.ima_log + entry * 20_000)
    assert "ima.replay" in judge.failed(endless)
    assert "more than 5000 entries" in judge.verdict(endless).of("ima.replay")[0].line


def test_violations_without_end(judge: Judge, honest: Callable[[], Evidence]) -> None:
    """The line names some of them and counts the rest."""
    entries = b"".join(
        struct.pack("<I20sI", 10, bytes(20), 6) + b"ima-ng" + struct.pack("<I", len(data)) + data
        for number in range(1000)
        for data in [b"\x28\0\0\0sha256:\0" + bytes(32) + struct.pack("<I", 10_005) + b"%04d/" % number + b"x" * 10_000]
    )
    evidence = honest()
    assert evidence.ima_log is not None
    check = judge.verdict(replace(evidence, ima_log=evidence.ima_log + entries)).of("ima.violations")[0]
    assert len(check.line) < 300_000
    assert "950 more" in check.line


def test_a_list_that_nobody_looked_at(machine: Machine, judge: Judge) -> None:
    """Where no TPM is expected the list is not judged, so no snapshot is made of it, whatever it holds."""
    machine.tpm = machine.ima = None
    evidence = replace(machine.evidence(NONCE), ima_log=b"\xff" * 40)
    taking = replace(judge, snapshot=None).with_policy(without_tpm=True)
    assert taking.failed(evidence) == set()
    values = reference_from(evidence, machine.snapshot(), taking.policy, now=NOW)
    assert values.differences == ()
    assert values.snapshot.ima_policy is None


def test_old_certificates_stay_usable(vendor: AmdVendor) -> None:
    """The limit is far above what an honest machine sends: chip, ASK, ARK and a revocation list."""
    blobs = [vendor.ark.public_bytes(Encoding.DER), *vendor.certificates, vendor.crl(next_update=NOW + timedelta(1))]
    assert EndorsementStore(cache=None, fetcher=None).gather(None, blobs, now=NOW).notes == ()
