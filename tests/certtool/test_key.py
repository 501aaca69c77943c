"""``key``: an X25519 pair out of the TEE's key."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.attester.derived_key import TeeKey
from cosmian_vm.certtool._derive import p256_key, x25519_secret
from cosmian_vm.errors import AttesterError

Run = Callable[..., Any]


def test_a_pair(run: Run, tmp_path: Path) -> None:
    ran = run("key", "--output", "new/folder")
    assert (ran.status, ran.err) == (0, "")
    secret, public = tmp_path / "new" / "folder" / "x25519_sk.bin", tmp_path / "new" / "folder" / "x25519_pk.bin"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    raw = secret.read_bytes()
    assert len(raw) == len(public.read_bytes()) == 32
    assert (raw[0] & 7, raw[31] >> 6) == (0, 1), "clamped"
    own = X25519PrivateKey.from_private_bytes(raw)
    assert own.public_key().public_bytes_raw() == public.read_bytes()
    other = X25519PrivateKey.generate()
    assert own.exchange(other.public_key()) == other.exchange(X25519PublicKey.from_public_bytes(public.read_bytes()))
    assert raw.hex() not in ran.out


def test_the_same_again_and_another_for_each_salt(run: Run, machine: Any, tmp_path: Path) -> None:
    def secret(*arguments: str) -> bytes:
        assert run("key", *arguments).status == 0
        return (tmp_path / "x25519_sk.bin").read_bytes()

    assert secret() == secret()
    assert secret("--salt", "0badc0de") == secret("--salt", "0BADC0DE")
    assert len({secret(), secret("--salt", "00"), secret("--salt", "0000"), secret("--salt", "0badc0de")}) == 4
    before = secret()
    machine.secret = b"\1" * 32
    assert secret() != before


def test_a_platform_that_derives_none(run: Run, machine: Any, tmp_path: Path) -> None:
    machine.secret = None
    ran = run("key")
    assert (ran.status, ran.out, ran.err.count("\n")) == (1, "", 1)
    assert not list(tmp_path.glob("*.bin"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--salt", "xyz"], "--salt"), (["--salt", "0"], "--salt"), (["--output", "file/x"], "cannot be made")],
)
def test_bad_input(run: Run, tmp_path: Path, arguments: list[str], named: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    ran = run("key", *arguments)
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    assert named in ran.err


def test_old_files_stay_where_it_fails(run: Run, machine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("key").status == 0
    before = (tmp_path / "x25519_sk.bin").read_bytes()

    def fail() -> TeeKey:
        raise AttesterError("/dev/sev-guest: cannot be opened: Permission denied (run this as root)")

    monkeypatch.setattr(machine, "key", fail)
    ran = run("key")
    assert (ran.status, ran.err.count("\n")) == (1, 1)
    assert (tmp_path / "x25519_sk.bin").read_bytes() == before


def test_known_values() -> None:
    """What was derived once must come out for ever: data may hang on it."""
    key = TeeKey(bytes(range(32)), "sev-snp")
    assert x25519_secret(key, None).hex() == "7008b89a160d293adaf2ea5d5a1a6d9af7974b7813947ffa5f3bfa1342de245c"
    assert (
        f"{p256_key(key, b'salt').private_numbers().private_value:064x}"
        == "1a74df97841a03521c43a881d563e63e7248d4d2c2409f8bcb2d22ad771f2afb"
    )


@given(st.binary(min_size=16, max_size=32), st.none() | st.binary(max_size=40))
def test_any_key(raw: bytes, salt: bytes | None) -> None:
    key = TeeKey(raw, "sgx")
    secret = x25519_secret(key, salt)
    assert (len(secret), secret[0] & 7, secret[31] >> 6) == (32, 0, 1)
    assert p256_key(key, salt).private_numbers().private_value.to_bytes(32, "big") != secret
    assert x25519_secret(TeeKey(raw, "sev-snp"), salt) != secret
