"""A software TPM for the tests of the attester, started once; each test that breaks it takes its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmian_vm.devkit.swtpm import Swtpm


def _skip_without_swtpm() -> None:
    if shutil.which("swtpm") is None or shutil.which("swtpm_setup") is None:
        pytest.skip("swtpm is not installed")


@pytest.fixture(scope="session")
def shared_swtpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swtpm]:
    _skip_without_swtpm()
    tpm = Swtpm(tmp_path_factory.mktemp("swtpm"))
    tpm.start()
    try:
        yield tpm
    finally:
        tpm.stop()


@pytest.fixture
def own_swtpm(tmp_path: Path) -> Iterator[Swtpm]:
    _skip_without_swtpm()
    tpm = Swtpm(tmp_path / "own")
    (tmp_path / "own").mkdir()
    tpm.start()
    try:
        yield tpm
    finally:
        tpm.stop(orderly=False)
