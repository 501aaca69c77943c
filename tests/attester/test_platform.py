from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cosmian_vm.attester.platform import detect
from cosmian_vm.attester.snp import SnpIoctl


def dmi(root: Path, name: str, value: str) -> None:
    folder = root / "sys/class/dmi/id"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(value + "\n")


def test_a_machine_with_nothing_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        platform = detect(None, root=tmp_path)
    assert (platform.tee, platform.tpm, platform.cloud) == (None, None, None)
    assert platform.logs.ima_binary() is None
    assert "no confidential hardware found" in caplog.text
    assert "no TPM" in caplog.text


def test_a_tpm_that_is_named_and_not_there_is_an_error_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    device = tmp_path / "tpmrm0"
    assert detect(str(device), root=tmp_path).tpm is None
    assert f"tpm_device = {device}: there is no such device" in caplog.text
    assert "ERROR" in caplog.text


def test_a_tpm_that_cannot_be_opened_is_an_error_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    device = tmp_path / "tpmrm0"
    device.mkdir()
    tpm = detect(str(device), root=tmp_path).tpm
    assert tpm is not None  # it may only be busy: each call tries again, and says so
    assert f"TPM device:{device}: cannot be opened" in caplog.text


def test_ima_off_is_an_error_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    detect(None, root=tmp_path)
    assert "no IMA list" in caplog.text
    path = tmp_path / "sys/kernel/security/ima/ascii_runtime_measurements"
    path.parent.mkdir(parents=True)
    path.write_text("10 0000 ima-ng sha256:0000 boot_aggregate\n")
    caplog.clear()
    detect(None, root=tmp_path)
    assert "IMA measures nothing" in caplog.text
    path.write_text("10 0000 ima-ng sha256:0000 boot_aggregate\n10 0000 ima-ng sha256:0000 /usr/bin/true\n")
    caplog.clear()
    detect(None, root=tmp_path)
    assert "IMA" not in caplog.text


def test_sev_guest_device(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/sev-guest").touch()
    assert isinstance(detect(None, root=tmp_path).tee, SnpIoctl)


def test_configfs_without_a_driver_is_passed_over(tmp_path: Path) -> None:
    base = tmp_path / "sys/kernel/config/tsm/report"
    base.mkdir(parents=True)
    assert detect(None, root=tmp_path).tee is None
    assert list(base.iterdir()) == []


def test_ima_list_of_the_kernel(tmp_path: Path) -> None:
    path = tmp_path / "sys/kernel/security/ima/binary_runtime_measurements"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"list")
    assert detect(None, root=tmp_path).logs.ima_binary() == b"list"


@pytest.mark.parametrize(
    ("name", "value", "cloud"),
    [
        ("sys_vendor", "Amazon EC2", "AWS"),
        ("sys_vendor", "Google", "GCP"),
        ("product_name", "Google Compute Engine", "GCP"),
        ("chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77", "Azure"),
        ("sys_vendor", "QEMU", None),
    ],
)
def test_cloud(tmp_path: Path, name: str, value: str, cloud: str | None) -> None:
    dmi(tmp_path, name, value)
    assert detect(None, root=tmp_path).cloud == cloud
