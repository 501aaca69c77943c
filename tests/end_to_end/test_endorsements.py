"""A machine that sends its report alone, and a computer without network: endorsements are fetched on another."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cosmian_vm.cli import _vendors, main
from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.vendors import FakeVendors
from cosmian_vm.devkit.vm import SimulatedVm

pytestmark = [
    pytest.mark.swtpm,
    pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed"),
]

KEYS = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"


def test_from_a_folder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with SimulatedVm(tmp_path / "vm", keys=VendorKeys.load(KEYS)) as vm:
        vm.send_no_endorsements()
        url = vm.start()

        def cosmian_vm(*arguments: str) -> subprocess.CompletedProcess[str]:
            """On the computer without network."""
            command = [sys.executable, "-m", "cosmian_vm.cli.main", "--url", url, "--allow-insecure-tls", *arguments]
            command += ["--trust-root", str(vm.trust_root), "--offline"]
            return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

        before = cosmian_vm("snapshot", "--save-evidence", "evidence.json")
        assert before.returncode == 1, before
        assert "endorsements fetch" in before.stdout
        with FakeVendors(AmdVendor.load(vm.folder / "vendor")) as service:
            monkeypatch.setattr(_vendors, "_SERVICES", service.services)
            fetch = ("endorsements", "fetch", str(tmp_path / "evidence.json"), "--output", str(tmp_path / "vm-1"))
            assert main.run(fetch) == 0
        shutil.rmtree(tmp_path / "cache")
        after = cosmian_vm("snapshot", "--endorsements", "vm-1")
        assert after.returncode == 0, after
        verdict = cosmian_vm("verify", "-s", "cosmian_vm.snapshot", "--endorsements", "vm-1")
        assert verdict.returncode == 0, verdict
        assert not (tmp_path / "cache").exists()
