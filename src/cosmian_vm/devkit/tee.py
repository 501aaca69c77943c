"""A simulated SEV-SNP firmware: reports in the real format, signed by a vendor of our own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256, sha384

from cosmian_vm.attester.platform import TeeQuote
from cosmian_vm.devkit.amd import AmdVendor
from cosmian_vm.errors import AttesterError
from cosmian_vm.evidence.bundle import TeeKind

__all__ = ["SimulatedTee"]

REPORT_DATA_SIZE = 64


@dataclass(kw_only=True)
class SimulatedTee:
    """A TeeDevice. ``vendor`` signs; ``fields`` are fields of the report that differ from the vendor's defaults.

    ``endorsements``: what is handed out beside the report (DER); the vendor's chain and CRL where None. ``frozen``: a
    report to hand out again and again, whatever is asked.
    """

    vendor: AmdVendor
    fields: dict[str, int | bytes] = field(default_factory=dict)
    endorsements: Sequence[bytes] | None = None
    frozen: bytes | None = None

    @classmethod
    def launch(cls, vendor: AmdVendor, *, instance: bytes, image: bytes = b"simulated firmware") -> SimulatedTee:
        """Launch a guest: ``image`` decides its measurement, ``instance`` its report_id."""
        return cls(
            vendor=vendor,
            fields={"measurement": sha384(image).digest(), "report_id": sha256(b"report_id\x00" + instance).digest()},
        )

    @property
    def kind(self) -> TeeKind:
        """SEV-SNP."""
        return TeeKind.SNP

    def quote(self, report_data: bytes) -> TeeQuote:
        """A report over exactly 64 bytes. Raises AttesterError."""
        if len(report_data) != REPORT_DATA_SIZE:
            raise AttesterError(f"report_data must be {REPORT_DATA_SIZE} bytes, not {len(report_data)}")
        raw = self.frozen or self.vendor.sign_report(**{**self.fields, "report_data": report_data})
        if self.endorsements is None:
            self.endorsements = (*self.vendor.certificates, self.vendor.crl())
        return TeeQuote(raw=raw, endorsements=tuple(self.endorsements))
