"""A simulated vendor from the repository's public test keys, and a software TPM."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.devkit.swtpm import Swtpm

KEYS = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"


@pytest.fixture(scope="session")
def keys() -> VendorKeys:
    return VendorKeys.load(KEYS)


@pytest.fixture(scope="session")
def now() -> datetime:
    return datetime(2026, 6, 1, 12, tzinfo=UTC)


@pytest.fixture(scope="session")
def vendor(keys: VendorKeys, now: datetime) -> AmdVendor:
    return AmdVendor.create(keys=keys, now=now - timedelta(days=30))


@pytest.fixture
def machine(vendor: AmdVendor, now: datetime) -> Machine:
    return Machine.create(vendor, now=now - timedelta(days=1))


@pytest.fixture
def swtpm(tmp_path: Path) -> Iterator[Swtpm]:
    if shutil.which("swtpm") is None or shutil.which("swtpm_setup") is None:
        pytest.skip("swtpm is not installed")
    folder = tmp_path / "tpm"
    folder.mkdir()
    tpm = Swtpm(folder)
    tpm.start()
    try:
        yield tpm
    finally:
        tpm.stop(orderly=False)
