"""The binding, against the words of its definition, recomputed here by hand."""

from __future__ import annotations

import hashlib

import pytest

from cosmian_vm.evidence.binding import compute_binding, report_data, report_data_v1

NONCE = bytes(range(32))
SPKI = hashlib.sha256(b"spki").digest()


def test_binding_is_the_hash_of_its_parts() -> None:
    ak = b"tpmt public"
    expected = hashlib.sha256(b"cosmian-vm/binding/2" + b"\0" + NONCE + SPKI + hashlib.sha256(ak).digest()).digest()
    assert compute_binding(NONCE, SPKI, ak) == expected


def test_without_a_tpm_there_are_zeros() -> None:
    expected = hashlib.sha256(b"cosmian-vm/binding/2\0" + NONCE + SPKI + bytes(32)).digest()
    assert compute_binding(NONCE, SPKI, None) == expected
    assert compute_binding(NONCE, SPKI, b"") != expected


def test_report_data_is_nonce_then_binding() -> None:
    binding = compute_binding(NONCE, SPKI, None)
    assert report_data(NONCE, binding) == NONCE + binding
    assert report_data_v1(NONCE, b"certificate") == NONCE + hashlib.sha256(b"certificate").digest()


@pytest.mark.parametrize("size", [0, 31, 33])
def test_wrong_sizes_are_programming_errors(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        compute_binding(bytes(size), SPKI, None)
    with pytest.raises(ValueError, match="32 bytes"):
        compute_binding(NONCE, bytes(size), None)
    with pytest.raises(ValueError, match="32 bytes"):
        report_data(NONCE, bytes(size))
    with pytest.raises(ValueError, match="32 bytes"):
        report_data_v1(bytes(size), b"")
