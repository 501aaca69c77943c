"""The machines that this user knows, by URL: what tells ours from another genuine one, as ssh remembers hosts.

TLS keys are not among it: they are bound to the machine by its evidence, and change. One file, for its user alone.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cosmian_vm.cli._common import read_file, write_atomically
from cosmian_vm.errors import EvidenceFormatError, InputError
from cosmian_vm.evidence import intel_quote, snp
from cosmian_vm.evidence import tpm as tpms
from cosmian_vm.evidence.bundle import TeeKind, tee_kind
from cosmian_vm.evidence.tdx import TdReportBody

if TYPE_CHECKING:
    from cosmian_vm.evidence.bundle import Evidence

__all__ = ["Identity", "Machines", "differences", "identity_of"]

FILE_NAME = "known_machines.json"
_MAX_FILE = 16 * 1024 * 1024
_OPERATOR = "operator"


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What a machine proved to be; bytes in hex.

    ``measurement``: launch measurement (SNP), MRTD (TDX), MRENCLAVE (SGX); the same for every machine of a type.
    ``report_id``: SNP's, of this very guest as long as it lives. ``ak_name``: TPM name of its attestation key.
    ``anchor``: who vouches for that key. ``since``: when it was remembered.
    """

    tee: str
    measurement: str
    report_id: str | None = None
    ak_name: str | None = None
    anchor: str | None = None
    since: str = ""

    @property
    def is_unlike_others(self) -> bool:
        """Whether it tells this machine from any other genuine one. A TD without TPM shows nothing of its own; nor does
        an enclave, but there the measurement is all of its software, which tells its owners the truth.
        """
        return self.report_id is not None or self.ak_name is not None or self.tee == TeeKind.SGX

    def lines(self) -> tuple[str, ...]:
        """For the eyes of whoever is to decide."""
        none = "none"
        return (
            f"TEE          {self.tee}",
            f"measurement  {self.measurement}",
            f"report_id    {self.report_id or none}",
            f"AK name      {self.ak_name or none}",
            f"anchor       {self.anchor or none}",
        )

    def short(self) -> str:
        """What it will be known by again, on one line."""
        own = {"report_id": self.report_id, "AK": self.ak_name}
        found = [f"{name} {value[:16]}..." for name, value in own.items() if value is not None]
        if not found:
            return f"measurement {self.measurement[:16]}..., which every machine of the same contents has"
        return ", ".join(found)


def identity_of(evidence: Evidence, anchor: str | None) -> Identity:
    """Of evidence that has been appraised. Raises EvidenceFormatError where it cannot be read."""
    raw = evidence.tee
    kind = None if raw is None else tee_kind(raw)
    if raw is None or kind is None:
        raise EvidenceFormatError("TEE quote", "is missing, or of no kind that is known")
    report_id = None
    if kind is TeeKind.SNP:
        report = snp.parse_evidence(raw).report
        measurement, report_id = report.measurement, report.report_id.hex()
    else:
        body = intel_quote.parse_quote(raw).body
        measurement = body.mr_td if isinstance(body, TdReportBody) else body.mr_enclave
    ak_name = None if evidence.tpm is None else tpms.name(evidence.tpm.ak_public).hex()
    return Identity(
        tee=str(kind),
        measurement=measurement.hex(),
        report_id=report_id,
        ak_name=ak_name,
        anchor=None if evidence.tpm is None else anchor,
    )


def differences(known: Identity, seen: Identity) -> dict[str, str]:
    """Field to one line with both values, for each that is not as it was. That somebody vouches for the key, where it
    was the operator alone before, is no difference.
    """
    names = ["tee", "measurement", "report_id", "ak_name"]
    if known.anchor != _OPERATOR or seen.anchor is None:
        names.append("anchor")
    return {
        name: f"{name} was {getattr(known, name)}, is {getattr(seen, name)}"
        for name in names
        if getattr(known, name) != getattr(seen, name)
    }


class _Stored(msgspec.Struct, frozen=True):
    version: int
    machines: dict[str, Identity]


class Machines:
    """What is remembered in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / FILE_NAME

    def known(self) -> Mapping[str, Identity]:
        """URL to identity. Raises InputError where the file cannot be used: then nothing is taken for new."""
        if not self._file.exists():
            return {}
        raw = read_file(str(self._file), _MAX_FILE)
        try:
            stored = msgspec.json.decode(raw, type=_Stored)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
            raise InputError(f"{self._file}: cannot be understood ({exc}); move it away to begin anew") from exc
        if stored.version != 1:
            raise InputError(f"{self._file}: is of version {stored.version}, this program knows version 1")
        return stored.machines

    def remember(self, url: str, identity: Identity) -> None:
        """From now on ``url`` is this machine. Raises InputError."""
        with self._alone():
            self._write({**self.known(), url: identity})

    def forget(self, url: str) -> bool:
        """Whether it was known. Raises InputError."""
        with self._alone():
            machines = dict(self.known())
            if machines.pop(url, None) is None:
                return False
            self._write(machines)
            return True

    def _write(self, machines: Mapping[str, Identity]) -> None:
        raw = msgspec.json.format(msgspec.json.encode(_Stored(1, dict(sorted(machines.items())))), indent=1)
        write_atomically(str(self._file), raw + b"\n", private=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One program at a time changes the file. Raises InputError where the folder cannot be had."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._folder / f".{FILE_NAME}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as exc:
            raise InputError(f"{self._folder}: cannot be used: {exc.strerror or exc}") from exc
        try:
            if sys.platform != "win32":
                import fcntl

                with suppress(OSError):  # a file system without locks
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
