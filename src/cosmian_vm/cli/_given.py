"""Endorsements that the user has: the files and folders of --endorsements, each file told by its content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cosmian_vm.cli._common import read_file
from cosmian_vm.endorsements.amd import collect
from cosmian_vm.endorsements.intel_collateral import MAX_COLLATERAL, serialise_collateral
from cosmian_vm.errors import CosmianVmError, InputError
from cosmian_vm.inspection import _intel_join

__all__ = ["load_endorsements"]

MAX_FILES = 1024
"""Most files of a folder that are looked at."""
MAX_SIZE = 64 << 20
"""Most bytes that are read of a folder."""
_MAX_FILE = MAX_COLLATERAL
_MAX_NAMED = 5


def load_endorsements(paths: Sequence[str]) -> tuple[tuple[bytes, ...], tuple[str, ...]]:
    """What the files, and the files in the folders, hold; and a note for each folder that holds other things too.

    Raises InputError where a file that was named holds neither certificates nor revocation lists nor collateral, and
    where a folder holds none of them, or too much.
    """
    blobs: list[bytes] = []
    notes: list[str] = []
    for path in paths:
        if path != "-" and Path(path).is_dir():
            found, others = _folder(path)
            blobs += found
            if others:
                named = ", ".join(others[:_MAX_NAMED]) + (f" and {len(others) - _MAX_NAMED} more" if others[5:] else "")
                notes.append(f"{path}: neither certificates nor revocation lists nor collateral, not used: {named}")
        else:
            try:
                blobs.append(_recognised(read_file(path, _MAX_FILE)))
            except CosmianVmError as exc:
                if isinstance(exc, InputError):
                    raise
                raise InputError(
                    f"{path}: neither certificates nor revocation lists nor Intel's collateral: {exc}"
                ) from exc
    return tuple(blobs), tuple(notes)


def _folder(path: str) -> tuple[list[bytes], list[str]]:
    """What the files right in a folder hold, and the names of those that hold something else."""
    try:
        names = sorted(entry.name for entry in Path(path).iterdir() if not entry.name.startswith("."))
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    if len(names) > MAX_FILES:
        raise InputError(f"{path}: {len(names)} files, more than {MAX_FILES}: give a folder of endorsements alone")
    blobs: list[bytes] = []
    others: list[str] = []
    seen: list[tuple[str, bytes]] = []
    for name in names:
        file = Path(path, name)
        try:
            if not file.is_file():
                raise InputError(f"{file}: no file")
            raw = read_file(str(file), _MAX_FILE)
            seen.append((name, raw))
            blobs.append(_recognised(raw))
        except CosmianVmError:
            others.append(name)
        if sum(len(raw) for _, raw in seen) > MAX_SIZE:
            raise InputError(f"{path}: more than {MAX_SIZE} bytes: give a folder of endorsements alone")
    parts = {name for name, raw in seen if _intel_join.answer_in(raw) is not None}
    if parts and (joined := _joined(seen)):
        blobs += joined
        others = [name for name in others if name not in parts]
    if not blobs:
        raise InputError(
            f"{path}: no certificate, revocation list or collateral in it; cosmian_vm endorsements fetch EVIDENCE "
            f"--output {path} writes them"
        )
    return blobs, others


def _joined(files: Sequence[tuple[str, bytes]]) -> list[bytes]:
    """The collaterals that answers of Intel's service, each in a file of its own, make with their issuer chains."""
    from cosmian_vm.endorsements.intel import pinned_root
    from cosmian_vm.inspection.identify import material_of

    material = material_of(files)
    found = []
    for tee in ("TDX", "SGX"):
        try:
            collateral = _intel_join.collateral_from_parts(material, tee, (pinned_root(),))
        except CosmianVmError:
            continue
        if collateral is not None:
            found.append(serialise_collateral(collateral))
    return found


def _recognised(raw: bytes) -> bytes:
    """Certificates and CRLs as they are, Intel's collateral in the one form that is read later.

    Raises EndorsementError, EvidenceFormatError for anything else.
    """
    if _intel_join.is_collateral(raw):
        return serialise_collateral(_intel_join.parse(raw))
    collect([raw])
    return raw
