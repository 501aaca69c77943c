"""Simulated firmware between host and guest that has the vTPM: Azure's HCL, and an SVSM, as TeeDevices."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import sha256, sha384, sha512

from cryptography.hazmat.primitives.asymmetric import rsa

from cosmian_vm.attester.platform import TeeDevice, TeeQuote
from cosmian_vm.devkit.tee import SimulatedTee
from cosmian_vm.evidence.azure import HclReport, serialise_hcl
from cosmian_vm.evidence.bundle import SvsmReport, TeeKind

__all__ = ["SimulatedHcl", "SimulatedSvsm", "runtime_json", "tdreport"]

_HEADER = 1236  # everything in front of the runtime data
_ATTRIBUTES = bytes.fromhex("0000001000000000")


def _base64url(number: int) -> str:
    return base64.urlsafe_b64encode(number.to_bytes((number.bit_length() + 7) // 8)).rstrip(b"=").decode()


def runtime_json(ak: rsa.RSAPublicKey) -> bytes:
    """The runtime data that name ``ak`` as the vTPM's attestation key."""
    numbers = ak.public_numbers()
    key = {
        "kid": "HCLAkPub",
        "key_ops": ["sign"],
        "kty": "RSA",
        "e": _base64url(numbers.e),
        "n": _base64url(numbers.n),
    }
    return json.dumps({"keys": [key], "vm-configuration": {"secure-boot": True}, "user-data": "0" * 128}).encode()


def tdreport(report_data: bytes, mr_td: bytes) -> bytes:
    """A TDREPORT_STRUCT (1024 bytes) whose hashes fit; its MAC is zeros, for nobody else can check one."""
    tcb_info = bytes.fromhex("ff01030000000000") + bytes(231)
    td_info = (_ATTRIBUTES + bytes(8) + mr_td).ljust(512, b"\x00")
    head = b"\x81\x00\x00\x00" + bytes(28) + sha384(tcb_info).digest() + sha384(td_info).digest() + report_data
    return head + bytes(64) + tcb_info + bytes(17) + td_info


@dataclass(kw_only=True)
class SimulatedHcl:
    """A TeeDevice as on Azure: the firmware fixed report_data to the hash of its runtime data, whatever is asked.

    ``inner``: the TEE. ``data``: the runtime data. ``mr_td``: of the TDREPORT, on TDX. ``edit``: changes the HCL report
    before it is handed out.
    """

    inner: TeeDevice
    data: bytes
    mr_td: bytes = bytes(48)
    edit: Callable[[HclReport], HclReport] | None = None

    @property
    def kind(self) -> TeeKind:
        """The inner one's."""
        return self.inner.kind

    def quote(self, report_data: bytes) -> TeeQuote:  # noqa: ARG002 - that it is not looked at is the point
        """The report or quote, and the HCL report."""
        bound = sha256(self.data).digest().ljust(64, b"\x00")
        quote = self.inner.quote(bound)
        snp = self.inner.kind is TeeKind.SNP
        hcl = HclReport(
            version=2,
            report_size=_HEADER + len(self.data),
            request_type=2,
            status=0,
            reserved=bytes(12),
            hardware_report=quote.raw if snp else tdreport(bound, self.mr_td).ljust(1184, b"\x00"),
            data_size=20 + len(self.data),
            data_version=1,
            report_type="SNP" if snp else "TDX",
            hash_type="sha256",
            var_data=self.data,
            trailing=bytes(100),
        )
        return replace(quote, hcl_report=serialise_hcl(hcl if self.edit is None else self.edit(hcl)))


@dataclass(kw_only=True)
class SimulatedSvsm:
    """A TeeDevice of a guest above an SVSM: its reports are of VMPL 2, the SVSM's own of VMPL 0.

    ``manifest``: of the vTPM service, the EK's TPMT_PUBLIC. ``fields``: of the SVSM's report, to be otherwise.
    """

    inner: SimulatedTee
    manifest: bytes
    fields: dict[str, int | bytes]

    @property
    def kind(self) -> TeeKind:
        """SEV-SNP."""
        return TeeKind.SNP

    def quote(self, report_data: bytes) -> TeeQuote:
        """The guest's report over exactly 64 bytes, and the SVSM's."""
        guest = replace(self.inner, fields={"vmpl": 2, **self.inner.fields}).quote(report_data)
        bound = sha512(report_data + self.manifest).digest()
        own = self.inner.vendor.sign_report(**{**self.inner.fields, "vmpl": 0, "report_data": bound, **self.fields})
        return replace(guest, svsm=SvsmReport(report=own, manifest=self.manifest))
