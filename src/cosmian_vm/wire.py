"""Paths and JSON shapes of the HTTP API, once, for agent and client.

Version 2: byte strings are base64, standard alphabet with padding (msgspec's form). Version 1: exactly the shapes of
the published 1.3.x programs: arrays of byte values, and base64 without padding.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from cosmian_vm.errors import EvidenceFormatError

if TYPE_CHECKING:
    from cosmian_vm.evidence.bundle import PlatformAk, SvsmReport, TpmEvidence

__all__ = [
    "ACTIVATE",
    "API_VERSIONS",
    "APP",
    "APP_INIT",
    "APP_LOGS",
    "APP_RESTART",
    "EVIDENCE",
    "HEALTH",
    "IMA_ASCII",
    "IMA_BINARY",
    "MAX_APP_BODY",
    "MAX_APP_CONFIGURATION",
    "MAX_CREDENTIAL_BLOB",
    "MAX_CREDENTIAL_SECRET",
    "MAX_LOG_LINES",
    "NONCE",
    "OPENAPI",
    "ORDER_HEADER",
    "OWNER",
    "OWNER_ADD",
    "OWNER_CLAIM",
    "OWNER_REMOVE",
    "QUOTE_TEE",
    "QUOTE_TPM",
    "SNAPSHOT_V1",
    "SNAPSHOT_V2",
    "VERSION",
    "ActivateAnswer",
    "ActivateRequest",
    "AppAnswer",
    "AppConfiguration",
    "AppLogsAnswer",
    "EkAnswer",
    "EvidenceAnswer",
    "EvidenceRequest",
    "NonceAnswer",
    "OwnerRequest",
    "OwnersAnswer",
    "PlatformAkAnswer",
    "SavedEvidence",
    "SnapshotProgress",
    "SvsmAnswer",
    "TpmAnswer",
    "TpmQuoteV1",
    "VersionAnswer",
    "decode_base64_unpadded",
    "encode_base64_unpadded",
    "platform_ak_answer",
    "svsm_answer",
    "svsm_report",
    "tpm_answer",
    "tpm_evidence",
]

API_VERSIONS = (1, 2)

# Version 1
IMA_ASCII = "/ima/ascii"
IMA_BINARY = "/ima/binary"
SNAPSHOT_V1 = "/snapshot"
QUOTE_TEE = "/quote/tee"
QUOTE_TPM = "/quote/tpm"
APP_INIT = "/app/init"
APP_RESTART = "/app/restart"
# Version 2
VERSION = "/version"
EVIDENCE = "/v2/evidence"
ACTIVATE = "/v2/activate"
SNAPSHOT_V2 = "/v2/snapshot"
NONCE = "/v2/nonce"
OWNER = "/v2/owner"
OWNER_CLAIM = "/v2/owner/claim"
OWNER_ADD = "/v2/owner/add"
OWNER_REMOVE = "/v2/owner/remove"
APP = "/v2/app"
APP_LOGS = "/v2/app/logs"
OPENAPI = "/openapi.json"
HEALTH = "/health"

ORDER_HEADER = "cosmian-vm-api"
"""Request header, value ``2``: the order comes from a client of version 2."""

MAX_APP_CONFIGURATION = 16 * 1024 * 1024
"""Largest application configuration, in bytes, after base64."""
MAX_CREDENTIAL_BLOB, MAX_CREDENTIAL_SECRET = 256, 1024
"""Largest TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET, in bytes: more than any TPM makes."""

MAX_APP_BODY = (MAX_APP_CONFIGURATION + 2) // 3 * 4 + 4096
"""Largest body of ``POST /app/init``: base64 of the configuration, and JSON around it."""

MAX_LOG_LINES = 1000
"""Lines of an application's log that can be asked for."""


# What evidence holds at most, but for the IMA list: whoever answers may not be an agent at all, and a few kilobytes on
# the wire unfold into as many list items as memory has room for.
_Blob = Annotated[bytes, Meta(max_length=1 << 20)]
_Endorsements = Annotated[list[_Blob], Meta(max_length=64)]
_Certificates = Annotated[list[_Blob], Meta(max_length=8)]
_Pcrs = Annotated[list[Annotated[bytes, Meta(max_length=64)]], Meta(max_length=24)]
_Owners = Annotated[list[Annotated[str, Meta(max_length=256)]], Meta(max_length=64)]
_BootLog = Annotated[bytes, Meta(max_length=64 << 20)]


class EvidenceRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """``POST /v2/evidence``. ``nonce``: 32 bytes. ``ima_from``: first IMA entry wanted, counted from 0."""

    nonce: bytes
    ima_from: int = 0


class PlatformAkAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``evidence.bundle.PlatformAk``."""

    public: _Blob
    attest: _Blob
    signature: _Blob
    certificates: _Certificates = []


class EkAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``evidence.bundle.EndorsementKey``."""

    public: _Blob
    certificates: _Certificates = []


class SvsmAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``evidence.bundle.SvsmReport``."""

    report: _Blob
    manifest: _Blob


class ActivateRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """``POST /v2/activate``: TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET of TPM2_MakeCredential, made for the EK and the
    AK of the evidence, each with its length in front (Part 2, 12.4.3 and 11.4.33).
    """

    credential_blob: Annotated[bytes, Meta(max_length=MAX_CREDENTIAL_BLOB)]
    secret: Annotated[bytes, Meta(max_length=MAX_CREDENTIAL_SECRET)]


class ActivateAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The credential, at most 64 bytes, that TPM2_ActivateCredential gave."""

    credential: Annotated[bytes, Meta(max_length=64)]


class TpmAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """TPMS_ATTEST, TPMT_SIGNATURE, TPMT_PUBLIC; ``pcrs``: values of PCR 0 to 15, sha256, in order."""

    quote: _Blob
    signature: _Blob
    ak_public: _Blob
    pcrs: _Pcrs
    ak_certificate: _Blob | None = None
    platform_ak: PlatformAkAnswer | None = None
    ek: EkAnswer | None = None


class EvidenceAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The whole evidence of one moment. The TPM was asked first and the IMA log read after it."""

    api: int
    agent_version: str
    tee_kind: str | None
    tee_quote: _Blob | None
    endorsements: _Endorsements
    tpm: TpmAnswer | None
    boot_event_log: _BootLog | None
    ima_log: bytes | None
    ima_from: int
    owners: _Owners
    cloud: str | None
    hcl_report: _Blob | None = None
    cc_event_log: _BootLog | None = None
    svsm: SvsmAnswer | None = None


class SavedEvidence(EvidenceAnswer, frozen=True, kw_only=True):
    """An evidence bundle in a file: the agent's answer, the nonce that it answers, and the certificate (DER) of the TLS
    connection that it came over; None where only the answer was kept.
    """

    nonce: bytes | None = None
    tls_certificate: bytes | None = None


class VersionAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /version``."""

    agent_version: str
    api_versions: list[int]
    tee_kind: str | None
    tpm: bool
    ima: bool


class SnapshotProgress(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /v2/snapshot`` with status 202: how far the snapshot is. ``files_total`` is None while counting."""

    files_done: int
    bytes_done: int
    files_total: int | None = None


class AppConfiguration(msgspec.Struct, frozen=True, kw_only=True):
    """``POST /app/init``: ``content`` is base64 without padding."""

    content: str


class NonceAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``POST /v2/nonce``: what an owner's proof answers, 32 bytes, usable once and for a short time."""

    nonce: Annotated[bytes, Meta(min_length=32, max_length=32)]


class OwnersAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /v2/owner``, and the answer to what changes it. ``owners`` as in evidence; ``claimable``: nobody owns the
    machine, and its configuration leaves that to whoever comes first.
    """

    owners: _Owners
    claimable: bool


class OwnerRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """``POST /v2/owner/add``, ``POST /v2/owner/remove``: whom, as ``owner_proof.fingerprint`` writes it."""

    owner: Annotated[str, Meta(max_length=256)]


class AppAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /v2/app``. ``state``: in the words of what keeps the application running. ``configured``: ``app.conf`` is
    there. ``encrypted``: it lies on the encrypted container.
    """

    service_type: Annotated[str, Meta(max_length=64)]
    service_name: Annotated[str, Meta(max_length=4096)]
    running: bool
    state: Annotated[str, Meta(max_length=1000)]
    configured: bool
    encrypted: bool


class AppLogsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /v2/app/logs?lines=N``: the last lines that the application wrote, printable, oldest first."""

    lines: Annotated[list[Annotated[str, Meta(max_length=4096)]], Meta(max_length=MAX_LOG_LINES)]


class TpmQuoteV1(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /quote/tpm``: base64 without padding of TPMS_ATTEST, TPMT_SIGNATURE and TPMT_PUBLIC."""

    pcr_value_hash_method: str
    quote: str
    signature: str
    public_key: str


def tpm_answer(told: TpmEvidence) -> TpmAnswer:
    """A TPM's word, for the wire."""
    return TpmAnswer(
        quote=told.quote,
        signature=told.signature,
        ak_public=told.ak_public,
        pcrs=[told.pcrs[index] for index in sorted(told.pcrs)],
        ak_certificate=told.ak_certificate,
        platform_ak=None if told.platform_ak is None else platform_ak_answer(told.platform_ak),
        ek=None if told.ek is None else EkAnswer(public=told.ek.public, certificates=list(told.ek.certificates)),
    )


def platform_ak_answer(told: PlatformAk) -> PlatformAkAnswer:
    """A certified key's word on the AK, for the wire."""
    return PlatformAkAnswer(
        public=told.public, attest=told.attest, signature=told.signature, certificates=list(told.certificates)
    )


def tpm_evidence(told: TpmAnswer) -> TpmEvidence:
    """A TPM's word, off the wire."""
    # the client's alone: the agent's front, which imports this module, has no other use for it
    from cosmian_vm.evidence.bundle import EndorsementKey, PlatformAk, TpmEvidence

    platform, key, ek = None, told.platform_ak, told.ek
    if key is not None:
        platform = PlatformAk(
            public=key.public, attest=key.attest, signature=key.signature, certificates=tuple(key.certificates)
        )
    return TpmEvidence(
        quote=told.quote,
        signature=told.signature,
        ak_public=told.ak_public,
        pcrs=dict(enumerate(told.pcrs)),
        ak_certificate=told.ak_certificate,
        platform_ak=platform,
        ek=None if ek is None else EndorsementKey(public=ek.public, certificates=tuple(ek.certificates)),
    )


def svsm_answer(told: SvsmReport | None) -> SvsmAnswer | None:
    """An SVSM's word, for the wire."""
    return None if told is None else SvsmAnswer(report=told.report, manifest=told.manifest)


def svsm_report(told: SvsmAnswer | None) -> SvsmReport | None:
    """An SVSM's word, off the wire."""
    from cosmian_vm.evidence.bundle import SvsmReport

    return None if told is None else SvsmReport(report=told.report, manifest=told.manifest)


def encode_base64_unpadded(raw: bytes) -> str:
    """Standard alphabet, no padding."""
    return base64.b64encode(raw).decode("ascii").rstrip("=")


def decode_base64_unpadded(text: str, what: str) -> bytes:
    """Standard alphabet; padding, other characters and non-zero trailing bits raise EvidenceFormatError."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as exc:
        raise EvidenceFormatError(what, "is not base64 (standard alphabet, no padding)") from exc
    if encode_base64_unpadded(raw) != text:
        raise EvidenceFormatError(what, "is not base64 in its one valid form (no padding, trailing bits zero)")
    return raw
