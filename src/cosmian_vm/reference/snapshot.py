"""The snapshot: the reference values of one machine, one JSON file that 1.3.x reads and that reads theirs.

The first four fields are those of 1.3.x, with its JSON types (see ``_policies``); ours stand beside them at the top
level, where its reader ignores them. A 1.3.x file has none of ours: ``version`` is then 1. Reading is strict: an
unknown key, a wrong type or a wrong length is an InputError that names file and field, because a reference value that
is silently not understood would be a check that is silently not made.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import UNSET, Meta

from cosmian_vm.errors import InputError
from cosmian_vm.reference._files import (
    DIGEST_SIZES,
    check_digests,
    check_path_bytes,
    decoded,
    exact_files,
    file_entries,
)
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

Anchor = Literal["tee", "svsm", "certificate", "operator"]
"""Who vouches for the AK."""

_REFERENCE_FORMAT = b'"cosmian-vm-reference"'  # what build_reference.FORMAT says, in the other kind of file
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
    had measured. ``reported_tcb``: of the SNP report, 8 bytes, below which no later one may fall; ``platform_info``:
    of the same report, 64 bits. ``owners``: () is an
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
    platform_info: U64 | None = None
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
            check_digests(name, getattr(self, name) or ())
        check_path_bytes(self.path_bytes, self.filehashes or ())

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
        return exact_files(self.filehashes or (), self.path_bytes)

    def boot_pcr_values(self) -> dict[int, bytes]:
        """The boot PCRs (sha256 bank, 32 bytes each) by index; empty where the snapshot has none."""
        return {int(pcr): bytes.fromhex(value) for pcr, value in (self.boot_pcrs or {}).items()}


def _check_platform(snapshot: Snapshot) -> None:
    for name in ("clock", "platform_info"):
        value = getattr(snapshot, name)
        if value is not None and value >= _CLOCK_END:
            raise ValueError(f"{name} must fit 64 bits")
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


_decoder = msgspec.json.Decoder(Snapshot)
_encoder = msgspec.json.Encoder()


def parse(raw: bytes, what: str) -> Snapshot:
    """Read a snapshot file's content; ``what`` names it in errors.

    Raises InputError naming file and field.
    """
    try:
        return decoded(_decoder, raw, what, "a snapshot")
    except InputError as exc:
        if _REFERENCE_FORMAT in raw:
            raise InputError(f"{what}: no snapshot, but reference values of an image: --reference takes them") from exc
        if raw.lstrip()[:1] == b"{" and b'"tee_policy"' not in raw:
            raise InputError(f"{exc}; this is no snapshot: cosmian_vm snapshot takes one") from exc
        raise


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
