"""TCG event log of a measured boot: what firmware and boot loaders say they extended into each PCR. Little-endian.

Source: TCG PC Client Platform Firmware Profile 1.06, section 10 (TCG_PCR_EVENT, TCG_PCR_EVENT2, TCG_EfiSpecIDEvent,
StartupLocality), and TCG EFI Platform Specification 1.22 for SHA-1 logs. Intel's CCEL (Guest-Hypervisor Communication
Interface for TDX) has the same format with another meaning of the index: n stands for RTMR n-1, 0 for MRTD.

The log is a claim. What it says counts only as far as it replays to PCR values that are quoted, and even then the
text of most events is not what was hashed: descriptions are for people, decisions stand on digests.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from cosmian_vm._reader import Reader
from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence._boot_events import EventType, describe_data, type_name
from cosmian_vm.evidence._tpm_constants import HASH_SIZES, Alg, algorithm_name, hash_by_name, tpm_hash

__all__ = [
    "CRYPTO_AGILE",
    "MAX_EVENTS",
    "SHA1_LEGACY",
    "SPEC_ID_SIGNATURE",
    "BootEvent",
    "EventLog",
    "EventType",
    "SpecId",
    "extensions",
    "make_log",
    "parse",
    "replay",
    "serialise",
    "startup_locality",
    "startup_value",
]

CRYPTO_AGILE = "crypto-agile"
SHA1_LEGACY = "sha1"

SPEC_ID_SIGNATURE = b"Spec ID Event03\0"
"""First 16 bytes of the first event's data in a crypto-agile log."""
_LOCALITY_SIGNATURE = b"StartupLocality\0"

MAX_EVENTS = 32768
"""Real logs have some hundred events."""
_MAX_PCR = 23
_MAX_ALGORITHMS = 16
_WHAT = "TCG event log"


class BootEvent(NamedTuple):
    """One event. ``number``: position in the log, from 0. ``pcr``: index as written. ``type``: TCG event type.
    ``digests``: (TPM_ALG_ID, digest) in the order of the log. ``data``: the event field. ``offset``: in the log, bytes.
    """

    number: int
    pcr: int
    type: int
    digests: tuple[tuple[int, bytes], ...]
    data: bytes
    offset: int = 0

    @property
    def type_name(self) -> str:
        """``EV_SEPARATOR``; the number in hex where the specification has no name for it."""
        return type_name(self.type)

    @property
    def extends(self) -> bool:
        """Whether the event was extended into its PCR: EV_NO_ACTION never is."""
        return self.type != EventType.EV_NO_ACTION

    @property
    def description(self) -> str:
        """One short, printable line about ``data``. Most of it is not what was hashed."""
        return describe_data(self.type, self.data)

    def digest(self, algorithm: int) -> bytes | None:
        """The digest of one bank (TPM_ALG_ID), None where the event has none."""
        return next((digest for alg, digest in self.digests if alg == algorithm), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecId:
    """TCG_EfiSpecIDEvent: the header of a crypto-agile log. ``algorithms``: (TPM_ALG_ID, digest size in bytes)."""

    platform_class: int = 0
    version_minor: int = 0
    version_major: int = 2
    errata: int = 0
    uintn_size: int = 2
    algorithms: tuple[tuple[int, int], ...]
    vendor_info: bytes = b""


class EventLog(NamedTuple):
    """A whole log. ``events``: all, the Spec ID event of a crypto-agile log first. ``format``: CRYPTO_AGILE or
    SHA1_LEGACY. ``spec_id``: None in a SHA-1 log. ``bytes_used``: where the events end; ``trailing``: bytes of padding
    (all 0xff or all zero) after them.
    """

    events: tuple[BootEvent, ...]
    format: str
    spec_id: SpecId | None
    bytes_used: int
    trailing: int = 0
    padding: int = 0

    @property
    def algorithms(self) -> tuple[int, ...]:
        """TPM_ALG_ID of each bank."""
        return (Alg.SHA1,) if self.spec_id is None else tuple(alg for alg, _ in self.spec_id.algorithms)

    @property
    def banks(self) -> tuple[str, ...]:
        """Name of each bank, as the log orders them."""
        return tuple(algorithm_name(alg) for alg in self.algorithms)


def parse(raw: bytes) -> EventLog:
    """Parse a crypto-agile or a SHA-1 log, with or without padding behind it.

    Raises EvidenceFormatError naming event and offset: nothing in it, a truncated event, a digest of an algorithm that
    the header does not announce, a PCR that does not exist, anything but padding at the end.
    """
    reader = Reader(raw, _WHAT)
    if not raw:
        raise reader.error("the log is empty", "event 0")
    first = _legacy_event(reader, 0)
    spec_id = None
    if first.type == EventType.EV_NO_ACTION and first.data.startswith(SPEC_ID_SIGNATURE):
        spec_id = _spec_id(first)
    sizes = dict(spec_id.algorithms) if spec_id is not None else {}
    events = [first]
    while reader.remaining and not _padding_from(raw, reader):
        if len(events) == MAX_EVENTS:
            raise reader.error(f"more than {MAX_EVENTS} events", "events")
        number = len(events)
        events.append(_legacy_event(reader, number) if spec_id is None else _agile_event(reader, number, sizes))
    return EventLog(
        events=tuple(events),
        format=SHA1_LEGACY if spec_id is None else CRYPTO_AGILE,
        spec_id=spec_id,
        bytes_used=reader.position,
        trailing=reader.remaining,
        padding=raw[-1] if reader.remaining else 0,
    )


def _padding_from(raw: bytes, reader: Reader) -> bool:
    """Whether only padding is left; what begins like padding and is none is an error, so this never scans twice."""
    start = raw[reader.position : reader.position + 16]
    if start.strip(b"\xff") and start.strip(b"\0"):
        return False
    if raw[reader.position :].strip(start[:1]):
        raise reader.error("what looks like padding has other bytes in it", "padding")
    return True


def _event_start(reader: Reader, number: int) -> tuple[int, int]:
    """PCR index and event type; the PCR must exist where the event extends it."""
    offset = reader.position
    pcr = reader.u32(f"event {number}.pcrIndex")
    kind = reader.u32(f"event {number}.eventType")
    if pcr > _MAX_PCR and kind != EventType.EV_NO_ACTION:
        reader.position = offset
        raise reader.error(f"there is no PCR {pcr}", f"event {number}.pcrIndex")
    return pcr, kind


def _legacy_event(reader: Reader, number: int) -> BootEvent:
    """TCG_PCR_EVENT: u32 pcrIndex, u32 eventType, SHA-1 digest[20], u32 eventSize, event."""
    offset = reader.position
    pcr, kind = _event_start(reader, number)
    digest = reader.take(20, f"event {number}.digest")
    data = _event_data(reader, number)
    return BootEvent(number=number, pcr=pcr, type=kind, digests=((Alg.SHA1, digest),), data=data, offset=offset)


def _agile_event(reader: Reader, number: int, sizes: Mapping[int, int]) -> BootEvent:
    """TCG_PCR_EVENT2: u32 pcrIndex, u32 eventType, u32 count, count x (u16 algorithm, digest), u32 eventSize, event."""
    offset = reader.position
    pcr, kind = _event_start(reader, number)
    count = reader.u32(f"event {number}.digests.count")
    if not 1 <= count <= len(sizes):
        reader.position -= 4
        raise reader.error(f"{count} digests, the header announces {len(sizes)} banks", f"event {number}.digests.count")
    digests: list[tuple[int, bytes]] = []
    for _ in range(count):
        algorithm = reader.u16(f"event {number}.digests.hashAlg")
        if algorithm not in sizes or any(algorithm == seen for seen, _ in digests):
            problem = "is there twice" if algorithm in sizes else "is not announced in the header"
            reader.position -= 2
            raise reader.error(f"{algorithm_name(algorithm)} {problem}", f"event {number}.digests.hashAlg")
        digests.append((algorithm, reader.take(sizes[algorithm], f"event {number}.digests.digest")))
    data = _event_data(reader, number)
    return BootEvent(number=number, pcr=pcr, type=kind, digests=tuple(digests), data=data, offset=offset)


def _event_data(reader: Reader, number: int) -> bytes:
    return reader.take(reader.u32(f"event {number}.eventSize"), f"event {number}.event")


def _spec_id(event: BootEvent) -> SpecId:
    """TCG_EfiSpecIDEvent, after the signature: u32 platformClass, u8 minor, major, errata, uintnSize, u32 n,
    n x (u16 algorithm, u16 size), u8 m, m bytes of vendor information.
    """
    reader = Reader(event.data, f"{_WHAT}, Spec ID event", base=event.offset + 32)
    reader.take(16, "signature")
    platform_class = reader.u32("platformClass")
    minor, major, errata, uintn = reader.take(4, "version")
    count = reader.u32("numberOfAlgorithms")
    if not 1 <= count <= _MAX_ALGORITHMS:
        raise reader.error(f"{count} is not between 1 and {_MAX_ALGORITHMS}", "numberOfAlgorithms")
    algorithms: dict[int, int] = {}
    for _ in range(count):
        algorithm, size = reader.u16("algorithmId"), reader.u16("digestSize")
        if algorithm in algorithms or not 1 <= size <= 64 or HASH_SIZES.get(algorithm, size) != size:
            raise reader.error(f"{algorithm_name(algorithm)} with digests of {size} bytes", "digestSizes")
        algorithms[algorithm] = size
    vendor = reader.take(reader.u8("vendorInfoSize"), "vendorInfo")
    reader.end()
    return SpecId(
        platform_class=platform_class,
        version_minor=minor,
        version_major=major,
        errata=errata,
        uintn_size=uintn,
        algorithms=tuple(algorithms.items()),
        vendor_info=vendor,
    )


def serialise(log: EventLog) -> bytes:
    """The log as it was parsed, padding included."""
    parts = [
        _put_legacy(event) if log.spec_id is None or n == 0 else _put_agile(event) for n, event in enumerate(log.events)
    ]
    return b"".join(parts) + bytes([log.padding]) * log.trailing


def _put_legacy(event: BootEvent) -> bytes:
    head = event.pcr.to_bytes(4, "little") + event.type.to_bytes(4, "little") + event.digests[0][1]
    return head + len(event.data).to_bytes(4, "little") + event.data


def _put_agile(event: BootEvent) -> bytes:
    digests = b"".join(algorithm.to_bytes(2, "little") + digest for algorithm, digest in event.digests)
    head = event.pcr.to_bytes(4, "little") + event.type.to_bytes(4, "little")
    head += len(event.digests).to_bytes(4, "little") + digests
    return head + len(event.data).to_bytes(4, "little") + event.data


def make_log(banks: Iterable[str], events: Iterable[tuple[int, int, bytes, bytes]]) -> bytes:
    """A crypto-agile log of events (PCR, type, what is hashed, event data), as firmware would write it.

    Raises ValueError for an unknown bank.
    """
    algorithms = [(bank, hash_by_name(bank)) for bank in banks]
    known = tuple((alg, HASH_SIZES[alg]) for _, alg in algorithms if alg is not None)
    if len(known) != len(algorithms):
        raise ValueError(f"an unknown bank among {', '.join(bank for bank, _ in algorithms)}")
    spec = SPEC_ID_SIGNATURE + bytes((0, 0, 0, 0, 0, 2, 0, 2)) + len(known).to_bytes(4, "little")
    spec += b"".join(alg.to_bytes(2, "little") + size.to_bytes(2, "little") for alg, size in known) + b"\0"
    no_action = EventType.EV_NO_ACTION
    parts = [_put_legacy(BootEvent(number=0, pcr=0, type=no_action, digests=((Alg.SHA1, bytes(20)),), data=spec))]
    for number, (pcr, kind, hashed, data) in enumerate(events, 1):
        digests = tuple((alg, bytes(size) if kind == no_action else tpm_hash(alg, hashed)) for alg, size in known)
        parts.append(_put_agile(BootEvent(number=number, pcr=pcr, type=kind, digests=digests, data=data)))
    return b"".join(parts)


def startup_locality(log: EventLog) -> int:
    """The locality of TPM2_Startup by the log's StartupLocality event, 0 where there is none.

    Raises EvidenceFormatError where the event is malformed, or there are several that disagree.
    """
    found: int | None = None
    for event in log.events:
        if event.extends or not event.data.startswith(_LOCALITY_SIGNATURE):
            continue
        if len(event.data) != len(_LOCALITY_SIGNATURE) + 1 or found not in (None, event.data[-1]):
            problem = "StartupLocality is malformed or contradicts an earlier one"
            raise EvidenceFormatError(_WHAT, problem, offset=event.offset, field=f"event {event.number}")
        found = event.data[-1]
    return found or 0


def startup_value(log: EventLog, bank: str, pcr: int) -> bytes:
    """Value of a PCR before the log's first event: zeros, with the startup locality in the last byte of PCR 0."""
    size = HASH_SIZES[_bank(log, bank)]
    return bytes(size - 1) + bytes([startup_locality(log) if pcr == 0 else 0])


def extensions(log: EventLog, bank: str) -> dict[int, list[tuple[BootEvent, bytes]]]:
    """For each PCR that the log extends: its events and their digests in one bank, in order.

    Raises EvidenceFormatError where the log has no such bank, or an event lacks its digest.
    """
    algorithm = _bank(log, bank)
    found: dict[int, list[tuple[BootEvent, bytes]]] = {}
    for event in log.events:
        if not event.extends:
            continue
        digest = event.digest(algorithm)
        if digest is None:
            raise EvidenceFormatError(
                _WHAT, f"has no {bank} digest", offset=event.offset, field=f"event {event.number}"
            )
        found.setdefault(event.pcr, []).append((event, digest))
    return found


def replay(log: EventLog, bank: str) -> dict[int, bytes]:
    """The value of each PCR that the log extends, ascending: what the PCRs hold if the log says it all.

    Raises EvidenceFormatError where the log has no such bank, or an event lacks its digest.
    """
    algorithm = _bank(log, bank)
    values: dict[int, bytes] = {}
    for pcr, steps in sorted(extensions(log, bank).items()):
        value = startup_value(log, bank, pcr)
        for _, digest in steps:
            value = tpm_hash(algorithm, value + digest)
        values[pcr] = value
    return values


def _bank(log: EventLog, bank: str) -> int:
    algorithm = hash_by_name(bank)
    if algorithm is None or algorithm not in log.algorithms:
        raise EvidenceFormatError(_WHAT, f"has no {bank} bank, only {', '.join(log.banks)}")
    return algorithm
