"""TPM2_MakeCredential in software: a secret that only the TPM with this EK can open, and only if it has that AK.

Source: TPM 2.0 Library Specification, part 1, "Credential Protection", annexes B.10 (RSA) and C.6 (ECC), part 2,
"TPM2B_ID_OBJECT", "TPM2B_ENCRYPTED_SECRET". EK profiles: TCG EK Credential Profile 2.x, templates L-1, L-2, H-*.
"""

from __future__ import annotations

from typing import NamedTuple

from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.concatkdf import ConcatKDFHash
from cryptography.hazmat.primitives.kdf.kbkdf import KBKDFHMAC, CounterLocation, Mode

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.tpm import CURVE_BYTES, Alg, EccParameters, TpmPublic, parse_public
from cosmian_vm.verifier._tpm_signature import STRONG_HASHES, key_of

__all__ = ["MadeCredential", "make_credential"]

_WHAT = "endorsement key"
_CFB = 0x0043  # TPM_ALG_CFB
_AES_BITS = frozenset({128, 192, 256})


class MadeCredential(NamedTuple):
    """TPM2B_ID_OBJECT and TPM2B_ENCRYPTED_SECRET, each with its length (u16, big-endian) in front."""

    credential_blob: bytes
    secret: bytes


def make_credential(ek_public: bytes, ak_name: bytes, credential: bytes, *, seed: bytes) -> MadeCredential:
    """``ek_public``: TPMT_PUBLIC. ``ak_name``: TPM name of the AK. ``credential``: at most the size of a digest of the
    EK's name algorithm. ``seed``: 64 random bytes, for an RSA key (an ECC key brings about its own).

    Raises EvidenceFormatError for an EK that cannot protect a credential.
    """
    public = parse_public(ek_public)
    algorithm = STRONG_HASHES.get(public.name_alg)
    symmetric = public.parameters.symmetric
    if algorithm is None or len(credential) > algorithm.digest_size:
        raise EvidenceFormatError(_WHAT, "its name algorithm cannot protect this credential", field="nameAlg")
    if symmetric.algorithm != Alg.AES or symmetric.mode != _CFB or symmetric.key_bits not in _AES_BITS:
        raise EvidenceFormatError(_WHAT, "is no storage key with AES in CFB mode", field="symmetric")
    seed, secret = _shared_seed(public, algorithm, seed)
    key = _kdfa(algorithm, seed, b"STORAGE", ak_name, symmetric.key_bits // 8)
    encryptor = Cipher(algorithms.AES(key), modes.CFB(bytes(16))).encryptor()
    identity = encryptor.update(_sized(credential)) + encryptor.finalize()
    mac = hmac.HMAC(_kdfa(algorithm, seed, b"INTEGRITY", b"", algorithm.digest_size), algorithm)
    mac.update(identity + ak_name)
    return MadeCredential(_sized(_sized(mac.finalize()) + identity), _sized(secret))


def _shared_seed(public: TpmPublic, algorithm: hashes.HashAlgorithm, seed: bytes) -> tuple[bytes, bytes]:
    """The seed, and how the EK's TPM gets at it."""
    key = key_of(public)
    parameters = public.parameters
    if isinstance(key, rsa.RSAPublicKey):
        seed = seed[: algorithm.digest_size]
        oaep = padding.OAEP(padding.MGF1(algorithm), algorithm, b"IDENTITY\0")
        return seed, key.encrypt(seed, oaep)
    if not isinstance(parameters, EccParameters):
        raise EvidenceFormatError(_WHAT, "is neither an RSA nor an ECC key", field="type")
    size = CURVE_BYTES[parameters.curve]
    ephemeral = ec.generate_private_key(key.curve)
    own = ephemeral.public_key().public_numbers()
    x, y = own.x.to_bytes(size), own.y.to_bytes(size)
    shared = ephemeral.exchange(ec.ECDH(), key)
    party = b"IDENTITY\0" + x + parameters.x.rjust(size, b"\0")  # KDFe: label, PartyUInfo, PartyVInfo
    kdf = ConcatKDFHash(algorithm, algorithm.digest_size, party)
    return kdf.derive(shared), _sized(x) + _sized(y)


def _kdfa(algorithm: hashes.HashAlgorithm, key: bytes, label: bytes, context: bytes, size: int) -> bytes:
    """KDFa (part 1, 11.4.10.2): SP 800-108 in counter mode with HMAC."""
    kdf = KBKDFHMAC(
        algorithm=algorithm,
        mode=Mode.CounterMode,
        length=size,
        rlen=4,
        llen=4,
        location=CounterLocation.BeforeFixed,
        label=label,
        context=context,
        fixed=None,
    )
    return kdf.derive(key)


def _sized(value: bytes) -> bytes:
    return len(value).to_bytes(2) + value
