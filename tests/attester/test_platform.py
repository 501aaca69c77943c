from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cosmian_vm.attester.platform import detect
from cosmian_vm.attester.snp import SnpIoctl
from cosmian_vm.errors import NotAvailableError


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


def test_a_tpm_that_is_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(NotAvailableError, match=r"no such device.*agent.toml"):
        detect(str(tmp_path / "tpmrm0"), root=tmp_path)


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
