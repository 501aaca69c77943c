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

from tpm2_pytss import (
    ESAPI,
    ESYS_TR,
    TPM2_ALG,
    TPM2_CAP,
    TPM2_SE,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMA_NV,
    TPMA_OBJECT,
    TPMT_PUBLIC,
    TPMT_SYM_DEF,
    TSS2_Exception,
)
from tpm2_pytss.constants import TPM2_ECC, TPM2_PT_NV, TPM2_RC
from tpm2_pytss.utils import NoSuchIndex, create_ek_template

from cosmian_vm._tss import explained, pcr_selection, read_pcrs
from cosmian_vm.attester.platform import TpmQuote
from cosmian_vm.errors import AttesterError, NotAvailableError
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
_MAX_NV_SIZE = 64 * 1024
_DEFAULT_NV_CHUNK = 512

# Part 2, 8.3 TPMA_OBJECT: what an AK must be, so that it signs nothing but what the TPM itself made.
_AK_NEEDS = (
    TPMA_OBJECT.FIXEDTPM
    | TPMA_OBJECT.FIXEDPARENT
    | TPMA_OBJECT.SENSITIVEDATAORIGIN
    | TPMA_OBJECT.RESTRICTED
    | TPMA_OBJECT.SIGN_ENCRYPT
)
# Empty authorisation by password session; a dictionary-attack lockout must not deny quotes.
_AK_ATTRIBUTES = _AK_NEEDS | TPMA_OBJECT.USERWITHAUTH | TPMA_OBJECT.NODA


class EsapiTpm:
    """A TpmDevice over any TCTI that the TSS knows (``device:/dev/tpmrm0``, ``swtpm:path=...``).

    ``keep_open``: keep the context between calls. Switch it off for a TPM without resource manager that serves one
    client at a time.
    """

    def __init__(
        self, tcti: str, *, ek_handle: int = EK_HANDLE, ak_handle: int = AK_HANDLE, keep_open: bool = True
    ) -> None:
        self._tcti = tcti
        self._ek_handle = ek_handle
        self._ak_handle = ak_handle
        self._keep_open = keep_open
        self._lock = threading.Lock()
        self._context: ESAPI | None = None
        self._public: bytes | None = None

    def provision(self) -> None:
        """Make EK and AK persistent where they are not; check those that are there.

        Each step is idempotent and nothing is ever replaced. Raises AttesterError, also where a foreign object stands
        at one of the handles.
        """
        with self._esys() as esys:
            if _find(esys, self._ak_handle) is None:
                ek = _find(esys, self._ek_handle)
                if ek is None:
                    ek = _make_ek(esys, self._ek_handle)
                _make_ak(esys, ek, self._ak_handle)
            self._public = self._read_ak(esys)

    def provisioned(self) -> bool:
        """Whether an object stands at the AK's handle. Raises AttesterError, NotAvailableError."""
        with self._esys() as esys:
            return _find(esys, self._ak_handle) is not None

    def ak_public(self) -> bytes:
        """TPMT_PUBLIC of the AK, big-endian. Raises AttesterError, NotAvailableError where it was not made yet."""
        with self._esys() as esys:
            return self._read_ak(esys)

    def ak_certificate(self) -> bytes | None:
        """None: nobody certifies an AK that the machine makes itself."""
        return None

    def platform_ak(self, qualifying_data: bytes) -> PlatformAk | None:  # noqa: ARG002 - the protocol's
        """None: nobody certified a key of this TPM."""
        return None

    def ek(self) -> EndorsementKey | None:
        """None: no EK to activate a credential with."""
        return None

    def activate(self, credential_blob: bytes, secret: bytes) -> bytes:  # noqa: ARG002 - the protocol's
        """Raises NotAvailableError."""
        raise NotAvailableError("this TPM activates no credentials")

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
            key = _find(esys, self._ak_handle)
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
                return _nv_read(esys, index)
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

    def _read_ak(self, esys: ESAPI) -> bytes:
        handle = _find(esys, self._ak_handle)
        if handle is None:
            raise NotAvailableError(
                f"TPM: no attestation key at {self._ak_handle:#010x}; the agent's log says why it was not made"
            )
        public, _name, _qualified = esys.read_public(handle)
        raw = bytes(public.publicArea.marshal())
        if raw != self._public:
            _check_ak(public, self._ak_handle)
            self._public = raw
        return raw


def _find(esys: ESAPI, handle: int) -> ESYS_TR | None:
    """The object at a persistent handle or NV index, None where there is none."""
    try:
        return esys.tr_from_tpmpublic(handle)
    except TSS2_Exception as exc:
        if exc.error == TPM2_RC.HANDLE:
            return None
        raise


def _make_ek(esys: ESAPI, handle: int) -> ESYS_TR:
    """Create the EK as the TPM's maker did (NV template and nonce, if any) and make it persistent."""

    def read(index: int) -> bytes:
        return _nv_read(esys, index)

    try:
        _certificate, template = create_ek_template("EK-ECC256", read)
    except (ValueError, TSS2_Exception) as exc:
        raise AttesterError(f"TPM: its own template of the endorsement key cannot be used: {exc}") from exc
    # Endorsement hierarchy, empty authorisation: Part 3, 24.1 TPM2_CreatePrimary.
    transient, *_ = esys.create_primary(TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.ENDORSEMENT)
    return _persist(esys, transient, handle)


def _make_ak(esys: ESAPI, ek: ESYS_TR, handle: int) -> None:
    """Create the AK under the EK and make it persistent."""
    # Part 2, 12.2.4 TPMT_PUBLIC; scheme in the key itself, so that it can never sign by another.
    template = TPM2B_PUBLIC(
        publicArea=TPMT_PUBLIC.parse("ecc256:ecdsa-sha256:null", objectAttributes=_AK_ATTRIBUTES, nameAlg="sha256")
    )
    with _endorsement_policy(esys) as session:
        private, public, *_ = esys.create(ek, TPM2B_SENSITIVE_CREATE(), template, session1=session)
    with _endorsement_policy(esys) as session:
        transient = esys.load(ek, private, public, session1=session)
    _persist(esys, transient, handle)


def _persist(esys: ESAPI, transient: ESYS_TR, handle: int) -> ESYS_TR:
    """EvictControl by the owner (empty authorisation), and flush the transient object in any case."""
    try:
        return esys.evict_control(ESYS_TR.OWNER, transient, handle)
    finally:
        esys.flush_context(transient)


@contextmanager
def _endorsement_policy(esys: ESAPI) -> Iterator[ESYS_TR]:
    """A policy session that satisfies the EK's policy: PolicySecret(TPM_RH_ENDORSEMENT)."""
    session = esys.start_auth_session(
        ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL), TPM2_ALG.SHA256
    )
    try:
        esys.policy_secret(ESYS_TR.ENDORSEMENT, session)
        yield session
    finally:
        esys.flush_context(session)


def _check_ak(public: TPM2B_PUBLIC, handle: int) -> None:
    """The key at the AK's handle can be nobody's but an AK's."""
    area = public.publicArea
    problem = ""
    if area.type != TPM2_ALG.ECC or area.parameters.eccDetail.curveID != TPM2_ECC.NIST_P256:
        problem = "is not an ECC P-256 key"
    elif area.nameAlg != TPM2_ALG.SHA256:
        problem = "has a name algorithm other than SHA-256"
    elif (area.objectAttributes & _AK_NEEDS) != _AK_NEEDS or area.objectAttributes & TPMA_OBJECT.DECRYPT:
        problem = "is not a restricted signing key that never leaves the TPM"
    else:
        scheme = area.parameters.eccDetail.scheme
        if scheme.scheme != TPM2_ALG.ECDSA or scheme.details.ecdsa.hashAlg != TPM2_ALG.SHA256:
            problem = "has a scheme other than ECDSA with SHA-256"
    if problem:
        raise AttesterError(
            f"TPM: the object at {handle:#010x} {problem}; if nothing else uses it, remove it with "
            f"`tpm2_evictcontrol -C o -c {handle:#010x}` and start the agent again"
        )


def _quoted_digest(attest: bytes) -> bytes:
    """pcrDigest: the last field of TPMS_QUOTE_INFO, which ends TPMS_ATTEST (Part 2, 10.12.4): 32 bytes here."""
    return attest[-32:]


def _nv_read(esys: ESAPI, index: int) -> bytes:
    """Raises NoSuchIndex, AttesterError."""
    handle = _find(esys, index)
    if handle is None:
        raise NoSuchIndex(index)
    area, _name = esys.nv_read_public(handle)
    attributes, size = int(area.nvPublic.attributes), int(area.nvPublic.dataSize)
    if attributes & TPMA_NV.AUTHREAD:
        auth = handle
    elif attributes & TPMA_NV.OWNERREAD:
        auth = ESYS_TR.OWNER
    else:
        raise AttesterError(f"TPM: NV index {index:#010x} may be read neither by its own nor by the owner's authority")
    if not attributes & TPMA_NV.WRITTEN:
        raise NoSuchIndex(index)
    if size > _MAX_NV_SIZE:
        raise AttesterError(f"TPM: NV index {index:#010x} claims {size} bytes")
    chunk = _nv_chunk(esys)
    content = b""
    while len(content) < size:
        part = bytes(esys.nv_read(handle, min(chunk, size - len(content)), len(content), auth_handle=auth))
        if not part:
            raise AttesterError(f"TPM: NV index {index:#010x} ends after {len(content)} of {size} bytes")
        content += part
    return content


def _nv_chunk(esys: ESAPI) -> int:
    """How many bytes one TPM2_NV_Read may give (TPM2_PT_NV_BUFFER_MAX)."""
    _more, data = esys.get_capability(TPM2_CAP.TPM_PROPERTIES, TPM2_PT_NV.BUFFER_MAX, 1)
    properties = data.data.tpmProperties
    if len(properties) and properties[0].property == TPM2_PT_NV.BUFFER_MAX:
        return min(int(properties[0].value), 2048)
    return _DEFAULT_NV_CHUNK
