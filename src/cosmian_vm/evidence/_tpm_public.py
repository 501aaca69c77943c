"""TPMT_PUBLIC, the public area of a TPM key, and its name. Big-endian (TPM 2.0 Library Specification, part 2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from cosmian_vm._reader import Reader
from cosmian_vm.evidence._tpm_constants import Alg, ObjectAttributes, hash_name, tpm_hash

__all__ = [
    "MAX_DIGEST_SIZE",
    "MAX_ECC_BYTES",
    "MAX_RSA_BYTES",
    "EccParameters",
    "RsaParameters",
    "Scheme",
    "Symmetric",
    "TpmPublic",
    "name",
    "parse_public",
    "parse_public_2b",
    "put_sized",
    "serialise_public",
    "sized",
    "u16",
    "u32",
]

MAX_DIGEST_SIZE = 64
"""Bytes of the largest digest, SHA-512."""
MAX_ECC_BYTES = 66
"""Bytes of a coordinate or signature half on the largest curve, P-521."""
MAX_RSA_BYTES = 512
"""Bytes of the largest RSA modulus or signature, 4096 bits."""

_PUBLIC = "TPMT_PUBLIC"
_RESERVED_ATTRIBUTES = ~sum(ObjectAttributes) & 0xFFFFFFFF

_SYMMETRIC = frozenset({Alg.AES, Alg.SM4, Alg.CAMELLIA})
_RSA_SCHEMES = frozenset({Alg.RSASSA, Alg.RSAPSS, Alg.OAEP})
_ECC_SCHEMES = frozenset({Alg.ECDSA, Alg.ECDH, Alg.ECDAA, Alg.SM2, Alg.ECSCHNORR, Alg.ECMQV})
_KDF_SCHEMES = frozenset({Alg.MGF1, Alg.KDF1_SP800_56A, Alg.KDF2, Alg.KDF1_SP800_108})


class Symmetric(NamedTuple):
    """TPMT_SYM_DEF_OBJECT (table 141); ``key_bits`` and ``mode`` are 0 where the algorithm is NULL."""

    algorithm: int = Alg.NULL
    key_bits: int = 0
    mode: int = 0


@dataclass(frozen=True, slots=True)
class Scheme:
    """TPMT_RSA_SCHEME, TPMT_ECC_SCHEME or TPMT_KDF_SCHEME (tables 184, 189, 167). ``hash_alg`` is 0 where the scheme
    has no hash, ``count`` is used by ECDAA alone.
    """

    scheme: int = Alg.NULL
    hash_alg: int = 0
    count: int = 0


class RsaParameters(NamedTuple):
    """TPMS_RSA_PARMS (table 206) and the modulus, big-endian. ``exponent`` 0 stands for 65537."""

    symmetric: Symmetric
    scheme: Scheme
    key_bits: int
    exponent: int
    modulus: bytes


class EccParameters(NamedTuple):
    """TPMS_ECC_PARMS (table 207) and the point, big-endian coordinates as the TPM wrote them."""

    symmetric: Symmetric
    scheme: Scheme
    curve: int
    kdf: Scheme
    x: bytes
    y: bytes


class TpmPublic(NamedTuple):
    """TPMT_PUBLIC (table 211) of an RSA or ECC key. ``attributes``: TPMA_OBJECT."""

    name_alg: int
    attributes: ObjectAttributes
    auth_policy: bytes
    parameters: RsaParameters | EccParameters

    @property
    def type(self) -> Alg:
        """Alg.RSA or Alg.ECC."""
        return Alg.RSA if isinstance(self.parameters, RsaParameters) else Alg.ECC

    @property
    def scheme(self) -> Scheme:
        """The signing (or encryption) scheme fixed in the key; NULL where any may be used."""
        return self.parameters.scheme


def sized(reader: Reader, maximum: int, field: str) -> bytes:
    """A TPM2B: u16 length and that many bytes."""
    size = reader.uint(2, f"{field}.size", big=True)
    if size > maximum:
        raise reader.error(f"a length of {size} is over the limit of {maximum}", field)
    return reader.take(size, field)


def u16(reader: Reader, field: str) -> int:
    return reader.uint(2, field, big=True)


def u32(reader: Reader, field: str) -> int:
    return reader.uint(4, field, big=True)


def put_sized(value: bytes) -> bytes:
    return len(value).to_bytes(2, "big") + value


def _symmetric(reader: Reader) -> Symmetric:
    algorithm = u16(reader, "symmetric.algorithm")
    if algorithm == Alg.NULL:
        return Symmetric()
    if algorithm not in _SYMMETRIC:
        raise reader.error(f"{algorithm:#06x} is no symmetric algorithm of an object", "symmetric.algorithm")
    return Symmetric(algorithm, u16(reader, "symmetric.keyBits"), u16(reader, "symmetric.mode"))


def _scheme(reader: Reader, allowed: frozenset[Alg], field: str) -> Scheme:
    scheme = u16(reader, f"{field}.scheme")
    if scheme == Alg.NULL or (scheme == Alg.RSAES and allowed is _RSA_SCHEMES):
        return Scheme(scheme)
    if scheme not in allowed:
        raise reader.error(f"{scheme:#06x} is not allowed here", f"{field}.scheme")
    hash_alg = u16(reader, f"{field}.hashAlg")
    hash_name(hash_alg, _PUBLIC, f"{field}.hashAlg")
    return Scheme(scheme, hash_alg, u16(reader, f"{field}.count") if scheme == Alg.ECDAA else 0)


def parse_public(raw: bytes) -> TpmPublic:
    """Parse a TPMT_PUBLIC of an RSA or ECC key; nothing may stand before or after it.

    Raises EvidenceFormatError on other key types, unknown algorithms, set reserved attributes and wrong sizes.
    """
    reader = Reader(raw, _PUBLIC)
    kind = u16(reader, "type")
    if kind not in (Alg.RSA, Alg.ECC):
        reader.position = 0
        raise reader.error(f"{kind:#06x} is neither RSA (0x0001) nor ECC (0x0023)", "type")
    name_alg = u16(reader, "nameAlg")
    hash_name(name_alg, _PUBLIC, "nameAlg")
    attributes = u32(reader, "objectAttributes")
    if attributes & _RESERVED_ATTRIBUTES:
        reader.position -= 4
        raise reader.error(f"reserved bits are set in {attributes:#010x}", "objectAttributes")
    policy = sized(reader, MAX_DIGEST_SIZE, "authPolicy")
    symmetric = _symmetric(reader)
    parameters: RsaParameters | EccParameters
    if kind == Alg.RSA:
        scheme = _scheme(reader, _RSA_SCHEMES, "scheme")
        bits, exponent = u16(reader, "keyBits"), u32(reader, "exponent")
        parameters = RsaParameters(symmetric, scheme, bits, exponent, sized(reader, MAX_RSA_BYTES, "unique"))
    else:
        scheme = _scheme(reader, _ECC_SCHEMES, "scheme")
        curve, kdf = u16(reader, "curveID"), _scheme(reader, _KDF_SCHEMES, "kdf")
        x, y = sized(reader, MAX_ECC_BYTES, "unique.x"), sized(reader, MAX_ECC_BYTES, "unique.y")
        parameters = EccParameters(symmetric, scheme, curve, kdf, x, y)
    reader.end()
    return TpmPublic(name_alg, ObjectAttributes(attributes), policy, parameters)


def parse_public_2b(raw: bytes) -> bytes:
    """The TPMT_PUBLIC inside a TPM2B_PUBLIC (u16 length in front, as tpm2-tools write it), checked to parse.

    Raises EvidenceFormatError where the length is not that of what follows, or what follows is no TPMT_PUBLIC.
    """
    reader = Reader(raw, "TPM2B_PUBLIC")
    size = u16(reader, "size")
    if size != reader.remaining:
        reader.position = 0
        raise reader.error(f"says {size} bytes, {len(raw) - 2} follow", "size")
    inner = reader.rest()
    parse_public(inner)
    return inner


def _put_scheme(scheme: Scheme) -> bytes:
    raw = scheme.scheme.to_bytes(2, "big")
    if scheme.scheme in (Alg.NULL, Alg.RSAES):
        return raw
    raw += scheme.hash_alg.to_bytes(2, "big")
    return raw + scheme.count.to_bytes(2, "big") if scheme.scheme == Alg.ECDAA else raw


def serialise_public(public: TpmPublic) -> bytes:
    """TPMT_PUBLIC, without a length in front."""
    parameters = public.parameters
    symmetric = parameters.symmetric
    raw = public.type.to_bytes(2, "big") + public.name_alg.to_bytes(2, "big")
    raw += int(public.attributes).to_bytes(4, "big") + put_sized(public.auth_policy)
    raw += symmetric.algorithm.to_bytes(2, "big")
    if symmetric.algorithm != Alg.NULL:
        raw += symmetric.key_bits.to_bytes(2, "big") + symmetric.mode.to_bytes(2, "big")
    raw += _put_scheme(parameters.scheme)
    if isinstance(parameters, RsaParameters):
        raw += parameters.key_bits.to_bytes(2, "big") + parameters.exponent.to_bytes(4, "big")
        return raw + put_sized(parameters.modulus)
    raw += parameters.curve.to_bytes(2, "big") + _put_scheme(parameters.kdf)
    return raw + put_sized(parameters.x) + put_sized(parameters.y)


def name(tpmt_public: bytes) -> bytes:
    """The TPM name of a key (part 1, 16): nameAlg (2 bytes) and that hash of its TPMT_PUBLIC.

    Raises EvidenceFormatError where ``tpmt_public`` is too short or its nameAlg unknown.
    """
    reader = Reader(tpmt_public, _PUBLIC)
    reader.take(2, "type")
    name_alg = u16(reader, "nameAlg")
    hash_name(name_alg, _PUBLIC, "nameAlg")
    return name_alg.to_bytes(2, "big") + tpm_hash(name_alg, tpmt_public)
