"""The snapshot: the reference values of one machine, one JSON file that 1.3.x reads and that reads theirs.

The first four fields are those of 1.3.x, with its JSON types (see ``_policies``); ours stand beside them at the top
level, where its reader ignores them. A 1.3.x file has none of ours: ``version`` is then 1. Reading is strict: an
unknown key, a wrong type or a wrong length is an InputError that names file and field, because a reference value that
is silently not understood would be a check that is silently not made.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta

from cosmian_vm.errors import InputError
from cosmian_vm.reference._policies import (
    U16,
    U32,
    U64,
    Fixed,
    SevPolicy,
    SgxBody,
    SgxHeader,
    SgxPolicy,
    TdxBody,
    TdxHeader,
    TdxPolicy,
    TeePolicy,
    TpmPolicy,
    check_hex,
)

__all__ = [
    "BOOT_PCRS",
    "DIGEST_SIZES",
    "FORMAT_VERSION",
    "MAX_SNAPSHOT_SIZE",
    "Anchor",
    "Enclave",
    "SevPolicy",
    "SgxBody",
    "SgxHeader",
    "SgxPolicy",
    "Snapshot",
    "TdxBody",
    "TdxHeader",
    "TdxPolicy",
    "TeePolicy",
    "TpmPolicy",
    "file_entries",
    "load",
    "parse",
    "serialise",
]

FORMAT_VERSION = 2
"""What ``version`` says in the files that we write; 1 stands for a 1.3.x file, which has no such key."""

BOOT_PCRS = tuple(pcr for pcr in range(16) if pcr != 10)
"""The PCRs whose values a snapshot holds: all that version 2 quotes, but IMA's."""

MAX_SNAPSHOT_SIZE = 1 << 30
"""Largest snapshot file that is read, in bytes (some 7 million files)."""

DIGEST_SIZES = frozenset({16, 20, 28, 32, 48, 64})
"""Sizes in bytes of the digests that IMA may print."""

Anchor = Literal["tee", "svsm", "certificate", "operator"]
"""Who vouches for the AK."""

_HEX = "0123456789abcdef"
_SHOWN = 400
_CHECKED_AT_ONCE = 1024
_CLOCK_END = 1 << 64
_AK_NAME_SIZES = frozenset({22, 34, 50, 66})  # TPMI_ALG_HASH (2 bytes) and a digest


class Enclave(Fixed, frozen=True, kw_only=True):
    """What 1.3.x does not record of an SGX enclave: ATTRIBUTES (16 bytes), ISVPRODID and ISVSVN."""

    sizes: ClassVar[dict[str, int]] = {"attributes": 16}

    attributes: str
    isv_prod_id: U16
    isv_svn: U16


class Snapshot(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Reference values of one machine.

    Bytes are lower-case hex. None: the snapshot has no value for it. ``filehashes`` pairs each path with the digest of
    its content; where a path is not UTF-8 it has U+FFFD there, and ``path_bytes`` (by index in ``filehashes``) has its
    exact bytes. ``unreadable``: path and reason. ``not_on_disk``: path and digest of what has run but is not on disk
    in that form; these are in ``filehashes`` too. ``ima_policy``: path and digest of each policy file that the IMA list
    had measured. ``reported_tcb``: of the SNP report, 8 bytes, below which no later one may fall. ``owners``: () is an
    unclaimed machine. ``created``: RFC 3339, UTC. ``clock``: milliseconds. ``boot_pcrs``: sha256 bank, see BOOT_PCRS.

    Raises ValueError where a value has the wrong form.
    """

    cloud_type: Literal["AWS", "Azure", "GCP"] | None = None
    tee_policy: TeePolicy
    tpm_policy: TpmPolicy | None = None
    filehashes: tuple[tuple[str, str], ...] | None = None

    version: Annotated[int, Meta(ge=1, le=FORMAT_VERSION)] = 1
    created: str | None = None
    agent_version: str | None = None
    hash_algorithm: str | None = None
    ak_name: str | None = None
    anchor: Anchor | None = None
    owners: tuple[str, ...] | None = None
    boot_pcrs: dict[str, str] | None = None
    clock: U64 | None = None
    rtmrs: tuple[str, str, str, str] | None = None
    vmpl: U32 | None = None
    host_data: str | None = None
    reported_tcb: str | None = None
    enclave: Enclave | None = None
    without_tpm: bool = False
    ima_policy: tuple[tuple[str, str], ...] | None = None
    unreadable: tuple[tuple[str, str], ...] = ()
    not_on_disk: tuple[tuple[str, str], ...] = ()
    path_bytes: dict[int, str] = {}

    def __post_init__(self) -> None:
        if self.filehashes is not None and self.tpm_policy is None:
            raise ValueError("filehashes stand only together with tpm_policy")
        _check_platform(self)
        for name in ("filehashes", "not_on_disk", "ima_policy"):
            _check_digests(name, getattr(self, name) or ())
        _check_path_bytes(self.path_bytes, self.filehashes or ())

    @property
    def sev(self) -> SevPolicy | None:
        """The SEV-SNP values, None on another platform."""
        return None if self.tee_policy.sev is UNSET else self.tee_policy.sev

    @property
    def tdx(self) -> TdxPolicy | None:
        """The TDX values, None on another platform."""
        return None if self.tee_policy.tdx is UNSET else self.tee_policy.tdx

    @property
    def sgx(self) -> SgxPolicy | None:
        """The SGX values, None on another platform."""
        return None if self.tee_policy.sgx is UNSET else self.tee_policy.sgx

    @property
    def ak_name_bytes(self) -> bytes | None:
        """TPM name of the AK: nameAlg (2 bytes, big-endian) and digest."""
        return None if self.ak_name is None else bytes.fromhex(self.ak_name)

    @property
    def host_data_bytes(self) -> bytes | None:
        """HOST_DATA of the SNP report, 32 bytes."""
        return None if self.host_data is None else bytes.fromhex(self.host_data)

    @property
    def files(self) -> Iterator[tuple[bytes, bytes]]:
        """Each file's exact path and digest; empty where there are no file hashes."""
        exact = self.path_bytes
        for index, (path, digest) in enumerate(self.filehashes or ()):
            raw = bytes.fromhex(exact[index]) if index in exact else path.encode()
            yield raw, bytes.fromhex(digest)

    def boot_pcr_values(self) -> dict[int, bytes]:
        """The boot PCRs (sha256 bank, 32 bytes each) by index; empty where the snapshot has none."""
        return {int(pcr): bytes.fromhex(value) for pcr, value in (self.boot_pcrs or {}).items()}


def _check_platform(snapshot: Snapshot) -> None:
    if snapshot.clock is not None and snapshot.clock >= _CLOCK_END:
        raise ValueError("clock must fit 64 bits")
    if snapshot.host_data is not None:
        check_hex("host_data", snapshot.host_data, 32)
    if snapshot.reported_tcb is not None:
        check_hex("reported_tcb", snapshot.reported_tcb, 8)
    for value in snapshot.rtmrs or ():
        check_hex("rtmrs", value, 48)
    if snapshot.ak_name is not None and len(check_hex("ak_name", snapshot.ak_name)) not in _AK_NAME_SIZES:
        raise ValueError("ak_name must be a TPM name: an algorithm (2 bytes) and its digest")
    for pcr, value in (snapshot.boot_pcrs or {}).items():
        if pcr not in _BOOT_PCR_NAMES:
            raise ValueError(f"boot_pcrs has the key {pcr[:20]!r}; expected are 0 to 9 and 11 to 15")
        check_hex(f"boot_pcrs.{pcr}", value, 32)


_BOOT_PCR_NAMES = frozenset(str(pcr) for pcr in BOOT_PCRS)
_DIGEST_LENGTHS = frozenset(2 * size for size in DIGEST_SIZES)


def _check_digests(name: str, entries: tuple[tuple[str, str], ...]) -> None:
    """Every digest is lower-case hex of a known size. There may be hundreds of thousands: many at once, but no more
    than the processor's cache holds.
    """
    for start in range(0, len(entries), _CHECKED_AT_ONCE):
        digests = list(map(itemgetter(1), entries[start : start + _CHECKED_AT_ONCE]))
        joined = "".join(digests)
        with contextlib.suppress(ValueError):
            if set(map(len, digests)) <= _DIGEST_LENGTHS and bytes.fromhex(joined).hex() == joined:
                continue
        _blame(name, entries, start)


def _blame(name: str, entries: tuple[tuple[str, str], ...], start: int) -> None:
    for index, (path, digest) in enumerate(entries[start:], start):
        if len(digest) not in _DIGEST_LENGTHS or digest.strip(_HEX):
            raise ValueError(f"{name}[{index}] ({path[:200]!r}): the digest must be lower-case hex of a known length")


def _check_path_bytes(exact: dict[int, str], files: tuple[tuple[str, str], ...]) -> None:
    for index, value in exact.items():
        raw = check_hex(f"path_bytes.{index}", value)
        if not 0 <= index < len(files) or raw.decode(errors="replace") != files[index][0]:
            raise ValueError(f"path_bytes.{index} does not belong to the path at filehashes[{index}]")


def file_entries(files: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[tuple[str, str], ...], dict[int, str]]:
    """``filehashes`` and ``path_bytes`` for exact paths and digests, in the order given."""
    entries = []
    exact = {}
    for index, (path, digest) in enumerate(files):
        try:
            text = path.decode()
        except UnicodeDecodeError:
            text = path.decode(errors="replace")
            exact[index] = path.hex()
        entries.append((text, digest.hex()))
    return tuple(entries), exact


_decoder = msgspec.json.Decoder(Snapshot)
_encoder = msgspec.json.Encoder()
_PLACE = r"(?P<problem>.*) - at `(?:key in )?\$\.?(?P<field>.*)`"


def parse(raw: bytes, what: str) -> Snapshot:
    """Read a snapshot file's content; ``what`` names it in errors.

    Raises InputError naming file and field.
    """
    try:
        return _decoder.decode(raw)
    except msgspec.ValidationError as exc:
        place = re.fullmatch(_PLACE, str(exc), re.DOTALL)
        problem, field = (place["problem"], place["field"]) if place else (str(exc), "")
        where = f", field {_plain(field)}" if field else ""
        raise InputError(f"{what}{where}: {_plain(problem)}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise InputError(f"{what}: not a snapshot, not even JSON: {_plain(str(exc))}") from exc


def _plain(problem: str) -> str:
    """One printable line of what msgspec said, which may quote a key of the file."""
    shown = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in problem[:_SHOWN])
    return " ".join(shown.replace("`", "").split())


def load(path: str | Path) -> Snapshot:
    """Read a snapshot file. Raises InputError naming file and field."""
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_SNAPSHOT_SIZE + 1)
    except (OSError, ValueError) as exc:
        raise InputError(f"{path}: cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc
    if len(raw) > MAX_SNAPSHOT_SIZE:
        raise InputError(f"{path}: larger than {MAX_SNAPSHOT_SIZE} bytes, this is no snapshot")
    return parse(raw, str(path))


def serialise(snapshot: Snapshot) -> bytes:
    """The file's content: JSON in one line, and a line feed."""
    return _encoder.encode(snapshot) + b"\n"
