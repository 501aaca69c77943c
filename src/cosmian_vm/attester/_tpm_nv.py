"""NV indices of the TPM, read whole. "Part 1..4" are the parts of the TPM 2.0 Library Specification."""

from __future__ import annotations

from tpm2_pytss import ESAPI, ESYS_TR, TPM2_CAP, TPMA_NV, TSS2_Exception
from tpm2_pytss.constants import TPM2_PT_NV, TPM2_RC
from tpm2_pytss.utils import NoSuchIndex

from cosmian_vm.errors import AttesterError

__all__ = ["find", "nv_indices", "nv_read"]

_MAX_NV_SIZE = 64 * 1024
_DEFAULT_NV_CHUNK = 512


def find(esys: ESAPI, handle: int) -> ESYS_TR | None:
    """The object at a persistent handle or NV index, None where there is none."""
    try:
        return esys.tr_from_tpmpublic(handle)
    except TSS2_Exception as exc:
        if exc.error == TPM2_RC.HANDLE:
            return None
        raise


def nv_indices(esys: ESAPI, first: int, last: int) -> list[int]:
    """The NV indices from ``first`` to ``last`` that exist."""
    _more, data = esys.get_capability(TPM2_CAP.HANDLES, first, last - first + 1)
    handles = data.data.handles
    return [int(handles[i]) for i in range(len(handles)) if first <= int(handles[i]) <= last]


def nv_read(esys: ESAPI, index: int) -> bytes:
    """The content, by the own or the owner's (empty) authorisation. Raises NoSuchIndex, AttesterError."""
    handle = find(esys, index)
    if handle is None:
        raise NoSuchIndex(index)
    area, _name = esys.nv_read_public(handle)
    attributes, size = int(area.nvPublic.attributes), int(area.nvPublic.dataSize)
    if attributes & TPMA_NV.AUTHREAD:
        auth = handle
    elif attributes & TPMA_NV.OWNERREAD:
        auth = ESYS_TR.OWNER
    else:
        raise AttesterError(f"TPM: NV index {index:#010x} may be read neither by its own nor by the owner's authority")
    if not attributes & TPMA_NV.WRITTEN:
        raise NoSuchIndex(index)
    if size > _MAX_NV_SIZE:
        raise AttesterError(f"TPM: NV index {index:#010x} claims {size} bytes")
    chunk = _nv_chunk(esys)
    content = b""
    while len(content) < size:
        part = bytes(esys.nv_read(handle, min(chunk, size - len(content)), len(content), auth_handle=auth))
        if not part:
            raise AttesterError(f"TPM: NV index {index:#010x} ends after {len(content)} of {size} bytes")
        content += part
    return content


def _nv_chunk(esys: ESAPI) -> int:
    """How many bytes one TPM2_NV_Read may give (TPM2_PT_NV_BUFFER_MAX)."""
    _more, data = esys.get_capability(TPM2_CAP.TPM_PROPERTIES, TPM2_PT_NV.BUFFER_MAX, 1)
    properties = data.data.tpmProperties
    if len(properties) and properties[0].property == TPM2_PT_NV.BUFFER_MAX:
        return min(int(properties[0].value), 2048)
    return _DEFAULT_NV_CHUNK
