"""Which devices this machine has (``platform.detect``).

Everything that serving a call needs is imported here, at start: a program that is first loaded later would stand in
the IMA list after the snapshot, and look like a stranger. What reads the hardware of other machines is not: each start
of a machine, of which its boot waits for two, imports what its own hardware needs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cosmian_vm.attester._places import ATTESTATION, SEV_GUEST, SNP_DRIVER, TDX_DRIVER, TDX_GUEST, TSM_REPORT
from cosmian_vm.attester.ima import CCEL, SECURITYFS, KernelLogs
from cosmian_vm.attester.platform import Logs, Platform, TeeDevice
from cosmian_vm.errors import AttesterError, NotAvailableError

if TYPE_CHECKING:
    from cosmian_vm.attester.azure import AzureTee
    from cosmian_vm.attester.metadata import Metadata
    from cosmian_vm.attester.tpm import EsapiTpm

__all__ = ["find"]

_DMI = Path("/sys/class/dmi/id")
_AZURE_ASSET_TAG = "7783-7084-3265-9085-8269-3286-77"
_METADATA_SECONDS = 1.0

_log = logging.getLogger(__name__)


def find(tpm_device: str | None, root: Path, metadata: Metadata | None) -> Platform:
    """See ``platform.detect``."""
    here = _under(root)
    logs = KernelLogs(here(SECURITYFS), here(CCEL))
    cloud = _cloud(here(_DMI), metadata)
    if here(ATTESTATION).is_dir():
        # An enclave: Gramine lends it no TPM and no IMA list, and nobody misses them.
        from cosmian_vm.attester.sgx import SgxGramine

        return Platform(tee=SgxGramine(here(ATTESTATION)), tpm=None, logs=logs, cloud=cloud)
    tpm = None if tpm_device is None else _tpm(tpm_device)
    if tpm_device is None:
        _log.warning("no TPM: agent.toml has no tpm_device")
    _look_at_ima(logs)
    azure = None if cloud != "Azure" else _azure(tpm_device, tpm, metadata)
    if azure is not None and tpm is not None:
        from cosmian_vm.attester.azure import HCL_AK_HANDLE, AzureTpm

        hcl = _opened(f"device:{tpm_device}", ak_handle=HCL_AK_HANDLE, of_platform=True)
        return Platform(tee=azure, tpm=AzureTpm(hcl, tpm), tpm_v1=tpm, logs=logs, cloud=cloud)
    tee = _tee(here)
    if tee is None:
        _log.warning(
            "no confidential hardware found (looked for %s, %s, %s, %s%s)",
            *(ATTESTATION, TSM_REPORT, SEV_GUEST, TDX_GUEST),
            ", Azure's report in the TPM" if cloud == "Azure" else "",
        )
    return Platform(tee=tee, tpm=tpm, logs=logs, cloud=cloud)


def _under(root: Path) -> Callable[[Path], Path]:
    return lambda path: root / path.relative_to("/")


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


def _tee(here: Callable[[Path], Path]) -> TeeDevice | None:
    """The kernel's interfaces, the newer one first: ``/dev/sev-guest`` and ``/dev/tdx_guest`` are there beside it."""
    if here(TSM_REPORT).is_dir():
        from cosmian_vm.attester._tsm import TsmFiles, provider

        files = TsmFiles(here(TSM_REPORT))
        try:
            driver = provider(files)
        except AttesterError as exc:  # no driver behind it: mkdir fails, or the attribute does
            _log.info("%s", exc)
        else:
            if driver == SNP_DRIVER:
                from cosmian_vm.attester.snp import SnpTsm

                return SnpTsm(files)
            if driver == TDX_DRIVER:
                from cosmian_vm.attester.tdx import TdxTsm

                return TdxTsm(files)
            _log.warning("configfs-tsm is served by %r, which this release does not know", driver)
    if here(SEV_GUEST).exists():
        from cosmian_vm.attester.snp import SnpIoctl

        return SnpIoctl(here(SEV_GUEST))
    if here(TDX_GUEST).exists():
        from cosmian_vm.attester.tdx import TdxIoctl

        return TdxIoctl(here(TDX_GUEST))
    return None


def _azure(tpm_device: str | None, tpm: EsapiTpm | None, metadata: Metadata | None) -> AzureTee | None:
    """None on those of Azure's machines that are no confidential ones, or not by way of a paravisor."""
    if tpm is None:
        if tpm_device is None:
            _log.error("on Azure the hardware's report is in the TPM: agent.toml needs tpm_device")
        return None
    from cosmian_vm.attester.azure import AzureTee

    try:
        return AzureTee(tpm, metadata or _metadata_service())
    except NotAvailableError as exc:
        _log.info("%s", exc)
    except AttesterError as exc:
        _log.error("%s", exc)
    return None


def _tpm(device: str) -> EsapiTpm | None:
    """None, and an error in the log, where it cannot be had: the rest is served, and a verification fails for it."""
    if not Path(device).exists():
        _log.error("tpm_device = %s: there is no such device; correct or remove the key in agent.toml", device)
        return None
    try:
        tpm = _opened(f"device:{device}")
    except ImportError as exc:
        _log.error("tpm_device = %s: the TPM's libraries cannot be loaded: %s", device, exc)
        return None
    try:
        if tpm.provisioned():  # opens the device and loads the TSS's driver for it now, not when the first call comes
            tpm.provision()  # which makes nothing here, and looks up what does not change
    except AttesterError as exc:
        _log.error("%s", exc)
    return tpm


def _opened(tcti: str, *, ak_handle: int | None = None, of_platform: bool = False) -> EsapiTpm:
    from cosmian_vm.attester.tpm import AK_HANDLE, EsapiTpm  # raises ImportError where there is no TSS

    return EsapiTpm(tcti, ak_handle=ak_handle or AK_HANDLE, of_platform=of_platform)


def _cloud(dmi: Path, metadata: Metadata | None) -> str | None:
    """Whose machine this is: a hint for people, never trusted. By its DMI strings; the metadata service is asked where
    there are none, as in an enclave: of a machine whose maker is known and none of the three, nobody has to ask.
    """
    read = _reader(dmi)
    vendor = read("sys_vendor")
    if vendor == "Amazon EC2":
        return "AWS"
    if vendor == "Google" or read("product_name") == "Google Compute Engine":
        return "GCP"
    if read("chassis_asset_tag") == _AZURE_ASSET_TAG:
        return "Azure"
    if vendor:
        return None
    from cosmian_vm.attester.metadata import find_cloud

    return find_cloud(metadata or _metadata_service(), seconds=_METADATA_SECONDS)


def _metadata_service() -> Metadata:
    from cosmian_vm.attester.metadata import MetadataService

    return MetadataService()


def _reader(folder: Path) -> Callable[[str], str]:
    def read(name: str) -> str:
        try:
            return (folder / name).read_text(encoding="ascii", errors="replace").strip()
        except OSError:
            return ""

    return read
