"""Signatures in an IMA list: what stands in the field ``sig``, and whether a key that was given made them.

Linux ``security/integrity/integrity.h``, ``struct signature_v2_hdr`` (big-endian, 9 bytes)::

    u8 type | u8 version | u8 hash_algo | u8 keyid[4] | u16 sig_size | u8 sig[]

Version 2 signs the digest of the file itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from cosmian_vm.endorsements.amd import load_certificate
from cosmian_vm.errors import EndorsementError
from cosmian_vm.inspection.model import CERTIFICATE, PUBLIC_KEY, Material

__all__ = ["FileKey", "FileSignature", "key_id", "keys_in", "parse_signature", "verifies"]

DIGITAL_SIGNATURE = 3
"""EVM_IMA_XATTR_DIGSIG: signs a file's content."""
_HEADER = 9
_HASHES: dict[int, hashes.HashAlgorithm] = {
    2: hashes.SHA1(),  # noqa: S303 - what the list says that it is
    4: hashes.SHA256(),
    5: hashes.SHA384(),
    6: hashes.SHA512(),
    7: hashes.SHA224(),
}
"""By the number of ``enum hash_algo`` (include/uapi/linux/hash_info.h)."""


@dataclass(frozen=True, slots=True)
class FileSignature:
    """``length`` is what the header claims, ``value`` what is there. ``hash``: number of ``enum hash_algo``."""

    type: int
    version: int
    hash: int
    keyid: bytes
    length: int
    value: bytes


@dataclass(frozen=True, slots=True)
class FileKey:
    """A key that was given, and the file that it was in."""

    name: str
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey


def parse_signature(raw: bytes) -> FileSignature | None:
    """Read the header; None where there is not even that."""
    if len(raw) < _HEADER:
        return None
    kind, version, algorithm = raw[:3]
    length = int.from_bytes(raw[7:_HEADER], "big")
    return FileSignature(kind, version, algorithm, raw[3:7], length, raw[_HEADER:])


def keys_in(material: Material) -> Iterator[FileKey]:
    """The RSA and ECC keys, bare or in certificates."""
    for item in material.items:
        if item.kind not in (PUBLIC_KEY, CERTIFICATE):
            continue
        try:
            key: object = (
                load_certificate(item.raw).public_key() if item.kind == CERTIFICATE else load_der_public_key(item.raw)
            )
        except (EndorsementError, ValueError, TypeError, UnsupportedAlgorithm):
            continue
        if isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey):
            yield FileKey(item.name, key)


def key_id(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> bytes:
    """The last 4 bytes of the SHA-1 of the PKCS#1 key or of the uncompressed point."""
    if isinstance(key, rsa.RSAPublicKey):
        raw = key.public_bytes(Encoding.DER, PublicFormat.PKCS1)
    else:
        raw = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return hashlib.sha1(raw, usedforsecurity=False).digest()[-4:]


def verifies(signature: FileSignature, digest: bytes, key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> bool:
    """Whether ``key`` signed ``digest``; False for anything but a whole signature of version 2."""
    algorithm = _HASHES.get(signature.hash)
    if algorithm is None or signature.version != 2 or signature.type != DIGITAL_SIGNATURE:
        return False
    if signature.length != len(signature.value) or len(digest) != algorithm.digest_size:
        return False
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature.value, digest, padding.PKCS1v15(), Prehashed(algorithm))
        else:
            key.verify(signature.value, digest, ec.ECDSA(Prehashed(algorithm)))
    except (InvalidSignature, ValueError, UnsupportedAlgorithm):
        return False
    return True
