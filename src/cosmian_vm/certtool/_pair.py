"""Certificate and key of a server in one folder, ``cert.pem`` and ``key.pem``: replaced together, or not at all.

Each pair lies whole in a folder of its own, and the two names lead there by way of one symbolic link::

    cert.pem -> .pairs/current/cert.pem      .pairs/current -> 20251125T...
    key.pem  -> .pairs/current/key.pem       .pairs/20251125T.../{cert.pem,key.pem,issued.json}

That link is renamed into place, which the kernel does at once: no reader, and no crash, meets a key that does not fit.
A pair that was there before as plain files first becomes such a folder itself. Where the file system has no symbolic
links (Gramine's have none) the key is replaced, then the certificate; what a crash left in between is set right at the
next run, out of the folder of the new pair, which is complete before anything is replaced.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from cosmian_vm.certtool._common import make_folder, write_file
from cosmian_vm.errors import InputError

__all__ = ["CERTIFICATE", "KEY", "Pair", "PairFolder", "fits", "names_of"]

CERTIFICATE, KEY = "cert.pem", "key.pem"
_PAIRS, _CURRENT, _ISSUED = ".pairs", "current", "issued.json"
_MAX_FILE = 1 << 20
_UNUSABLE = (ValueError, TypeError, UnsupportedAlgorithm)


class Pair(NamedTuple):
    """``chain``: certificates in PEM, the server's first. ``key``: PKCS #8, PEM. ``directory``: URL of the ACME
    directory that issued it, "" where that is not known.
    """

    chain: bytes
    key: bytes
    directory: str = ""

    def __repr__(self) -> str:
        """Without the key."""
        return f"Pair({self.directory!r})"

    @property
    def leaf(self) -> x509.Certificate:
        """The server's own certificate. Raises ValueError."""
        return x509.load_pem_x509_certificates(self.chain)[0]


def fits(chain: bytes, key: bytes) -> bool:
    """Whether ``key`` is that of the first certificate of ``chain``."""
    try:
        shown = x509.load_pem_x509_certificates(chain)[0].public_key()
        own = load_pem_private_key(key, None).public_key()
        form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        return shown.public_bytes(*form) == own.public_bytes(*form)
    except _UNUSABLE:
        return False


def names_of(certificate: x509.Certificate) -> frozenset[str]:
    """The DNS names that it is for, in lower case."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return frozenset()
    return frozenset(name.lower() for name in names.get_values_for_type(x509.DNSName))


class PairFolder:
    """The folder that ``--output`` names. Raises InputError where it cannot be made."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pairs = folder / _PAIRS
        make_folder(folder)
        make_folder(self._pairs)
        _probe(folder)
        self._linked = _links_work(self._pairs)

    def present(self) -> Pair | None:
        """The pair that a server would use now; None where there is none that fits together. What a crash left half
        done is set right first. Raises InputError.
        """
        pair = _read(self._folder)
        if pair is None and (left := self._complete()) is not None:
            self._show(left)
            pair = _read(self._folder)
        if pair is None:
            return None
        newest = next((found for _, found in self._generations() if found.chain == pair.chain), None)
        return pair if newest is None else pair._replace(directory=newest.directory)

    def install(self, pair: Pair) -> None:
        """Replace both, together. Raises InputError; the old pair is then still in place."""
        if not fits(pair.chain, pair.key):
            raise InputError("the certificate is not for the key that it was ordered for")
        if self._linked:
            self._adopt()
        self._show(self._store(pair))
        self._clean()

    def _store(self, pair: Pair) -> Path:
        """Write a pair into a folder of its own, its last file telling that it is whole."""
        generation = self._pairs / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(4)}"
        make_folder(generation)
        write_file(generation / KEY, pair.key, 0o600)
        write_file(generation / CERTIFICATE, pair.chain, 0o644)
        issued = {"directory": pair.directory, "certificate_sha256": sha256(pair.chain).hexdigest()}
        write_file(generation / _ISSUED, json.dumps(issued).encode(), 0o644)
        _sync(generation)
        _sync(self._pairs)
        return generation

    def _show(self, generation: Path) -> None:
        """Make a generation the one that the two names lead to."""
        if self._linked:
            _link(self._pairs / _CURRENT, generation.name)
            for name in (KEY, CERTIFICATE):
                if not self._is_linked(name):
                    _link(self._folder / name, f"{_PAIRS}/{_CURRENT}/{name}")
        else:
            write_file(self._folder / KEY, (generation / KEY).read_bytes(), 0o600)
            write_file(self._folder / CERTIFICATE, (generation / CERTIFICATE).read_bytes(), 0o644)
        _sync(self._folder)

    def _is_linked(self, name: str) -> bool:
        path = self._folder / name
        return path.is_symlink() and path.readlink() == Path(_PAIRS, _CURRENT, name)

    def _adopt(self) -> None:
        """Turn a pair that is there as files of their own into a generation: each step shows the same content."""
        if self._is_linked(KEY) and self._is_linked(CERTIFICATE):
            return
        pair = _read(self._folder)
        if pair is not None:
            self._show(self._store(pair))

    def _complete(self) -> Path | None:
        """The newest generation that is whole."""
        return next((path for path, _ in self._generations()), None)

    def _generations(self) -> list[tuple[Path, Pair]]:
        """Whole ones, newest first."""
        found = []
        with suppress(OSError):
            for path in sorted(self._pairs.iterdir(), reverse=True):
                if path.is_dir() and not path.is_symlink() and (pair := _read(path)) is not None:
                    with suppress(OSError, ValueError, KeyError, TypeError):
                        issued = json.loads((path / _ISSUED).read_bytes())
                        if issued["certificate_sha256"] == sha256(pair.chain).hexdigest():
                            found.append((path, pair._replace(directory=str(issued["directory"]))))
        return found

    def _clean(self) -> None:
        """Remove the generations that nothing leads to: their keys are of no use any more."""
        with suppress(OSError):
            used = (self._pairs / _CURRENT).readlink().name if self._linked else None
            kept = used or max((path.name for path, _ in self._generations()), default=None)
            for path in self._pairs.iterdir():
                if path.name not in (kept, _CURRENT):
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _read(folder: Path) -> Pair | None:
    """The two files, if they are there and fit together."""
    try:
        chain, key = (_content(folder / name) for name in (CERTIFICATE, KEY))
    except OSError:
        return None
    return Pair(chain, key) if fits(chain, key) else None


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_MAX_FILE)


def _probe(folder: Path) -> None:
    """Whether files can be made here, found out before a CA is asked for anything. Raises InputError."""
    path = folder / f".{secrets.token_hex(4)}.part"
    write_file(path, b"", 0o600)
    with suppress(OSError):
        path.unlink()


def _links_work(folder: Path) -> bool:
    path = folder / f".{secrets.token_hex(4)}.link"
    try:
        path.symlink_to(_CURRENT)
        path.unlink()
    except (OSError, NotImplementedError):
        return False
    return True


def _link(path: Path, target: str) -> None:
    """A symbolic link in the place of whatever is there, at once. Raises InputError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.link")
    try:
        temporary.symlink_to(target)
        temporary.replace(path)
    except OSError as exc:
        with suppress(OSError):
            temporary.unlink()
        raise InputError(f"{path}: cannot be replaced: {exc.strerror or exc}") from exc


def _sync(folder: Path) -> None:
    """Have the disk know the names in a folder, where it can be told to."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
