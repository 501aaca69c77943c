"""Fingerprints and proofs: one written form each, and nothing else is one."""

from __future__ import annotations

import base64
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.owner_proof import (
    MAX_PROOF,
    Proof,
    encode_proof,
    fingerprint,
    order_message,
    parse_fingerprint,
    parse_proof,
)

FIELD = 2**255 - 19
ORDER_8 = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
PROOF = Proof(bytes(range(32)), bytes(range(32, 64)), bytes(range(64, 96)), bytes(range(96, 160)))


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def test_a_key_and_its_fingerprint() -> None:
    for _ in range(20):
        key = Ed25519PrivateKey.generate().public_key().public_bytes_raw()
        name = fingerprint(key)
        assert (name[:8], len(name), name.isascii()) == ("ed25519:", 51, True)
        assert parse_fingerprint(name) == key


@pytest.mark.parametrize("y", [0, 1, FIELD - 1, FIELD, FIELD + 1, 2**255 - 1, ORDER_8, FIELD - ORDER_8])
@pytest.mark.parametrize("sign", [0, 1])
def test_a_point_of_small_order_is_no_key(y: int, sign: int) -> None:
    """Anybody can make signatures that hold under it: all eight, each in every form."""
    with pytest.raises(EvidenceFormatError, match="this is no key"):
        parse_fingerprint(fingerprint((y | sign << 255).to_bytes(32, "little")))


def test_the_field_of_the_points() -> None:
    """The constant above, from the curve: eight times the point is the neutral one."""
    d = -121665 * pow(121666, -1, FIELD) % FIELD
    square = (ORDER_8 * ORDER_8 - 1) * pow(d * ORDER_8 * ORDER_8 + 1, -1, FIELD) % FIELD
    x = pow(square, (FIELD + 3) // 8, FIELD)
    if (x * x - square) % FIELD:
        x = x * pow(2, (FIELD - 1) // 4, FIELD) % FIELD
    point = (x, ORDER_8)
    for _ in range(3):
        x, y = point
        k = d * x * x * y * y % FIELD
        point = (2 * x * y * pow(1 + k, -1, FIELD) % FIELD, (y * y + x * x) * pow(1 - k, -1, FIELD) % FIELD)
    assert point == (0, 1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ed25519:",
        "anyone",
        "ED25519:" + b64(bytes(range(32))),
        "ed25519:" + b64(bytes(range(31))),
        "ed25519:" + b64(bytes(range(33))),
        "ed25519:" + b64(bytes(range(32))) + "=",
        "ed25519:" + b64(bytes(range(32)))[:-1] + "9",  # trailing bits
        "ed25519: " + b64(bytes(range(32))),
        "ed25519:" + base64.b64encode(b"\xff" * 31 + b"\x00").decode().rstrip("="),  # the other alphabet
        "ed25519:" + "é" * 43,
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5",
    ],
)
def test_what_is_no_fingerprint(text: str) -> None:
    with pytest.raises(EvidenceFormatError, match="owner"):
        parse_fingerprint(text)


@given(st.text(max_size=80))
def test_fingerprints_of_any_text(text: str) -> None:
    for candidate in (text, "ed25519:" + text):
        try:
            key = parse_fingerprint(candidate)
        except EvidenceFormatError:
            continue
        assert fingerprint(key) == candidate


def test_a_proof_there_and_back() -> None:
    text = encode_proof(PROOF)
    assert len(text) == MAX_PROOF
    assert parse_proof(text) == PROOF
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    assert raw == b"\x01" + bytes(range(160))


def test_every_truncation_and_addition() -> None:
    raw = b"\x01" + bytes(range(160))
    for size in range(len(raw)):
        with pytest.raises(EvidenceFormatError, match="owner's proof"):
            parse_proof(b64(raw[:size]))
    with pytest.raises(EvidenceFormatError, match="is longer than"):
        parse_proof(b64(raw + b"\x00"))


@pytest.mark.parametrize("version", [0, 2, 255])
def test_another_version(version: int) -> None:
    with pytest.raises(EvidenceFormatError, match=f"has version {version}; expected is 1"):
        parse_proof(b64(bytes([version]) + bytes(range(160))))


@given(st.text(alphabet=st.characters(codec="latin-1"), max_size=MAX_PROOF + 4))
def test_proofs_of_any_text(text: str) -> None:
    try:
        proof = parse_proof(text)
    except EvidenceFormatError:
        return
    assert encode_proof(proof) == text


@given(st.binary(min_size=160, max_size=160))
def test_proofs_of_any_bytes(raw: bytes) -> None:
    proof = parse_proof(b64(b"\x01" + raw))
    assert b"".join(proof) == raw
    assert parse_proof(encode_proof(proof)) == proof


def test_the_signed_message_is_exactly_this() -> None:
    hashed, spki, nonce = sha256(b"body").digest(), bytes(32), b"\x07" * 32
    message = order_message("POST", "/app/init", hashed, spki, nonce)
    assert message == (
        b"cosmian-vm/order/1\x00"
        + (b"\x00\x00\x00\x04POST" + b"\x00\x00\x00\x09/app/init")
        + (b"\x00\x00\x00\x20" + hashed + b"\x00\x00\x00\x20" + spki + b"\x00\x00\x00\x20" + nonce)
    )


@given(st.lists(st.text(alphabet="PGETO/ap?=1", max_size=6), min_size=2, max_size=2, unique=True), st.text(max_size=3))
def test_no_two_orders_have_one_message(targets: list[str], method: str) -> None:
    """Each part has its length in front: nothing can be moved from one to the next."""
    one, other = (order_message(method, target, bytes(32), bytes(32), bytes(32)) for target in targets)
    assert one != other
    if method:
        assert one != order_message(method[:-1], method[-1] + targets[0], bytes(32), bytes(32), bytes(32))
