"""TPM 2.0 structures of a quote: TPMS_ATTEST, TPMT_PUBLIC, TPMT_SIGNATURE, PCR selections. Big-endian throughout.

Source: TPM 2.0 Library Specification, part 2 (Structures), revision 1.59; table numbers stand beside each structure.
Parsing and serialising are exact inverses: what is accepted comes back byte for byte. Quotes are
read into named tuples: reading one must cost little beside verifying its signature.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from cosmian_vm._reader import Reader
from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence._tpm_constants import (
    ALGORITHM_NAMES,
    CURVE_BYTES,
    CURVE_NAMES,
    HASH_SIZES,
    TPM_GENERATED_VALUE,
    Alg,
    Attest,
    Curve,
    ObjectAttributes,
    algorithm_name,
    hash_by_name,
    hash_name,
    tpm_hash,
)
from cosmian_vm.evidence._tpm_public import (
    MAX_DIGEST_SIZE,
    MAX_ECC_BYTES,
    MAX_RSA_BYTES,
    EccParameters,
    RsaParameters,
    Scheme,
    Symmetric,
    TpmPublic,
    name,
    parse_public,
    parse_public_2b,
    put_sized,
    serialise_public,
    sized,
    u16,
    u32,
)

__all__ = [
    "ALGORITHM_NAMES",
    "CURVE_BYTES",
    "CURVE_NAMES",
    "HASH_SIZES",
    "MAX_EXTRA_DATA",
    "TPM_GENERATED_VALUE",
    "Alg",
    "Attest",
    "Curve",
    "EccParameters",
    "ObjectAttributes",
    "PcrSelection",
    "RsaParameters",
    "Scheme",
    "Symmetric",
    "TpmPublic",
    "TpmQuoteInfo",
    "TpmSignature",
    "algorithm_name",
    "compute_pcr_digest",
    "hash_by_name",
    "hash_name",
    "name",
    "parse_public",
    "parse_public_2b",
    "parse_quote",
    "parse_signature",
    "pcr_selection",
    "serialise_public",
    "serialise_quote",
    "serialise_signature",
    "tpm_hash",
]

MAX_EXTRA_DATA = 66
"""TPM2B_DATA holds at most a TPMT_HA: algorithm (2) and the largest digest (64)."""
_MAX_NAME = 66
_MAX_SELECTIONS = 16
_MAX_SELECT_BYTES = 4

_SELECTION = struct.Struct(">HB")
_HEAD = struct.Struct(">IHH")
_SIZE = struct.Struct(">H")
_ONE_SELECTION = struct.Struct(">QIIBQIHB")
_P256_SIGNATURE = struct.Struct(">HHH32sH32s")
"""The usual TPMT_SIGNATURE: ECDSA, r and s of 32 bytes each."""
_CLOCK_AND_VERSION = struct.Struct(">QIIBQ")
"""TPMS_CLOCK_INFO (u64 clock, u32 resetCount, u32 restartCount, u8 safe) and u64 firmwareVersion."""

_QUOTE_TYPE = int(Attest.QUOTE)
_ECDSA = int(Alg.ECDSA)
_SIGNATURE_SCHEMES = frozenset({Alg.ECDSA, Alg.RSASSA, Alg.RSAPSS})

_ATTEST = "TPMS_ATTEST"
_SIGNATURE = "TPMT_SIGNATURE"


class PcrSelection(NamedTuple):
    """TPMS_PCR_SELECTION (table 94).

    ``hash_alg`` names the bank, ``select`` is the bitmap: PCR 0 is bit 0 of byte 0.
    """

    hash_alg: int
    select: bytes

    @property
    def bank(self) -> str:
        """Name of the bank, ``sha256``."""
        return algorithm_name(self.hash_alg)

    @property
    def pcrs(self) -> tuple[int, ...]:
        """The selected PCRs, ascending."""
        return _selected(self.select)


class TpmQuoteInfo(NamedTuple):
    """TPMS_ATTEST (table 132) of type TPM_ST_ATTEST_QUOTE, with its TPMS_CLOCK_INFO (112) and TPMS_QUOTE_INFO (124).

    ``qualified_signer``: qualified name of the signing key. ``extra_data``: the caller's qualifyingData. ``clock``:
    milliseconds that the TPM was powered. ``reset_count``, ``restart_count``: TPM Resets; Restarts and Resumes since.
    ``safe``: no greater value of ``clock`` was ever reported. ``pcr_digest``: hash over the selected PCRs.
    """

    qualified_signer: bytes
    extra_data: bytes
    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: int
    pcr_selections: tuple[PcrSelection, ...]
    pcr_digest: bytes


class TpmSignature(NamedTuple):
    """TPMT_SIGNATURE (table 200).

    ECDSA as ``r`` and ``s``, RSASSA and RSAPSS as ``rsa``; big-endian, unused ones empty.
    """

    algorithm: int
    hash_alg: int
    r: bytes = b""
    s: bytes = b""
    rsa: bytes = b""

    @property
    def scheme_name(self) -> str:
        """As in ``ECDSA-sha256``."""
        return f"{algorithm_name(self.algorithm)}-{algorithm_name(self.hash_alg)}"


def _selections(reader: Reader) -> tuple[PcrSelection, ...]:
    """TPML_PCR_SELECTION (table 116): u32 count, count x (u16 hash, u8 sizeofSelect, bitmap)."""
    count = u32(reader, "pcrSelect.count")
    if count > _MAX_SELECTIONS:
        raise reader.error(f"{count} selections, over the limit of {_MAX_SELECTIONS}", "pcrSelect.count")
    found = []
    for _ in range(count):
        bank, size = _SELECTION.unpack(reader.take(_SELECTION.size, "pcrSelect.hash"))
        if not 1 <= size <= _MAX_SELECT_BYTES:
            raise reader.error(f"{size} is not between 1 and {_MAX_SELECT_BYTES}", "pcrSelect.sizeofSelect")
        found.append(PcrSelection(bank, reader.take(size, "pcrSelect.pcrSelect")))
    return tuple(found)


@lru_cache(maxsize=64)
def _selected(select: bytes) -> tuple[int, ...]:
    bits = int.from_bytes(select, "little")
    return tuple(pcr for pcr in range(bits.bit_length()) if bits >> pcr & 1)


def pcr_selection(bank: str, pcrs: Iterable[int]) -> PcrSelection:
    """A selection of PCRs 0 to 23 as TPMs of PC class write it: 3 bytes. Raises ValueError for other PCRs or banks."""
    algorithm = hash_by_name(bank)
    if algorithm is None:
        raise ValueError(f"{bank!r} is no PCR bank")
    bits = 0
    for pcr in pcrs:
        if not 0 <= pcr < 24:
            raise ValueError(f"there is no PCR {pcr}")
        bits |= 1 << pcr
    return PcrSelection(algorithm, bits.to_bytes(3, "little"))


def parse_quote(raw: bytes) -> TpmQuoteInfo:
    """Parse a TPMS_ATTEST that is a quote; nothing may follow it.

    Raises EvidenceFormatError on a wrong magic, on another kind of attestation, on wrong sizes and on trailing bytes.
    """
    return _usual_quote(raw) or _any_quote(raw)


def _usual_quote(raw: bytes) -> TpmQuoteInfo | None:
    """The usual quote, of one selection, read at once. None for anything else, wrong or not: that is _any_quote's.

    Accepts nothing that _any_quote would refuse: all limits are checked, and the last field ends where ``raw`` ends, so
    that none before it went further.
    """
    try:
        magic, kind, signer_size = _HEAD.unpack_from(raw)
        signer_end = _HEAD.size + signer_size
        (extra_size,) = _SIZE.unpack_from(raw, signer_end)
        extra_end = signer_end + 2 + extra_size
        clock, resets, restarts, safe, firmware, count, bank, width = _ONE_SELECTION.unpack_from(raw, extra_end)
        select = extra_end + _ONE_SELECTION.size
        (digest_size,) = _SIZE.unpack_from(raw, select + width)
    except struct.error:
        return None
    digest = select + width + 2
    if digest + digest_size != len(raw) or count != 1 or magic != TPM_GENERATED_VALUE or kind != _QUOTE_TYPE:
        return None
    if signer_size > _MAX_NAME or extra_size > MAX_EXTRA_DATA or digest_size > MAX_DIGEST_SIZE:
        return None
    if safe > 1 or not 1 <= width <= _MAX_SELECT_BYTES:
        return None
    selections = (PcrSelection(bank, raw[select : select + width]),)
    signer, extra = raw[_HEAD.size : signer_end], raw[signer_end + 2 : extra_end]
    return TpmQuoteInfo(signer, extra, clock, resets, restarts, safe == 1, firmware, selections, raw[digest:])


def _any_quote(raw: bytes) -> TpmQuoteInfo:
    """Any quote, field by field, naming what is wrong."""
    reader = Reader(raw, _ATTEST)
    magic = u32(reader, "magic")
    if magic != TPM_GENERATED_VALUE:
        reader.position = 0
        raise reader.error(f"{magic:#010x} is not TPM_GENERATED_VALUE: no TPM made this", "magic")
    kind = u16(reader, "type")
    if kind != Attest.QUOTE:
        known = {int(a): a.name.lower() for a in Attest}
        reader.position -= 2
        raise reader.error(f"{kind:#06x} ({known.get(kind, 'unknown')}) is not a quote", "type")
    signer = sized(reader, _MAX_NAME, "qualifiedSigner")
    extra = sized(reader, MAX_EXTRA_DATA, "extraData")
    fixed = reader.take(_CLOCK_AND_VERSION.size, "clockInfo and firmwareVersion")
    clock, resets, restarts, safe, firmware = _CLOCK_AND_VERSION.unpack(fixed)
    if safe > 1:
        reader.position -= 9
        raise reader.error(f"{safe} is neither YES (1) nor NO (0)", "clockInfo.safe")
    selections = _selections(reader)
    digest = sized(reader, MAX_DIGEST_SIZE, "pcrDigest")
    reader.end()
    return TpmQuoteInfo(
        qualified_signer=signer,
        extra_data=extra,
        clock=clock,
        reset_count=resets,
        restart_count=restarts,
        safe=bool(safe),
        firmware_version=firmware,
        pcr_selections=selections,
        pcr_digest=digest,
    )


def serialise_quote(quote: TpmQuoteInfo) -> bytes:
    """TPMS_ATTEST of a quote, as a TPM would hash and sign it."""
    selections = b"".join(
        s.hash_alg.to_bytes(2, "big") + bytes([len(s.select)]) + s.select for s in quote.pcr_selections
    )
    return b"".join(
        (
            TPM_GENERATED_VALUE.to_bytes(4, "big"),
            Attest.QUOTE.to_bytes(2, "big"),
            put_sized(quote.qualified_signer),
            put_sized(quote.extra_data),
            quote.clock.to_bytes(8, "big"),
            quote.reset_count.to_bytes(4, "big"),
            quote.restart_count.to_bytes(4, "big"),
            bytes([quote.safe]),
            quote.firmware_version.to_bytes(8, "big"),
            len(quote.pcr_selections).to_bytes(4, "big"),
            selections,
            put_sized(quote.pcr_digest),
        )
    )


def parse_signature(raw: bytes) -> TpmSignature:
    """Parse a TPMT_SIGNATURE: ECDSA, RSASSA or RSAPSS; nothing may follow it.

    Raises EvidenceFormatError on other schemes, unknown hashes and wrong sizes.
    """
    if len(raw) == _P256_SIGNATURE.size:
        algorithm, hash_alg, r_size, r, s_size, s = _P256_SIGNATURE.unpack(raw)
        if algorithm == _ECDSA and r_size == s_size == 32 and hash_alg in HASH_SIZES:
            return TpmSignature(algorithm, hash_alg, r, s)
    reader = Reader(raw, _SIGNATURE)
    algorithm, hash_alg = u16(reader, "sigAlg"), u16(reader, "hash")
    if algorithm not in _SIGNATURE_SCHEMES:
        reader.position = 0
        raise reader.error(f"{algorithm:#06x} is neither ECDSA, RSASSA nor RSAPSS", "sigAlg")
    if hash_alg not in HASH_SIZES:
        hash_name(hash_alg, _SIGNATURE, "hash")
    if algorithm == _ECDSA:
        r, s = sized(reader, MAX_ECC_BYTES, "signatureR"), sized(reader, MAX_ECC_BYTES, "signatureS")
        reader.end()
        return TpmSignature(algorithm, hash_alg, r, s)
    rsa = sized(reader, MAX_RSA_BYTES, "sig")
    reader.end()
    return TpmSignature(algorithm, hash_alg, rsa=rsa)


def serialise_signature(signature: TpmSignature) -> bytes:
    """TPMT_SIGNATURE."""
    raw = signature.algorithm.to_bytes(2, "big") + signature.hash_alg.to_bytes(2, "big")
    if signature.algorithm == Alg.ECDSA:
        return raw + put_sized(signature.r) + put_sized(signature.s)
    return raw + put_sized(signature.rsa)


def compute_pcr_digest(
    selections: Iterable[PcrSelection], banks: Mapping[str, Mapping[int, bytes]], hash_alg: int
) -> bytes:
    """The pcrDigest of a quote (part 1, 17.6): the hash of the selected PCR values, ascending within each selection.

    ``banks``: values by bank name and PCR. ``hash_alg``: hash of the signature's scheme.

    Raises EvidenceFormatError where a selected PCR has no value in ``banks`` or one of the wrong size.
    """
    values = []
    for selection in selections:
        bank, pcrs = banks.get(selection.bank, {}), selection.pcrs
        found = [bank.get(pcr, b"") for pcr in pcrs]
        size = HASH_SIZES.get(selection.hash_alg)
        if not {*map(len, found)} <= {size}:
            pcr, value = next((p, v) for p, v in zip(pcrs, found, strict=True) if len(v) != size)
            problem = f"has a value of {len(value)} bytes" if value else "has no value"
            raise EvidenceFormatError("PCR values", problem, field=f"{selection.bank} PCR {pcr}")
        values += found
    return tpm_hash(hash_alg, b"".join(values))
