"""What the users of the TSS (tpm2-pytss, ESAPI) share: PCR values, and its errors in plain words.

"Part 1..4" are the parts of the TPM 2.0 Library Specification.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

# Before the library is loaded: it would write to standard error of its own accord otherwise, errors that are ours.
os.environ.setdefault("TSS2_LOG", "all+none")

from tpm2_pytss import ESAPI, TPML_PCR_SELECTION, TSS2_Exception
from tpm2_pytss.constants import TPM2_RC

from cosmian_vm.errors import AttesterError

__all__ = ["explained", "has_code", "pcr_selection", "read_pcrs"]

_RC_MASK = 0xFFFF  # the rest says which layer of the TSS speaks
_FORMAT_ONE = 0xBF  # Part 2, 6.6.2: the error number without the number of the parameter or handle


def has_code(exc: TSS2_Exception, *codes: int) -> bool:
    """Whether it is one of these response codes (TPM2_RC), whichever parameter or handle it speaks of."""
    told = exc.rc & _RC_MASK
    if told & TPM2_RC.FMT1:
        return told & _FORMAT_ONE in [code & _FORMAT_ONE for code in codes if code & TPM2_RC.FMT1]
    return told in codes


def explained(exc: TSS2_Exception) -> str:
    """One line: what the TPM says, and the remedy where there is one."""
    if has_code(exc, TPM2_RC.NV_SPACE):
        return (
            "its memory is full; see what is in it with `tpm2_getcap handles-persistent` and `tpm2_getcap "
            "handles-nv-index`, and delete what nobody needs"
        )
    if has_code(exc, TPM2_RC.BAD_AUTH, TPM2_RC.AUTH_FAIL):
        return "its owner has a password, or its endorsement hierarchy: take it away, or clear the TPM"
    if has_code(exc, TPM2_RC.LOCKOUT):
        return "it is locked out after wrong passwords: wait, or `tpm2_dictionarylockout --clear-lockout`"
    return str(exc)


def pcr_selection(pcrs: Sequence[int]) -> TPML_PCR_SELECTION:
    """These PCRs of the sha256 bank."""
    return TPML_PCR_SELECTION.parse("sha256:" + ",".join(map(str, pcrs)))


def read_pcrs(esys: ESAPI, pcrs: Sequence[int]) -> dict[int, bytes]:
    """Values of the sha256 bank, 32 bytes each; one TPM2_PCR_Read gives at most 8 (Part 3, 22.4).

    Raises AttesterError where there is no such bank.
    """
    values: dict[int, bytes] = {}
    missing = sorted(set(pcrs))
    while missing:
        _counter, _given, digests = esys.pcr_read(pcr_selection(missing[:8]))
        read = [bytes(digests[i]) for i in range(len(digests))]
        if len(read) != len(missing[:8]) or any(len(value) != 32 for value in read):
            raise AttesterError(f"TPM: no sha256 bank for PCR {missing[0]}; enable the bank in the firmware's settings")
        values.update(zip(missing[:8], read, strict=True))
        missing = missing[8:]
    return values
