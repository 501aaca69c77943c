"""TPM signatures over the bytes that were signed; keys from TPMT_PUBLIC or elsewhere. Pure."""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.tpm import (
    CURVE_BYTES,
    Alg,
    Curve,
    RsaParameters,
    TpmPublic,
    TpmSignature,
    algorithm_name,
)

__all__ = ["MIN_RSA_BITS", "STRONG_HASHES", "SigningKey", "key_of", "signature_problem"]

SigningKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
"""A public key that can verify a TPM's signature."""

MIN_RSA_BITS = 2048
STRONG_HASHES: dict[int, hashes.HashAlgorithm] = {
    Alg.SHA256: hashes.SHA256(),
    Alg.SHA384: hashes.SHA384(),
    Alg.SHA512: hashes.SHA512(),
}
"""Hashes that a signature and a key's name may use: never SHA-1."""

_CURVES: dict[int, ec.EllipticCurve] = {Curve.NIST_P256: ec.SECP256R1(), Curve.NIST_P384: ec.SECP384R1()}
_ECDSA = {alg: ec.ECDSA(algorithm) for alg, algorithm in STRONG_HASHES.items()}
_ECDSA_ALG = int(Alg.ECDSA)
_WHAT = "TPMT_PUBLIC"


def key_of(public: TpmPublic) -> SigningKey:
    """The public key inside a TPMT_PUBLIC.

    Raises EvidenceFormatError for a point that is not on its curve, another curve than P-256 and P-384, an RSA key of
    less than MIN_RSA_BITS or whose modulus is not of the announced size.
    """
    parameters = public.parameters
    try:
        if isinstance(parameters, RsaParameters):
            modulus = int.from_bytes(parameters.modulus, "big")
            if modulus.bit_length() != parameters.key_bits or parameters.key_bits < MIN_RSA_BITS:
                problem = f"an RSA modulus of {modulus.bit_length()} bits, announced as {parameters.key_bits}"
                raise EvidenceFormatError(_WHAT, f"{problem}; at least {MIN_RSA_BITS} are needed", field="unique")
            if modulus % 2 == 0:
                raise ValueError("its modulus is even")  # the library takes it, and fails when it is used
            return rsa.RSAPublicNumbers(parameters.exponent or 65537, modulus).public_key()
        if parameters.curve not in _CURVES:
            raise EvidenceFormatError(
                _WHAT, f"curve {parameters.curve:#06x} is neither P-256 nor P-384", field="curveID"
            )
        size = CURVE_BYTES[parameters.curve]
        if len(parameters.x) > size or len(parameters.y) > size:
            raise EvidenceFormatError(_WHAT, f"a coordinate of more than {size} bytes", field="unique")
        point = b"\x04" + parameters.x.rjust(size, b"\0") + parameters.y.rjust(size, b"\0")
        return ec.EllipticCurvePublicKey.from_encoded_point(_CURVES[parameters.curve], point)
    except ValueError as exc:
        raise EvidenceFormatError(_WHAT, f"is no usable public key: {exc}", field="unique") from exc


def signature_problem(key: SigningKey, signature: TpmSignature, message: bytes) -> str:
    """Why ``signature`` is not a signature of ``message`` by ``key``; empty if it is one.

    Hashes that are not in STRONG_HASHES, short RSA keys and a scheme that does not go with the key are refused.
    """
    algorithm = STRONG_HASHES.get(signature.hash_alg)
    if algorithm is None:
        return f"it uses {algorithm_name(signature.hash_alg)}, which is not accepted"
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            if signature.algorithm != _ECDSA_ALG:
                return f"an elliptic curve key cannot have made a signature of the scheme {signature.scheme_name}"
            r, s = int.from_bytes(signature.r, "big"), int.from_bytes(signature.s, "big")
            key.verify(encode_dss_signature(r, s), message, _ECDSA[signature.hash_alg])
            return ""
        if key.key_size < MIN_RSA_BITS:
            return f"an RSA key of {key.key_size} bits is too short"
        if signature.algorithm == Alg.RSASSA:
            key.verify(signature.rsa, message, padding.PKCS1v15(), algorithm)
        elif signature.algorithm == Alg.RSAPSS:
            # TPMs differ in the salt's size (part 1, B.7): the digest's, or the most that fits.
            key.verify(signature.rsa, message, padding.PSS(padding.MGF1(algorithm), padding.PSS.AUTO), algorithm)
        else:
            return f"an RSA key cannot have made a signature of the scheme {signature.scheme_name}"
    except InvalidSignature:
        return "the signature does not verify with it"
    except ValueError as exc:
        return f"the signature cannot be checked with it: {exc}"
    return ""
