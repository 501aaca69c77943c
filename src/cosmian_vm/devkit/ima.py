"""Linux IMA in software: files are measured into PCR 10 of any PcrBanks, in the kernel's own binary list format.

As the kernel does since Linux 5.8: the list shows SHA-1 of the template data, each bank X is extended with X(data), a
violation is a zero hash in the list and all ones in every bank, and what was measured once is not measured again
(security/integrity/ima/ima_queue.c, ima_template_lib.c).
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import new as new_hash

from cosmian_vm.devkit.pcrs import BANKS, PcrBanks
from cosmian_vm.evidence._ima_ascii import serialise_ascii  # loaded now, and not while an agent serves a call
from cosmian_vm.evidence.ima import (
    BOOT_AGGREGATE,
    ImaEntry,
    extension,
    make_entry,
    make_violation,
    parse_binary,
    serialise_binary,
)

__all__ = ["IMA_POLICY_PATH", "SoftwareIma", "extend_entry"]

IMA_POLICY_PATH = "/etc/ima/ima-policy"
"""What systemd writes to the kernel, which measures it as a file (func=POLICY_CHECK)."""

_BOOT_AGGREGATE_PCRS = range(10)  # PCR 0-9 since Linux 5.8, for every bank but SHA-1


def extend_entry(entry: ImaEntry, pcrs: PcrBanks) -> None:
    """Extend the entry's PCR as the kernel does."""
    pcrs.extend(entry.pcr, {bank: extension(entry, bank) for bank in BANKS})


class SoftwareIma:
    """The measurement list of one boot. ``template``: ``ima-ng`` or ``ima-sig``; files are hashed with SHA-256."""

    def __init__(self, pcrs: PcrBanks, *, template: str = "ima-ng", entries: Iterable[ImaEntry] = ()) -> None:
        self._pcrs = pcrs
        self._template = template
        self.entries: list[ImaEntry] = list(entries)

    @classmethod
    def from_list(cls, raw: bytes, pcrs: PcrBanks, *, template: str = "ima-ng") -> SoftwareIma:
        """Go on from a binary list that is already in the PCR."""
        return cls(pcrs, template=template, entries=parse_binary(raw))

    def boot(self) -> None:
        """The first entry, boot_aggregate: SHA-256 over PCR 0 to 9 of the sha256 bank."""
        values = self._pcrs.read_pcrs(list(_BOOT_AGGREGATE_PCRS))
        digest = new_hash("sha256", b"".join(values[pcr] for pcr in _BOOT_AGGREGATE_PCRS)).digest()
        self.append(make_entry(self._template, "sha256", digest, BOOT_AGGREGATE))

    def measure(self, path: bytes | str, content: bytes, *, signature: bytes = b"") -> bool:
        """Measure a file that is about to be used; False where exactly this was measured already."""
        return self.measure_digest(path, new_hash("sha256", content).digest(), signature=signature)

    def measure_digest(self, path: bytes | str, digest: bytes, *, signature: bytes = b"") -> bool:
        """As ``measure``, where the SHA-256 of the content is known."""
        raw = path.encode() if isinstance(path, str) else path
        entry = make_entry(self._template, "sha256", digest, raw, signature=signature)
        if any(entry.template_hash == known.template_hash for known in self.entries):
            return False
        self.append(entry)
        return True

    def violate(self, path: bytes | str) -> None:
        """Record that ``path`` was open for writing while it was measured."""
        raw = path.encode() if isinstance(path, str) else path
        self.append(make_violation(self._template, "sha256", 32, raw))

    def append(self, entry: ImaEntry) -> None:
        """Put ``entry`` on the list and extend its PCR, in that order (so a list is never behind the PCR)."""
        self.entries.append(entry)
        extend_entry(entry, self._pcrs)

    def binary(self) -> bytes:
        """binary_runtime_measurements."""
        return serialise_binary(self.entries)

    def ascii(self) -> bytes:
        """ascii_runtime_measurements."""
        return serialise_ascii(self.entries)
