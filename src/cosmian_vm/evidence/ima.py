"""IMA measurement lists: what the Linux kernel measured, and the PCR value that it led to.

Binary form: ``/sys/kernel/security/ima/binary_runtime_measurements``, Linux ``security/integrity/ima/ima_fs.c``,
``ima_measurements_show()``. All integers are little-endian::

    u32 pcr | u8 template_hash[20] | u32 n | u8 template[n] | u32 n | u8 template_data[n]

where the template ``ima`` has no length in front of its data, which is ``u8 digest[20] | u32 n | u8 name[n]``. The
ASCII form (``ascii_runtime_measurements``) is read and written by ``_ima_ascii``.

A list may be longer than what a quote covers, and its hashes are claims: see ``replay`` and verifier/ima.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from struct import Struct

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence._ima_entry import (
    IMA_PCR,
    MAX_PCR,
    TEMPLATE_HASH_SIZE,
    VIOLATION_HASH,
    ImaEntry,
    hash_data,
    make_entry,
    make_violation,
)
from cosmian_vm.evidence._ima_templates import (
    HASH_SIZES,
    LEGACY,
    LEGACY_DIGEST_SIZE,
    LEGACY_NAME_SIZE,
    TEMPLATES,
    ImaFields,
)

__all__ = [
    "BOOT_AGGREGATE",
    "HASH_SIZES",
    "IMA_PCR",
    "LEGACY_TEMPLATE",
    "MAX_PCR",
    "MAX_TEMPLATE_NAME",
    "PCR_SIZES",
    "TEMPLATES",
    "VIOLATION_HASH",
    "ImaEntry",
    "ImaFields",
    "extension",
    "format_digest",
    "format_path",
    "is_policy_path",
    "make_entry",
    "make_violation",
    "normalise_path",
    "parse_ascii",
    "parse_binary",
    "policy_files",
    "read_entry",
    "replay",
    "serialise_ascii",
    "serialise_binary",
    "serialise_entry",
    "template_hash",
]

LEGACY_TEMPLATE = LEGACY
"""The template ``ima``: the only one that has no length in front of its data."""

BOOT_AGGREGATE = b"boot_aggregate"
"""Name of the first entry: the hash of the boot PCRs."""

MAX_TEMPLATE_NAME = 255
"""Bytes of a template's name or field list; the kernel's own need at most 15 fields."""

PCR_SIZES = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}
"""Banks that a PCR can be replayed in, and the size of their values in bytes."""

_HEAD = Struct("<I20sI")
_U32 = Struct("<I")
_WHAT = "IMA list"


def read_entry(raw: bytes, offset: int, index: int) -> tuple[ImaEntry, int]:
    """The entry at ``offset`` of a binary list and the offset behind it; ``index`` (from 0) names it in errors.

    Raises EvidenceFormatError.
    """
    at = offset + _HEAD.size
    if at > len(raw):
        raise _error(f"{len(raw) - offset} bytes are left, an entry begins with {_HEAD.size}", index, offset)
    pcr, claimed, length = _HEAD.unpack_from(raw, offset)
    if pcr > MAX_PCR:
        raise _error(f"there is no PCR {pcr}", index, offset)
    if not 0 < length <= MAX_TEMPLATE_NAME:
        raise _error(f"a template name of {length} bytes; expected are 1 to {MAX_TEMPLATE_NAME}", index, at - 4)
    name = _take(raw, at, length, index)
    if min(name) <= 0x20 or max(name) >= 0x7F:
        raise _error("the template name holds bytes that are not printable", index, at)
    template = name.decode("ascii")
    at += length
    if template == LEGACY:
        digest = _take(raw, at, LEGACY_DIGEST_SIZE, index)
        path, end = _sized(raw, at + LEGACY_DIGEST_SIZE, index)
        if len(path) >= LEGACY_NAME_SIZE or b"\0" in path:
            raise _error("the name is longer than 255 bytes or holds a NUL byte", index, at + LEGACY_DIGEST_SIZE)
        return ImaEntry(pcr, claimed, template, digest + path.ljust(LEGACY_NAME_SIZE, b"\0")), end
    data, end = _sized(raw, at, index)
    return ImaEntry(pcr, claimed, template, data), end


def _sized(raw: bytes, at: int, index: int) -> tuple[bytes, int]:
    size = int.from_bytes(_take(raw, at, 4, index), "little")
    return _take(raw, at + 4, size, index), at + 4 + size


def _take(raw: bytes, at: int, size: int, index: int) -> bytes:
    if at + size > len(raw):
        raise _error(f"needs {size} bytes, {len(raw) - at} are left", index, at)
    return raw[at : at + size]


def _error(problem: str, index: int, offset: int) -> EvidenceFormatError:
    return EvidenceFormatError(_WHAT, problem, offset=offset, field=f"entry {index}")


def parse_binary(raw: bytes) -> tuple[ImaEntry, ...]:
    """Parse a binary list. Entries of templates that are not known stay opaque.

    Raises EvidenceFormatError with entry number (from 0) and offset.
    """
    entries: list[ImaEntry] = []
    at = 0
    while at < len(raw):
        entry, at = read_entry(raw, at, len(entries))
        entries.append(entry)
    return tuple(entries)


def parse_ascii(raw: bytes) -> tuple[ImaEntry, ...]:
    """Parse an ASCII list; also where CR LF ends its lines. (Loaded when it is asked for: agents send the binary form.)

    Raises EvidenceFormatError with line number (from 1) and offset.
    """
    from cosmian_vm.evidence import _ima_ascii

    return _ima_ascii.parse_ascii(raw)


def serialise_ascii(entries: Iterable[ImaEntry]) -> bytes:
    """The ASCII list, as the kernel prints it; a field that is not known is printed in hex.

    Raises EvidenceFormatError for an entry whose template is opaque or whose data do not follow it.
    """
    from cosmian_vm.evidence import _ima_ascii

    return _ima_ascii.serialise_ascii(entries)


def serialise_entry(entry: ImaEntry) -> bytes:
    """One entry in the binary form; lists are made by putting them one behind the other.

    Raises EvidenceFormatError where the form has no room for it (another bank's template hash, say).
    """
    name = entry.template.encode("utf-8", "surrogateescape")
    if len(entry.template_hash) != TEMPLATE_HASH_SIZE:
        raise EvidenceFormatError(_WHAT, f"a template hash of {len(entry.template_hash)} bytes; the binary list has 20")
    if not 0 < len(name) <= MAX_TEMPLATE_NAME:
        raise EvidenceFormatError(_WHAT, f"a template name of {len(name)} bytes")
    head = _HEAD.pack(entry.pcr, entry.template_hash, len(name)) + name
    if entry.template != LEGACY:
        return head + _U32.pack(len(entry.data)) + entry.data
    if len(entry.data) != LEGACY_DIGEST_SIZE + LEGACY_NAME_SIZE:
        raise EvidenceFormatError(_WHAT, f"{len(entry.data)} bytes of data; the template ima has 276")
    path = entry.data[LEGACY_DIGEST_SIZE:].rstrip(b"\0")
    return head + entry.data[:LEGACY_DIGEST_SIZE] + _U32.pack(len(path)) + path


def serialise_binary(entries: Iterable[ImaEntry]) -> bytes:
    """The binary list: the counterpart of :func:`parse_binary`. Raises EvidenceFormatError as serialise_entry."""
    return b"".join(map(serialise_entry, entries))


def template_hash(entry: ImaEntry, algorithm: str) -> bytes:
    """Hash of the template data, recomputed. Raises ValueError where ``algorithm`` cannot be computed."""
    return hash_data(entry.data, algorithm)


def extension(entry: ImaEntry, algorithm: str, *, padded_sha1: bool = False) -> bytes:
    """What the kernel extends into the bank ``algorithm`` for this entry.

    ``padded_sha1``: as before Linux 5.8, which extended every bank with the SHA-1, zeros behind it.
    """
    size = PCR_SIZES[algorithm]
    if entry.is_violation:
        return b"\xff" * size
    return hash_data(entry.data, "sha1" if padded_sha1 else algorithm).ljust(size, b"\0")


def replay(
    entries: Iterable[ImaEntry],
    algorithm: str,
    pcr: int = IMA_PCR,
    *,
    start: bytes | None = None,
    padded_sha1: bool = False,
) -> bytes:
    """Value of a PCR in the bank ``algorithm`` after these entries; those for other PCRs do not count.

    ``start``: value before them, zeros if None. Raises KeyError for a bank that is not in PCR_SIZES.
    """
    value = bytes(PCR_SIZES[algorithm]) if start is None else start
    for entry in entries:
        if entry.pcr == pcr:
            value = hash_data(value + extension(entry, algorithm, padded_sha1=padded_sha1), algorithm)
    return value


def normalise_path(path: bytes) -> bytes:
    """A name as the kernel writes it into a list: ``_`` for each space (ima_write_template_field_data)."""
    return path.replace(b" ", b"_")


def format_path(path: bytes) -> str:
    r"""A name for people, on one line and harmless to a terminal: bytes that are not UTF-8 and everything that is not
    printable as ``\xNN``, and ``\\`` for a backslash where there is such an escape.
    """
    text = path.decode("utf-8", "surrogateescape")
    return text if text.isprintable() else "".join(map(_escaped, text))


def _escaped(character: str) -> str:
    if character == "\\":
        return "\\\\"
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))


def format_digest(fields: ImaFields) -> str:
    """``algorithm:hex``, with the type in front where there is one."""
    parts = (fields.digest_type, fields.digest_algorithm, fields.digest.hex())
    return ":".join(part for part in parts if part is not None)


_POLICY_FOLDER = b"/etc/ima"
_POLICY_NAMES = (b"ima-policy", b"ima_policy")
_POLICY_PARTS = (_POLICY_FOLDER, *_POLICY_NAMES)


def is_policy_path(path: bytes) -> bool:
    """Whether a measured name is that of an IMA policy file: ``/etc/ima/*``, or any file called ``ima-policy``.

    The list does not say what a file was measured for; these are the places that systemd and dracut load from.
    """
    folder, _, name = normalise_path(path).rpartition(b"/")
    return folder == _POLICY_FOLDER or (name in _POLICY_NAMES and path.startswith(b"/"))


def policy_files(entries: Iterable[ImaEntry]) -> tuple[tuple[bytes, bytes], ...]:
    """Path and digest of each IMA policy file that the list measured, each once, in order."""
    found: dict[tuple[bytes, bytes], None] = {}
    for entry in entries:
        if entry.is_violation or not any(part in entry.data for part in _POLICY_PARTS):
            continue
        path, digest = entry.path, entry.digest
        if path is not None and digest is not None and is_policy_path(path):
            found[path, digest] = None
    return tuple(found)
