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
from cosmian_vm.devkit.tee import SimulatedTee
from cosmian_vm.errors import InputError

__all__ = ["SimulatedMachine", "run_in"]


class SimulatedMachine:
    """A Machine of certtool: the VM in ``folder``. Raises InputError where there is none."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "vendor").is_dir():
            raise InputError(f"{folder}: no simulated VM was ever started here (vm start --folder {folder})")
        self._vendor = AmdVendor.load(folder / "vendor")
        state = json.loads((folder / "vm.json").read_text(encoding="utf-8"))
        self._instance = bytes.fromhex(state["instance"])

    def tee(self) -> TeeDevice:
        """See certtool's Machine."""
        return SimulatedTee.launch(self._vendor, instance=self._instance)

    def key(self) -> TeeKey:
        """Mixed as the firmware does: the chip's key, launch policy and launch measurement."""
        chip = self._vendor.chip_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        report = self.tee().quote(bytes(64)).raw
        return TeeKey(sha256(chip + report[0x08:0x10] + report[0x90:0xC0]).digest(), "sev-snp")


def run_in(folder: Path, arguments: Sequence[str]) -> int:
    """Run one command line as in the VM: its exit status. ``crl.der`` in the folder is for ``ratls verify --with``."""
    machine = SimulatedMachine(folder)
    (folder / "crl.der").write_bytes(AmdVendor.load(folder / "vendor").crl())
    return run(arguments, machine)
