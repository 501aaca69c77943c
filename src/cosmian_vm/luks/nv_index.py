"""The container's record in the TPM: NV indices that can be written only in the state that the machine was set up in.

Why it is built so. The owner of this TPM has no password, so whoever controls the TPM at some time (the cloud operator
boots another system on the same virtual TPM) may delete an index and define another in its place: nothing in a TPM
prevents that but a secret. What they cannot do is *write* under the policy PolicyPCR(the PCRs of our system): the TPM
refuses, since their system has other PCRs, and an index that was never written has no WRITTEN attribute. So the record
counts only if the public area is, bit for bit, the one that we would make now: no right to write but that policy, the
policy computed anew from the present PCRs, and WRITTEN set. An index deleted and defined again is either not that
(refused) or was written by this very system in this very state. An index that is gone while there is a container, or a
container that is gone while there is an index, is refused as well; both gone looks like a new machine, and then the
attestation key must be gone too (see ``luks.container``).

"Part 1..3" are the parts of the TPM 2.0 Library Specification.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from tpm2_pytss import (
    ESAPI,
    ESYS_TR,
    TPM2_ALG,
    TPM2_CAP,
    TPM2_SE,
    TPM2B_AUTH,
    TPM2B_NV_PUBLIC,
    TPMA_NV,
    TPMS_NV_PUBLIC,
    TPMT_SYM_DEF,
    TSS2_Exception,
)
from tpm2_pytss.constants import TPM2_RC

from cosmian_vm._tss import explained, has_code, pcr_selection, read_pcrs
from cosmian_vm.errors import AttesterError, EvidenceFormatError, NotAvailableError
from cosmian_vm.luks.record import RECORD_SIZE, Record, make_record, parse_record, policy_digest, serialize_record

__all__ = ["FIRST_INDEX", "Found", "TpmRecords"]

FIRST_INDEX = 0x01801A50
"""The first of the NV indices that we use (in the owner's range of the TCG's registry)."""
_INDICES = 8
_ATTEMPTS = 20

# Part 2, 13.4 TPMA_NV. Readable by anyone; no OWNERWRITE, no AUTHWRITE, no PPWRITE.
_ATTRIBUTES = TPMA_NV.POLICYWRITE | TPMA_NV.AUTHREAD | TPMA_NV.NO_DA


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A record and whether it counts: ``genuine`` if only the present system in its present state can have written it.

    ``changed``: the PCRs that had another value when it was written, as far as the record itself can be believed.
    """

    index: int
    record: Record
    genuine: bool
    changed: tuple[int, ...]


class TpmRecords:
    """The records in the TPM that ``tcti`` names (``device:/dev/tpmrm0``, ``swtpm:path=...``)."""

    def __init__(self, tcti: str) -> None:
        self._tcti = tcti

    def find(self, location: bytes) -> list[Found]:
        """Every written record for ``location`` (SHA-256 of its path), in order of the index. Raises AttesterError."""
        with self._esys() as esys:
            found = [self._look(esys, index) for index in _defined(esys)]
        return [one for one in found if one is not None and one.record.location == location]

    def write(self, location: bytes, header: bytes, pcrs: Sequence[int]) -> int:
        """Write a record into a free index, which is left undefined where that fails. Gives the index.

        Raises AttesterError.
        """
        with self._esys() as esys:
            values = read_pcrs(esys, pcrs)
            index = self._free(esys)
            public = TPM2B_NV_PUBLIC(
                nvPublic=TPMS_NV_PUBLIC(
                    nvIndex=index,
                    nameAlg=TPM2_ALG.SHA256,
                    attributes=_ATTRIBUTES,
                    authPolicy=policy_digest(values),
                    dataSize=RECORD_SIZE,
                )
            )
            content = serialize_record(make_record(location, header, values))
            handle = esys.nv_define_space(TPM2B_AUTH(), public)
            try:
                _write(esys, handle, content, sorted(values))
            except BaseException:
                with suppress(TSS2_Exception):
                    esys.nv_undefine_space(handle)
                raise
        return index

    def remove(self, location: bytes, *, keep: int | None = None) -> None:
        """Delete every record for ``location`` but the index ``keep``. Raises AttesterError."""
        for found in self.find(location):
            if found.index != keep:
                with self._esys() as esys:
                    esys.nv_undefine_space(esys.tr_from_tpmpublic(found.index))

    def pcr_values(self, pcrs: Sequence[int]) -> dict[int, bytes]:
        """Values of the sha256 bank, 32 bytes each. Raises AttesterError."""
        with self._esys() as esys:
            return read_pcrs(esys, pcrs)

    def _look(self, esys: ESAPI, index: int) -> Found | None:
        """None for an index that was never written, or that holds something else."""
        handle = esys.tr_from_tpmpublic(index)
        public, _name = esys.nv_read_public(handle)
        area = public.nvPublic
        attributes, size, policy = int(area.attributes), int(area.dataSize), bytes(area.authPolicy)
        algorithm = int(area.nameAlg)
        if size != RECORD_SIZE or not attributes & TPMA_NV.WRITTEN or not attributes & TPMA_NV.AUTHREAD:
            return None
        try:
            record = parse_record(bytes(esys.nv_read(handle, RECORD_SIZE, 0, auth_handle=handle)))
        except EvidenceFormatError:
            return None
        values = read_pcrs(esys, record.pcrs)
        genuine = (
            algorithm == TPM2_ALG.SHA256
            and attributes == int(_ATTRIBUTES | TPMA_NV.WRITTEN)
            and policy == policy_digest(values)
        )
        return Found(index=index, record=record, genuine=genuine, changed=tuple(record.changed(values)))

    def _free(self, esys: ESAPI) -> int:
        """An index that is not defined; one of ours that was defined and never written is deleted first."""
        defined = _defined(esys)
        for index in range(FIRST_INDEX, FIRST_INDEX + _INDICES):
            if index not in defined:
                return index
            handle = esys.tr_from_tpmpublic(index)
            public, _name = esys.nv_read_public(handle)
            if int(public.nvPublic.attributes) == int(_ATTRIBUTES) and public.nvPublic.dataSize == RECORD_SIZE:
                esys.nv_undefine_space(handle)
                return index
        raise AttesterError(
            f"TPM: the {_INDICES} NV indices from {FIRST_INDEX:#010x} on are all taken; see them with "
            "`tpm2_nvreadpublic` and delete what nobody needs with `tpm2_nvundefine`"
        )

    @contextmanager
    def _esys(self) -> Iterator[ESAPI]:
        """A context of its own for each call; errors of the TSS become ours."""
        try:
            context = ESAPI(self._tcti)
        except (TSS2_Exception, RuntimeError, ValueError) as exc:
            raise NotAvailableError(f"TPM {self._tcti}: cannot be opened: {exc}") from exc
        try:
            yield context
        except TSS2_Exception as exc:
            raise AttesterError(f"TPM {self._tcti}: {explained(exc)}") from exc
        finally:
            context.close()


def _defined(esys: ESAPI) -> list[int]:
    """Those of our indices that are defined."""
    _more, data = esys.get_capability(TPM2_CAP.HANDLES, FIRST_INDEX, _INDICES)
    handles = data.data.handles
    found = [int(handles[i]) for i in range(len(handles))]
    return [index for index in found if FIRST_INDEX <= index < FIRST_INDEX + _INDICES]


def _write(esys: ESAPI, handle: ESYS_TR, content: bytes, pcrs: Sequence[int]) -> None:
    """TPM2_NV_Write in a policy session; an extension of any PCR meanwhile ends the session, so it is tried again."""
    for attempt in range(1, _ATTEMPTS + 1):
        session = esys.start_auth_session(
            ESYS_TR.NONE, ESYS_TR.NONE, TPM2_SE.POLICY, TPMT_SYM_DEF(algorithm=TPM2_ALG.NULL), TPM2_ALG.SHA256
        )
        try:
            esys.policy_pcr(session, b"", pcr_selection(pcrs))
            esys.nv_write(handle, content, 0, auth_handle=handle, session1=session)
            return
        except TSS2_Exception as exc:
            if not has_code(exc, TPM2_RC.PCR_CHANGED) or attempt == _ATTEMPTS:
                raise
        finally:
            with suppress(TSS2_Exception):
                esys.flush_context(session)
