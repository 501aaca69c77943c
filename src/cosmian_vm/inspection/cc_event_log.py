"""``inspect`` on logs of a TD's run-time measurement registers: CCEL, and dstack's JSON list.

Such a log is as good as the quote that it replays to. Without one, it is only shown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence import boot_log
from cosmian_vm.evidence.cc_event_log import (
    RtmrEventLog,
    is_ccel,
    parse_ccel,
    parse_rtmr_log,
    replay_ccel,
    replay_rtmrs,
)
from cosmian_vm.evidence.intel_quote import Quote, parse_quote
from cosmian_vm.inspection.intel import TDX_QUOTE, intel_roots
from cosmian_vm.inspection.model import Facts, Kind, Material, Roots, hexed
from cosmian_vm.verifier.intel import examine_quote, verify_quote
from cosmian_vm.verifier.result import Check, Status, fail, ok, skip, warning

__all__ = ["KINDS"]

_REPLAY, _DIGESTS = "rtmr_replay", "event_digests"


def _matches_ccel(raw: bytes) -> bool:
    if boot_log.SPEC_ID_SIGNATURE not in raw[:64]:
        return False
    try:
        return is_ccel(boot_log.parse(raw))
    except EvidenceFormatError:
        return _looks_like_ccel(raw)


def _looks_like_ccel(raw: bytes) -> bool:
    """A log that is cut off or damaged: SHA-384 is the only algorithm in its header."""
    return raw[56:64] == b"\x01\x00\x00\x00\x0c\x00\x30\x00"


def _ccel_facts(raw: bytes, material: Material) -> Facts:  # noqa: ARG001 - the interface of a kind
    log = parse_ccel(raw)
    return {
        "format": log.format,
        "banks": list(log.banks),
        "events": len(log.events),
        "bytes": len(raw),
        "bytes_used": log.bytes_used,
        "replay": {"sha384": {str(index): hexed(value) for index, value in boot_log.replay(log, "sha384").items()}},
        "rtmrs": [hexed(value) for value in replay_ccel(log)],
        "event_list": [
            {
                "number": event.number,
                "register": "MRTD" if event.pcr == 0 else f"RTMR{event.pcr - 1}",
                "type": event.type_name,
                "digest": next((hexed(digest) for _, digest in event.digests), ""),
                "description": event.description,
                "data": hexed(event.data),
            }
            for event in log.events
        ],
    }


def _verify_ccel(raw: bytes, material: Material, at: datetime, roots: Roots) -> list[Check]:
    try:
        values = replay_ccel(parse_ccel(raw))
    except EvidenceFormatError as exc:
        return [fail(_REPLAY, str(exc))]
    return _against_quotes(values, material, at, roots)


def _matches_rtmr_log(raw: bytes) -> bool:
    head = raw[:4096]
    return head.lstrip()[:1] == b"[" and all(name in head for name in (b'"imr"', b'"digest"', b'"event_type"'))


def _rtmr_facts(raw: bytes, material: Material) -> Facts:  # noqa: ARG001 - the interface of a kind
    log = parse_rtmr_log(raw)
    return {
        "bytes": len(raw),
        "events": len(log.events),
        "rtmrs": [hexed(value) for value in replay_rtmrs(log)],
        "event_list": [
            {
                "imr": event.imr,
                "event_type": event.event_type,
                "event": event.event,
                "digest": hexed(event.digest),
                "event_payload": hexed(event.payload),
            }
            for event in log.events
        ],
    }


def _verify_rtmr_log(raw: bytes, material: Material, at: datetime, roots: Roots) -> list[Check]:
    try:
        log = parse_rtmr_log(raw)
    except EvidenceFormatError as exc:
        return [fail(_REPLAY, str(exc))]
    return [_digests(log), *_against_quotes(replay_rtmrs(log), material, at, roots)]


def _digests(log: RtmrEventLog) -> Check:
    """Whether what the log says about the running system is what was measured."""
    wrong = [f"event {n}: {event.event!a}" for n, event in enumerate(log.events) if not event.holds]
    if wrong:
        return fail(_DIGESTS, f"{len(wrong)} events of RTMR 3 say something else than what was hashed", wrong)
    return ok(_DIGESTS, "the events of RTMR 3 are what was hashed")


def _against_quotes(values: Sequence[bytes], material: Material, at: datetime, roots: Roots) -> list[Check]:
    """Compare with the quote that the log replays to; if it replays to none, with the first."""
    quotes: list[tuple[str, Quote]] = []
    unusable: list[str] = []
    for item in material.of(TDX_QUOTE):
        try:
            quotes.append((item.name, parse_quote(item.raw)))
        except EvidenceFormatError as exc:
            unusable.append(f"{item.name}: {exc}")
    if not quotes:
        line = "a log alone proves nothing: give the TDX quote that it belongs to with --with"
        return [replace(skip(_REPLAY, unusable[0] if unusable else line), required=True)]
    name, quote = next(((n, q) for n, q in quotes if _wrong(q, values) == []), quotes[0])
    wrong = _wrong(quote, values)
    if wrong:
        listed = ", ".join(f"RTMR {index}" for index in wrong)
        replay = fail(_REPLAY, f"the log does not replay to {listed} of {name}")
    else:
        replay = ok(_REPLAY, f"the log replays to all four RTMRs of {name}")
    return [replay, *_quote_checks(quote, at, roots)]


def _wrong(quote: Quote, values: Sequence[bytes]) -> list[int]:
    quoted = quote.td.rtmrs if quote.td is not None else ()
    return [index for index, value in enumerate(values) if index >= len(quoted) or quoted[index] != value]


def _quote_checks(quote: Quote, at: datetime, roots: Roots) -> list[Check]:
    """That the quote is genuine; what is out of date by now is a warning here: the log is of the quote's time."""
    trusted = intel_roots(roots)
    signed = examine_quote(quote, trusted).path is not None
    checks = []
    for check in verify_quote(quote, None, trusted, at):
        if check.id == "tee.chain" and check.status is Status.FAIL and signed:
            check = warning(check.id, f"at this time, {check.line}", check.details)
        if check.id in ("tee.signature", "tee.chain"):
            checks.append(check)
    return checks


KINDS = (
    Kind(
        name="cc-event-log",
        title="Confidential computing event log (CCEL)",
        matches=_matches_ccel,
        facts=_ccel_facts,
        verify=_verify_ccel,
    ),
    Kind(
        name="rtmr-event-log",
        title="RTMR event log (dstack)",
        matches=_matches_rtmr_log,
        facts=_rtmr_facts,
        verify=_verify_rtmr_log,
    ),
)
