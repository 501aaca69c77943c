"""What vouches for our AK beside the hardware: a platform AK that a cloud certified, and the EK of the TPM's maker.

*Platform AK*: Google keeps certificate and template (TPMT_PUBLIC) of a restricted signing key in NV, and its tools
(go-tpm-tools, client.GceAttestationKey...) make the key from them as a primary of the endorsement hierarchy. That key
certifies ours with TPM2_Certify (Part 3, 18.2). *EK*: TCG "EK Credential Profile for TPM Family 2.0", certificates in
NV; TPM2_ActivateCredential (Part 3, 12.5) proves that AK and EK live in one TPM. "Part 1..4" are the parts of the TPM
2.0 Library Specification.

What cannot change while the machine runs (certificates, public keys) is looked up once; what is loaded for a call is
flushed at its end.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_public_key
from tpm2_pytss import (
    ESAPI,
    ESYS_TR,
    TPM2_ALG,
    TPM2B_ENCRYPTED_SECRET,
    TPM2B_ID_OBJECT,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMA_OBJECT,
    TPMS_CONTEXT,
    TPMT_PUBLIC,
    TPMT_SIG_SCHEME,
    TSS2_Exception,
)
from tpm2_pytss.constants import TPM2_RC
from tpm2_pytss.utils import NoSuchIndex, create_ek_template

from cosmian_vm._tss import explained, has_code
from cosmian_vm.attester._tpm_keys import endorsement_policy
from cosmian_vm.attester._tpm_nv import find, nv_indices, nv_read
from cosmian_vm.errors import AttesterError, CredentialRefusedError, NotAvailableError

if TYPE_CHECKING:
    from cosmian_vm.evidence.bundle import EndorsementKey, PlatformAk

__all__ = ["Anchors", "split_certificates"]

# Google's: certificate, template. ECC first: RSA keys take long to make.
_PLATFORM_AKS = ((0x01C10002, 0x01C10003), (0x01C10000, 0x01C10001))
# TCG EK Credential Profile 2.5, 2.2.1.4: low range; P-256 for template L-2, RSA 2048 for template L-1.
_EK_CERTIFICATE_ECC, _EK_CERTIFICATE_RSA = 0x01C0000A, 0x01C00002
_EK_CHAIN = (0x01C00100, 0x01C001FF)  # 2.2.1.5.2
_EK_RSA_HANDLE = 0x81010001  # TCG TPM v2.0 Provisioning Guidance, table 2
_MAX_CERTIFICATES = 8
_MAX_CHAIN_INDICES = 16

# What a TPM says of a credential that was made for other keys, or that is none (Part 3, 12.5; Part 1, 24).
_REFUSALS = (
    TPM2_RC.INTEGRITY,
    TPM2_RC.VALUE,
    TPM2_RC.SIZE,
    TPM2_RC.INSUFFICIENT,
    TPM2_RC.ECC_POINT,
)
_LAYERS, _UNMARSHALLING = 0xFFFF0000, 0x00090000  # TCG TSS 2.0 Overview, response codes
_FORMAT_ONE, _WARNING = 0x80, 0x900  # Part 2, 6.6.2

_log = logging.getLogger(__name__)


@dataclass
class _Key:
    """A key that is loaded for each use. ``persistent``: its handle; else ``template`` and, once it was made,
    ``context``: a saved context loads in one quick command, where making the key again may take seconds.
    """

    public: bytes
    certificates: tuple[bytes, ...]
    persistent: int | None = None
    template: TPM2B_PUBLIC | None = None
    context: TPMS_CONTEXT | None = None

    @contextmanager
    def loaded(self, esys: ESAPI) -> Iterator[ESYS_TR]:
        """Its handle. Raises TSS2_Exception, AttesterError."""
        if self.persistent is not None:
            handle = find(esys, self.persistent)
            if handle is None:
                raise AttesterError(f"TPM: the key at {self.persistent:#010x} is gone")
            yield handle
            return
        transient = self._load(esys)
        try:
            yield transient
        finally:
            esys.flush_context(transient)

    def _load(self, esys: ESAPI) -> ESYS_TR:
        if self.context is not None:
            try:
                return esys.context_load(self.context)
            except TSS2_Exception:  # the TPM was reset since
                self.context = None
        transient, public, *_ = esys.create_primary(TPM2B_SENSITIVE_CREATE(), self.template, ESYS_TR.ENDORSEMENT)
        try:
            made = bytes(public.publicArea.marshal())
            if self.public not in (b"", made):
                raise AttesterError("TPM: a key of the endorsement hierarchy is not what it was")
            self.public = made
            self.context = esys.context_save(transient)
        except BaseException:
            esys.flush_context(transient)
            raise
        return transient


class Anchors:
    """Of one TPM, whose own EK is at ``ek_handle``. Every method is called with the lock of the context held, and may
    raise TSS2_Exception beside what it says.
    """

    def __init__(self, ek_handle: int) -> None:
        self._ek_handle = ek_handle
        self._platform: _Key | None = None
        self._looked = False
        self._ek: _Key | None = None

    def prepare(self, esys: ESAPI) -> None:
        """Look all up now. Raises AttesterError."""
        self._platform_key(esys)
        self._ek_key(esys)

    def platform_ak(self, esys: ESAPI, ak: ESYS_TR, qualifying_data: bytes) -> PlatformAk | None:
        """The platform AK certifies the key ``ak``. Raises AttesterError."""
        from cosmian_vm.evidence.bundle import PlatformAk  # a first launch has no use for it; who serves has it by then

        key = self._platform_key(esys)
        if key is None:
            return None
        with key.loaded(esys) as signer, _authority(esys, key) as session:
            # Part 3, 18.2: the object's authorisation has the ADMIN role, which for our AK is its empty password.
            attest, signature = esys.certify(
                ak, signer, qualifying_data, TPMT_SIG_SCHEME(scheme=TPM2_ALG.NULL), session2=session
            )
        return PlatformAk(
            public=key.public,
            attest=bytes(attest),
            signature=signature.marshal(),
            certificates=key.certificates,
        )

    def ek(self, esys: ESAPI) -> EndorsementKey | None:
        """See ``EsapiTpm.ek``. Raises AttesterError."""
        from cosmian_vm.evidence.bundle import EndorsementKey  # as above

        key = self._ek_key(esys)
        return None if key is None else EndorsementKey(public=key.public, certificates=key.certificates)

    def activate(self, esys: ESAPI, ak: ESYS_TR, credential_blob: bytes, secret: bytes) -> bytes:
        """See ``EsapiTpm.activate``. Raises AttesterError, NotAvailableError, CredentialRefusedError."""
        key = self._ek_key(esys)
        if key is None:
            raise NotAvailableError("TPM: no endorsement key to activate a credential with")
        blob, encrypted = _whole(TPM2B_ID_OBJECT, credential_blob), _whole(TPM2B_ENCRYPTED_SECRET, secret)
        with key.loaded(esys) as ek, endorsement_policy(esys) as session:
            try:
                return bytes(esys.activate_credential(ak, ek, blob, encrypted, session2=session))
            except TSS2_Exception as exc:
                if not has_code(exc, *_REFUSALS):
                    raise
                raise CredentialRefusedError(
                    "the TPM does not activate this credential: it was made for another EK or another AK"
                ) from exc

    def _platform_key(self, esys: ESAPI) -> _Key | None:
        if not self._looked:
            for certificate_index, template_index in _PLATFORM_AKS:
                self._platform = _platform_key(esys, certificate_index, template_index)
                if self._platform is not None:
                    break
            self._looked = True
        return self._platform

    def _ek_key(self, esys: ESAPI) -> _Key | None:
        if self._ek is None:
            own = _persistent(esys, self._ek_handle, (_EK_CERTIFICATE_ECC, _EK_CERTIFICATE_RSA))
            if own is not None and own.certificates:
                self._ek = own
            else:
                self._ek = _certified_rsa_ek(esys) or own
        return self._ek


def _platform_key(esys: ESAPI, certificate_index: int, template_index: int) -> _Key | None:
    """None where there is none; also, with a line in the log, where the indices do not belong together."""
    try:
        certificates = split_certificates(nv_read(esys, certificate_index))
        area, _size = TPMT_PUBLIC.unmarshal(nv_read(esys, template_index))
        key = _Key(
            public=b"", certificates=tuple(certificates[:_MAX_CERTIFICATES]), template=TPM2B_PUBLIC(publicArea=area)
        )
        with key.loaded(esys):
            if not _is_for(certificates, key.public):
                raise AttesterError("the certificate is that of another key than the template makes")
    except NoSuchIndex:
        return None
    except (AttesterError, TSS2_Exception) as exc:
        if isinstance(exc, TSS2_Exception) and not _is_final(exc):
            raise
        _log.warning("TPM: the platform's key at NV index %#010x is left out: %s", certificate_index, _line(exc))
        return None
    return key


def _persistent(esys: ESAPI, handle: int, indices: tuple[int, ...]) -> _Key | None:
    """The key at ``handle``, with the certificate at one of ``indices`` that is its, and its issuers'."""
    found = find(esys, handle)
    if found is None:
        return None
    public, _name, _qualified = esys.read_public(found)
    raw = bytes(public.publicArea.marshal())
    for index in indices:
        certificates = _certificates_at(esys, index)
        if certificates and _is_for(certificates, raw):
            return _Key(public=raw, certificates=_with_chain(esys, certificates), persistent=handle)
    return _Key(public=raw, certificates=(), persistent=handle)


def _certified_rsa_ek(esys: ESAPI) -> _Key | None:
    """The RSA EK, where its certificate is the one that the TPM has."""
    certificates = _certificates_at(esys, _EK_CERTIFICATE_RSA)
    if not certificates:
        return None
    there = _persistent(esys, _EK_RSA_HANDLE, (_EK_CERTIFICATE_RSA,))
    if there is not None and there.certificates:
        return there
    try:
        _certificate, template = create_ek_template("EK-RSA2048", lambda index: nv_read(esys, index))
        key = _Key(public=b"", certificates=(), template=template)
        with key.loaded(esys):
            if not _is_for(certificates, key.public):
                raise AttesterError("the certificate is that of another key than the TPM makes")
    except (AttesterError, ValueError, TSS2_Exception) as exc:
        if isinstance(exc, TSS2_Exception) and not _is_final(exc):
            raise
        _log.warning("TPM: the EK certificate at NV index %#010x is left out: %s", _EK_CERTIFICATE_RSA, _line(exc))
        return None
    key.certificates = _with_chain(esys, certificates)
    return key


def _with_chain(esys: ESAPI, certificates: list[bytes]) -> tuple[bytes, ...]:
    """The EK's certificate, and its issuers' that are in NV: one behind the other, over one index or several."""
    content = b""
    for index in nv_indices(esys, *_EK_CHAIN)[:_MAX_CHAIN_INDICES]:
        try:
            content += nv_read(esys, index)
        except (NoSuchIndex, AttesterError) as exc:
            _log.warning("TPM: the EK's chain at NV index %#010x is left out: %s", index, exc)
            break
    return tuple([*certificates, *split_certificates(content)][:_MAX_CERTIFICATES])


def _certificates_at(esys: ESAPI, index: int) -> list[bytes]:
    """Those at an NV index; none where there is no such index or it cannot be read."""
    try:
        return split_certificates(nv_read(esys, index))
    except NoSuchIndex:
        return []
    except AttesterError as exc:
        _log.warning("%s", exc)
        return []


def split_certificates(raw: bytes) -> list[bytes]:
    """DER values one behind the other, up to whatever is none: an index may be larger than what it holds."""
    found: list[bytes] = []
    at = 0
    while raw[at : at + 2] == b"\x30\x82":  # SEQUENCE, its length in two bytes: 256 to 65535
        end = at + 4 + int.from_bytes(raw[at + 2 : at + 4], "big")
        if end > len(raw):
            break
        found.append(raw[at:end])
        at = end
    return found


def _is_for(certificates: list[bytes], public: bytes) -> bool:
    """Whether the first certificate is the key's."""
    if not certificates:
        return False
    try:
        area, _size = TPMT_PUBLIC.unmarshal(public)
        own = load_der_public_key(area.to_der())
        return bool(x509.load_der_x509_certificate(certificates[0]).public_key() == own)
    except ValueError as exc:
        _log.warning("TPM: a certificate in NV cannot be read: %s", _line(exc))
        return False


@contextmanager
def _authority(esys: ESAPI, key: _Key) -> Iterator[ESYS_TR]:
    """What lets the platform AK sign: its empty password, or the policy of an endorsement key."""
    area, _size = TPMT_PUBLIC.unmarshal(key.public)
    if area.objectAttributes & TPMA_OBJECT.USERWITHAUTH:
        yield ESYS_TR.PASSWORD
    else:
        with endorsement_policy(esys) as session:
            yield session


def _whole(
    kind: type[TPM2B_ID_OBJECT | TPM2B_ENCRYPTED_SECRET], raw: bytes
) -> TPM2B_ID_OBJECT | TPM2B_ENCRYPTED_SECRET:
    """Raises CredentialRefusedError."""
    try:
        value, size = kind.unmarshal(raw)
    except (TSS2_Exception, ValueError, TypeError) as exc:
        raise CredentialRefusedError(f"this is no {kind.__name__}") from exc
    if size != len(raw):
        raise CredentialRefusedError(f"this is no {kind.__name__}: {len(raw) - size} bytes too many")
    return value


def _is_final(exc: TSS2_Exception) -> bool:
    """Whether it will be so again: the TPM says no, or NV holds no such structure; not where the way to the TPM failed,
    nor where it warns (RETRY and the like).
    """
    layer = exc.rc & _LAYERS
    if layer:
        return bool(layer == _UNMARSHALLING)
    return bool(exc.rc & _FORMAT_ONE or exc.rc & _WARNING != _WARNING)


def _line(exc: Exception) -> str:
    return explained(exc) if isinstance(exc, TSS2_Exception) else " ".join(str(exc).split())
