"""What the devices that give Intel quotes share: is this the quote that was asked for?

Source: Intel TDX DCAP Quoting Library API, appendix A.3 and A.4 (quote versions 3, 4 and 5). Little-endian.
"""

from __future__ import annotations

from cosmian_vm.errors import AttesterError
from cosmian_vm.evidence.bundle import TeeKind
from cosmian_vm.evidence.intel_quote import MAX_SIGNATURE_DATA, MAX_TRAILING
from cosmian_vm.evidence.sgx import ENCLAVE_REPORT_SIZE
from cosmian_vm.evidence.tdx import TDX_BODY_SIZES

__all__ = ["REPORT_DATA_SIZE", "check_quote", "check_size"]

REPORT_DATA_SIZE = 64

_HEADER_SIZE = 48
_FRAME_SIZE = 6  # version 5: u16 body type, u32 body size
_TEE_TYPES = {TeeKind.SGX: 0, TeeKind.TDX: 0x81}
_REPORT_DATA_AT = {TeeKind.SGX: 320, TeeKind.TDX: 520}  # in the body
_VERSIONS = {TeeKind.SGX: (3,), TeeKind.TDX: (4, 5)}


def check_size(report_data: bytes, what: str) -> None:
    """Raises AttesterError where it is not 64 bytes."""
    if len(report_data) != REPORT_DATA_SIZE:
        raise AttesterError(f"{what}: report_data must be {REPORT_DATA_SIZE} bytes, not {len(report_data)}")


def check_quote(raw: bytes, kind: TeeKind, report_data: bytes, what: str) -> None:
    """Check that ``raw`` is a quote of ``kind`` over ``report_data``, with at most MAX_TRAILING bytes behind it.

    Nothing else is looked at: whether the quote is genuine is the verifier's business. Raises AttesterError.
    """
    version = int.from_bytes(raw[:2], "little")
    tee_type = int.from_bytes(raw[4:8], "little")
    if version not in _VERSIONS[kind] or tee_type != _TEE_TYPES[kind]:
        raise AttesterError(f"{what}: {len(raw)} bytes of version {version} and TEE type {tee_type:#x} are no quote")
    at, size = _HEADER_SIZE, TDX_BODY_SIZES[2] if kind is TeeKind.TDX else ENCLAVE_REPORT_SIZE
    if version >= 5:
        size = int.from_bytes(raw[at + 2 : at + _FRAME_SIZE], "little")
        at += _FRAME_SIZE
        if size not in TDX_BODY_SIZES.values():
            raise AttesterError(f"{what}: a body of {size} bytes is none of a TD")
    start = at + _REPORT_DATA_AT[kind]
    signature_at = at + size + 4
    signature = int.from_bytes(raw[at + size : signature_at], "little")
    trailing = len(raw) - signature_at - signature
    if trailing < 0 or signature > MAX_SIGNATURE_DATA:
        raise AttesterError(f"{what}: {len(raw)} bytes do not hold the {signature} bytes of its signature")
    if trailing > MAX_TRAILING:
        raise AttesterError(f"{what}: {trailing} bytes behind it, more than {MAX_TRAILING}")
    if raw[start : start + REPORT_DATA_SIZE] != report_data:
        raise AttesterError(f"{what}: it carries other report_data than was asked for")
