"""What a snapshot records of a TEE's report or quote, whichever kind it is. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence import snp
from cosmian_vm.evidence.bundle import TeeKind, tee_kind
from cosmian_vm.reference.snapshot import (
    Enclave,
    SevPolicy,
    SgxBody,
    SgxHeader,
    SgxPolicy,
    TdxBody,
    TdxHeader,
    TdxPolicy,
    TeePolicy,
)

if TYPE_CHECKING:
    from cosmian_vm.evidence.intel_quote import Quote
    from cosmian_vm.evidence.sgx import EnclaveReport
    from cosmian_vm.evidence.tdx import TdReportBody

__all__ = ["TeeValues", "tee_values"]


class TeeValues(TypedDict, total=False):
    """Fields of a Snapshot; those of other kinds are absent."""

    tee_policy: TeePolicy
    vmpl: int
    host_data: str
    reported_tcb: str
    platform_info: int
    rtmrs: tuple[str, str, str, str]
    enclave: Enclave


def tee_values(raw: bytes, *, cloud: str | None) -> TeeValues:
    """The values of one SNP report, TDX or SGX quote. ``cloud``: on Azure report_data is kept, elsewhere it is zeros.

    Raises EvidenceFormatError where it is none of them.
    """
    kind = tee_kind(raw)
    if kind is TeeKind.SNP:
        return _snp_values(snp.parse_evidence(raw).report, cloud)
    if kind is None:
        raise EvidenceFormatError("TEE quote", "is of no kind that is known")
    # where there is such a quote, the device that gave it has imported these at start
    from cosmian_vm.evidence.intel_quote import parse_quote
    from cosmian_vm.evidence.tdx import TdReportBody

    quote = parse_quote(raw)
    if isinstance(quote.body, TdReportBody):
        return _tdx_values(quote, quote.body, cloud)
    return _sgx_values(quote, quote.body)


def _snp_values(report: snp.SnpReport, cloud: str | None) -> TeeValues:
    return TeeValues(
        tee_policy=TeePolicy(sev=SevPolicy.of_report(report, cloud=cloud)),
        vmpl=report.vmpl,
        host_data=report.host_data.hex(),
        reported_tcb=report.reported_tcb.hex(),
        platform_info=report.platform_info,
    )


def _tdx_values(quote: Quote, body: TdReportBody, cloud: str | None) -> TeeValues:
    header = TdxHeader(
        minimum_qe_svn=quote.header.qe_svn,
        minimum_pce_svn=quote.header.pce_svn,
        qe_vendor_id=quote.header.qe_vendor_id.hex(),
    )
    values = TdxBody(
        minimum_tee_tcb_svn=body.tee_tcb_svn.hex(),
        mr_seam=body.mr_seam.hex(),
        td_attributes=body.td_attributes.hex(),
        xfam=int.from_bytes(body.xfam, "little"),
        mr_td=body.mr_td.hex(),
        mr_config_id=body.mr_config_id.hex(),
        mr_owner=body.mr_owner.hex(),
        mr_owner_config=body.mr_owner_config.hex(),
        report_data=body.report_data.hex() if cloud == "Azure" else bytes(64).hex(),
    )
    first, second, third, fourth = (value.hex() for value in body.rtmrs)
    return TeeValues(
        tee_policy=TeePolicy(tdx=TdxPolicy(header=header, body=values)), rtmrs=(first, second, third, fourth)
    )


def _sgx_values(quote: Quote, body: EnclaveReport) -> TeeValues:
    header = SgxHeader(
        minimum_qe_svn=quote.header.qe_svn,
        minimum_pce_svn=quote.header.pce_svn,
        qe_vendor_id=quote.header.qe_vendor_id.hex(),
    )
    values = SgxBody(mr_enclave=body.mr_enclave.hex(), mr_signer=body.mr_signer.hex(), report_data=bytes(64).hex())
    enclave = Enclave(attributes=body.attributes.hex(), isv_prod_id=body.isv_prod_id, isv_svn=body.isv_svn)
    return TeeValues(tee_policy=TeePolicy(sgx=SgxPolicy(header=header, body=values)), enclave=enclave)
