"""Snapshot files: reference values are facts, but nothing in the file says who wrote them."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import msgspec

from cosmian_vm.errors import EvidenceFormatError, InputError
from cosmian_vm.inspection.model import Facts, Kind, Material, Roots
from cosmian_vm.reference.snapshot import Snapshot, parse
from cosmian_vm.verifier.result import Check, ok, skip

__all__ = ["KINDS"]

_LISTS = ("filehashes", "path_bytes")


def _matches(raw: bytes) -> bool:
    return raw[:64].lstrip()[:1] == b"{" and b'"tee_policy"' in raw


def _read(raw: bytes) -> Snapshot:
    try:
        return parse(raw, "snapshot")
    except InputError as exc:
        raise EvidenceFormatError("snapshot", str(exc).removeprefix("snapshot").lstrip(":, ")) from exc


def _facts(raw: bytes, _: Material) -> Facts:
    """All of it but the list of files, of which the number is told: the list is the file itself."""
    snapshot = _read(raw)
    values: Facts = msgspec.to_builtins(snapshot)
    facts: Facts = {"bytes": len(raw)}
    facts |= {name: value for name, value in values.items() if name not in _LISTS}
    facts["files"] = None if snapshot.filehashes is None else len(snapshot.filehashes)
    return facts


def _verify(raw: bytes, _: Material, __: datetime, ___: Roots) -> list[Check]:
    _read(raw)
    unsigned = skip(
        "snapshot.origin",
        "A snapshot is not signed, nothing in it proves who wrote it: keep it where nobody else can change it",
    )
    return [ok("snapshot.format", "All values have the right form"), replace(unsigned, required=True)]


KINDS = (
    Kind(name="snapshot", title="Snapshot of a machine", matches=_matches, facts=_facts, verify=_verify, signed=False),
)
