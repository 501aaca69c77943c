"""Which devices this machine has (``platform.detect``).

Everything that serving a call needs is imported here, at start: a program that is first loaded later would stand in
the IMA list after the snapshot, and look like a stranger.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from cosmian_vm.attester.ima import SECURITYFS, KernelLogs
from cosmian_vm.attester.platform import Logs, Platform, TeeDevice, TpmDevice
from cosmian_vm.attester.snp import SEV_GUEST, TSM_REPORT, SnpIoctl, SnpTsm, TsmFiles
from cosmian_vm.errors import AttesterError

__all__ = ["find"]

_DMI = Path("sys/class/dmi/id")
_AZURE_ASSET_TAG = "7783-7084-3265-9085-8269-3286-77"

_log = logging.getLogger(__name__)


def find(tpm_device: str | None, root: Path) -> Platform:
    """See ``platform.detect``."""
    platform = Platform(
        tee=_tee(root),
        tpm=None if tpm_device is None else _tpm(tpm_device),
        logs=KernelLogs(root / SECURITYFS.relative_to("/")),
        cloud=_cloud(root / _DMI),
    )
    if platform.tee is None:
        _log.warning("no confidential hardware found (looked for %s and %s)", TSM_REPORT, SEV_GUEST)
    if tpm_device is None:
        _log.warning("no TPM: agent.toml has no tpm_device")
    _look_at_ima(platform.logs)
    return platform


def _look_at_ima(logs: Logs) -> None:
    try:
        listed = logs.ima_ascii()
    except AttesterError as exc:
        _log.error("%s", exc)
        return
    if listed is None:
        _log.error("no IMA list: the kernel has no IMA, or securityfs is not mounted; verifications will fail")
    elif listed.count(b"\n") <= 1:
        _log.error(
            "IMA measures nothing: put ima_policy=tcb ima_hash=sha256 on the kernel's command line; verifications will "
            "fail"
        )


def _tee(root: Path) -> TeeDevice | None:
    entries, device = root / TSM_REPORT.relative_to("/"), root / SEV_GUEST.relative_to("/")
    if entries.is_dir():
        tsm = SnpTsm(TsmFiles(entries))
        try:
            provider = tsm.provider()
        except AttesterError as exc:  # no driver behind it: mkdir fails, or the attribute does
            _log.info("%s", exc)
        else:
            if provider == SnpTsm.PROVIDER:
                return tsm
            _log.warning("configfs-tsm is served by %r, which this release does not know", provider)
    return SnpIoctl(device) if device.exists() else None


def _tpm(device: str) -> TpmDevice | None:
    """None, and an error in the log, where it cannot be had: the rest is served, and a verification fails for it."""
    if not Path(device).exists():
        _log.error("tpm_device = %s: there is no such device; correct or remove the key in agent.toml", device)
        return None
    try:
        from cosmian_vm.attester.tpm import EsapiTpm
    except ImportError as exc:
        _log.error("tpm_device = %s: the TPM's libraries cannot be loaded: %s", device, exc)
        return None
    tpm = EsapiTpm(f"device:{device}")
    try:
        if tpm.provisioned():  # opens the device and loads the TSS's driver for it now, not when the first call comes
            tpm.ak_public()
    except AttesterError as exc:
        _log.error("%s", exc)
    return tpm


def _cloud(dmi: Path) -> str | None:
    """Whose machine this is by its DMI strings: a hint for people, never trusted."""
    read = _reader(dmi)
    if read("sys_vendor") == "Amazon EC2":
        return "AWS"
    if read("sys_vendor") == "Google" or read("product_name") == "Google Compute Engine":
        return "GCP"
    if read("chassis_asset_tag") == _AZURE_ASSET_TAG:
        return "Azure"
    return None


def _reader(folder: Path) -> Callable[[str], str]:
    def read(name: str) -> str:
        try:
            return (folder / name).read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            return ""

    return read
