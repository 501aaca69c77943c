"""Azure's HCL report: does the hardware report vouch for the runtime data, and with it for the vTPM's key? Pure.

The report_data of the hardware report is the hash of exactly the runtime data, then zeros (hcl_binding); the runtime
data names one RSA key as the vTPM's attestation key (hcl_ak). That the hardware report is genuine is asked elsewhere
(verifier.snp, verifier.intel); a TD quote is made of another TDREPORT, so it must vouch for the same runtime data.
"""

from __future__ import annotations

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.azure import HclReport, runtime_data
from cosmian_vm.evidence.intel_quote import Quote
from cosmian_vm.evidence.tdx import TdReport
from cosmian_vm.verifier.result import Check, fail, ok

__all__ = ["check_hcl_ak", "check_hcl_binding", "check_td_quote_binding", "check_tdreport_hashes"]


def check_hcl_binding(report: HclReport) -> Check:
    """``hcl_binding``: report_data is the hash of the runtime data."""
    if report.binds:
        return ok("hcl_binding", f"report_data is the {report.hash_type} hash of the runtime data")
    return fail("hcl_binding", "report_data is not the hash of the runtime data: one of them was changed")


def check_hcl_ak(report: HclReport) -> Check:
    """``hcl_ak``: the runtime data names one key as the vTPM's attestation key."""
    try:
        ak = runtime_data(report).ak
    except EvidenceFormatError as exc:
        return fail("hcl_ak", f"no attestation key: {exc}")
    return ok("hcl_ak", f"the runtime data names the vTPM's attestation key, RSA-{ak.modulus.bit_length()}")


def check_tdreport_hashes(report: TdReport) -> Check:
    """``tdreport_hashes``: whether the hashes in the MACed part are those of the rest."""
    if report.consistent:
        return ok("tdreport_hashes", "the TDREPORT's hashes are those of its TCB and TD information")
    return fail("tdreport_hashes", "the TDREPORT's hashes are not those of its TCB and TD information: it was changed")


def check_td_quote_binding(report: HclReport, tdreport: TdReport, quote: Quote) -> Check:
    """``hcl_quote``: the quote vouches for the same runtime data, in a TD of the same launch measurement."""
    if quote.td is None:
        return fail("hcl_quote", "the quote is of an SGX enclave, the HCL report of a TD")
    if quote.td.report_data != report.report_data:
        return fail("hcl_quote", "the quote is bound to other runtime data than this HCL report")
    if quote.td.mr_td != tdreport.body.mr_td:
        return fail("hcl_quote", "the quote is of a TD that was launched from other contents (MRTD)")
    return ok("hcl_quote", "the TD quote is bound to the runtime data of this HCL report")
