"""Event logs of run-time measurement registers (RTMRs): the firmware's CCEL, and dstack's JSON list.

CCEL: the TCG crypto-agile format (evidence.boot_log) with one SHA-384 bank, where measurement register index n stands
for RTMR n-1 and 0 for MRTD; filled up with 0xff or zeros. Source: UEFI 2.10, 38.2 "Confidential Computing", table
"TDX measurement register mapping"; Intel, Guest-Hypervisor Communication Interface for TDX, ACPI table CCEL.

dstack: ``[{"imr", "event_type", "digest", "event", "event_payload"}]``, all four registers in one list, digests and
payloads in hex. Events of the running system (RTMR 3) are named, and their digest is
SHA-384(event_type as u32 little-endian || ":" || event || ":" || payload).

An RTMR starts as 48 zero bytes; extending it is SHA-384(value || digest).
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from hashlib import sha384

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence import boot_log
from cosmian_vm.evidence.tdx import RTMR_COUNT

__all__ = [
    "RtmrEvent",
    "RtmrEventLog",
    "extend",
    "is_ccel",
    "parse_ccel",
    "parse_rtmr_log",
    "replay_ccel",
    "replay_rtmrs",
    "serialise_rtmr_log",
]

RTMR_SIZE = 48
RUNTIME_REGISTER = 3
"""The RTMR that the running system extends; the others belong to the boot."""
MAX_RTMR_LOG = 16 * 1024 * 1024
"""A longer JSON list is refused; real ones have some 10 KiB."""

_BANK = "sha384"
_WHAT = "RTMR event log"


@dataclass(frozen=True, slots=True, kw_only=True)
class RtmrEvent:
    """One event of a dstack list. ``imr``: index of the RTMR. ``digest``: 48 bytes. ``event``: its name, empty in the
    boot's. ``payload``: bytes.
    """

    imr: int
    event_type: int
    digest: bytes
    event: str
    payload: bytes = field(repr=False)

    @property
    def named_digest(self) -> bytes:
        """What the digest of a named event must be."""
        kind = self.event_type.to_bytes(4, "little")
        return sha384(b":".join((kind, self.event.encode("utf-8", "surrogatepass"), self.payload))).digest()

    @property
    def holds(self) -> bool:
        """Whether the digest is that of name and payload, where the format says so (RTMR 3); True elsewhere."""
        return self.imr != RUNTIME_REGISTER or self.digest == self.named_digest


@dataclass(frozen=True, slots=True)
class RtmrEventLog:
    """A whole dstack list, in order."""

    events: tuple[RtmrEvent, ...]


def extend(value: bytes, digest: bytes) -> bytes:
    """An RTMR after one more event."""
    return sha384(value + digest).digest()


def replay_rtmrs(log: RtmrEventLog) -> tuple[bytes, ...]:
    """The four RTMRs after all events of the list."""
    values = [bytes(RTMR_SIZE)] * RTMR_COUNT
    for event in log.events:
        values[event.imr] = extend(values[event.imr], event.digest)
    return tuple(values)


def parse_rtmr_log(raw: bytes) -> RtmrEventLog:
    """Parse dstack's JSON list.

    Raises EvidenceFormatError naming the entry and the member that is missing or of another form.
    """
    if len(raw) > MAX_RTMR_LOG:
        raise EvidenceFormatError(_WHAT, f"{len(raw)} bytes, more than {MAX_RTMR_LOG}")
    try:
        loaded = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as exc:
        raise EvidenceFormatError(_WHAT, f"is not JSON: {' '.join(str(exc).split())[:200]}") from exc
    if not isinstance(loaded, list):
        raise EvidenceFormatError(_WHAT, "is not a JSON list")
    return RtmrEventLog(tuple(_event(entry, number) for number, entry in enumerate(loaded)))


def _event(entry: object, number: int) -> RtmrEvent:
    if not isinstance(entry, dict):
        raise _problem(number, "", "is not an object")
    imr = _integer(entry.get("imr"), number, "imr", RTMR_COUNT - 1)
    digest = _hex(entry.get("digest"), number, "digest")
    if len(digest) != RTMR_SIZE:
        raise _problem(number, "digest", f"is {len(digest)} bytes long, not {RTMR_SIZE}")
    name = entry.get("event")
    if not isinstance(name, str):
        raise _problem(number, "event", "is not a string")
    return RtmrEvent(
        imr=imr,
        event_type=_integer(entry.get("event_type"), number, "event_type", 0xFFFFFFFF),
        digest=digest,
        event=name,
        payload=_hex(entry.get("event_payload"), number, "event_payload"),
    )


def _problem(number: int, member: str, problem: str) -> EvidenceFormatError:
    return EvidenceFormatError(_WHAT, problem, field=f"event {number}{member and '.'}{member}")


def _integer(value: object, number: int, member: str, highest: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= highest:
        raise _problem(number, member, f"is not a number from 0 to {highest}")
    return value


def _hex(value: object, number: int, member: str) -> bytes:
    try:
        if isinstance(value, str):
            return bytes.fromhex(value)
    except ValueError:
        pass
    raise _problem(number, member, "is not hex")


def serialise_rtmr_log(log: RtmrEventLog) -> bytes:
    """The list as JSON again; whitespace is not kept."""
    return json.dumps(
        [
            {
                "imr": event.imr,
                "event_type": event.event_type,
                "digest": event.digest.hex(),
                "event": event.event,
                "event_payload": event.payload.hex(),
            }
            for event in log.events
        ]
    ).encode()


def is_ccel(log: boot_log.EventLog) -> bool:
    """Whether a TCG log is a CCEL: SHA-384 alone, and no register that a TD does not have.

    The boot of any PC extends PCRs 5 and 7, so a TPM's log is never taken for one.
    """
    registers = {event.pcr for event in log.events if event.extends}
    return log.banks == (_BANK,) and bool(registers) and max(registers) <= RTMR_COUNT


def parse_ccel(raw: bytes) -> boot_log.EventLog:
    """Parse a CCEL. Raises EvidenceFormatError where it is no event log, or one of a TPM."""
    log = boot_log.parse(raw)
    if not is_ccel(log):
        raise EvidenceFormatError("CC event log", f"banks {', '.join(log.banks)} and registers are not those of a TD")
    return log


def replay_ccel(log: boot_log.EventLog) -> tuple[bytes, ...]:
    """The four RTMRs after all events of a CCEL: register n of the log is RTMR n-1. Raises EvidenceFormatError."""
    values = boot_log.replay(log, _BANK)
    return tuple(values.get(index + 1, bytes(RTMR_SIZE)) for index in range(RTMR_COUNT))
