"""What a snapshot holds, out of what devices, kernel and file system said. Reads files, asks no device."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from cosmian_vm import __version__
from cosmian_vm.agent.devices import DeviceValues
from cosmian_vm.errors import NotAvailableError
from cosmian_vm.evidence import ima, tpm
from cosmian_vm.evidence.bundle import TeeKind
from cosmian_vm.reference.snapshot import (
    BOOT_PCRS,
    DIGEST_SIZES,
    FORMAT_VERSION,
    Snapshot,
    TpmPolicy,
    file_entries,
)
from cosmian_vm.reference.tee_values import tee_values

__all__ = ["Measured", "SnapshotInputs", "build", "check_supported", "hash_algorithm", "measured_files"]

_CLOUDS: dict[str | None, Literal["AWS", "Azure", "GCP"]] = {"AWS": "AWS", "Azure": "Azure", "GCP": "GCP"}
_BLOCK = 256 * 1024
_DEFAULT_ALGORITHM = "sha256"

Files = list[tuple[bytes, bytes]]


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What the IMA list names. ``files``: path and digest of all of it, in order, each once. ``not_on_disk``: those of
    them that are not on the disk in that form.
    """

    files: Files
    not_on_disk: Files


class SnapshotInputs(msgspec.Struct, frozen=True, kw_only=True):
    """All that goes into a snapshot. ``algorithm``, ``files`` and ``measured`` are None together: without a TPM and an
    IMA list nothing would compare with file hashes.
    """

    device: DeviceValues
    cloud: str | None
    owners: tuple[str, ...]
    algorithm: str | None
    files: Files | None
    unreadable: list[tuple[bytes, str]]
    measured: Measured | None
    now: datetime


def check_supported(kind: TeeKind | None) -> None:
    """Raises NotAvailableError where there can be no snapshot of such a machine."""
    if kind is None:
        raise NotAvailableError("this machine has no TEE that the agent knows: there is nothing to take a snapshot of")


def hash_algorithm(ima_log: bytes) -> str:
    """The algorithm (kernel's name) that most files of the list were hashed with.

    The first entry stands back: boot_aggregate may have another one. Raises EvidenceFormatError.
    """
    used: Counter[str] = Counter()
    for entry in ima.parse_binary(ima_log):
        fields = None if entry.is_violation else entry.fields()
        if fields is not None and fields.digest_algorithm is not None:
            used[fields.digest_algorithm] += 1 if fields.path == ima.BOOT_AGGREGATE else 1000
    return used.most_common(1)[0][0] if used else _DEFAULT_ALGORITHM


def measured_files(
    ima_log: bytes, root: Path, walked: Iterable[tuple[bytes, bytes]], stop: Callable[[], None]
) -> Measured:
    """What the list names, compared with the disk: first with the files ``walked``, then with the file of that very
    name below ``root`` (the list also names files in folders that are not walked, and other algorithms).

    Violations are left out: they say nothing of a content. ``stop`` is called between files and may raise.
    Raises EvidenceFormatError.
    """
    entries = dict.fromkeys(_named(ima_log))
    names = {ima.normalise_path(path) for path, *_ in entries}
    on_disk = {(ima.normalise_path(path), digest) for path, digest in walked if ima.normalise_path(path) in names}
    missing: Files = []
    for path, digest, algorithm in entries:
        if algorithm is None or (ima.normalise_path(path), digest) in on_disk:
            continue
        stop()
        if _hash_file(root, path, algorithm) != digest:
            missing.append((path, digest))
    return Measured(files=[(path, digest) for path, digest, _ in entries], not_on_disk=missing)


def _named(ima_log: bytes) -> Iterable[tuple[bytes, bytes, str | None]]:
    """Path, digest and algorithm of each entry; no algorithm for what is not the content of a file."""
    for entry in ima.parse_binary(ima_log):
        fields = None if entry.is_violation else entry.fields()
        if fields is None or len(fields.digest) not in DIGEST_SIZES:
            continue
        is_file = fields.path != ima.BOOT_AGGREGATE and fields.buffer is None
        yield fields.path, fields.digest, (fields.digest_algorithm or _DEFAULT_ALGORITHM) if is_file else None


def _hash_file(root: Path, path: bytes, algorithm: str) -> bytes | None:
    """Digest of the regular file at ``path`` below ``root``; None where there is none or it cannot be read."""
    if not path.startswith(b"/") or b"\0" in path or b".." in path.split(b"/"):
        return None
    try:
        digest = hashlib.new(algorithm.replace("-", "_"), usedforsecurity=False)
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        descriptor = os.open(os.fsencode(root) + b"/" + path.lstrip(b"/"), flags)
    except (OSError, ValueError):
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        while block := os.read(descriptor, _BLOCK):
            digest.update(block)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return digest.digest()


def build(inputs: SnapshotInputs) -> Snapshot:
    """The snapshot. Raises EvidenceFormatError, NotAvailableError."""
    check_supported(inputs.device.tee_kind)
    files, exact = _file_hashes(inputs)
    missing = () if inputs.measured is None else inputs.measured.not_on_disk
    snapshot = Snapshot(
        cloud_type=_CLOUDS.get(inputs.cloud),
        **tee_values(inputs.device.report, cloud=inputs.cloud),
        version=FORMAT_VERSION,
        created=inputs.now.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        agent_version=__version__,
        hash_algorithm=inputs.algorithm,
        owners=inputs.owners,
        unreadable=tuple((ima.format_path(path), reason) for path, reason in inputs.unreadable),
        not_on_disk=_entries(missing),
    )
    quote, log = inputs.device.quote, inputs.device.ima_log
    if quote is not None:
        told = tpm.parse_quote(quote.quote)
        snapshot = msgspec.structs.replace(
            snapshot,
            tpm_policy=TpmPolicy(reset_count=told.reset_count, restart_count=told.restart_count),
            filehashes=files,
            path_bytes=exact,
            ak_name=tpm.name(quote.ak_public).hex(),
            boot_pcrs={str(pcr): quote.pcrs[pcr].hex() for pcr in BOOT_PCRS},
            clock=told.clock,
        )
    if log is not None:
        snapshot = msgspec.structs.replace(snapshot, ima_policy=_entries(ima.policy_files(ima.parse_binary(log))))
    return snapshot


def _entries(files: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[str, str], ...]:
    return tuple((ima.format_path(path), digest.hex()) for path, digest in files)


def _file_hashes(inputs: SnapshotInputs) -> tuple[tuple[tuple[str, str], ...] | None, dict[int, str]]:
    """What was walked, then what the list names beyond that, by its very names: 1.3.x compares them as they are."""
    if inputs.files is None or inputs.measured is None:
        return None, {}
    named = set(inputs.measured.files)
    named.difference_update(inputs.files)
    return file_entries([*inputs.files, *(entry for entry in inputs.measured.files if entry in named)])
