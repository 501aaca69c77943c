"""What the build of an image says of every machine that boots it: one JSON file, ``*.reference.json``.

A snapshot is the memory of one machine; this is what was known before there was any machine: the hash of each file,
PCR values that were computed and not seen, launch measurements. Reading is strict, and stricter than a snapshot's: a
key that is there twice is refused too, because two readers would take two different values for the expected one.
Nothing in the file proves who wrote it: it is worth as much as the place where it is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
from msgspec import Meta

from cosmian_vm.errors import InputError
from cosmian_vm.reference._files import check_digests, check_path_bytes, decoded, exact_files, plain
from cosmian_vm.reference._policies import U32, U64, Fixed, check_hex

__all__ = [
    "FORMAT",
    "MAX_REFERENCE_SIZE",
    "PREDICTABLE_PCRS",
    "VERSION",
    "BuildReference",
    "Image",
    "Launch",
    "parse",
    "serialise",
]

FORMAT = "cosmian-vm-reference"
"""What ``format`` says: no other JSON file has it."""

VERSION = 1

MAX_REFERENCE_SIZE = 256 * 1024 * 1024
"""Largest file that is read, in bytes (some 2 million files)."""

PREDICTABLE_PCRS = tuple(pcr for pcr in range(16) if pcr != 10)
"""The PCRs of which a value may be expected: all that are quoted, but IMA's."""

_SHA256_SIZE = 32
_PCR_NAMES = frozenset(str(pcr) for pcr in PREDICTABLE_PCRS)
_DATE = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z\Z"


class Image(Fixed, frozen=True, kw_only=True):
    """The disk image: name of its file, size in bytes, SHA-256."""

    sizes: ClassVar[dict[str, int]] = {"sha256": 32}
    counters: ClassVar[tuple[str, ...]] = ("size",)

    name: Annotated[str, Meta(min_length=1)]
    size: U64
    sha256: str


class Launch(Fixed, frozen=True, kw_only=True):
    """A SEV-SNP launch measurement (48 bytes), and all that it was computed for: firmware, virtual processors as
    ``vmm`` makes them, SEV features of the guest (VMSA.SEV_FEATURES).
    """

    sizes: ClassVar[dict[str, int]] = {"measurement": 48, "ovmf_sha256": 32}
    counters: ClassVar[tuple[str, ...]] = ("guest_features",)

    measurement: str
    ovmf_sha256: str
    vcpus: Annotated[int, Meta(ge=1, le=4096)]
    vcpu_type: str
    vcpu_signature: U32
    guest_features: U64
    vmm: Literal["QEMU"]


class BuildReference(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Reference values of an image. Bytes are lower-case hex.

    ``created``: RFC 3339, UTC. ``filehashes``, ``path_bytes``: as in a snapshot, each path once. ``ima_policy``: path
    and digest of each policy file that the booted system loads; None where that is not known. ``pcrs``: predicted
    values, sha256 bank; a PCR that is not there has no expected value. ``launches``: any of them may be the machine's;
    none: not known. ``left_out``: what has no value here, and why.

    Raises ValueError where a value has the wrong form.
    """

    format: Literal["cosmian-vm-reference"]
    version: Literal[1]
    created: Annotated[str, Meta(pattern=_DATE)]
    image: Image
    hash_algorithm: Literal["sha256"]
    filehashes: tuple[tuple[str, str], ...]
    path_bytes: dict[int, str] = {}
    ima_policy: tuple[tuple[str, str], ...] | None
    pcrs: dict[str, str]
    launches: tuple[Launch, ...]
    left_out: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        for name in ("filehashes", "ima_policy"):
            check_digests(name, getattr(self, name) or ())
        check_path_bytes(self.path_bytes, self.filehashes)
        self._check_files()
        for pcr, value in self.pcrs.items():
            if pcr not in _PCR_NAMES:
                raise ValueError(f"pcrs has the key {pcr[:20]!r}; expected are 0 to 9 and 11 to 15")
            check_hex(f"pcrs.{pcr}", value, _SHA256_SIZE)

    def _check_files(self) -> None:
        for index, (path, digest) in enumerate(self.filehashes):
            if not path.startswith("/") or "\0" in path or len(digest) != 2 * _SHA256_SIZE:
                raise ValueError(f"filehashes[{index}] ({path[:200]!r}) must be an absolute path and its SHA-256")
        paths = [path for path, _ in self.files]
        if len(set(paths)) != len(paths):
            raise ValueError(f"filehashes has {_repeated(paths)[:200].decode(errors='replace')!r} twice")

    @property
    def files(self) -> Iterator[tuple[bytes, bytes]]:
        """Each file's exact path and digest."""
        return exact_files(self.filehashes, self.path_bytes)

    def pcr_values(self) -> dict[int, bytes]:
        """The predicted PCRs (32 bytes each) by index."""
        return {int(pcr): bytes.fromhex(value) for pcr, value in self.pcrs.items()}


_Name = TypeVar("_Name", str, bytes)


def _repeated(names: Iterable[_Name]) -> _Name:
    """The first name that is there for the second time. Raises ValueError where there is none."""
    seen: set[_Name] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    raise ValueError("every name is there once")


_decoder = msgspec.json.Decoder(BuildReference)
_encoder = msgspec.json.Encoder()


def parse(raw: bytes, what: str) -> BuildReference:
    """Read a file's content; ``what`` names it in errors.

    Raises InputError naming file and field.
    """
    if len(raw) > MAX_REFERENCE_SIZE:
        raise InputError(f"{what}: larger than {MAX_REFERENCE_SIZE} bytes, these are no reference values")
    members = _members(raw, what)
    if members.get("format") != FORMAT:
        hint = "; this looks like a snapshot: --snapshot takes it" if "tee_policy" in members else ""
        raise InputError(f"{what}: no reference values of an image (image/build writes them beside it){hint}")
    if members.get("version") != VERSION:
        raise InputError(f"{what}, field version: expected is {VERSION}; a newer release may be needed to read it")
    return decoded(_decoder, raw, what, "reference values")


def _members(raw: bytes, what: str) -> dict[str, Any]:
    """The file's outermost object; a key that any object has twice is an InputError, which msgspec would not see."""
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_once)
    except _TwiceError as exc:
        raise InputError(f"{what}: the key {plain(str(exc))!r} is there twice") from exc
    except (ValueError, RecursionError) as exc:
        raise InputError(f"{what}: not reference values, not even JSON: {plain(str(exc))}") from exc
    return value if isinstance(value, dict) else {}


class _TwiceError(Exception):
    """Carries the key."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _TwiceError(_repeated(key for key, _ in pairs))
    return found


def serialise(reference: BuildReference) -> bytes:
    """The file's content: JSON in one line, and a line feed."""
    return _encoder.encode(reference) + b"\n"
