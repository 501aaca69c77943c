"""Is the header on the disk the one that we made? Nothing is opened before this has said yes.

The order of the questions, each answered from the bytes that will be opened, read once:

1. Is there a record for this place in the TPM? Container without record, or record without container: refused.
2. Is the header's SHA-256 the record's?
3. Was the record written by this system in its present state (``luks.nv_index``), for the PCRs that are expected?
4. Does the header name nothing but what is allowed (``luks.header``), and a TPM token for these PCRs?
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from cosmian_vm.errors import AttesterError, EvidenceFormatError, InputError
from cosmian_vm.luks.header import LuksHeader, parse_header
from cosmian_vm.luks.nv_index import Found, TpmRecords
from cosmian_vm.luks.pcrs import show_pcrs
from cosmian_vm.luks.place import Place, is_file, read_header, sync_folder

__all__ = ["Trusted", "check_header", "check_state", "exists", "known_header"]


@dataclass(frozen=True, slots=True)
class Trusted:
    """The header's very bytes, and the record in the TPM that knows them."""

    raw: bytes
    found: Found


def exists(place: Place, records: TpmRecords) -> bool:
    """Whether there is a container, or was one: a file, a header, or a record in the TPM. Raises AttesterError."""
    return _on_disk(place) or bool(records.find(place.digest))


def known_header(place: Place, records: TpmRecords) -> Trusted | None:
    """Questions 1 and 2; what a crash left between TPM and disk is finished.

    None where the TPM has no record but there are files. Raises AttesterError, InputError where there is nothing.
    """
    found = records.find(place.digest)
    if not found:
        if _on_disk(place):
            return None
        raise InputError(f"{place.location}: there is no container; make one with `cosmian_fstool --size 500MB`")
    on_disk = {path: raw for path in (place.header, place.next_header) if (raw := read_header(path)) is not None}
    known = [
        (path, Trusted(raw, one))
        for path, raw in on_disk.items()
        for one in found
        if one.record.header == sha256(raw).digest()
    ]
    if known:
        # After a crash in the middle of a reseal there are two: the one that counts in this boot comes first.
        known.sort(key=lambda pair: not pair[1].found.genuine)
        path, trusted = known[0]
        _finish(place, path)
        _container_there(place)
        return trusted
    if not on_disk:
        raise AttesterError(
            f"{place.header}: is gone, and the TPM knows of a container here: nothing is made anew; put container and "
            "header back, or give it up with `cosmian_fstool remove`"
        )
    raise AttesterError(
        f"{place.header}: is not the header that the TPM knows (changed, swapped or an old copy): refused; put the "
        "right one back"
    )


def check_state(place: Place, found: Found, pcrs: Sequence[int]) -> None:
    """Question 3. Raises AttesterError."""
    if not found.genuine:
        if found.changed:
            shown = ", ".join(map(str, found.changed))
            raise AttesterError(
                f"{place.location}: this boot is not the one that it was sealed for: PCR {shown} changed; boot "
                "the former system, or verify the machine and run `cosmian_fstool reseal` with the container's password"
            )
        raise AttesterError(
            f"{place.location}: the TPM's record {found.index:#010x} was not written by this system: refused; verify "
            "the machine, then run `cosmian_fstool reseal` with the container's password"
        )
    if found.record.pcrs != tuple(pcrs):
        raise AttesterError(
            f"{place.location}: was sealed to the PCRs {show_pcrs(found.record.pcrs)}, expected are {show_pcrs(pcrs)}; "
            "set container_pcrs in agent.toml (or --tpm2-pcrs) to what was said when it was made"
        )


def check_header(place: Place, raw: bytes, pcrs: Sequence[int] | None) -> LuksHeader:
    """Question 4; ``pcrs`` None: tokens are not asked for. Raises AttesterError."""
    try:
        header = parse_header(raw)
    except EvidenceFormatError as exc:
        raise AttesterError(f"{place.header}: refused: {exc}") from exc
    if pcrs is not None and [token.pcrs for token in header.tokens] != [tuple(pcrs)]:
        raise AttesterError(
            f"{place.header}: refused: it has not exactly one TPM token, for the PCRs {show_pcrs(pcrs)}"
        )
    return header


def _on_disk(place: Place) -> bool:
    return any(path.is_symlink() or path.exists() for path in (place.location, place.header))


def _finish(place: Place, header: Path) -> None:
    """The TPM knows ``header``: what stands beside it under a temporary name takes its place."""
    try:
        if header == place.next_header:
            place.next_header.rename(place.header)
            sync_folder(place.location.parent)
        if not place.location.exists() and is_file(place.unfinished):
            place.unfinished.rename(place.location)
            sync_folder(place.location.parent)
    except OSError as exc:
        raise AttesterError(f"{exc.filename}: cannot be renamed: {exc.strerror or exc}") from exc


def _container_there(place: Place) -> None:
    if not is_file(place.location):
        raise AttesterError(
            f"{place.location}: is gone (or no file), and the TPM knows of a container here: nothing is made anew; put "
            "it back, or give it up with `cosmian_fstool remove`"
        )
    for path in (place.unfinished, place.next_header):
        with suppress(OSError):
            path.unlink()
