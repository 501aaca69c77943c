"""``inspect`` on IMA lists that no folder holds: damaged, signed, quoted by somebody."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.evidence import ima
from cosmian_vm.inspection import identify
from cosmian_vm.inspection._ima_signatures import key_id
from cosmian_vm.inspection.ima import KINDS
from cosmian_vm.inspection.model import Inspection, Material, PcrValues, Roots
from cosmian_vm.verifier.result import Status

AT = datetime(2026, 1, 1, tzinfo=UTC)
CONTENT = b"#!/bin/sh\n"
DIGEST = hashlib.sha256(CONTENT).digest()
BOOT = {pcr: hashlib.sha256(bytes([pcr])).digest() for pcr in range(10)}
AGGREGATE = hashlib.sha256(b"".join(BOOT.values())).digest()
ENTRIES = (
    ima.make_entry("ima-sig", "sha256", AGGREGATE, ima.BOOT_AGGREGATE),
    ima.make_entry("ima-sig", "sha256", DIGEST, b"/usr/bin/a"),
    ima.make_entry("ima-sig", "sha256", DIGEST, b"/usr/bin/b"),
)


def inspected(raw: bytes, material: Material | None = None) -> Inspection:
    return identify.inspect(raw, material or Material(), verify=(AT, Roots()))


def statuses(inspection: Inspection) -> dict[str, Status]:
    return {check.id: check.status for check in inspection.checks or ()}


def values(entries: tuple[ima.ImaEntry, ...], boot: dict[int, bytes] = BOOT) -> Material:
    return Material(pcrs=(PcrValues("pcrs.yaml", {"sha256": {**boot, 10: ima.replay(entries, "sha256")}}),))


@pytest.mark.parametrize("write", [ima.serialise_binary, ima.serialise_ascii])
def test_a_list_alone(write: object) -> None:
    assert callable(write)
    inspection = inspected(write(ENTRIES))
    assert inspection.kind == ("ima-log-binary" if write is ima.serialise_binary else "ima-log-ascii")
    assert inspection.authentic()
    assert inspection.facts["entries"] == 3
    assert isinstance(inspection.facts["measurements"], list)


def test_pcr_values_that_were_read_out() -> None:
    raw = ima.serialise_binary(ENTRIES)
    inspection = inspected(raw, values(ENTRIES[:2]))
    assert inspection.authentic()
    assert inspection.facts["entries_in_quote"] == {"qall": 2}
    assert statuses(inspected(raw, values(ENTRIES[1:])))["ima.replay"] is Status.FAIL
    other_boot = inspected(raw, values(ENTRIES, {**BOOT, 4: bytes(32)}))
    assert statuses(other_boot)["ima.boot_aggregate"] is Status.FAIL
    assert not other_boot.authentic()


def test_damage_is_named() -> None:
    raw = ima.serialise_binary(ENTRIES)
    inspection = inspected(raw[:-3])
    assert statuses(inspection)["ima.replay"] is Status.FAIL
    assert "entry 2" in inspection.problem
    changed = ima.serialise_binary((ENTRIES[0], ENTRIES[1]._replace(template_hash=b"x" * 20)))
    inspection = inspected(changed)
    assert not inspection.authentic()
    assert inspection.facts["bad_template_hash_indexes"] == [1]


def signed(kind: int, keyid: bytes, signature: bytes, length: int | None = None) -> bytes:
    header = bytes([kind, 2, 4]) + keyid + (len(signature) if length is None else length).to_bytes(2, "big")
    entry = ima.make_entry("ima-sig", "sha256", DIGEST, b"/usr/bin/a", header + signature)
    return ima.serialise_binary([entry])


def test_file_signatures() -> None:
    elliptic = ec.generate_private_key(ec.SECP256R1())
    modular = rsa.generate_private_key(65537, 2048)
    other = ec.generate_private_key(ec.SECP256R1()).sign(CONTENT, ec.ECDSA(hashes.SHA256()))
    pem = b"".join(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) for key in (elliptic, modular)
    )
    material = identify.material_of([("keys.pem", pem)])
    by_point, by_modulus = key_id(elliptic.public_key()), key_id(modular.public_key())
    good = elliptic.sign(CONTENT, ec.ECDSA(hashes.SHA256()))
    for raw, expected in (
        (signed(3, by_point, good), Status.OK),
        (signed(3, by_modulus, modular.sign(CONTENT, padding.PKCS1v15(), hashes.SHA256())), Status.OK),
        (signed(3, by_point, other), Status.FAIL),
        (signed(3, by_point, good, length=0x4800), Status.FAIL),
        (signed(3, by_modulus, good), Status.FAIL),
        (signed(3, b"none", good), None),
        (signed(5, by_point, good), None),
    ):
        inspection = inspected(raw, material)
        assert statuses(inspection).get("ima.signatures") is expected
        assert inspection.authentic() == (expected is not Status.FAIL)


def test_entries_that_say_little() -> None:
    opaque = ima.ImaEntry(10, hashlib.sha1(b"x").digest(), "ima-cgn", b"x")
    short = ima.make_entry("ima-sig", "sha256", DIGEST, b"/a", b"\x03")
    broken = ima.ImaEntry(10, hashlib.sha1(b"y").digest(), "ima-ng", b"y")
    inspection = inspected(ima.serialise_binary([*ENTRIES, opaque, short, broken]))
    assert inspection.problem == ""
    assert inspection.authentic()
    assert inspection.facts["signatures"] == [{"index": 4, "path": "/a", "bytes": 1}]


def test_a_legacy_list_of_lists() -> None:
    raw = ima.serialise_binary([ima.make_entry("d-ng|n-ng|x", "sha256", DIGEST, b"/a")])
    assert inspected(raw).kind == "ima-log-binary"


def test_measured_buffer() -> None:
    buffer = b"a\xff"
    entry = ima.make_entry("ima-buf", "sha256", hashlib.sha256(buffer).digest(), b"kexec-cmdline", buffer)
    facts = inspected(ima.serialise_ascii([entry])).facts
    assert (facts["event"], facts["buffer"], facts["buffer_digest_ok"]) == ("kexec-cmdline", buffer.hex(), True)
    wrong = ima.make_entry("ima-buf", "sha256", bytes(32), b"kexec-cmdline", buffer)
    assert inspected(ima.serialise_ascii([wrong])).facts["buffer_digest_ok"] is False


@pytest.mark.evidence
def test_others_are_not_claimed(evidence: Path) -> None:
    for path in evidence.rglob("*"):
        relative = path.relative_to(evidence)
        if path.is_file() and relative.parts[0] != "ima" and path.name not in ("ima.bin", "ima.txt"):
            raw = path.read_bytes()
            assert not any(kind.matches(raw) for kind in KINDS), relative


@given(st.binary(max_size=200))
def test_any_bytes(raw: bytes) -> None:
    for kind in KINDS:
        kind.matches(raw)
        for check in kind.verify(raw, Material(), AT, Roots()):
            assert check.line


@given(st.data())
def test_mutations(data: st.DataObject) -> None:
    raw = bytearray(ima.serialise_binary(ENTRIES))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    inspection = identify.inspect(bytes(raw), values(ENTRIES), kind="ima-log-binary", verify=(AT, Roots()))
    for check in inspection.checks or ():
        assert "\n" not in check.line
