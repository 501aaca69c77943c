"""Keys made of the TEE's: HKDF-SHA-256 (RFC 5869), a label of its own for each use. Pure."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

if TYPE_CHECKING:
    from cosmian_vm.attester.derived_key import TeeKey

__all__ = ["p256_key", "x25519_secret"]

# Two uses never share bytes, whatever salt they are given.
_TLS_P256 = b"cosmian-vm/certtool/tls-p256/1"
_X25519 = b"cosmian-vm/certtool/x25519/1"

_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # SP 800-186, 3.2.1.3
_P256_SEED = 48
"""384 bits of which 256 are used, so that no value is likelier than another (FIPS 186-5, A.2.1)."""


def _hkdf(key: TeeKey, salt: bytes | None, label: bytes, size: int) -> bytes:
    # HMAC fills its key up with zeros: hashed, a salt of zeros is another one than none, and 01 than 0100.
    salted = None if salt is None else sha256(salt).digest()
    info = label + b"/" + key.platform.encode()
    return HKDF(algorithm=hashes.SHA256(), length=size, salt=salted, info=info).derive(key.raw)


def p256_key(key: TeeKey, salt: bytes | None) -> ec.EllipticCurvePrivateKey:
    """A P-256 key for TLS: always the same for the same TEE and salt."""
    seed = int.from_bytes(_hkdf(key, salt, _TLS_P256, _P256_SEED), "big")
    return ec.derive_private_key(seed % (_P256_ORDER - 1) + 1, ec.SECP256R1())


def x25519_secret(key: TeeKey, salt: bytes | None) -> bytes:
    """An X25519 scalar, 32 bytes little-endian, clamped as in RFC 7748, section 5 (decodeScalar25519)."""
    scalar = bytearray(_hkdf(key, salt, _X25519, 32))
    scalar[0] &= 0b1111_1000
    scalar[31] &= 0b0111_1111
    scalar[31] |= 0b0100_0000
    return bytes(scalar)
