"""The owner's key: an Ed25519 private key in the user's configuration folder, and what it signs.

The file is PKCS #8 in PEM, readable by its user alone, in a folder of the same kind; one that others can read is not
used. It is made whole or not at all, and never replaced by another one in silence: whoever loses it loses the machines.
"""

from __future__ import annotations

import os
import secrets
import stat
import sys
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from cosmian_vm.errors import InputError
from cosmian_vm.owner_proof import Proof, encode_proof, fingerprint, order_message

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["KEY_NAME", "OwnerKey", "config_folder", "create", "export", "load", "read_backup", "store"]

KEY_NAME = "owner.key"
_MAX_FILE = 16 * 1024


def config_folder() -> Path:
    """Where the user's configuration of this program is. Raises InputError where there is no place for it."""
    if sys.platform == "win32":
        base = os.environ.get("APPDATA")
    else:
        base = os.environ.get("XDG_CONFIG_HOME")
        if not base or not Path(base).is_absolute():  # a relative one is to be ignored, says its specification
            base = "~/.config" if os.environ.get("HOME") else None
    if not base:
        raise InputError("there is no folder for the owner's key: set XDG_CONFIG_HOME (or HOME)")
    return Path(base).expanduser() / "cosmian_vm"


class OwnerKey:
    """``path``: where it is kept."""

    def __init__(self, private: Ed25519PrivateKey, path: Path) -> None:
        self._private = private
        self.path = path
        self.public = private.public_key().public_bytes_raw()
        self.fingerprint = fingerprint(self.public)

    def __repr__(self) -> str:
        """Without the key."""
        return f"OwnerKey({self.fingerprint})"

    def prove(self, method: str, target: str, body: bytes, leaf: bytes, nonce: bytes) -> str:
        """The header that makes a request an order of this owner's. ``target``: path and query as sent; ``leaf``:
        certificate (DER) of the agent's connection; ``nonce``: the agent's.
        """
        from cosmian_vm.certificates import spki_sha256

        hashed = sha256(body).digest()
        message = order_message(method, target, hashed, spki_sha256(leaf), nonce)
        return encode_proof(Proof(self.public, nonce, hashed, self._private.sign(message)))


def load(folder: Path) -> OwnerKey | None:
    """The key in ``folder``; None where there is none. Raises InputError where it cannot be used."""
    path = folder / KEY_NAME
    try:
        raw = _read_private(path)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise InputError(f"{path}: the owner's key cannot be read: {exc.strerror or exc}") from exc
    return OwnerKey(_parse(raw, None, str(path)), path)


def create(folder: Path) -> OwnerKey:
    """The key in ``folder``, made where there is none: two programs at once get the same one. Raises InputError."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    found = load(folder)
    if found is not None:
        return found
    store(folder, Ed25519PrivateKey.generate(), replace=False)
    made = load(folder)
    if made is None:
        raise InputError(f"{folder / KEY_NAME}: the owner's key was made and is gone")
    return made


def store(folder: Path, private: Ed25519PrivateKey, *, replace: bool) -> None:
    """Keep ``private`` as the key. Without ``replace``, one that is there stays. Raises InputError."""
    path = folder / KEY_NAME
    temporary = folder / f".{KEY_NAME}.{secrets.token_hex(4)}.part"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _require_private(folder)
        _write_private(temporary, _pem(private, None))
        try:
            if replace:
                temporary.replace(path)
            else:
                with suppress(FileExistsError):
                    os.link(temporary, path)
        finally:
            with suppress(FileNotFoundError):
                temporary.unlink()
        _settle(folder)
    except OSError as exc:
        raise InputError(f"{path}: the owner's key cannot be written: {exc.strerror or exc}") from exc


def export(key: OwnerKey, path: Path, passphrase: bytes | None) -> None:
    """Write a backup to a new file, readable by its user alone. Raises InputError where there is one already."""
    try:
        _write_private(path, _pem(key._private, passphrase))
    except FileExistsError as exc:
        raise InputError(f"{path}: is there already, and is not overwritten") from exc
    except OSError as exc:
        raise InputError(f"{path}: cannot be written: {exc.strerror or exc}") from exc


def read_backup(raw: bytes, passphrase: bytes | None, name: str) -> Ed25519PrivateKey | None:
    """The key of a backup; None where it takes a passphrase that was not given. Raises InputError."""
    if passphrase is None and b"ENCRYPTED" in raw:
        return None
    return _parse(raw, passphrase, name)


def _parse(raw: bytes, passphrase: bytes | None, name: str) -> Ed25519PrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        private = load_pem_private_key(raw, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        why = "or the passphrase is wrong" if passphrase is not None else "(PKCS #8 in PEM)"
        raise InputError(f"{name}: this is no owner's key {why}") from exc
    if not isinstance(private, Ed25519PrivateKey):
        raise InputError(f"{name}: an owner's key is of the kind Ed25519, this one is not")
    return private


def _pem(private: Ed25519PrivateKey, passphrase: bytes | None) -> bytes:
    from cryptography.hazmat.primitives import serialization as form

    protection: form.KeySerializationEncryption = form.NoEncryption()
    if passphrase is not None:
        protection = form.BestAvailableEncryption(passphrase)
    return private.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, protection)


def _read_private(path: Path) -> bytes:
    """A file that nobody else can read. Raises OSError, InputError."""
    with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
        _require_private(path, os.fstat(file.fileno()))
        _require_private(path.parent)
        return file.read(_MAX_FILE)


def _require_private(path: Path, seen: os.stat_result | None = None) -> None:
    """Raises InputError where others than the user can read a file, or write to a folder."""
    if sys.platform == "win32":
        return
    seen = path.stat() if seen is None else seen
    folder = stat.S_ISDIR(seen.st_mode)
    if seen.st_uid != os.geteuid():
        raise InputError(f"{path}: belongs to somebody else, so the owner's key is not used")
    if seen.st_mode & (0o022 if folder else 0o077):
        remedy = f"chmod {'700' if folder else '600'} {path}"
        raise InputError(f"{path}: others can use it, so the owner's key may be known to them; if it is not: {remedy}")


def _settle(folder: Path) -> None:
    """On the disk before anything is claimed with it: whoever loses the key loses the machine. Raises OSError."""
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_private(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise
