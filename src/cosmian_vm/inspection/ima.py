"""``cosmian_vm inspect`` for IMA measurement lists, binary and ASCII.

A list proves nothing by itself: it is authentic as far as every template hash is that of its data, and with a quote
(or PCR values that somebody read out) beside it, as far as a prefix of it leads to PCR 10.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime

from cosmian_vm.endorsements.amd import load_certificate
from cosmian_vm.errors import EndorsementError, EvidenceFormatError
from cosmian_vm.evidence.ima import (
    BOOT_AGGREGATE,
    IMA_PCR,
    MAX_PCR,
    MAX_TEMPLATE_NAME,
    PCR_SIZES,
    TEMPLATES,
    ImaEntry,
    ImaFields,
    format_digest,
    format_path,
    parse_ascii,
    parse_binary,
    replay,
    template_hash,
)
from cosmian_vm.inspection._ima_signatures import DIGITAL_SIGNATURE, key_id, keys_in, parse_signature, verifies
from cosmian_vm.inspection._tpm_material import QUOTE, boot_aggregate_problem, parsed_quotes, resolve_pcrs
from cosmian_vm.inspection.certificate import certificate_facts
from cosmian_vm.inspection.model import JSON, Facts, Item, Kind, Material, Roots, hexed
from cosmian_vm.inspection.tpm import KINDS as TPM_KINDS
from cosmian_vm.inspection.tpm import no_quote
from cosmian_vm.verifier.result import Check, fail, ok, skip, warning

__all__ = ["KINDS"]

_BINARY, _ASCII = "ima-log-binary", "ima-log-ascii"
_PARSERS: Mapping[str, Callable[[bytes], tuple[ImaEntry, ...]]] = {_BINARY: parse_binary, _ASCII: parse_ascii}
_FIRST_LINE = re.compile(rb" {0,2}[0-9]{1,2} [0-9a-f]{40,128} [!-~]{1,255} ")
_FIELD_LIST = re.compile(rb"d(?:-ng|-ngv2)?\|n(?:-ng)?(?:\|[a-z0-9-]{1,31})*")

_READ_OUT = "qall"
"""Key in ``entries_in_quote`` of PCR values that were given without a quote over them: those of all PCRs."""

_Entries = tuple[ImaEntry, ...]


def _matches_binary(raw: bytes) -> bool:
    """PCR, and the length and name of a template that the kernel has had."""
    if len(raw) < 32 or int.from_bytes(raw[:4], "little") > MAX_PCR:
        return False
    length = int.from_bytes(raw[24:28], "little")
    name = raw[28 : 28 + length] if length <= MAX_TEMPLATE_NAME else b""
    return name.decode("ascii", "replace") in TEMPLATES or _FIELD_LIST.fullmatch(name) is not None


def _matches_ascii(raw: bytes) -> bool:
    return _FIRST_LINE.match(raw) is not None


def _parsed(entry: ImaEntry) -> ImaFields | None:
    try:
        return entry.fields()
    except EvidenceFormatError:
        return None


def _facts(kind: str, raw: bytes, material: Material) -> Facts:
    entries = _PARSERS[kind](raw)
    parsed = [_parsed(entry) for entry in entries]
    paths = Counter(fields.path for fields in parsed if fields is not None)
    algorithms = Counter(fields.digest_algorithm or "none" for fields in parsed if fields is not None)
    violations = [index for index, entry in enumerate(entries) if entry.is_violation]
    pcrs = sorted({entry.pcr for entry in entries})
    facts: Facts = {
        "bytes": len(raw),
        "entries": len(entries),
        "templates": dict(Counter(entry.template for entry in entries)),
        "digest_algorithms": dict(algorithms),
        "pcrs": pcrs,
        "violations": len(violations),
        "violation_indexes": violations,
        "bad_template_hash_indexes": [index for index, entry in enumerate(entries) if not entry.hash_matches],
        "duplicate_paths": sum(count > 1 for count in paths.values()),
    }
    if entries and (first := parsed[0]) is not None:
        facts["first_entry"] = {"digest": _digest(entries[0], first), "name": format_path(first.path)}
    for pcr in pcrs:
        facts[f"pcr{pcr}"] = {bank: hexed(replay(entries, bank, pcr)) for bank in PCR_SIZES}
    facts |= _signature_facts(parsed, material)
    if len(entries) == 1 and parsed[0] is not None and parsed[0].buffer is not None:
        facts |= _buffer_facts(parsed[0])
    if quoted := _entries_in_quote(kind, raw, entries, material):
        facts["entries_in_quote"] = quoted
    facts["measurements"] = [_entry_facts(*pair) for pair in zip(entries, parsed, strict=True)]
    return facts


def _digest(entry: ImaEntry, fields: ImaFields) -> str:
    """As the list prints it: the legacy template names no algorithm."""
    return hexed(fields.digest) if entry.template == "ima" else format_digest(fields)


def _entry_facts(entry: ImaEntry, fields: ImaFields | None) -> dict[str, JSON]:
    facts: dict[str, JSON] = {
        "pcr": entry.pcr,
        "template_hash": hexed(entry.template_hash),
        "template": entry.template,
    }
    if fields is None:
        return {**facts, "data": hexed(entry.data)}
    facts |= {"digest": _digest(entry, fields), "path": format_path(fields.path)}
    return facts | {name: hexed(value) for name, value in tuple(fields.raw.items())[2:]}


def _signature_facts(parsed: list[ImaFields | None], material: Material) -> Facts:
    """``signatures``: their headers. ``file_signatures``: those of which a key was given, and whether they verify."""
    keys = [(key_id(key.key), key) for key in keys_in(material)]
    headers: list[JSON] = []
    verified: list[JSON] = []
    for index, fields in enumerate(parsed):
        if fields is None or not fields.signature:
            continue
        where: dict[str, JSON] = {"index": index, "path": format_path(fields.path)}
        signature = parse_signature(fields.signature)
        if signature is None:
            headers.append({**where, "bytes": len(fields.signature)})
            continue
        headers.append(
            {
                **where,
                "type": signature.type,
                "version": signature.version,
                "hash": signature.hash,
                "keyid": hexed(signature.keyid),
                "length": signature.length,
                "bytes": len(signature.value),
            }
        )
        verified += (
            {
                **where,
                "keyid": hexed(signature.keyid),
                "key": key.name,
                "verifies": verifies(signature, fields.digest, key.key),
            }
            for keyid, key in keys
            if keyid == signature.keyid and signature.type == DIGITAL_SIGNATURE
        )
    return {"signatures": headers, "file_signatures": verified} if verified else {"signatures": headers}


def _buffer_facts(fields: ImaFields) -> Facts:
    """Of the one entry of a list: what was measured, which stands in the list itself."""
    buffer = fields.buffer or b""
    try:
        text = buffer.decode()  # as it is: the frame escapes what a terminal must not see
    except UnicodeDecodeError:
        text = hexed(buffer)
    digest = template_hash(ImaEntry(0, b"", "", buffer), fields.digest_algorithm or "sha1") if _known(fields) else None
    facts: Facts = {
        "event": format_path(fields.path),
        "buffer": text,
        "buffer_digest_ok": digest == fields.digest,
    }
    if digest is not None:
        facts[f"buffer_{fields.digest_algorithm}"] = hexed(digest)
    try:
        certificate = load_certificate(buffer)
    except EndorsementError:
        return facts
    facts["certificate"] = certificate_facts(certificate)
    for key in keys_in(Material((Item("certificate", "", buffer),))):
        facts["keyid"] = hexed(key_id(key.key))
    return facts


def _known(fields: ImaFields) -> bool:
    return fields.digest_algorithm in PCR_SIZES


def _with_list(kind: str, raw: bytes, material: Material) -> Material:
    """The material, and this list in the place of any other."""
    others = tuple(item for item in material.items if item.kind not in _PARSERS)
    return Material((*others, Item(kind, "this list", raw)), material.pcrs)


def _entries_in_quote(kind: str, raw: bytes, entries: _Entries, material: Material) -> dict[str, JSON]:
    """By the name of a quote's file: how many entries it vouches for, None: no prefix of this list replays to it."""
    together = _with_list(kind, raw, material)
    found: dict[str, JSON] = {}
    for name, quote in parsed_quotes(material):
        if any(IMA_PCR in selection.pcrs for selection in quote.pcr_selections):
            found[_stem(name)] = resolve_pcrs(quote, together, None).entries
    if material.pcrs and _READ_OUT not in found:
        found[_READ_OUT] = _prefix_of_values(entries, material)
    return found


def _stem(name: str) -> str:
    """A file's name without folder and suffix."""
    base = name.replace("\\", "/").rpartition("/")[2]
    return base.rpartition(".")[0] or base


def _prefix_of_values(entries: _Entries, material: Material) -> int | None:
    """How many entries lead to the PCR 10 that was read out, in the strongest bank; None: none do."""
    for bank in reversed(PCR_SIZES):
        wanted = material.pcr(bank, IMA_PCR)
        if wanted is None:
            continue
        value = bytes(PCR_SIZES[bank])
        for count, entry in enumerate(entries, 1):
            value = replay((entry,), bank, start=value)
            if value == wanted:
                return count
    return None


def _verify(kind: str, raw: bytes, material: Material, at: datetime, roots: Roots) -> list[Check]:
    try:
        entries = _PARSERS[kind](raw)
    except EvidenceFormatError as exc:
        return [fail("ima.replay", str(exc))]
    together = _with_list(kind, raw, material)
    checks: list[Check] = []
    for item in together.of(QUOTE):
        told = TPM_KINDS[0].verify(item.raw, together, at, roots)
        checks += (check for check in told if not check.id.startswith("ima."))
    if not checks:
        checks.append(no_quote("list"))
    checks.append(_check_replay(entries, together))
    checks.append(_check_boot_aggregate(entries, together))
    checks += _check_signatures(entries, material)
    violations = [format_path(entry.path or b"?") for entry in entries if entry.is_violation]
    if violations:
        line = f"{len(violations)} of {len(entries)} entries are violations (written while read or executed)"
        checks.append(warning("ima.violations", line, violations))
    return checks


def _check_replay(entries: _Entries, material: Material) -> Check:
    """Every template hash is that of its data, and a prefix leads to each PCR 10 that was given."""
    name = "ima.replay"
    if not entries:
        return fail(name, "the list is empty")
    wrong = [index for index, entry in enumerate(entries) if not entry.hash_matches]
    if wrong:
        details = [f"entry {index} ({format_path(entries[index].path or b'?')})" for index in wrong]
        return fail(name, f"the template hash of {details[0]} is not that of its data", details)
    lines = []
    for source, quote in parsed_quotes(material):
        if not any(IMA_PCR in selection.pcrs for selection in quote.pcr_selections):
            continue
        resolved = resolve_pcrs(quote, material, None)
        if resolved.entries is None:
            return fail(name, f"no prefix of the list leads to the PCR {IMA_PCR} that {source} quotes")
        lines.append(f"the first {resolved.entries} of {len(entries)} entries lead to the PCR {IMA_PCR} of {source}")
    if not lines and any(material.pcr(bank, IMA_PCR) for bank in PCR_SIZES):
        count = _prefix_of_values(entries, material)
        if count is None:
            return fail(name, f"no prefix of the list leads to the PCR {IMA_PCR} given")
        lines.append(
            f"the first {count} of {len(entries)} entries lead to the PCR {IMA_PCR} given, which nobody signed"
        )
    if lines:
        return ok(name, "; ".join(lines))
    return ok(
        name, f"the template hashes of all {len(entries)} entries are right; no quote was given to vouch for them"
    )


def _check_boot_aggregate(entries: _Entries, material: Material) -> Check:
    name = "ima.boot_aggregate"
    if not entries or entries[0].path != BOOT_AGGREGATE or entries[0].is_violation:
        return skip(name, "the list does not begin with a boot_aggregate that could be compared")
    given = [resolve_pcrs(quote, material, None).banks for _, quote in parsed_quotes(material)]
    given += [values.banks for values in material.pcrs]
    problems = [problem for banks in given if (problem := boot_aggregate_problem(entries[0], banks)) is not None]
    if any(problems):
        return fail(name, next(problem for problem in problems if problem))
    if problems:
        return ok(name, "boot_aggregate is the hash of the boot PCRs given")
    return ok(name, "the list begins with boot_aggregate; no boot PCRs were given to compare it with")


def _check_signatures(entries: _Entries, material: Material) -> list[Check]:
    """Signatures of files, as far as their keys were given."""
    facts = _signature_facts([_parsed(entry) for entry in entries], material)
    found = facts.get("file_signatures")
    if not isinstance(found, list):
        return []
    bad = [str(row["path"]) for row in found if not row["verifies"]]
    if bad:
        return [fail("ima.signatures", f"the signature of {bad[0]} is not valid under the key that it names", bad)]
    return [ok("ima.signatures", f"{len(found)} file signatures verify with the keys given")]


def _kind(name: str, title: str, matches: Callable[[bytes], bool]) -> Kind:
    return Kind(
        name=name,
        title=title,
        matches=matches,
        facts=lambda raw, material: _facts(name, raw, material),
        verify=lambda raw, material, at, roots: _verify(name, raw, material, at, roots),
    )


KINDS = (
    _kind(_BINARY, "IMA measurement list (binary)", _matches_binary),
    _kind(_ASCII, "IMA measurement list (ASCII)", _matches_ascii),
)
