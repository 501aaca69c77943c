"""The keys that this machine makes in its TPM: EK and AK (see ``tpm``), and what an AK has to be.

"Part 1..4" are the parts of the TPM 2.0 Library Specification.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tpm2_pytss import (
    ESAPI,
    ESYS_TR,
    TPM2_ALG,
    TPM2_SE,
    TPM2B_PUBLIC,
    TPM2B_SENSITIVE_CREATE,
    TPMA_OBJECT,
    TPMT_PUBLIC,
    TPMT_SYM_DEF,
    TSS2_Exception,
)
from tpm2_pytss.constants import TPM2_ECC
from tpm2_pytss.utils import create_ek_template

from cosmian_vm.attester._tpm_nv import nv_read
from cosmian_vm.errors import AttesterError

__all__ = ["check_ak", "endorsement_policy", "make_ak", "make_ek"]

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


def make_ek(esys: ESAPI, handle: int) -> ESYS_TR:
    """Create the EK as the TPM's maker did (NV template and nonce, if any) and make it persistent."""

    def read(index: int) -> bytes:
        return nv_read(esys, index)

    try:
        _certificate, template = create_ek_template("EK-ECC256", read)
    except (ValueError, TSS2_Exception) as exc:
        raise AttesterError(f"TPM: its own template of the endorsement key cannot be used: {exc}") from exc
    # Endorsement hierarchy, empty authorisation: Part 3, 24.1 TPM2_CreatePrimary.
    transient, *_ = esys.create_primary(TPM2B_SENSITIVE_CREATE(), template, ESYS_TR.ENDORSEMENT)
    return _persist(esys, transient, handle)


def make_ak(esys: ESAPI, ek: ESYS_TR, handle: int) -> None:
    """Create the AK under the EK and make it persistent."""
    # Part 2, 12.2.4 TPMT_PUBLIC; scheme in the key itself, so that it can never sign by another.
    template = TPM2B_PUBLIC(
        publicArea=TPMT_PUBLIC.parse("ecc256:ecdsa-sha256:null", objectAttributes=_AK_ATTRIBUTES, nameAlg="sha256")
    )
    with endorsement_policy(esys) as session:
        private, public, *_ = esys.create(ek, TPM2B_SENSITIVE_CREATE(), template, session1=session)
    with endorsement_policy(esys) as session:
        transient = esys.load(ek, private, public, session1=session)
    _persist(esys, transient, handle)


def _persist(esys: ESAPI, transient: ESYS_TR, handle: int) -> ESYS_TR:
    """EvictControl by the owner (empty authorisation), and flush the transient object in any case."""
    try:
        return esys.evict_control(ESYS_TR.OWNER, transient, handle)
    finally:
        esys.flush_context(transient)


@contextmanager
def endorsement_policy(esys: ESAPI) -> Iterator[ESYS_TR]:
    """A policy session that satisfies the EK's policy: PolicySecret(TPM_RH_ENDORSEMENT)."""
    session = esys.start_auth_session(
        ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL), TPM2_ALG.SHA256
    )
    try:
        esys.policy_secret(ESYS_TR.ENDORSEMENT, session)
        yield session
    finally:
        esys.flush_context(session)


def check_ak(public: TPM2B_PUBLIC, handle: int, *, of_platform: bool = False) -> None:
    """The key at the AK's handle can be nobody's but an AK's. ``of_platform``: one that the platform made, which may be
    RSA with RSASSA. Raises AttesterError.
    """
    area = public.publicArea
    problem = ""
    if area.type == TPM2_ALG.ECC and area.parameters.eccDetail.curveID == TPM2_ECC.NIST_P256:
        scheme = area.parameters.eccDetail.scheme
        good = scheme.scheme == TPM2_ALG.ECDSA and scheme.details.ecdsa.hashAlg == TPM2_ALG.SHA256
    elif of_platform and area.type == TPM2_ALG.RSA:
        scheme = area.parameters.rsaDetail.scheme
        good = scheme.scheme == TPM2_ALG.RSASSA and scheme.details.rsassa.hashAlg == TPM2_ALG.SHA256
    else:
        good, problem = False, f"is not an {'RSA or ' if of_platform else ''}ECC P-256 key"
    if not problem and area.nameAlg != TPM2_ALG.SHA256:
        problem = "has a name algorithm other than SHA-256"
    if not problem and (
        (area.objectAttributes & _AK_NEEDS) != _AK_NEEDS or area.objectAttributes & TPMA_OBJECT.DECRYPT
    ):
        problem = "is not a restricted signing key that never leaves the TPM"
    if not problem and not good:
        problem = f"has a scheme other than ECDSA{' or RSASSA' if of_platform else ''} with SHA-256"
    if problem and of_platform:
        raise AttesterError(f"TPM: the platform's attestation key at {handle:#010x} {problem}")
    if problem:
        raise AttesterError(
            f"TPM: the object at {handle:#010x} {problem}; if nothing else uses it, remove it with "
            f"`tpm2_evictcontrol -C o -c {handle:#010x}` and start the agent again"
        )
