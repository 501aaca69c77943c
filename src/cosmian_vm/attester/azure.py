"""Azure's confidential VMs: the guest reaches neither sev-guest nor tdx_guest; the paravisor's vTPM keeps a report.

Source: Microsoft, "Azure Confidential VM guest attestation design" and "Trusted Hardware Identity Management". The HCL
report in NV 0x01400001 holds a hardware report over the vTPM's own AK (``evidence.azure``). A caller's report_data is
not in it: what is fresh is the TPM's quote by that AK. The host's metadata service hands out the VCEK's chain, and has
the TDREPORT quoted; it is never trusted.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import threading
from collections.abc import Sequence
from typing import Protocol

from cosmian_vm.attester._intel import check_quote, check_size
from cosmian_vm.attester.metadata import Metadata, MetadataAnswer
from cosmian_vm.attester.platform import TeeQuote, TpmDevice, TpmQuote
from cosmian_vm.errors import AttesterError, EvidenceFormatError, NotAvailableError
from cosmian_vm.evidence.azure import HclReport, parse_hcl_report
from cosmian_vm.evidence.bundle import EndorsementKey, PlatformAk, TeeKind

__all__ = ["HCL_AK_HANDLE", "HCL_INDEX", "AzureTee", "AzureTpm", "NvReader"]

HCL_INDEX = 0x01400001
"""NV index of the HCL report."""
HCL_AK_HANDLE = 0x81000003
"""Persistent handle of the AK that the HCL report names HCLAkPub: RSA 2048, RSASSA with SHA-256, restricted."""

_WHAT = "Azure report"
_CERTIFICATES = "/metadata/THIM/amd/certification"
_TD_QUOTE = "/acc/tdquote"
_CERTIFICATE_SECONDS = 3.0
_QUOTE_SECONDS = 8.0

_log = logging.getLogger(__name__)


class NvReader(Protocol):
    """What is needed of the TPM."""

    def nv_read(self, index: int) -> bytes:
        """The content of an NV index. Raises AttesterError, NotAvailableError where there is no such index."""
        ...


class AzureTee:
    """A TeeDevice over the vTPM and the metadata service.

    What the metadata service gave for a hardware report is kept as long as the report stays the same.
    Raises AttesterError, NotAvailableError where there is no HCL report: this is no such machine.
    """

    def __init__(self, tpm: NvReader, metadata: Metadata) -> None:
        self._tpm = tpm
        self._metadata = metadata
        self._lock = threading.Lock()
        self._kept: tuple[bytes, TeeQuote] | None = None
        _raw, report = self._read()
        self._kind = TeeKind.TDX if report.report_type == "TDX" else TeeKind.SNP

    @property
    def kind(self) -> TeeKind:
        """SEV-SNP or TDX, as the HCL report says."""
        return self._kind

    def quote(self, report_data: bytes) -> TeeQuote:
        """The hardware report, and the HCL report that it is over. ``report_data`` (64 bytes) is not in it.

        Raises AttesterError.
        """
        check_size(report_data, _WHAT)
        with self._lock:
            raw, report = self._read()
            asked = report.tee_report
            if self._kept is None or self._kept[0] != asked:
                self._kept = None
                quote = self._td_quote(report) if report.report_type == "TDX" else self._snp(report)
                if quote.endorsements or report.report_type == "TDX":
                    self._kept = (asked, quote)
            else:
                quote = self._kept[1]
        return TeeQuote(raw=quote.raw, endorsements=quote.endorsements, hcl_report=raw)

    def _read(self) -> tuple[bytes, HclReport]:
        raw = self._tpm.nv_read(HCL_INDEX)
        try:
            return raw, parse_hcl_report(raw)
        except EvidenceFormatError as exc:
            raise AttesterError(f"{_WHAT}: NV index {HCL_INDEX:#010x}: {exc}") from exc

    def _snp(self, report: HclReport) -> TeeQuote:
        """The report stands without the certificates: a verifier can have them from AMD."""
        try:
            answer = self._ask("GET", _CERTIFICATES, seconds=_CERTIFICATE_SECONDS)
            told = [_text(answer, name, _CERTIFICATES).encode() for name in ("vcekCert", "certificateChain")]
        except AttesterError as exc:
            _log.warning("the report goes without the chip's certificates: %s", exc)
            told = []
        return TeeQuote(raw=report.tee_report, endorsements=tuple(told))

    def _td_quote(self, report: HclReport) -> TeeQuote:
        asked = json.dumps({"report": base64.urlsafe_b64encode(report.tee_report).rstrip(b"=").decode()}).encode()
        answer = self._ask("POST", _TD_QUOTE, asked, seconds=_QUOTE_SECONDS)
        raw = _decoded(_text(answer, "quote", _TD_QUOTE))
        check_quote(raw, TeeKind.TDX, report.report_data, "TDX quote")
        return TeeQuote(raw=raw)

    def _ask(self, method: str, path: str, body: bytes = b"", *, seconds: float) -> dict[str, object]:
        headers = {"Metadata": "true"}
        if body:
            headers["Content-Type"] = "application/json"
        answer = self._metadata(method, path, headers, body, seconds=seconds)
        return _object(answer, path)


def _object(answer: MetadataAnswer, path: str) -> dict[str, object]:
    if answer.status != 200:
        raise AttesterError(f"metadata service: {path}: status {answer.status}")
    try:
        told = json.loads(answer.body)
    except (ValueError, RecursionError) as exc:
        raise AttesterError(f"metadata service: {path}: its answer is no JSON") from exc
    if not isinstance(told, dict):
        raise AttesterError(f"metadata service: {path}: its answer is no object")
    return told


def _text(told: dict[str, object], name: str, path: str) -> str:
    value = told.get(name)
    if not isinstance(value, str) or not value.isascii():
        raise AttesterError(f"metadata service: {path}: its answer has no ASCII text {name!r}")
    return value


def _decoded(text: str) -> bytes:
    """base64url, with or without padding."""
    try:
        return base64.b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), altchars=b"-_", validate=True)
    except (ValueError, binascii.Error) as exc:
        raise AttesterError(f"metadata service: {_TD_QUOTE}: the quote is not base64url") from exc


class AzureTpm:
    """The TpmDevice of version 2: it quotes with the HCL's AK (``hcl``), which the HCL report vouches for. ``own``: the
    same TPM with the keys that this machine makes itself, for version 1; whether those were made tells whether this
    machine was set up.
    """

    def __init__(self, hcl: TpmDevice, own: TpmDevice) -> None:
        self._hcl = hcl
        self._own = own

    def provision(self) -> None:
        """Make our own EK and AK; check the HCL's AK."""
        self._own.provision()
        self._hcl.provision()

    def provisioned(self) -> bool:
        """Whether our own AK is there."""
        return self._own.provisioned()

    def ak_public(self) -> bytes:
        """TPMT_PUBLIC of the HCL's AK."""
        return self._hcl.ak_public()

    def ak_certificate(self) -> bytes | None:
        """None: the HCL report stands for it."""
        return None

    def platform_ak(self, qualifying_data: bytes) -> PlatformAk | None:  # noqa: ARG002 - the protocol's
        """None: the HCL report stands for it."""
        return None

    def ek(self) -> EndorsementKey | None:
        """None: the HCL report stands for it."""
        return None

    def activate(self, credential_blob: bytes, secret: bytes) -> bytes:  # noqa: ARG002 - the protocol's
        """Raises NotAvailableError."""
        raise NotAvailableError(
            "the attestation key of Azure's HCL activates no credentials: the HCL report is its proof"
        )

    def quote(self, qualifying_data: bytes, pcrs: Sequence[int]) -> TpmQuote:
        """A quote by the HCL's AK."""
        return self._hcl.quote(qualifying_data, pcrs)
