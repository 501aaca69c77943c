"""One entry of an IMA measurement list."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence._ima_templates import (
    LEGACY,
    LEGACY_DIGEST_SIZE,
    LEGACY_NAME_SIZE,
    ImaFields,
    field_names,
    join,
    parse_fields,
)

__all__ = ["IMA_PCR", "MAX_PCR", "VIOLATION_HASH", "ImaEntry", "hash_data", "make_entry", "make_violation"]

IMA_PCR = 10
"""CONFIG_IMA_MEASURE_PCR_IDX: where the kernel extends its list, unless it was built otherwise."""

MAX_PCR = 31
"""A TPM has 24 PCRs; profiles go up to 32 (TPM 2.0 Library, part 2, IMPLEMENTATION_PCR)."""

TEMPLATE_HASH_SIZE = 20
VIOLATION_HASH = bytes(TEMPLATE_HASH_SIZE)
"""A template hash of zeros marks a violation; the kernel then extends 0xFF bytes (ima_queue.c)."""

# Where hashlib's name for an algorithm is not the kernel's.
_HASHLIB_NAMES = {"rmd160": "ripemd160", "sm3-256": "sm3", "sm3_256": "sm3"}


class ImaEntry(NamedTuple):
    """One measurement. A named tuple, for a list may hold hundreds of thousands.

    ``pcr``: extended PCR. ``template_hash``: SHA-1 of ``data`` as the list claims it (20 bytes; the ASCII list of
    another bank shows that bank's). ``template``: name or field list. ``data``: template data as hashed, of the legacy
    template ``ima`` with the name padded to 256 bytes.
    """

    pcr: int
    template_hash: bytes
    template: str
    data: bytes

    @property
    def is_violation(self) -> bool:
        """Whether this records an open writer or a ToMToU; nothing then protects ``data``, not even the name."""
        return self.template_hash == VIOLATION_HASH

    @property
    def hash_matches(self) -> bool:
        """Whether the template hash is the SHA-1 of the data; True for a violation, which has none."""
        return self.is_violation or self.template_hash == hashlib.sha1(self.data, usedforsecurity=False).digest()

    def fields(self) -> ImaFields | None:
        """The fields, parsed anew at each call; None where the template is opaque.

        Raises EvidenceFormatError where the data does not follow its template.
        """
        return parse_fields(self.template, self.data)

    def _parsed(self) -> ImaFields | None:
        try:
            return self.fields()
        except EvidenceFormatError:
            return None

    @property
    def digest_algorithm(self) -> str | None:
        """Kernel name of the algorithm of ``digest``; None where the entry cannot be taken apart."""
        return fields.digest_algorithm if (fields := self._parsed()) else None

    @property
    def digest(self) -> bytes | None:
        """Digest of the file (or buffer); None where the entry cannot be taken apart."""
        return fields.digest if (fields := self._parsed()) else None

    @property
    def path(self) -> bytes | None:
        """Path of the file, or the name of the event; None where the entry cannot be taken apart."""
        return fields.path if (fields := self._parsed()) else None

    @property
    def signature(self) -> bytes | None:
        """File signature (security.ima, or EVM's); None where the template has none."""
        return fields.signature if (fields := self._parsed()) else None

    @property
    def buffer(self) -> bytes | None:
        """Content that was measured itself; None where the template has none."""
        return fields.buffer if (fields := self._parsed()) else None


def hash_data(data: bytes, algorithm: str) -> bytes:
    """Hash with the algorithm that the kernel calls ``algorithm``. Raises ValueError where there is no such one."""
    return hashlib.new(_HASHLIB_NAMES.get(algorithm, algorithm), data, usedforsecurity=False).digest()


def make_entry(
    template: str,
    algorithm: str,
    digest: bytes,
    path: bytes,
    signature: bytes = b"",
    *,
    pcr: int = IMA_PCR,
    others: Mapping[str, bytes] | None = None,
) -> ImaEntry:
    """An entry as the kernel writes it: ``_`` for each space of the name, NUL at its end, a right template hash.

    ``signature`` is the content of the field ``sig`` (``evmsig``, and ``buf`` of ima-buf). ``others``: content of
    further fields by id, empty where not given. ``algorithm`` may have a type in front (``verity:sha256``).

    Raises ValueError where the template is not known or a value does not fit it.
    """
    names = field_names(template)
    if names is None:
        raise ValueError(f"unknown IMA template {template!r}")
    name = path.replace(b" ", b"_")
    if b"\0" in name:
        raise ValueError("the name holds a NUL byte")
    if template == LEGACY and (len(digest) != LEGACY_DIGEST_SIZE or len(name) >= LEGACY_NAME_SIZE):
        raise ValueError("the template ima has a digest of 20 bytes and a name of at most 255")
    values = dict(others or {})
    typed = algorithm if names[0] != "d-ngv2" or ":" in algorithm else f"ima:{algorithm}"
    values[names[0]] = digest if names[0] == "d" else typed.encode("ascii") + b":\0" + digest
    values[names[1]] = name if template == LEGACY else name + b"\0"
    for field in ("sig", "evmsig", "buf"):
        if field in names:
            values.setdefault(field, signature)
    data = join(template, {field: values.get(field, b"") for field in names})
    return ImaEntry(pcr, hash_data(data, "sha1"), template, data)


def make_violation(template: str, algorithm: str, size: int, path: bytes, pcr: int = IMA_PCR) -> ImaEntry:
    """The entry of a violation: a file digest of ``size`` zeros, and a template hash of zeros."""
    return make_entry(template, algorithm, bytes(size), path, pcr=pcr)._replace(template_hash=VIOLATION_HASH)
