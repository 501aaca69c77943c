"""``cosmian_vm inspect`` for boot event logs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.boot_log import (
    SPEC_ID_SIGNATURE,
    BootEvent,
    EventLog,
    EventType,
    parse,
    replay,
    startup_locality,
)
from cosmian_vm.evidence.tpm import algorithm_name, hash_by_name, tpm_hash
from cosmian_vm.inspection._tpm_material import parsed_quotes, resolve_pcrs
from cosmian_vm.inspection.model import JSON, Facts, Kind, Material, Roots
from cosmian_vm.inspection.tpm import check_digest, check_nonce, no_quote
from cosmian_vm.verifier.boot import EXTENDED_AFTER_BOOT
from cosmian_vm.verifier.result import Check, fail, ok, skip, warning

__all__ = ["KINDS"]

_KNOWN_TYPES = frozenset(int(kind) for kind in EventType if kind != EventType.EV_PREBOOT_CERT)
_HASHED_AS_LOGGED = frozenset({EventType.EV_SEPARATOR, EventType.EV_ACTION, EventType.EV_EFI_ACTION})
"""Types whose digest is that of the event's data, whatever the firmware (PFP 1.06, 10.4.1)."""
_IMA_PCR = 10
_OUTSIDE = EXTENDED_AFTER_BOOT | {_IMA_PCR}
"""PCRs that the running system extends without writing to this log."""


@dataclass(frozen=True, slots=True)
class _Compared:
    """The log beside PCR values: ``bank``, and the PCRs on which they agree or not. ``source``: whose values."""

    bank: str
    equal: tuple[int, ...]
    differ: tuple[int, ...]
    source: str


def _matches(raw: bytes) -> bool:
    """A Spec ID event, or a whole SHA-1 log that begins with an event of a known type."""
    no_action = int(EventType.EV_NO_ACTION).to_bytes(4, "little")
    if raw[32:48] == SPEC_ID_SIGNATURE and raw[4:8] == no_action:
        return True
    if len(raw) < 32 or int.from_bytes(raw[4:8], "little") not in _KNOWN_TYPES:
        return False
    try:
        return bool(parse(raw).events)
    except EvidenceFormatError:
        return False


def _replays(log: EventLog) -> tuple[dict[str, dict[int, bytes]], dict[str, str]]:
    """The replay of each bank, and why not of the others."""
    values: dict[str, dict[int, bytes]] = {}
    problems: dict[str, str] = {}
    for bank in log.banks:
        try:
            values[bank] = replay(log, bank)
        except EvidenceFormatError as exc:
            problems[bank] = str(exc)
    return values, problems


def _facts(raw: bytes, material: Material) -> Facts:
    log = parse(raw)
    replayed, _ = _replays(log)
    facts: Facts = {
        "format": log.format,
        "banks": list(log.banks),
        "events": len(log.events),
        "bytes": len(raw),
        "bytes_used": log.bytes_used,
        "startup_locality": startup_locality(log),
        "replay": {bank: {str(pcr): value.hex() for pcr, value in values.items()} for bank, values in replayed.items()},
        "event_list": [_event_facts(event) for event in log.events],
    }
    compared = _compare(replayed, material)
    if compared is not None:
        facts["replayed_pcrs_equal_quoted"] = list(compared.equal)
        facts["replayed_pcrs_differ"] = list(compared.differ)
    return facts


def _event_facts(event: BootEvent) -> dict[str, JSON]:
    return {
        "number": event.number,
        "pcr": event.pcr,
        "type": event.type_name,
        "digests": {algorithm_name(algorithm): digest.hex() for algorithm, digest in event.digests},
        "description": event.description,
        "data": event.data.hex(),
    }


def _compare(replayed: Mapping[str, Mapping[int, bytes]], material: Material) -> _Compared | None:
    """The strongest bank of the log beside the values of a quote, else beside values that nobody signed."""
    sources = []
    for quote_name, quote in parsed_quotes(material):
        banks = resolve_pcrs(quote, material, None).banks
        if banks:
            sources.append((quote_name, banks))
    if not sources:
        sources = [(values.name, values.banks) for values in material.pcrs]
    for source, banks in sources:
        for bank in reversed(list(replayed)):
            both = [pcr for pcr in replayed[bank] if pcr in banks.get(bank, {})]
            if both:
                equal = tuple(pcr for pcr in both if replayed[bank][pcr] == banks[bank][pcr])
                return _Compared(bank, equal, tuple(pcr for pcr in both if pcr not in equal), source)
    return None


def _verify(raw: bytes, material: Material, at: datetime, roots: Roots) -> list[Check]:  # noqa: ARG001 - a Kind's form
    try:
        log = parse(raw)
        startup_locality(log)
    except EvidenceFormatError as exc:
        return [fail("replay", str(exc))]
    replayed, problems = _replays(log)
    if not replayed:
        return [fail("replay", next(iter(problems.values())))]
    listed = [f"{bank}: PCR {', '.join(map(str, values)) or 'none'}" for bank, values in replayed.items()]
    line = f"{len(log.events)} events replay in {', '.join(replayed)}"
    checks = [warning("replay", f"{line}; not in {', '.join(problems)}", problems.values())] if problems else []
    checks = checks or [ok("replay", line, listed)]
    checks += _check_texts(log)
    quotes = list(parsed_quotes(material))
    for _, quote in quotes[:1]:
        checks += [check_nonce(quote, material), check_digest(resolve_pcrs(quote, material, None))]
        checks.append(skip("tpm.signature", "inspect the quote itself for its signature"))
    if not quotes:
        checks.append(no_quote("log"))
    checks.append(_check_pcrs(replayed, material))
    return checks


def _check_texts(log: EventLog) -> list[Check]:
    """Events whose text must be what was hashed."""
    wrong = []
    for event in log.events:
        if event.type in _HASHED_AS_LOGGED:
            for algorithm, digest in event.digests:
                if _hashed(algorithm, event.data) not in (digest, None):
                    wrong.append(f"event {event.number}, {event.type_name}: {event.description}")
                    break
    if not wrong:
        return []
    return [warning("event_digests", f"{len(wrong)} events say something else than what was hashed", wrong)]


def _hashed(algorithm: int, data: bytes) -> bytes | None:
    if hash_by_name(algorithm_name(algorithm)) is None:
        return None
    try:
        return tpm_hash(algorithm, data)
    except EvidenceFormatError:
        return None


def _check_pcrs(replayed: Mapping[str, Mapping[int, bytes]], material: Material) -> Check:
    compared = _compare(replayed, material)
    if compared is None:
        return skip("tpm.boot_pcrs", "give a quote and its PCR values with --with to compare the log with")
    wrong = [pcr for pcr in compared.differ if pcr not in _OUTSIDE]
    if wrong:
        listed = ", ".join(map(str, wrong))
        return fail("tpm.boot_pcrs", f"the log does not replay to PCR {listed} of {compared.source} ({compared.bank})")
    beyond = [f"PCR {pcr} was extended after boot, beyond this log" for pcr in compared.differ]
    listed = ", ".join(map(str, compared.equal)) or "none"
    line = f"the log replays to PCR {listed} of {compared.source} ({compared.bank})"
    return ok("tpm.boot_pcrs", line, beyond) if compared.equal else warning("tpm.boot_pcrs", line, beyond)


KINDS = (Kind(name="event-log", title="TCG boot event log", matches=_matches, facts=_facts, verify=_verify),)
