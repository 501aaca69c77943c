"""What the agent needs of a machine, as small protocols; ``detect()`` finds the real ones.

Everything here blocks: the agent calls it from worker threads, one call at a time for each device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from cosmian_vm.attester.metadata import Metadata
    from cosmian_vm.evidence.bundle import EndorsementKey, PlatformAk, SvsmReport, TeeKind

__all__ = ["FileScope", "Logs", "Platform", "TeeDevice", "TeeQuote", "TpmDevice", "TpmQuote", "detect"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TeeQuote:
    """A report or quote in the vendor's format, without anything behind it, and what the platform hands out beside it:
    certificates and CRLs (DER or PEM), each on its own.

    ``hcl_report``: on Azure, whole; ``raw`` is then bound to it and not to what was asked for. ``svsm``: where an SVSM
    runs the vTPM.
    """

    raw: bytes
    endorsements: tuple[bytes, ...] = ()
    hcl_report: bytes | None = None
    svsm: SvsmReport | None = None


class TeeDevice(Protocol):
    """The processor's attestation interface."""

    @property
    def kind(self) -> TeeKind:
        """Which TEE this is."""
        ...

    def quote(self, report_data: bytes) -> TeeQuote:
        """A quote over exactly 64 bytes of report_data. Raises AttesterError."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmQuote:
    """TPMS_ATTEST, TPMT_SIGNATURE, TPMT_PUBLIC of the AK, and the sha256 PCR values of the same moment."""

    quote: bytes
    signature: bytes
    ak_public: bytes
    pcrs: Mapping[int, bytes]


class TpmDevice(Protocol):
    """The TPM. All but ``provision`` and ``provisioned`` need its AK to be there already."""

    def provision(self) -> None:
        """Make EK and AK where they are absent. Idempotent: the agent calls it at each start (unless told not to).
        Raises AttesterError.
        """
        ...

    def provisioned(self) -> bool:
        """Whether there is an object at the AK's handle: this machine was set up before. Raises AttesterError."""
        ...

    def ak_public(self) -> bytes:
        """TPMT_PUBLIC of the AK. Raises AttesterError."""
        ...

    def ak_certificate(self) -> bytes | None:
        """A certificate of the AK (DER), where the platform has one."""
        ...

    def platform_ak(self, qualifying_data: bytes) -> PlatformAk | None:
        """The platform's certified key (if there is one) certifies our AK. Raises AttesterError."""
        ...

    def ek(self) -> EndorsementKey | None:
        """The EK with its certificates; None where there is no EK of ours to activate a credential with. Raises
        AttesterError.
        """
        ...

    def activate(self, credential_blob: bytes, secret: bytes) -> bytes:
        """TPM2_ActivateCredential for AK and EK: the credential. Arguments as in ``wire.ActivateRequest``. Raises
        AttesterError, NotAvailableError, CredentialRefusedError where it was made for other keys.
        """
        ...

    def quote(self, qualifying_data: bytes, pcrs: Sequence[int]) -> TpmQuote:
        """A quote over exactly these PCRs of the sha256 bank; the PCR values returned are those that were quoted
        (read again until they hash to the quote's digest). ``qualifying_data``: at most 64 bytes. Raises
        AttesterError.
        """
        ...


class Logs(Protocol):
    """The kernel's lists. None where the kernel has no such list."""

    def ima_binary(self) -> bytes | None:
        """binary_runtime_measurements."""
        ...

    def ima_ascii(self) -> bytes | None:
        """ascii_runtime_measurements."""
        ...

    def boot_event_log(self) -> bytes | None:
        """binary_bios_measurements."""
        ...

    def cc_event_log(self) -> bytes | None:
        """The data of the ACPI table CCEL (a TD's own event log)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FileScope:
    """Which files a snapshot covers.

    ``root`` stands for ``/``: recorded paths are relative to it, with a leading slash. ``excluded`` are recorded
    paths of directories that are not entered.
    """

    root: Path = Path("/")
    excluded: tuple[str, ...] = (
        "/sys",
        "/run",
        "/proc",
        "/lost+found",
        "/dev",
        "/media",
        "/var",
        "/tmp",  # noqa: S108 - a path to leave out, not one to write to
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """One machine, as the agent sees it. ``cloud``: "AWS", "Azure", "GCP" or None; never trusted for security.

    ``tpm_v1``: what quotes for version 1 where that is another key than ``tpm``'s (Azure); None: the same.
    """

    tee: TeeDevice | None
    tpm: TpmDevice | None
    logs: Logs
    cloud: str | None = None
    tpm_v1: TpmDevice | None = None
    scope: FileScope = FileScope()


def detect(tpm_device: str | None, *, root: Path = Path("/"), metadata: Metadata | None = None) -> Platform:
    """The real devices of this machine. ``tpm_device``: path of the TPM's device file, None where there is no TPM.

    What is not there is None, and a line in the log says so: the agent serves what it can, and whoever verifies the
    machine misses the rest. ``root`` stands for ``/`` in tests, ``metadata`` for the cloud's metadata service.
    """
    from cosmian_vm.attester import _detect  # the devices' modules need the types above

    return _detect.find(tpm_device, root, metadata)
