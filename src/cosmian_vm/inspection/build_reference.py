"""Reference values of an image: facts that were computed when it was built; nothing in the file says who wrote it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

import msgspec

from cosmian_vm.errors import EvidenceFormatError, InputError
from cosmian_vm.inspection.model import Facts, Kind, Material, Roots
from cosmian_vm.reference.build_reference import FORMAT, BuildReference, parse
from cosmian_vm.verifier.result import Check, ok, skip

__all__ = ["KINDS"]

_WHAT = "reference values"
_LISTS = ("filehashes", "path_bytes")


def _matches(raw: bytes) -> bool:
    return raw[:64].lstrip()[:1] == b"{" and f'"{FORMAT}"'.encode() in raw


def _read(raw: bytes) -> BuildReference:
    try:
        return parse(raw, _WHAT)
    except InputError as exc:
        raise EvidenceFormatError(_WHAT, str(exc).removeprefix(_WHAT).lstrip(":, ")) from exc


def _facts(raw: bytes, _: Material) -> Facts:
    """All of it but the list of files, of which the number is told: the list is the file itself."""
    reference = _read(raw)
    values: Facts = msgspec.to_builtins(reference)
    facts: Facts = {"bytes": len(raw)}
    facts |= {name: value for name, value in values.items() if name not in _LISTS}
    facts["files"] = len(reference.filehashes)
    return facts


def _verify(raw: bytes, _: Material, __: datetime, ___: Roots) -> list[Check]:
    _read(raw)
    unsigned = skip(
        "reference.origin",
        "Reference values are not signed, nothing in them proves who built the image: build it yourself and compare, "
        "or take them from whom you trust, and keep them where nobody else can change them",
    )
    return [ok("reference.format", "All values have the right form"), replace(unsigned, required=True)]


KINDS = (
    Kind(
        name="reference",
        title="Reference values of an image",
        matches=_matches,
        facts=_facts,
        verify=_verify,
        signed=False,
    ),
)
