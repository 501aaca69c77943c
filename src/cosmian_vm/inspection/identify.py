"""Which kind of file is this, and the whole inspection of one: ``cosmian_vm inspect`` without reading and printing.

Pure: the files have been read by the caller; ``at`` and roots are arguments.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import datetime
from functools import cache
from importlib import import_module

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.inspection._wrapping import Wrapped, layers
from cosmian_vm.inspection.material import gather
from cosmian_vm.inspection.model import Facts, Inspection, Kind, Material, Roots
from cosmian_vm.verifier.result import Check, Status, fail

__all__ = ["UNKNOWN", "identify", "inspect", "known_kinds", "material_of"]

UNKNOWN = "unknown"
"""Kind of a file that is nothing we know."""

_MODULES = (
    "azure",
    "cc_event_log",
    "tpm",
    "intel",
    "intel_answer",
    "snp",
    "boot_log",
    "ra_tls",
    "certificate",
    "crl",
    "snapshot",
    "build_reference",
    "bundle",
    "ima",
    "pieces",
)
"""Modules of this package that export KINDS, most specific format first: the first that matches wins."""

# Only for a file whose content says nothing: what its name promises. Folder names count, as in ima/list.txt.
_NAMES = (
    (re.compile(r"(^|[/._-])(ima|runtime_measurements)([/._-]|$)|runtime_measurements"), "ima-log"),
    (re.compile(r"boot_?log|bios|event_?log"), "event-log"),
)


@cache
def known_kinds() -> tuple[Kind, ...]:
    """Every kind of file that can be inspected, in the order in which they are asked."""
    return tuple(kind for module in _MODULES for kind in import_module(f"cosmian_vm.inspection.{module}").KINDS)


def material_of(files: Iterable[tuple[str, bytes]]) -> Material:
    """What ``--with`` named: (name, content) of each file."""
    return gather(files, known_kinds())


def identify(raw: bytes, material: Material, name: str = "") -> Kind | None:
    """The kind of ``raw``: by its content, else by what the material makes of it, else by what its name promises.

    What is wrapped (in hex, say) is nothing known: :func:`inspect` looks inside.
    """
    return _matching(raw) or _claiming(raw, material) or _promised(raw, name)


def _matching(raw: bytes) -> Kind | None:
    return next((kind for kind in known_kinds() if kind.matches(raw)), None)


def _claiming(raw: bytes, material: Material) -> Kind | None:
    return next((kind for kind in known_kinds() if kind.claims is not None and kind.claims(raw, material)), None)


def _unwrapped(raw: bytes, material: Material, kind: Kind | None) -> tuple[Kind, Wrapped] | None:
    """What is inside ``raw``, where it is of a kind that is known (of ``kind``, if that was told), and which."""
    for inside in layers(raw):
        if kind is not None:
            if kind.matches(inside.raw):
                return kind, inside
        elif (found := _matching(inside.raw) or _claiming(inside.raw, material)) is not None:
            return found, inside
    return None


def inspect(
    raw: bytes,
    material: Material,
    *,
    name: str = "",
    verify: tuple[datetime, Roots] | None = None,
    kind: str | None = None,
) -> Inspection:
    """What ``raw`` is, what it says and, with ``verify`` (instant and roots), whether it is authentic.

    ``kind``: do not guess. Never raises for anything in ``raw`` or the material; KeyError where ``kind`` is no kind.
    """
    told = {k.name: k for k in known_kinds()}[kind] if kind is not None else None
    found, encoding = told or _matching(raw), ""
    if (found is None or not found.matches(raw)) and (unwrapped := _unwrapped(raw, material, told)) is not None:
        found, inside = unwrapped
        raw, encoding = inside.raw, inside.encoding
        along = gather(inside.beside, known_kinds())
        material = Material((*along.items, *material.items), (*along.pcrs, *material.pcrs))
    if found is None:
        found = identify(raw, material, name)
    if found is None:
        facts: Facts = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        problem = "the file is empty" if not raw else "not one of the formats that can be inspected"
        refusal = None if verify is None else (fail("format", problem),)
        return Inspection(kind=UNKNOWN, title="unknown", facts=facts, problem=problem, checks=refusal)
    problem = ""
    try:
        facts = found.facts(raw, material)
    except EvidenceFormatError as exc:
        facts, problem = {"bytes": len(raw)}, str(exc)
    if encoding:
        facts = {"encoding": encoding, **facts}
    checks = None if verify is None else _verified(found, raw, material, *verify, problem=problem)
    return Inspection(
        kind=found.name, title=found.title, facts=facts, problem=problem, checks=checks, signed=found.signed
    )


def _verified(
    kind: Kind, raw: bytes, material: Material, at: datetime, roots: Roots, *, problem: str
) -> tuple[Check, ...]:
    """The kind's checks; whatever cannot be read is a failed check, never an exception."""
    try:
        checks = tuple(kind.verify(raw, material, at, roots))
    except EvidenceFormatError as exc:
        return (fail("format", str(exc)),)
    if problem and not any(check.status is Status.FAIL for check in checks):
        return (*checks, fail("format", problem))
    return checks


def _promised(raw: bytes, name: str) -> Kind | None:
    place = "/".join(name.replace("\\", "/").lower().split("/")[-3:])
    for pattern, promised in _NAMES:
        if pattern.search(place):
            if promised == "ima-log":
                promised = "ima-log-ascii" if raw.isascii() else "ima-log-binary"
            return next((kind for kind in known_kinds() if kind.name == promised), None)
    return None
