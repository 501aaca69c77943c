"""Numbers of the TPM 2.0 Library Specification, part 2 (Structures)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from enum import IntEnum, IntFlag

from cosmian_vm.errors import EvidenceFormatError

__all__ = [
    "ALGORITHM_NAMES",
    "CURVE_BYTES",
    "CURVE_NAMES",
    "HASH_SIZES",
    "TPM_GENERATED_VALUE",
    "Alg",
    "Attest",
    "Curve",
    "ObjectAttributes",
    "algorithm_name",
    "hash_by_name",
    "hash_name",
    "tpm_hash",
]

TPM_GENERATED_VALUE = 0xFF544347
"""First four bytes of everything that a TPM attests (part 2, 6.2): a restricted key signs nothing else that begins
with them, so a quote cannot be made outside the TPM."""


class Alg(IntEnum):
    """TPM_ALG_ID (part 2, table 9), as far as public areas, signatures and PCR selections use them."""

    RSA = 0x0001
    SHA1 = 0x0004
    AES = 0x0006
    MGF1 = 0x0007
    KEYEDHASH = 0x0008
    SHA256 = 0x000B
    SHA384 = 0x000C
    SHA512 = 0x000D
    NULL = 0x0010
    SM3_256 = 0x0012
    SM4 = 0x0013
    RSASSA = 0x0014
    RSAES = 0x0015
    RSAPSS = 0x0016
    OAEP = 0x0017
    ECDSA = 0x0018
    ECDH = 0x0019
    ECDAA = 0x001A
    SM2 = 0x001B
    ECSCHNORR = 0x001C
    ECMQV = 0x001D
    KDF1_SP800_56A = 0x0020
    KDF2 = 0x0021
    KDF1_SP800_108 = 0x0022
    ECC = 0x0023
    SYMCIPHER = 0x0025
    CAMELLIA = 0x0026
    SHA3_256 = 0x0027
    SHA3_384 = 0x0028
    SHA3_512 = 0x0029


ALGORITHM_NAMES: dict[int, str] = {
    Alg.RSA: "RSA",
    Alg.ECC: "ECC",
    Alg.SHA1: "sha1",
    Alg.SHA256: "sha256",
    Alg.SHA384: "sha384",
    Alg.SHA512: "sha512",
    Alg.SM3_256: "sm3_256",
    Alg.SHA3_256: "sha3_256",
    Alg.SHA3_384: "sha3_384",
    Alg.SHA3_512: "sha3_512",
    Alg.RSASSA: "RSASSA",
    Alg.RSAPSS: "RSAPSS",
    Alg.ECDSA: "ECDSA",
    Alg.NULL: "null",
}

HASH_SIZES: dict[int, int] = {
    Alg.SHA1: 20,
    Alg.SHA256: 32,
    Alg.SHA384: 48,
    Alg.SHA512: 64,
    Alg.SM3_256: 32,
    Alg.SHA3_256: 32,
    Alg.SHA3_384: 48,
    Alg.SHA3_512: 64,
}
"""Digest sizes in bytes."""

_DIRECT: dict[int, Callable[[bytes], hashlib._Hash]] = {
    Alg.SHA256: hashlib.sha256,
    Alg.SHA384: hashlib.sha384,
    Alg.SHA512: hashlib.sha512,
}
_HASHLIB_NAMES = {"sm3_256": "sm3"}


class Attest(IntEnum):
    """TPMI_ST_ATTEST (part 2, table 128)."""

    NV = 0x8014
    COMMAND_AUDIT = 0x8015
    SESSION_AUDIT = 0x8016
    CERTIFY = 0x8017
    QUOTE = 0x8018
    TIME = 0x8019
    CREATION = 0x801A
    NV_DIGEST = 0x801C


class Curve(IntEnum):
    """TPM_ECC_CURVE (part 2, table 10), as far as we verify with them."""

    NIST_P256 = 0x0003
    NIST_P384 = 0x0004
    NIST_P521 = 0x0005


CURVE_NAMES: dict[int, str] = {Curve.NIST_P256: "P-256", Curve.NIST_P384: "P-384", Curve.NIST_P521: "P-521"}
CURVE_BYTES: dict[int, int] = {Curve.NIST_P256: 32, Curve.NIST_P384: 48, Curve.NIST_P521: 66}
"""Size of a coordinate in bytes."""


class ObjectAttributes(IntFlag):
    """TPMA_OBJECT (part 2, 8.3, table 35)."""

    FIXED_TPM = 1 << 1
    ST_CLEAR = 1 << 2
    FIXED_PARENT = 1 << 4
    SENSITIVE_DATA_ORIGIN = 1 << 5
    USER_WITH_AUTH = 1 << 6
    ADMIN_WITH_POLICY = 1 << 7
    FIRMWARE_LIMITED = 1 << 8
    SVN_LIMITED = 1 << 9
    NO_DA = 1 << 10
    ENCRYPTED_DUPLICATION = 1 << 11
    RESTRICTED = 1 << 16
    DECRYPT = 1 << 17
    SIGN = 1 << 18
    X509_SIGN = 1 << 19


def algorithm_name(algorithm: int) -> str:
    """The usual name (``sha256``, ``ECDSA``), or the number in hex where we know none."""
    return ALGORITHM_NAMES.get(algorithm) or f"{algorithm:#06x}"


def hash_name(algorithm: int, what: str, field: str) -> str:
    """Name of a hash algorithm. Raises EvidenceFormatError where ``algorithm`` is none that we know."""
    if algorithm not in HASH_SIZES:
        raise EvidenceFormatError(what, f"{algorithm:#06x} is no hash algorithm that is known here", field=field)
    return ALGORITHM_NAMES[algorithm]


def hash_by_name(name: str) -> int | None:
    """TPM_ALG_ID of a hash algorithm by its name (``sha256``), None for an unknown one."""
    return next((alg for alg in HASH_SIZES if ALGORITHM_NAMES[alg] == name), None)


def tpm_hash(algorithm: int, data: bytes) -> bytes:
    """Digest of ``data`` under a TPM_ALG_ID.

    Raises EvidenceFormatError where the algorithm is unknown, or this Python cannot compute it (SM3 in some builds).
    """
    direct = _DIRECT.get(algorithm)
    if direct is not None:
        return direct(data).digest()
    name = hash_name(algorithm, "TPM structure", "hash algorithm")
    try:
        return hashlib.new(_HASHLIB_NAMES.get(name, name), data).digest()
    except ValueError as exc:
        raise EvidenceFormatError("TPM structure", f"this computer cannot compute {name}") from exc
