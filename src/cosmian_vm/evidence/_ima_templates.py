"""What is inside one IMA entry: template fields, and how the kernel lays them out.

Linux ``security/integrity/ima/ima_template.c`` (table of templates and fields) and ``ima_template_lib.c`` (content of
each field); ``Documentation/security/IMA-templates.rst``. All integers are little-endian.
"""

from __future__ import annotations

import re
from struct import Struct
from typing import NamedTuple

from cosmian_vm.errors import EvidenceFormatError

__all__ = [
    "DIGEST_FIELDS",
    "HASH_SIZES",
    "INTEGER_SIZES",
    "LEGACY",
    "LEGACY_DIGEST_SIZE",
    "LEGACY_NAME_SIZE",
    "MAX_FIELDS",
    "STRING_FIELDS",
    "TEMPLATES",
    "ImaFields",
    "field_names",
    "is_known_field",
    "join",
    "parse_fields",
    "split",
    "split_digest",
]

LEGACY = "ima"
"""The one template without lengths: a digest of 20 bytes, and a name that is hashed in a field of 256."""
LEGACY_DIGEST_SIZE = 20
LEGACY_NAME_SIZE = 256

TEMPLATES: dict[str, tuple[str, ...]] = {
    "ima": ("d", "n"),
    "ima-ng": ("d-ng", "n-ng"),
    "ima-ngv2": ("d-ngv2", "n-ng"),
    "ima-sig": ("d-ng", "n-ng", "sig"),
    "ima-sigv2": ("d-ngv2", "n-ng", "sig"),
    "ima-buf": ("d-ng", "n-ng", "buf"),
    "ima-modsig": ("d-ng", "n-ng", "sig", "d-modsig", "modsig"),
    "evm-sig": ("d-ng", "n-ng", "evmsig", "xattrnames", "xattrlengths", "xattrvalues", "iuid", "igid", "imode"),
}
"""``builtin_templates`` of ima_template.c: name to fields."""

DIGEST_FIELDS = frozenset({"d", "d-ng", "d-ngv2", "d-modsig"})
STRING_FIELDS = frozenset({"n", "n-ng", "xattrnames"})
HEX_FIELDS = frozenset({"sig", "buf", "modsig", "evmsig", "xattrlengths", "xattrvalues"})
INTEGER_SIZES = {"iuid": 4, "igid": 4, "imode": 2}
"""Bytes of the fields that are printed as decimal numbers (uid_t, gid_t, umode_t)."""
_KNOWN_FIELDS = DIGEST_FIELDS | STRING_FIELDS | HEX_FIELDS | INTEGER_SIZES.keys()

MAX_FIELDS = 15
"""IMA_TEMPLATE_NUM_FIELDS_MAX"""

HASH_SIZES = {
    "md4": 16,
    "md5": 16,
    "sha1": 20,
    "rmd160": 20,
    "sha256": 32,
    "sha384": 48,
    "sha512": 64,
    "sha224": 28,
    "rmd128": 16,
    "rmd256": 32,
    "rmd320": 40,
    "wp256": 32,
    "wp384": 48,
    "wp512": 64,
    "tgr128": 16,
    "tgr160": 20,
    "tgr192": 24,
    "sm3": 32,
    "sm3-256": 32,
    "sm3_256": 32,
    "streebog256": 32,
    "streebog512": 64,
    "sha3-256": 32,
    "sha3-384": 48,
    "sha3-512": 64,
}
"""``hash_algo_name`` and ``hash_digest_size`` of Linux crypto/hash_info.c, in bytes (sm3 has had three names)."""

_U32 = Struct("<I")
_FIELD_NAME = r"[a-z0-9][a-z0-9-]{0,30}"
_ALGORITHM = re.compile(rb"(?:([a-z]{1,16}):)?([A-Za-z0-9_.()-]{1,64})")


class ImaFields(NamedTuple):
    """The fields of one entry.

    ``digest_type``: ``ima`` (a file's content) or ``verity`` (its fs-verity digest) in the v2 templates, else None.
    ``digest_algorithm``: kernel name; by its size (md5, sha1) where the field does not say it. ``path``: without its
    closing NUL. ``signature``: ``sig``, or ``evmsig``. ``raw``: each field by its id, exactly as it was hashed.
    """

    digest_type: str | None
    digest_algorithm: str | None
    digest: bytes
    path: bytes
    signature: bytes | None
    buffer: bytes | None
    raw: dict[str, bytes]


def field_names(template: str) -> tuple[str, ...] | None:
    """The fields of a template; of a field list (``d-ng|n-ng|x``: ima_template_fmt=) too. None: not known.

    Lists may name fields that this release does not know, but they begin with a digest and a name: the name of a
    template is not hashed, so a list in another order would let its author choose which field passes for the path.
    """
    if template in TEMPLATES:
        return TEMPLATES[template]
    names = tuple(template.split("|"))
    if not 2 <= len(names) <= MAX_FIELDS or len(set(names)) != len(names):
        return None
    if names[0] not in ("d", "d-ng", "d-ngv2") or names[1] not in ("n", "n-ng"):
        return None
    return names if all(re.fullmatch(_FIELD_NAME, name) for name in names) else None


def split(template: str, data: bytes) -> dict[str, bytes] | None:
    """Each field of the template data by its id, in order; None where the template is opaque.

    Raises EvidenceFormatError where the lengths do not come out right.
    """
    names = field_names(template)
    if names is None:
        return None
    if template == LEGACY:
        if len(data) != LEGACY_DIGEST_SIZE + LEGACY_NAME_SIZE:
            raise EvidenceFormatError("IMA entry", f"{len(data)} bytes of data, ima has 276", field="data")
        return {"d": data[:LEGACY_DIGEST_SIZE], "n": data[LEGACY_DIGEST_SIZE:].rstrip(b"\0")}
    fields = {}
    at = 0
    for name in names:
        start = at + 4
        if start > len(data):
            raise EvidenceFormatError("IMA entry", "the template data ends early", offset=at, field=name)
        at = start + _U32.unpack_from(data, start - 4)[0]
        if at > len(data):
            raise EvidenceFormatError("IMA entry", "is longer than the template data", offset=start - 4, field=name)
        fields[name] = data[start:at]
    if at != len(data):
        raise EvidenceFormatError("IMA entry", f"{len(data) - at} bytes too many", offset=at, field="data")
    return fields


def join(template: str, fields: dict[str, bytes]) -> bytes:
    """The template data as the kernel hashes it: the counterpart of :func:`split`."""
    if template == LEGACY:
        return fields["d"] + fields["n"].ljust(LEGACY_NAME_SIZE, b"\0")
    return b"".join(_U32.pack(len(value)) + value for value in fields.values())


def split_digest(value: bytes) -> tuple[str | None, str | None, bytes] | None:
    """``[type:]algorithm:NUL digest`` as (type, algorithm, digest); a bare digest of 16 or 20 bytes as md5 or sha1.

    It ends at the first ``:NUL``: the digest itself may hold these bytes. None where it is neither.
    """
    prefix, separator, digest = value.partition(b":\0")
    if separator and (match := _ALGORITHM.fullmatch(prefix)):
        kind, algorithm = match.groups()
        return (None if kind is None else kind.decode()), algorithm.decode(), digest
    # ima_eventdigest_init_common writes no prefix where it was given no algorithm: SHA-1, or MD5 before it.
    bare = {16: "md5", 20: "sha1"}.get(len(value))
    return None if bare is None else (None, bare, value)


def parse_fields(template: str, data: bytes) -> ImaFields | None:
    """The fields of one entry; None where the template is opaque.

    Raises EvidenceFormatError where the data does not follow its template.
    """
    raw = split(template, data)
    if raw is None:
        return None
    digest_field, name_field = tuple(raw)[:2]
    found = split_digest(raw[digest_field])
    if found is None:
        raise EvidenceFormatError("IMA entry", "is not a digest", offset=0, field=digest_field)
    kind, algorithm, digest = found
    return ImaFields(
        digest_type=kind,
        digest_algorithm=algorithm,
        digest=digest,
        path=raw[name_field].removesuffix(b"\0"),
        signature=raw.get("sig", raw.get("evmsig")),
        buffer=raw.get("buf"),
        raw=raw,
    )


def is_known_field(name: str) -> bool:
    """Whether this release knows what the field holds."""
    return name in _KNOWN_FIELDS
