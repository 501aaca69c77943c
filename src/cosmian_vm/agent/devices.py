"""The answers that one machine's devices give. Everything here blocks and runs in the collector's device lane."""

from __future__ import annotations

import msgspec

from cosmian_vm import __version__
from cosmian_vm.attester.platform import Platform, TeeDevice, TeeQuote, TpmDevice, TpmQuote
from cosmian_vm.certificates import spki_sha256
from cosmian_vm.errors import (
    AttesterError,
    CredentialRefusedError,
    EvidenceFormatError,
    NotAvailableError,
    OrderError,
)
from cosmian_vm.evidence import binding, ima, snp
from cosmian_vm.evidence.bundle import V2_PCRS, TeeKind, TpmEvidence
from cosmian_vm.evidence.tpm import Alg, parse_signature, serialise_signature
from cosmian_vm.wire import (
    EvidenceAnswer,
    TpmAnswer,
    TpmQuoteV1,
    VersionAnswer,
    encode_base64_unpadded,
    svsm_answer,
    tpm_answer,
)

__all__ = ["API_VERSION", "DeviceValues", "Devices"]

API_VERSION = 2

_SGX_QUOTE_SIZE = 436
"""Intel SGX quote version 3 up to its signature: header 48, body 384, u32 length of what follows."""
_P256_SIZE = 32


class DeviceValues(msgspec.Struct, frozen=True, kw_only=True):
    """``report``: raw TEE report. ``quote``: over PCRs 0 to 15. ``ima_log``: read after the quote."""

    tee_kind: TeeKind
    report: bytes
    quote: TpmQuote | None
    ima_log: bytes | None


class Devices:
    """Evidence of ``platform``; see the module. ``owners``: as evidence is to show them."""

    def __init__(self, platform: Platform, owners: tuple[str, ...]) -> None:
        self._platform = platform
        self._owners = owners

    def describe(self) -> VersionAnswer:
        """What this machine has. Raises AttesterError."""
        tee = self._platform.tee
        return VersionAnswer(
            agent_version=__version__,
            api_versions=[1, API_VERSION],
            tee_kind=None if tee is None else tee.kind.value,
            tpm=self._platform.tpm is not None,
            ima=self._platform.logs.ima_binary() is not None,
        )

    def evidence(self, nonce: bytes, leaf: bytes, ima_from: int) -> EvidenceAnswer:
        """All evidence of this moment, bound to nonce and leaf. The quotes come first, the logs after them: the IMA
        list then holds at least what the quote covers.

        Raises AttesterError.
        """
        tee, tpm, logs = self._platform.tee, self._platform.tpm, self._platform.logs
        ak_public = None if tpm is None else tpm.ak_public()
        bound = binding.compute_binding(nonce, spki_sha256(leaf), ak_public)
        report = None if tee is None else tee.quote(binding.report_data(nonce, bound))
        answer = None if tpm is None else self._tpm_answer(tpm, bound, ak_public)
        ima_log = logs.ima_binary()
        return EvidenceAnswer(
            api=API_VERSION,
            agent_version=__version__,
            tee_kind=None if tee is None else tee.kind.value,
            tee_quote=None if report is None else report.raw,
            endorsements=[] if report is None else list(report.endorsements),
            tpm=answer,
            boot_event_log=logs.boot_event_log(),
            ima_log=None if ima_log is None else _entries_from(ima_log, ima_from),
            ima_from=ima_from,
            owners=list(self._owners),
            cloud=self._platform.cloud,
            hcl_report=None if report is None else report.hcl_report,
            cc_event_log=logs.cc_event_log(),
            svsm=svsm_answer(None if report is None else report.svsm),
        )

    def activate(self, credential_blob: bytes, secret: bytes) -> bytes:
        """TPM2_ActivateCredential for AK and EK: the credential.

        Raises AttesterError, NotAvailableError, OrderError (400) where the credential was made for other keys.
        """
        if self._platform.tpm is None:
            raise NotAvailableError("this machine has no TPM (agent.toml names no tpm_device)")
        try:
            return self._platform.tpm.activate(credential_blob, secret)
        except CredentialRefusedError as exc:
            raise OrderError(str(exc), status=400) from exc

    def _tpm_answer(self, tpm: TpmDevice, bound: bytes, ak_public: bytes | None) -> TpmAnswer:
        quote = tpm.quote(bound, V2_PCRS)
        if quote.ak_public != ak_public:
            raise AttesterError("the TPM quoted with another key than its AK; try again")
        return tpm_answer(
            TpmEvidence(
                quote=quote.quote,
                signature=quote.signature,
                ak_public=quote.ak_public,
                pcrs={pcr: quote.pcrs[pcr] for pcr in V2_PCRS},
                ak_certificate=tpm.ak_certificate(),
                platform_ak=tpm.platform_ak(bound),
                ek=tpm.ek(),
            )
        )

    def tee_quote_v1(self, nonce: bytes, leaf: bytes) -> bytes:
        """Version 1: the quote over nonce and leaf, its certificates behind it as 1.3.x reads them.

        Raises AttesterError, NotAvailableError.
        """
        spki_sha256(leaf)  # only a certificate may be hashed here: nothing else must ever look like our binding
        tee = self._tee()
        return _with_certificates_v1(tee.kind, tee.quote(binding.report_data_v1(nonce, leaf)), self._platform.cloud)

    def tpm_quote_v1(self, nonce: bytes) -> TpmQuoteV1:
        """Version 1: a quote over exactly the one PCR of the first IMA entry, never more: a quote over 16 PCRs would
        pass for version 2 with a binding of the caller's choice.

        Raises AttesterError, NotAvailableError.
        """
        tpm = self._platform.tpm_v1 or self._platform.tpm
        if tpm is None:
            raise NotAvailableError("this machine has no TPM (agent.toml names no tpm_device)")
        log = self.ima_binary()
        try:
            first, _ = ima.read_entry(log, 0, 0)
        except EvidenceFormatError as exc:
            raise AttesterError(f"the kernel's list cannot be read: {exc}") from exc
        quote = tpm.quote(nonce, (first.pcr,))
        return TpmQuoteV1(
            pcr_value_hash_method="Sha256",
            quote=encode_base64_unpadded(quote.quote),
            signature=encode_base64_unpadded(_signature_v1(quote.signature)),
            public_key=encode_base64_unpadded(quote.ak_public),
        )

    def ima_ascii(self) -> bytes:
        """The kernel's list, ASCII. Raises AttesterError, NotAvailableError."""
        return _there(self._platform.logs.ima_ascii())

    def ima_binary(self) -> bytes:
        """The kernel's list, binary. Raises AttesterError, NotAvailableError."""
        return _there(self._platform.logs.ima_binary())

    def for_snapshot(self) -> DeviceValues:
        """What a snapshot records of the devices. The quotes leave the machine with nobody: report_data and nonce are
        zeros.

        Raises AttesterError, NotAvailableError.
        """
        tee, tpm = self._tee(), self._platform.tpm
        report = tee.quote(bytes(64)).raw
        quote = None if tpm is None else tpm.quote(bytes(32), V2_PCRS)
        return DeviceValues(tee_kind=tee.kind, report=report, quote=quote, ima_log=self._platform.logs.ima_binary())

    def _tee(self) -> TeeDevice:
        if self._platform.tee is None:
            raise NotAvailableError("this machine has no TEE that the agent knows")
        return self._platform.tee


def _there(log: bytes | None) -> bytes:
    if log is None:
        raise NotAvailableError("this machine has no IMA list (is IMA on, and securityfs mounted?)")
    return log


def _entries_from(log: bytes, first: int) -> bytes:
    """The list from entry ``first`` on; empty where there are fewer. Raises AttesterError where it cannot be read."""
    at = 0
    try:
        for index in range(first):
            if at >= len(log):
                break
            _, at = ima.read_entry(log, at, index)
    except EvidenceFormatError as exc:
        raise AttesterError(f"the kernel's list cannot be read: {exc}") from exc
    return log[at:]


def _signature_v1(raw: bytes) -> bytes:
    """The TPMT_SIGNATURE with r and s of 32 bytes each, as 1.3.x reads them: a TPM may leave their leading zeros out.

    Raises AttesterError where it cannot be read.
    """
    try:
        told = parse_signature(raw)
    except EvidenceFormatError as exc:
        raise AttesterError(f"the TPM's signature cannot be read: {exc}") from exc
    if told.algorithm != Alg.ECDSA:
        return raw
    r, s = (value.lstrip(b"\0").rjust(_P256_SIZE, b"\0") for value in (told.r, told.s))
    return serialise_signature(told._replace(r=r, s=s))


def _with_certificates_v1(kind: TeeKind, quote: TeeQuote, cloud: str | None) -> bytes:
    if kind is TeeKind.SGX and len(quote.raw) >= _SGX_QUOTE_SIZE:
        signature = int.from_bytes(quote.raw[_SGX_QUOTE_SIZE - 4 : _SGX_QUOTE_SIZE], "little")
        return quote.raw[: _SGX_QUOTE_SIZE + signature]
    if kind is not TeeKind.SNP:
        return quote.raw
    if cloud == "Azure":
        return quote.raw + b"".join(blob for blob in quote.endorsements if blob.startswith(b"-----BEGIN"))
    certificates: list[bytes] = []
    try:
        for blob in quote.endorsements:
            certificates += snp.split_objects(blob)[0]
    except EvidenceFormatError as exc:
        raise AttesterError(f"the certificates beside the report cannot be read: {exc}") from exc
    return snp.serialise_v1(quote.raw, certificates)
