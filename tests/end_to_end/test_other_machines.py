"""The commands of the manual on machines that are no SEV-SNP ones, and on one whose TPM a maker certified."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cosmian_vm.devkit.amd import VendorKeys
from cosmian_vm.devkit.vm import SimulatedVm
from cosmian_vm.evidence.bundle import TeeKind

pytestmark = [
    pytest.mark.swtpm,
    pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed"),
]

KEYS = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(vm: SimulatedVm, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cosmian_vm.cli.main", "--url", vm.url, "--allow-insecure-tls", *arguments]
        command += ["--trust-root", str(vm.trust_root), "--offline"]
        if vm.collateral.exists():
            command += ["--endorsements", str(vm.collateral)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False)

    return run


def test_a_td(tmp_path: Path, run: Run) -> None:
    with SimulatedVm(tmp_path / "vm", tee=TeeKind.TDX) as vm:
        vm.start()
        assert run(vm, "snapshot").returncode == 0
        first = run(vm, "verify", "-s", "cosmian_vm.snapshot", "--save-evidence", "evidence.json")
        assert first.returncode == 0, first
        inspect = [sys.executable, "-m", "cosmian_vm.cli.main", "inspect", "evidence.json", "--verify", "--json"]
        inspect += ["--with", str(vm.collateral), "--trust-root", str(vm.trust_root)]
        told = subprocess.run(inspect, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        data = json.loads(told.stdout)
        assert data["verify"]["authentic"], data["verify"]
        assert data["facts"]["cc_event_log"]["kind"] == "cc-event-log"
        vm.run("/usr/bin/stranger", source=Path("/bin/true"))
        second = run(vm, "verify", "-s", "cosmian_vm.snapshot")
        assert second.returncode == 1, second
        assert "ima.files" in second.stdout


def test_an_enclave(tmp_path: Path, run: Run) -> None:
    with SimulatedVm(tmp_path / "vm", tee=TeeKind.SGX) as vm:
        vm.start()
        taken = run(vm, "snapshot")
        assert taken.returncode == 0, taken
        verified = run(vm, "verify", "-s", "cosmian_vm.snapshot")
        assert verified.returncode == 0, verified
        lines = verified.stdout.splitlines()
        at = lines.index("[ WARNING ] No files hash in the snapshot")
        assert lines[at + 1 : at + 4] == [
            "[ SKIP ] Verifying VM integrity",
            "[ SKIP ] Verifying TPM attestation",
            "[ OK ] Verifying TEE attestation",
        ]


def test_a_tpm_that_its_maker_certified(tmp_path: Path, run: Run) -> None:
    with SimulatedVm(tmp_path / "vm", keys=VendorKeys.load(KEYS), certified_tpm=True) as vm:
        vm.start()
        roots = tmp_path / "maker.pem"
        roots.write_bytes(b"".join(vm.tpm.ca_certificates))
        anyone = run(vm, "snapshot", "-o", "anyone.snapshot")
        assert anyone.returncode == 0, anyone
        assert "'operator'" in anyone.stdout
        taken = run(vm, "snapshot", "--tpm-root", str(roots), "--verbose")
        assert taken.returncode == 0, taken
        assert "'certificate'" in taken.stdout
        assert json.loads((tmp_path / "cosmian_vm.snapshot").read_text())["anchor"] == "certificate"
        assert run(vm, "verify", "-s", "cosmian_vm.snapshot", "--tpm-root", str(roots)).returncode == 0
        (tmp_path / "policy.toml").write_text('[tpm]\nanchors = ["certificate"]\nroots = ["maker.pem"]\n')
        strict = run(vm, "verify", "-s", "anyone.snapshot", "--policy", "policy.toml")
        assert strict.returncode == 0, strict
        # Whoever does not name the maker any more finds what vouched for the key gone.
        forgotten = run(vm, "verify", "-s", "cosmian_vm.snapshot")
        assert forgotten.returncode == 1
        assert "tpm.ak" in forgotten.stdout
