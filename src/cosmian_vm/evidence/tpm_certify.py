"""TPM2_Certify: one key's word that another key is in the same TPM, as a TPMS_ATTEST of type TPM_ST_ATTEST_CERTIFY.

Source: TPM 2.0 Library Specification, part 2, tables "TPMS_ATTEST", "TPMS_CLOCK_INFO", "TPMS_CERTIFY_INFO". Big-endian.
"""

from __future__ import annotations

from typing import NamedTuple

from cosmian_vm._reader import Reader
from cosmian_vm.evidence._tpm_public import put_sized, sized, u16, u32

__all__ = ["TpmCertifyInfo", "parse_certify", "serialise_certify"]

_WHAT = "TPMS_ATTEST"
_MAGIC = 0xFF544347
_CERTIFY = 0x8017
_MAX_NAME = 66
_MAX_EXTRA_DATA = 66


class TpmCertifyInfo(NamedTuple):
    """``qualified_signer``: qualified name of the key that signed. ``extra_data``: the caller's. ``clock``:
    milliseconds. ``name``, ``qualified_name``: of the key that is certified (nameAlg, 2 bytes, and its digest).
    """

    qualified_signer: bytes
    extra_data: bytes
    clock: int
    reset_count: int
    restart_count: int
    safe: bool
    firmware_version: int
    name: bytes
    qualified_name: bytes


def parse_certify(raw: bytes) -> TpmCertifyInfo:
    """Parse a TPMS_ATTEST of a certification.

    Raises EvidenceFormatError where it is an attestation of anything else, too short, or has bytes behind it.
    """
    reader = Reader(raw, _WHAT)
    if u32(reader, "magic") != _MAGIC:
        reader.position = 0
        raise reader.error("was not made by a TPM (TPM_GENERATED_VALUE is missing)", "magic")
    kind = u16(reader, "type")
    if kind != _CERTIFY:
        reader.position -= 2
        raise reader.error(f"type {kind:#06x} is no certification of a key ({_CERTIFY:#06x})", "type")
    qualified_signer = sized(reader, _MAX_NAME, "qualifiedSigner")
    extra_data = sized(reader, _MAX_EXTRA_DATA, "extraData")
    clock = int.from_bytes(reader.take(8, "clock"))
    reset_count, restart_count = u32(reader, "resetCount"), u32(reader, "restartCount")
    safe = reader.take(1, "safe")
    if safe not in (b"\0", b"\1"):
        reader.position -= 1
        raise reader.error("is neither YES nor NO", "safe")
    firmware_version = int.from_bytes(reader.take(8, "firmwareVersion"))
    name = sized(reader, _MAX_NAME, "name")
    qualified_name = sized(reader, _MAX_NAME, "qualifiedName")
    reader.end()
    return TpmCertifyInfo(
        qualified_signer,
        extra_data,
        clock,
        reset_count,
        restart_count,
        safe == b"\1",
        firmware_version,
        name,
        qualified_name,
    )


def serialise_certify(info: TpmCertifyInfo) -> bytes:
    """The bytes that parse_certify read."""
    return b"".join(
        (
            _MAGIC.to_bytes(4),
            _CERTIFY.to_bytes(2),
            put_sized(info.qualified_signer),
            put_sized(info.extra_data),
            info.clock.to_bytes(8),
            info.reset_count.to_bytes(4),
            info.restart_count.to_bytes(4),
            bytes([info.safe]),
            info.firmware_version.to_bytes(8),
            put_sized(info.name),
            put_sized(info.qualified_name),
        )
    )
