"""``cosmian_certtool`` on a simulated machine, from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.devkit.__main__ import main
from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.certtool import SimulatedMachine
from cosmian_vm.devkit.intel import IntelVendor
from cosmian_vm.devkit.intel_store import load_vendor, save_vendor
from cosmian_vm.evidence.bundle import TeeKind

KEYS = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"


def machine(folder: Path) -> Path:
    """As much of a VM as there is before it is first powered on."""
    vendor = AmdVendor.create(keys=VendorKeys.load(KEYS))
    vendor.save(folder / "vendor")
    (folder / "trust_root.pem").write_bytes(vendor.root_pem)
    (folder / "vm.json").write_text(json.dumps({"instance": "01" * 32}))
    return folder


def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cosmian_vm.devkit", "vm", "certtool", "--folder", folder, *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, check=False)


def test_generate_and_verify(tmp_path: Path) -> None:
    folder = machine(tmp_path / "vm")
    made = run(folder, "ratls", "generate", "--tee-secret-key-no-salt", "--output", tmp_path)
    assert made.returncode == 0, made.stderr
    given = ("--trust-root", folder / "trust_root.pem", "--with", folder / "crl.der", "--offline")
    verified = run(folder, "ratls", "verify", "--cert", tmp_path / "cert.ratls.pem", *given)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert run(folder, "ratls", "verify", "--cert", tmp_path / "cert.ratls.pem", "--offline").returncode == 1


def test_no_vm(tmp_path: Path) -> None:
    ran = run(tmp_path / "none", "key")
    assert (ran.returncode, ran.stderr.count("\n")) == (1, 1)


def test_each_machine_has_its_own_key(tmp_path: Path) -> None:
    one, other = SimulatedMachine(machine(tmp_path / "a")), SimulatedMachine(machine(tmp_path / "b"))
    assert one.key() == one.key()
    assert one.key() != other.key()


@pytest.mark.parametrize("tee", [TeeKind.TDX, TeeKind.SGX])
def test_a_machine_of_intels(tmp_path: Path, tee: TeeKind) -> None:
    folder = tmp_path / "vm"
    vendor = IntelVendor.create()
    save_vendor(vendor, folder / "vendor")
    (folder / "trust_root.pem").write_bytes(vendor.root.public_bytes(Encoding.PEM))
    (folder / "collateral.json").write_bytes(
        load_vendor(folder / "vendor").collateral("TDX" if tee is TeeKind.TDX else "SGX")
    )
    (folder / "vm.json").write_text(json.dumps({"instance": "01" * 32, "tee": tee}))
    assert run(folder, "ratls", "generate", "--output", tmp_path).returncode == 0
    given = ("--trust-root", folder / "trust_root.pem", "--with", folder / "collateral.json", "--offline")
    verified = run(folder, "ratls", "verify", "--cert", tmp_path / "cert.ratls.pem", *given)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    made = run(folder, "key", "--output", tmp_path)
    if tee is TeeKind.SGX:
        assert made.returncode == 0, made.stderr
    else:
        assert (made.returncode, made.stderr.count("\n")) == (1, 1)
        assert "derives no key" in made.stderr


def test_a_vm_stays_what_it_is(tmp_path: Path) -> None:
    folder = machine(tmp_path / "vm")
    ran = CliRunner().invoke(main, ["vm", "start", "--folder", str(folder), "--tee", "tdx"])
    assert ran.exit_code == 1
    assert "this VM is sev-snp; --tee says what a new one is" in ran.output


def test_a_folder_that_cannot_be_is_one_line() -> None:
    ran = CliRunner().invoke(main, ["vm", "start", "--folder", "/proc/x"])
    assert (ran.exit_code, ran.output.count("\n")) == (1, 1)
    assert "/proc/x" in ran.output
