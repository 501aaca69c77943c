from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cosmian_vm.attester import _detect
from cosmian_vm.attester import platform as module
from cosmian_vm.attester.azure import AzureTee, AzureTpm
from cosmian_vm.attester.metadata import MetadataAnswer
from cosmian_vm.attester.platform import Platform
from cosmian_vm.attester.sgx import SgxGramine
from cosmian_vm.attester.snp import SnpIoctl, SnpTsm
from cosmian_vm.attester.tdx import TdxIoctl, TdxTsm
from cosmian_vm.devkit.soft_tpm import SoftTpm
from cosmian_vm.errors import AttesterError, NotAvailableError
from cosmian_vm.evidence.bundle import TeeKind

if TYPE_CHECKING:
    from cosmian_vm.attester.metadata import Metadata


def silent(method: str, path: str, headers: Mapping[str, str], body: bytes = b"", *, seconds: float) -> MetadataAnswer:
    """A metadata service that nobody serves."""
    raise AttesterError(f"metadata service: {path}: no answer")


def never(method: str, path: str, headers: Mapping[str, str], body: bytes = b"", *, seconds: float) -> MetadataAnswer:
    raise AssertionError(f"{path} was asked")


def detect(tpm_device: str | None, *, root: Path, metadata: Metadata = silent) -> Platform:
    return module.detect(tpm_device, root=root, metadata=metadata)


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
    assert detect(None, root=tmp_path, metadata=never).cloud == cloud  # where the DMI tells, nothing else is asked


def test_cloud_by_the_metadata_service_where_there_is_no_dmi(tmp_path: Path) -> None:
    def google(
        method: str, path: str, headers: Mapping[str, str], body: bytes = b"", *, seconds: float
    ) -> MetadataAnswer:
        assert seconds <= 1
        return MetadataAnswer(status=200, headers={"metadata-flavor": "Google"}, body=b"1")

    assert detect(None, root=tmp_path, metadata=google).cloud == "GCP"


def test_tdx_guest_device(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/tdx_guest").touch()
    assert isinstance(detect(None, root=tmp_path).tee, TdxIoctl)


@pytest.mark.parametrize(
    ("driver", "device"), [(b"sev_guest", SnpTsm), (b"tdx_guest", TdxTsm), (b"arm_cca_guest", SnpIoctl)]
)
def test_configfs_goes_before_the_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, driver: bytes, device: type
) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/sev-guest").touch()
    (tmp_path / "sys/kernel/config/tsm/report").mkdir(parents=True)
    monkeypatch.setattr("cosmian_vm.attester._tsm.provider", lambda _files: driver)
    assert isinstance(detect(None, root=tmp_path).tee, device)
    assert ("this release does not know" in caplog.text) == (device is SnpIoctl)


def test_an_enclave_has_no_tpm_and_misses_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "dev/attestation").mkdir(parents=True)
    (tmp_path / "dev/sev-guest").touch()
    with caplog.at_level(logging.WARNING):
        platform = detect(str(tmp_path / "tpmrm0"), root=tmp_path)
    assert isinstance(platform.tee, SgxGramine)
    assert platform.tpm is None
    assert caplog.text == ""


class HclTpm(SoftTpm):
    """A TPM that keeps this at the HCL's index."""

    content: bytes | None = None

    def nv_read(self, index: int) -> bytes:
        if self.content is None:
            raise NotAvailableError(f"TPM: there is no NV index {index:#010x}")
        return self.content


@pytest.fixture
def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HclTpm:
    dmi(tmp_path, "chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77")
    tpm = HclTpm()
    monkeypatch.setattr(_detect, "_tpm", lambda _device: tpm)
    return tpm


def test_azure(azure: HclTpm, tmp_path: Path) -> None:
    azure.content = hcl(2)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/sev-guest").touch()  # newer kernels have it, and the paravisor refuses it
    platform = detect("/dev/tpmrm0", root=tmp_path, metadata=never)
    assert isinstance(platform.tee, AzureTee)
    assert platform.tee.kind is TeeKind.SNP
    assert isinstance(platform.tpm, AzureTpm)
    assert platform.tpm_v1 is azure
    assert platform.cloud == "Azure"
    azure.content = hcl(4)
    told = detect("/dev/tpmrm0", root=tmp_path, metadata=never).tee
    assert told is not None
    assert told.kind is TeeKind.TDX


def test_azure_without_an_hcl_report(azure: HclTpm, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    platform = detect("/dev/tpmrm0", root=tmp_path, metadata=never)
    assert (platform.tee, platform.tpm, platform.tpm_v1) == (None, azure, None)
    assert "no confidential hardware found" in caplog.text
    assert "Azure's report in the TPM" in caplog.text
    caplog.clear()
    azure.content = b"other"
    assert detect("/dev/tpmrm0", root=tmp_path, metadata=never).tee is None
    assert "NV index 0x01400001: HCL report" in caplog.text


def test_azure_without_a_tpm_says_what_is_missing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dmi(tmp_path, "chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77")
    assert detect(None, root=tmp_path, metadata=never).tee is None
    assert "agent.toml needs tpm_device" in caplog.text


def hcl(report_type: int) -> bytes:
    header = b"HCLA" + b"".join(v.to_bytes(4, "little") for v in (1, 1238, 2, 0)) + bytes(12)
    return header + bytes(1184) + b"".join(v.to_bytes(4, "little") for v in (22, 1, report_type, 1, 2)) + b"{}"
