"""The owner's key: whose file it is, and that it is neither lost nor shown."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cosmian_vm.certificates import leaf_der, self_signed, spki_sha256
from cosmian_vm.client import owner_key
from cosmian_vm.errors import InputError
from cosmian_vm.owner_proof import order_message, parse_fingerprint, parse_proof


def test_made_once_for_its_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "cosmian_vm"
    assert owner_key.load(folder) is None
    assert not folder.exists()
    before = os.umask(0)
    try:
        key = owner_key.create(folder)
    finally:
        os.umask(before)
    assert key.path == folder / "owner.key"
    assert key.path.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in folder.iterdir()] == ["owner.key"]
    assert owner_key.create(folder).fingerprint == key.fingerprint
    assert parse_fingerprint(key.fingerprint) == key.public
    assert "PRIVATE" not in repr(key)


def test_two_programs_at_once_get_one_key(tmp_path: Path) -> None:
    made: list[str] = []
    start = threading.Barrier(8)

    def make() -> None:
        start.wait()
        made.append(owner_key.create(tmp_path / "c").fingerprint)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert len(set(made)) == 1
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["owner.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o644])
def test_a_key_that_others_can_use_is_none(tmp_path: Path, mode: int) -> None:
    key = owner_key.create(tmp_path / "c")
    key.path.chmod(mode)
    with pytest.raises(InputError, match=r"others can use it.*chmod 600"):
        owner_key.load(tmp_path / "c")
    with pytest.raises(InputError):
        owner_key.create(tmp_path / "c")
    key.path.chmod(0o600)
    assert owner_key.load(tmp_path / "c") is not None


def test_a_folder_that_others_can_write_to(tmp_path: Path) -> None:
    owner_key.create(tmp_path / "c")
    (tmp_path / "c").chmod(0o770)
    with pytest.raises(InputError, match=r"others can use it.*chmod 700"):
        owner_key.load(tmp_path / "c")
    (tmp_path / "d").mkdir()
    (tmp_path / "d").chmod(0o777)
    with pytest.raises(InputError, match="others can use it"):
        owner_key.create(tmp_path / "d")
    assert list((tmp_path / "d").iterdir()) == []


def test_a_link_is_no_key(tmp_path: Path) -> None:
    key = owner_key.create(tmp_path / "c")
    (tmp_path / "d").mkdir(mode=0o700)
    (tmp_path / "d" / "owner.key").symlink_to(key.path)
    with pytest.raises(InputError, match="cannot be read"):
        owner_key.load(tmp_path / "d")


@pytest.mark.skipif(os.geteuid() != 0, reason="to give a file to another user takes root")
def test_somebody_elses_key(tmp_path: Path) -> None:
    key = owner_key.create(tmp_path / "c")
    os.chown(key.path, 65534, 65534)
    with pytest.raises(InputError, match="belongs to somebody else"):
        owner_key.load(tmp_path / "c")


@pytest.mark.parametrize(
    "content", [b"", b"x" * 20_000, b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_a_broken_key_is_not_replaced(tmp_path: Path, content: bytes) -> None:
    key = owner_key.create(tmp_path / "c")
    key.path.write_bytes(content)
    for use in (owner_key.load, owner_key.create):
        with pytest.raises(InputError, match="no owner's key"):
            use(tmp_path / "c")
    assert key.path.read_bytes() == content


def test_a_key_of_another_kind(tmp_path: Path) -> None:
    other = self_signed("x", now=datetime.now(UTC)).key_pem
    with pytest.raises(InputError, match="of the kind Ed25519"):
        owner_key.read_backup(other, None, "file")


def test_where_it_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert owner_key.config_folder() == tmp_path / "cosmian_vm"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    assert owner_key.config_folder() == tmp_path / ".config" / "cosmian_vm"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    assert owner_key.config_folder() == tmp_path / ".config" / "cosmian_vm"
    monkeypatch.delenv("HOME")
    with pytest.raises(InputError, match="XDG_CONFIG_HOME"):
        owner_key.config_folder()


def test_what_it_signs(tmp_path: Path) -> None:
    key = owner_key.create(tmp_path / "c")
    leaf = leaf_der(self_signed("vm", now=datetime.now(UTC)).certificate_pem)
    proof = parse_proof(key.prove("POST", "/app/init", b"body", leaf, bytes(range(32))))
    assert (proof.key, proof.nonce, proof.body_sha256) == (key.public, bytes(range(32)), sha256(b"body").digest())
    message = order_message("POST", "/app/init", proof.body_sha256, spki_sha256(leaf), proof.nonce)
    Ed25519PublicKey.from_public_bytes(key.public).verify(proof.signature, message)
