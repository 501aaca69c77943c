"""Evidence: all that one machine claimed at one moment, and the connection that it came over."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

__all__ = [
    "V2_PCRS",
    "Activation",
    "ApplicationPeer",
    "EndorsementKey",
    "Evidence",
    "PlatformAk",
    "SvsmReport",
    "TeeKind",
    "TlsPeer",
    "TpmEvidence",
    "tee_kind",
]

V2_PCRS = tuple(range(16))
"""The PCRs that a version 2 quote covers, exactly (sha256 bank)."""


class TeeKind(StrEnum):
    """The Trusted Execution Environments that we know, by the names used on the wire."""

    SNP = "sev-snp"
    TDX = "tdx"
    SGX = "sgx"


def tee_kind(raw: bytes) -> TeeKind | None:
    """Which TEE a report or quote is of, by its first bytes and never by anybody's word; None where it is none of ours.

    SNP: ATTESTATION_REPORT VERSION (u32le), a small number. Intel: version and attestation key type (u16le each; the
    type is never 0), then tee_type (u32le: 0 SGX, 0x81 TDX; version 3 is SGX).
    """
    if len(raw) < 48:
        return None
    version, key_type = raw[0] | raw[1] << 8, raw[2] | raw[3] << 8
    tee_type = int.from_bytes(raw[4:8], "little")
    if key_type == 0:
        return TeeKind.SNP if 0 < version < 16 else None
    if version == 3:
        return TeeKind.SGX
    if version in (4, 5):
        return {0: TeeKind.SGX, 0x81: TeeKind.TDX}.get(tee_type)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformAk:
    """A key of this TPM that its maker or the cloud certified, and that key's word on our AK.

    ``public``: TPMT_PUBLIC. ``attest``: TPMS_ATTEST of TPM2_Certify over the AK, with the binding as qualifying data.
    ``signature``: TPMT_SIGNATURE of ``attest``. ``certificates``: as NV holds them, DER, the key's own first.
    """

    public: bytes
    attest: bytes
    signature: bytes
    certificates: tuple[bytes, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndorsementKey:
    """The EK. ``public``: TPMT_PUBLIC. ``certificates``: DER, the EK's own first; () where the TPM has none."""

    public: bytes
    certificates: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """What came of a TPM2_ActivateCredential that this verifier asked for: its challenge, and the agent's answer.

    ``ek_public``: TPMT_PUBLIC that the credential was made for. ``ak_name``: the TPM name in it. ``expected``: the
    credential. ``answered``: what the agent sent back, b"" where it refused.
    """

    ek_public: bytes
    ak_name: bytes
    expected: bytes
    answered: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SvsmReport:
    """An SVSM's word on its vTPM (AMD 58019, "Attestation Protocol"), both as configfs-tsm hands them out.

    ``report``: ATTESTATION_REPORT of VMPL 0, 1184 bytes; its report_data is SHA-512(the 64 bytes that were asked for ||
    ``manifest``). ``manifest``: of the vTPM service: the EK's TPMT_PUBLIC.
    """

    report: bytes
    manifest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TpmEvidence:
    """A TPM's word: TPMS_ATTEST, TPMT_SIGNATURE and TPMT_PUBLIC of the AK, big-endian as the TPM wrote them.

    ``pcrs``: claimed values of the sha256 bank by index, 32 bytes each; empty in version 1. They are claims until the
    digest in the quote has been recomputed from them.
    """

    quote: bytes
    signature: bytes
    ak_public: bytes
    pcrs: Mapping[int, bytes] = field(default_factory=dict)
    ak_certificate: bytes | None = None
    platform_ak: PlatformAk | None = None
    ek: EndorsementKey | None = None


class TlsPeer(NamedTuple):
    """The other end of the connection that carried the evidence.

    ``leaf``: its certificate, DER. ``trusted``: whether the usual CA checks passed (None: they were not asked for,
    --allow-insecure-tls). ``problem``: what the CA checks found, one line.
    """

    leaf: bytes
    trusted: bool | None
    problem: str = ""


class ApplicationPeer(NamedTuple):
    """What an application's port served: ``leaf`` is its certificate (DER), or None and ``problem`` says why."""

    address: str
    leaf: bytes | None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Everything that is appraised together.

    ``api``: version that the agent spoke (1 or 2). ``tee``: the TEE's report or quote as it came, perhaps with
    certificates behind it. ``endorsements``: certificates and CRLs that came along (DER or PEM), trusted for nothing
    until they chain to a pinned root. ``ima_log``: the kernel's binary list from entry ``ima_from`` on.
    ``hcl_report``: of an Azure machine, whole (evidence.azure); ``tee`` is the report in it, or the TD quote over it.
    ``cc_event_log``: CCEL of a TD, what its RTMRs were extended with. ``svsm``: where the vTPM is an SVSM's.
    ``activation``: this verifier's own doing, never sent by an agent. ``owners``: fingerprints, ("anyone",), or ()
    for an unclaimed machine. None always means: the agent says that there is none; it counts for nothing.
    """

    api: int
    tee: bytes | None
    tpm: TpmEvidence | None
    ima_log: bytes | None
    boot_event_log: bytes | None
    tls: TlsPeer
    endorsements: tuple[bytes, ...] = ()
    ima_from: int = 0
    owners: tuple[str, ...] = ()
    cloud: str | None = None
    agent_version: str = ""
    applications: tuple[ApplicationPeer, ...] = ()
    hcl_report: bytes | None = None
    cc_event_log: bytes | None = None
    svsm: SvsmReport | None = None
    activation: Activation | None = None
