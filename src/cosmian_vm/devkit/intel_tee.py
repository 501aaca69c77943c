"""Simulated Intel TEEs: a TD with a CC event log, and an SGX enclave, as TeeDevices over a simulated vendor."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha384

from cosmian_vm.attester.platform import TeeQuote
from cosmian_vm.devkit.boot_log import BootEvent, default_boot
from cosmian_vm.devkit.intel import IntelVendor, Lies, enclave_report, td_body
from cosmian_vm.evidence.bundle import TeeKind

__all__ = ["SimulatedEnclave", "SimulatedTd", "default_td_boot", "serialise_ccel"]

_EV_NO_ACTION = 0x03
_SHA384 = 0x000C
_RTMR_OF_PCR = {0: 0, 1: 0, 7: 0, 2: 1, 3: 1, 4: 1, 5: 1, 6: 1, 8: 2, 9: 2, 14: 2}
"""UEFI 2.10, 38.4.1: which PCR's events go to which RTMR."""


def default_td_boot() -> list[BootEvent]:
    """The boot of devkit.boot_log in a TD: ``pcr`` of each event is the index of its RTMR."""
    return [
        BootEvent(_RTMR_OF_PCR[event.pcr], event.type, event.data, event.measured)
        for event in default_boot()
        if event.type != _EV_NO_ACTION
    ]


def serialise_ccel(events: Sequence[BootEvent]) -> bytes:
    """A CCEL: the TCG format with the SHA-384 bank alone; register n of it is RTMR n-1."""
    spec_id = (
        b"Spec ID Event03\x00" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, 1) + struct.pack("<HH", _SHA384, 48) + b"\x00"
    )
    parts = [struct.pack("<II20sI", 0, _EV_NO_ACTION, bytes(20), len(spec_id)), spec_id]
    for event in events:
        parts.append(struct.pack("<III", event.pcr + 1, event.type, 1))
        parts.append(struct.pack("<H", _SHA384) + event.digest("sha384"))
        parts.append(struct.pack("<I", len(event.data)) + event.data)
    return b"".join(parts) + b"\xff" * 64


@dataclass(kw_only=True)
class SimulatedTd:
    """A TeeDevice: a TD of ``vendor``. ``fields``: of its report body. ``boot``: what its RTMRs were extended with;
    ``log``: the CCEL that is handed out, the true one where None, none where b"".
    """

    vendor: IntelVendor
    fields: dict[str, bytes] = field(default_factory=lambda: {"mr_td": sha384(b"simulated TD").digest()})
    boot: list[BootEvent] = field(default_factory=default_td_boot)
    td_1_5: bool = False
    lies: Lies = field(default_factory=Lies)
    log: bytes | None = None

    @property
    def kind(self) -> TeeKind:
        """TDX."""
        return TeeKind.TDX

    def rtmrs(self) -> dict[str, bytes]:
        """``rtmr0`` to ``rtmr3`` after ``boot``."""
        values = [bytes(48)] * 4
        for event in self.boot:
            values[event.pcr] = sha384(values[event.pcr] + event.digest("sha384")).digest()
        return {f"rtmr{index}": value for index, value in enumerate(values)}

    def quote(self, report_data: bytes) -> TeeQuote:
        """A quote over exactly 64 bytes."""
        body = td_body({**self.rtmrs(), **self.fields, "report_data": report_data}, td_1_5=self.td_1_5)
        return TeeQuote(raw=self.vendor.quote(body, lies=self.lies))

    def cc_event_log(self) -> bytes | None:
        """The CCEL."""
        return serialise_ccel(self.boot) if self.log is None else self.log or None


@dataclass(kw_only=True)
class SimulatedEnclave:
    """A TeeDevice: an SGX enclave of ``vendor``. ``fields``: of its report."""

    vendor: IntelVendor
    fields: dict[str, bytes | int] = field(
        default_factory=lambda: {"mr_enclave": b"\x11" * 32, "mr_signer": b"\x22" * 32, "isv_prod_id": 1, "isv_svn": 3}
    )
    lies: Lies = field(default_factory=Lies)

    @property
    def kind(self) -> TeeKind:
        """SGX."""
        return TeeKind.SGX

    def quote(self, report_data: bytes) -> TeeQuote:
        """A quote over exactly 64 bytes."""
        return TeeQuote(
            raw=self.vendor.quote(enclave_report(**{**self.fields, "report_data": report_data}), lies=self.lies)
        )
