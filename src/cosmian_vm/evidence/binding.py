"""How evidence is tied to one connection and one moment: the only definition of it.

Version 2::

    binding     = SHA-256("cosmian-vm/binding/2" || 0x00 || nonce[32] || SHA-256(SPKI of the TLS leaf, DER)
                          || SHA-256(TPMT_PUBLIC of the AK, or 32 zero bytes where there is no TPM))
    report_data = nonce[32] || binding[32]                  (TEE report)
    extraData   = binding[32]                               (TPM quote, qualifyingData)

Version 1 (published 1.3.x): ``report_data = nonce[32] || SHA-256(leaf certificate, DER)``, extraData = nonce.
Nothing in version 1 ties the TPM's word to the connection: see docs/threat-model.md.
"""

from __future__ import annotations

from hashlib import sha256

__all__ = ["NONCE_SIZE", "compute_binding", "report_data", "report_data_v1"]

NONCE_SIZE = 32
"""Size of a verifier's nonce, in bytes."""

_DOMAIN = b"cosmian-vm/binding/2\x00"
_NO_TPM = bytes(32)


def compute_binding(nonce: bytes, spki_sha256: bytes, ak_public: bytes | None) -> bytes:
    """The version 2 binding, 32 bytes.

    ``nonce``: 32 bytes. ``spki_sha256``: SHA-256 of the TLS leaf's SubjectPublicKeyInfo (DER), 32 bytes.
    ``ak_public``: the AK's TPMT_PUBLIC, or None where there is no TPM.

    Raises ValueError where a size is wrong: that is a programming error, not evidence.
    """
    if len(nonce) != NONCE_SIZE or len(spki_sha256) != 32:
        raise ValueError("nonce and SPKI hash are 32 bytes each")
    ak_hash = _NO_TPM if ak_public is None else sha256(ak_public).digest()
    return sha256(_DOMAIN + nonce + spki_sha256 + ak_hash).digest()


def report_data(nonce: bytes, binding: bytes) -> bytes:
    """The 64 bytes that a TEE signs in version 2."""
    if len(nonce) != NONCE_SIZE or len(binding) != 32:
        raise ValueError("nonce and binding are 32 bytes each")
    return nonce + binding


def report_data_v1(nonce: bytes, leaf_der: bytes) -> bytes:
    """The 64 bytes that a TEE signs in version 1: nonce and the hash of the whole leaf certificate."""
    if len(nonce) != NONCE_SIZE:
        raise ValueError("the nonce is 32 bytes")
    return nonce + sha256(leaf_der).digest()
