"""What the TPM remembers of a container: bytes of an NV index and back, and the policy that it is written under. Pure.

The content of the index, big-endian, 168 bytes::

    0    4   magic "CVM1"
    4    4   PCRs of the sha256 bank, bit i for PCR i
    8   32   SHA-256 of the container's absolute path
    40  32   SHA-256 of the whole header file
    72  96   24 times the first 4 bytes of a PCR's value when it was written (zeros for those not named)

The last field only serves to say *which* PCR has changed; that none has is said by the index's policy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from cosmian_vm._reader import Reader
from cosmian_vm.errors import EvidenceFormatError

__all__ = ["RECORD_SIZE", "Record", "make_record", "parse_record", "policy_digest", "serialize_record"]

RECORD_SIZE = 168

_WHAT = "container's record in the TPM"
_MAGIC = b"CVM1"
_PCRS = 24
_PREFIX = 4
_POLICY_PCR = 0x0000017F  # Part 2, 6.5.2: TPM_CC_PolicyPCR
_SHA256 = 0x000B


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """``location`` and ``header`` are SHA-256 digests, ``pcrs`` ascending, ``prefixes`` the 4 bytes of each of them."""

    location: bytes
    header: bytes
    pcrs: tuple[int, ...]
    prefixes: tuple[bytes, ...]

    def changed(self, values: Mapping[int, bytes]) -> list[int]:
        """The PCRs whose value is no longer the one of then."""
        return [pcr for pcr, prefix in zip(self.pcrs, self.prefixes, strict=True) if values[pcr][:_PREFIX] != prefix]


def make_record(location: bytes, header: bytes, values: Mapping[int, bytes]) -> Record:
    """The record of a container whose digests are these, written while the PCRs have ``values``."""
    pcrs = tuple(sorted(values))
    return Record(location=location, header=header, pcrs=pcrs, prefixes=tuple(values[pcr][:_PREFIX] for pcr in pcrs))


def serialize_record(record: Record) -> bytes:
    """The bytes that ``parse_record`` reads."""
    prefixes = dict(zip(record.pcrs, record.prefixes, strict=True))
    return (
        _MAGIC
        + sum(1 << pcr for pcr in record.pcrs).to_bytes(4, "big")
        + record.location
        + record.header
        + b"".join(prefixes.get(pcr, bytes(_PREFIX)) for pcr in range(_PCRS))
    )


def parse_record(raw: bytes) -> Record:
    """Parse the content of the NV index. Raises EvidenceFormatError."""
    reader = Reader(raw, _WHAT)
    if reader.take(4, "magic") != _MAGIC:
        raise EvidenceFormatError(_WHAT, "is none of ours", offset=0, field="magic")
    mask = reader.uint(4, "PCRs", big=True)
    if not mask or mask >> _PCRS:
        raise EvidenceFormatError(_WHAT, "expected are some of 0 to 23", offset=4, field="PCRs")
    location, header = reader.take(32, "location"), reader.take(32, "header")
    pcrs, prefixes = [], []
    for pcr in range(_PCRS):
        if mask >> pcr & 1:
            pcrs.append(pcr)
            prefixes.append(reader.take(_PREFIX, f"PCR {pcr}"))
        else:
            reader.zeros(_PREFIX, f"PCR {pcr}")
    reader.end()
    return Record(location=location, header=header, pcrs=tuple(pcrs), prefixes=tuple(prefixes))


def policy_digest(values: Mapping[int, bytes]) -> bytes:
    """The policy that is satisfied while these PCRs of the sha256 bank have these values.

    Part 3, 23.7 TPM2_PolicyPCR: H(zeros || command code || TPML_PCR_SELECTION || H(values)).
    """
    pcrs: Sequence[int] = sorted(values)
    bits = sum(1 << pcr for pcr in pcrs).to_bytes(3, "little")
    selection = (1).to_bytes(4, "big") + _SHA256.to_bytes(2, "big") + b"\x03" + bits
    digest = sha256(b"".join(values[pcr] for pcr in pcrs)).digest()
    return sha256(bytes(32) + _POLICY_PCR.to_bytes(4, "big") + selection + digest).digest()
