from __future__ import annotations

from pathlib import Path

import pytest

from cosmian_vm.attester import ima as module
from cosmian_vm.attester.ima import KernelLogs
from cosmian_vm.errors import AttesterError


def fill(base: Path, name: str, content: bytes) -> None:
    path = base / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def test_lists_as_the_kernel_has_them(tmp_path: Path) -> None:
    fill(tmp_path, "ima/binary_runtime_measurements", b"binary")
    fill(tmp_path, "ima/ascii_runtime_measurements", b"ascii")
    fill(tmp_path, "tpm0/binary_bios_measurements", b"boot")
    logs = KernelLogs(tmp_path)
    assert (logs.ima_binary(), logs.ima_ascii(), logs.boot_event_log()) == (b"binary", b"ascii", b"boot")


def test_lists_where_newer_kernels_have_them(tmp_path: Path) -> None:
    fill(tmp_path, "integrity/ima/binary_runtime_measurements", b"binary")
    assert KernelLogs(tmp_path).ima_binary() == b"binary"


def test_no_list_and_an_empty_one_are_none(tmp_path: Path) -> None:
    fill(tmp_path, "ima/ascii_runtime_measurements", b"")
    logs = KernelLogs(tmp_path)
    assert logs.ima_binary() is None
    assert logs.ima_ascii() is None
    assert logs.boot_event_log() is None


def test_a_list_longer_than_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 7)
    fill(tmp_path, "ima/binary_runtime_measurements", bytes(range(100)))
    assert KernelLogs(tmp_path).ima_binary() == bytes(range(100))
    monkeypatch.setattr(module, "_MAX_LIST", 99)
    with pytest.raises(AttesterError, match="more than 99 bytes"):
        KernelLogs(tmp_path).ima_binary()


def test_a_list_that_cannot_be_read_is_an_error_and_not_its_absence(tmp_path: Path) -> None:
    (tmp_path / "ima/binary_runtime_measurements").mkdir(parents=True)
    with pytest.raises(AttesterError, match="cannot be read"):
        KernelLogs(tmp_path).ima_binary()


def test_the_event_log_of_a_td(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = KernelLogs(tmp_path, tmp_path / "data" / "CCEL")
    assert logs.cc_event_log() is None
    fill(tmp_path, "data/CCEL", b"events" + b"\xff" * 4096)
    assert logs.cc_event_log() == b"events" + b"\xff" * 4096
    monkeypatch.setattr(module, "_MAX_CCEL", 4000)
    with pytest.raises(AttesterError, match="CCEL: more than 4000 bytes"):
        logs.cc_event_log()
