"""The TPM 2.0 of this machine, through the TSS (tpm2-pytss, ESAPI).

Keys: EK by the TCG EK Credential Profile 2.x (ECC P-256, template L-2, or what the TPM's own NV indices ask for) and,
as its child, the AK: ECC P-256, restricted, fixed ECDSA-SHA256 scheme. Both are made persistent. "Part 1..4" below are
the parts of the TPM 2.0 Library Specification.

tpm2-pytss is not thread-safe: every use of a context is under one lock. A nested field of one of its structures points
into its parent's memory, so the parent is always kept in a local name while a field is read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING

from tpm2_pytss import ESAPI, ESYS_TR, TSS2_Exception
from tpm2_pytss.utils import NoSuchIndex

from cosmian_vm._tss import explained, pcr_selection, read_pcrs
from cosmian_vm.attester._tpm_keys import check_ak, make_ak, make_ek
from cosmian_vm.attester._tpm_nv import find, nv_read
from cosmian_vm.attester.platform import TpmQuote
from cosmian_vm.attester.tpm_anchor import Anchors
from cosmian_vm.errors import AttesterError, NotAvailableError

if TYPE_CHECKING:
    from cosmian_vm.evidence.bundle import EndorsementKey, PlatformAk

__all__ = ["AK_HANDLE", "EK_HANDLE", "MAX_QUALIFYING_DATA", "EsapiTpm"]

EK_HANDLE = 0x81000050
"""Persistent handle of the endorsement key."""
AK_HANDLE = 0x81000051
"""Persistent handle of the attestation key."""
MAX_QUALIFYING_DATA = 64
"""Largest qualifyingData that we pass on, in bytes (TPM2B_DATA holds 66, the 1.3.x agent refused more than 64)."""

_MAX_PCR = 23
_MAX_QUOTE_ATTEMPTS = 20


class EsapiTpm:
    """A TpmDevice over any TCTI that the TSS knows (``device:/dev/tpmrm0``, ``swtpm:path=...``).

    ``keep_open``: keep the context between calls. Switch it off for a TPM without resource manager that serves one
    client at a time. ``of_platform``: the AK is one that the platform made (Azure's HCL); it is never made or removed
    here, and what vouches for it is not this TPM's business.
    """

    def __init__(
        self,
        tcti: str,
        *,
        ek_handle: int = EK_HANDLE,
        ak_handle: int = AK_HANDLE,
        keep_open: bool = True,
        of_platform: bool = False,
    ) -> None:
        self._tcti = tcti
        self._ek_handle = ek_handle
        self._ak_handle = ak_handle
        self._keep_open = keep_open
        self._of_platform = of_platform
        self._anchors = Anchors(ek_handle)
        self._lock = threading.Lock()
        self._context: ESAPI | None = None
        self._public: bytes | None = None

    def provision(self) -> None:
        """Make EK and AK persistent where they are not; check those that are there.

        Each step is idempotent and nothing is ever replaced. Raises AttesterError, also where a foreign object stands
        at one of the handles.
        """
        with self._esys() as esys:
            if not self._of_platform and find(esys, self._ak_handle) is None:
                ek = find(esys, self._ek_handle)
                if ek is None:
                    ek = make_ek(esys, self._ek_handle)
                make_ak(esys, ek, self._ak_handle)
            self._public = self._read_ak(esys)
            if not self._of_platform:
                self._anchors.prepare(esys)

    def provisioned(self) -> bool:
        """Whether an object stands at the AK's handle. Raises AttesterError, NotAvailableError."""
        with self._esys() as esys:
            return find(esys, self._ak_handle) is not None

    def ak_public(self) -> bytes:
        """TPMT_PUBLIC of the AK, big-endian. Raises AttesterError, NotAvailableError where it was not made yet."""
        with self._esys() as esys:
            return self._read_ak(esys)

    def ak_certificate(self) -> bytes | None:
        """None: nobody certifies an AK that the machine makes itself."""
        return None

    def platform_ak(self, qualifying_data: bytes) -> PlatformAk | None:
        """The platform's certified key, where NV names one, certifies our AK. ``qualifying_data``: at most 64 bytes.

        Raises AttesterError.
        """
        if self._of_platform:
            return None
        if len(qualifying_data) > MAX_QUALIFYING_DATA:
            raise AttesterError(f"TPM2_Certify: {len(qualifying_data)} bytes of nonce, at most {MAX_QUALIFYING_DATA}")
        with self._esys() as esys:
            return self._anchors.platform_ak(esys, self._loaded_ak(esys), qualifying_data)

    def ek(self) -> EndorsementKey | None:
        """The EK that ``activate`` uses: one that a certificate in NV is for, else the one that was made here; None
        where there is neither. Raises AttesterError.
        """
        if self._of_platform:
            return None
        with self._esys() as esys:
            return self._anchors.ek(esys)

    def activate(self, credential_blob: bytes, secret: bytes) -> bytes:
        """TPM2_ActivateCredential (Part 3, 12.5) for our AK and the key that ``ek`` tells.

        Raises NotAvailableError where there is none, CredentialRefusedError where it was made for other keys, and
        AttesterError.
        """
        if self._of_platform:
            raise NotAvailableError("TPM: the platform's attestation key activates no credentials")
        with self._esys() as esys:
            return self._anchors.activate(esys, self._loaded_ak(esys), credential_blob, secret)

    def quote(self, qualifying_data: bytes, pcrs: Sequence[int]) -> TpmQuote:
        """A quote over exactly these PCRs of the sha256 bank, with the very values that were quoted.

        ``qualifying_data``: at most 64 bytes. PCR 10 may be extended at any moment, so values and quote are taken
        again until they belong together. Raises AttesterError.
        """
        if len(qualifying_data) > MAX_QUALIFYING_DATA:
            raise AttesterError(f"TPM quote: {len(qualifying_data)} bytes of nonce, at most {MAX_QUALIFYING_DATA}")
        wanted = sorted(set(pcrs))
        if not wanted or wanted[0] < 0 or wanted[-1] > _MAX_PCR:
            raise AttesterError(f"TPM quote: the PCRs must be some of 0 to {_MAX_PCR}")
        with self._esys() as esys:
            public = self._read_ak(esys)
            key = find(esys, self._ak_handle)
            before = read_pcrs(esys, wanted)
            for _ in range(_MAX_QUOTE_ATTEMPTS):
                attest, signature = esys.quote(key, pcr_selection(wanted), qualifying_data)
                raw = bytes(attest)
                after = read_pcrs(esys, wanted)
                for values in (after, before):
                    if _quoted_digest(raw) == sha256(b"".join(values[i] for i in wanted)).digest():
                        return TpmQuote(quote=raw, signature=signature.marshal(), ak_public=public, pcrs=values)
                before = after
        raise AttesterError(
            f"TPM quote: the PCRs changed during each of {_MAX_QUOTE_ATTEMPTS} attempts; is a program being measured "
            "again and again?"
        )

    def read_pcrs(self, pcrs: Sequence[int]) -> dict[int, bytes]:
        """Values of the sha256 bank, 32 bytes each. Raises AttesterError."""
        with self._esys() as esys:
            return read_pcrs(esys, pcrs)

    def nv_read(self, index: int) -> bytes:
        """The content of an NV index, by its own or the owner's (empty) authorisation.

        Raises NotAvailableError where there is no such index, AttesterError where it cannot be read.
        """
        with self._esys() as esys:
            try:
                return nv_read(esys, index)
            except NoSuchIndex as exc:
                raise NotAvailableError(f"TPM: there is no NV index {index:#010x}") from exc

    def close(self) -> None:
        """Let go of the device."""
        with self._lock:
            self._drop()

    def _drop(self) -> None:
        context, self._context = self._context, None
        if context is not None:
            context.close()

    @contextmanager
    def _esys(self) -> Iterator[ESAPI]:
        """The context, ours alone; TSS errors become AttesterError and the next call starts with a fresh context."""
        with self._lock:
            try:
                if self._context is None:
                    self._context = ESAPI(self._tcti)
            except (TSS2_Exception, RuntimeError, ValueError) as exc:
                raise NotAvailableError(f"TPM {self._tcti}: cannot be opened: {exc}") from exc
            broken = True
            try:
                yield self._context
                broken = False
            except AttesterError:
                broken = False
                raise
            except TSS2_Exception as exc:
                raise AttesterError(f"TPM {self._tcti}: {explained(exc)}") from exc
            finally:
                if broken or not self._keep_open:
                    self._drop()

    def _loaded_ak(self, esys: ESAPI) -> ESYS_TR:
        handle = find(esys, self._ak_handle)
        if handle is None:
            raise NotAvailableError(
                f"TPM: no attestation key at {self._ak_handle:#010x}; the agent's log says why it was not made"
            )
        return handle

    def _read_ak(self, esys: ESAPI) -> bytes:
        public, _name, _qualified = esys.read_public(self._loaded_ak(esys))
        raw = bytes(public.publicArea.marshal())
        if raw != self._public:
            check_ak(public, self._ak_handle, of_platform=self._of_platform)
            self._public = raw
        return raw


def _quoted_digest(attest: bytes) -> bytes:
    """pcrDigest: the last field of TPMS_QUOTE_INFO, which ends TPMS_ATTEST (Part 2, 10.12.4): 32 bytes here."""
    return attest[-32:]
