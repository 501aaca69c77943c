"""What a key must be to count as a TPM's attestation key. Pure. Source: TPM 2.0 Library, part 2, "TPMA_OBJECT"."""

from __future__ import annotations

from cosmian_vm.evidence.tpm import Alg, ObjectAttributes, TpmPublic, algorithm_name
from cosmian_vm.verifier._tpm_signature import STRONG_HASHES

__all__ = ["AK_ATTRIBUTES", "ak_problems"]

AK_ATTRIBUTES = (
    (ObjectAttributes.RESTRICTED, "restricted", "it signs whatever it is given, so its quotes can be made up"),
    (ObjectAttributes.SIGN, "sign", "it is no signing key"),
    (ObjectAttributes.FIXED_TPM, "fixedTPM", "it can be copied to another TPM"),
    (ObjectAttributes.FIXED_PARENT, "fixedParent", "it can be moved to another TPM"),
    (ObjectAttributes.SENSITIVE_DATA_ORIGIN, "sensitiveDataOrigin", "it was made outside the TPM"),
)
"""What an attestation key must be, and what it would mean if it were not."""

_AK_MASK = sum(bit for bit, _, _ in AK_ATTRIBUTES)
_DECRYPT = int(ObjectAttributes.DECRYPT)
_SIGNING_SCHEMES = frozenset({Alg.ECDSA, Alg.RSASSA, Alg.RSAPSS})


def ak_problems(public: TpmPublic) -> list[str]:
    """What keeps a key from being an attestation key."""
    attributes = int(public.attributes)
    problems = []
    if attributes & _AK_MASK != _AK_MASK:
        problems = [f"not {word}: {why}" for bit, word, why in AK_ATTRIBUTES if not attributes & bit]
    if attributes & _DECRYPT:
        problems.append("also a decryption key")
    if public.name_alg not in STRONG_HASHES:
        problems.append(f"named with {algorithm_name(public.name_alg)}, which is not accepted")
    scheme = public.scheme
    if scheme.scheme not in _SIGNING_SCHEMES or scheme.hash_alg not in STRONG_HASHES:
        problems.append("without a fixed signing scheme of ECDSA, RSASSA or RSAPSS with SHA-256 or better")
    return problems
