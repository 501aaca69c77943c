"""``cosmian_certtool`` on a simulated machine: its TEE and the key that the TEE derives."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cosmian_vm.attester.derived_key import TeeKey
from cosmian_vm.attester.platform import TeeDevice
from cosmian_vm.certtool.main import run
from cosmian_vm.devkit.amd import AmdVendor
from cosmian_vm.devkit.intel_store import load_vendor
from cosmian_vm.devkit.intel_tee import SimulatedEnclave, SimulatedTd
from cosmian_vm.devkit.tee import SimulatedTee
from cosmian_vm.errors import InputError, NotAvailableError
from cosmian_vm.evidence.bundle import TeeKind
from cosmian_vm.evidence.intel_quote import parse_quote

__all__ = ["SimulatedMachine", "run_in"]


class SimulatedMachine:
    """A Machine of certtool: the VM in ``folder``. Raises InputError where there is none."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "vendor").is_dir():
            raise InputError(f"{folder}: no simulated VM was ever started here (vm start --folder {folder})")
        self._folder = folder
        state = json.loads((folder / "vm.json").read_text(encoding="utf-8"))
        self.kind = TeeKind(state.get("tee", TeeKind.SNP))
        self._instance = bytes.fromhex(state["instance"])

    def tee(self) -> TeeDevice:
        """See certtool's Machine."""
        vendor = self._folder / "vendor"
        if self.kind is TeeKind.TDX:
            return SimulatedTd(vendor=load_vendor(vendor))
        if self.kind is TeeKind.SGX:
            return SimulatedEnclave(vendor=load_vendor(vendor))
        return SimulatedTee.launch(AmdVendor.load(vendor), instance=self._instance)

    def key(self) -> TeeKey:
        """SNP: mixed as the firmware does, of the chip's key, launch policy and launch measurement. SGX: of the
        platform and MRENCLAVE. Raises NotAvailableError on TDX, which has none.
        """
        if self.kind is TeeKind.TDX:
            raise NotAvailableError("this machine derives no key: Intel TDX does not")
        if self.kind is TeeKind.SGX:
            enclave = parse_quote(self.tee().quote(bytes(64)).raw).enclave
            measured = b"" if enclave is None else enclave.mr_enclave
            platform = (self._folder / "trust_root.pem").read_bytes()
            return TeeKey(sha256(platform + measured).digest()[:16], "sgx")
        chip = AmdVendor.load(self._folder / "vendor").chip_key
        secret = chip.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        report = self.tee().quote(bytes(64)).raw
        return TeeKey(sha256(secret + report[0x08:0x10] + report[0x90:0xC0]).digest(), "sev-snp")


def run_in(folder: Path, arguments: Sequence[str]) -> int:
    """Run one command line as in the VM: its exit status. For ``ratls verify --with`` there is ``crl.der`` in the
    folder, on Intel's machines ``collateral.json``.
    """
    machine = SimulatedMachine(folder)
    if machine.kind is TeeKind.SNP:
        (folder / "crl.der").write_bytes(AmdVendor.load(folder / "vendor").crl())
    return run(arguments, machine)
