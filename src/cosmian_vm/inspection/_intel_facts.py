"""What Intel's formats say, as plain data under the names of Intel's documents."""

from __future__ import annotations

from cryptography import x509

from cosmian_vm.endorsements.intel import INTEL_ROOT_SHA256, PckExtension
from cosmian_vm.endorsements.intel_collateral import IntelCollateral
from cosmian_vm.evidence.intel_quote import Quote
from cosmian_vm.evidence.sgx import EnclaveReport
from cosmian_vm.evidence.tdx import TdReport, TdReportBody, td_attribute_names
from cosmian_vm.inspection.certificate import certificate_facts
from cosmian_vm.inspection.model import JSON, Facts, hexed, rfc3339
from cosmian_vm.verifier.intel import QuoteCrypto

__all__ = ["body_facts", "collateral_facts", "pck_facts", "quote_facts", "tdreport_facts"]

_EXTENSION = (
    "td_id",
    "dev_info",
    "init_service_td_hash",
    "init_service_td_attributes",
    "init_cpu_svn",
    "init_tee_tcb_svn",
    "init_tee_fmspc",
    "cur_service_td_hash",
    "cur_service_td_attributes",
)


def body_facts(body: EnclaveReport | TdReportBody) -> Facts:
    """Every field of a body; what is all zero in an enclave that does not use it is left out."""
    return _enclave_facts(body) if isinstance(body, EnclaveReport) else _td_facts(body)


def _enclave_facts(report: EnclaveReport) -> Facts:
    facts: Facts = {
        "cpu_svn": hexed(report.cpu_svn),
        "misc_select": hexed(report.misc_select),
        "attributes": hexed(report.attributes),
        "mr_enclave": hexed(report.mr_enclave),
        "mr_signer": hexed(report.mr_signer),
        "isv_prod_id": report.isv_prod_id,
        "isv_svn": report.isv_svn,
        "report_data": hexed(report.report_data),
        "debug": report.debug,
    }
    separation = {
        "isv_ext_prod_id": report.isv_ext_prod_id,
        "isv_family_id": report.isv_family_id,
        "config_id": report.config_id,
    }
    facts |= {name: hexed(value) for name, value in separation.items() if any(value)}
    if report.config_svn:
        facts["config_svn"] = report.config_svn
    return facts


def _td_facts(body: TdReportBody) -> Facts:
    facts: Facts = {
        "tee_tcb_svn": hexed(body.tee_tcb_svn),
        "mr_seam": hexed(body.mr_seam),
        "mr_signer_seam": hexed(body.mr_signer_seam),
        "seam_attributes": hexed(body.seam_attributes),
        "td_attributes": hexed(body.td_attributes),
        "td_attribute_names": list(td_attribute_names(body.td_attributes)),
        "xfam": hexed(body.xfam),
        "mr_td": hexed(body.mr_td),
        "mr_config_id": hexed(body.mr_config_id),
        "mr_owner": hexed(body.mr_owner),
        "mr_owner_config": hexed(body.mr_owner_config),
        **{f"rtmr{index}": hexed(value) for index, value in enumerate(body.rtmrs)},
        "report_data": hexed(body.report_data),
    }
    if body.tee_tcb_svn2 is not None:
        facts["tee_tcb_svn2"] = hexed(body.tee_tcb_svn2)
    if body.mr_service_td is not None:
        facts["mr_service_td"] = hexed(body.mr_service_td)
    if body.extension is not None:
        facts["vmid"] = body.extension.vmid
        facts |= {name: hexed(getattr(body.extension, name)) for name in _EXTENSION}
    facts["debug"] = body.debug
    facts["sept_ve_disable"] = body.sept_ve_disable
    return facts


def tdreport_facts(report: TdReport) -> Facts:
    """A TDREPORT: the TD's fields, and what the processor put around them."""
    return {
        "report_type": hexed(report.report_type),
        "cpu_svn": hexed(report.cpu_svn),
        "tee_tcb_info_hash": hexed(report.tee_tcb_info_hash),
        "tee_info_hash": hexed(report.tee_info_hash),
        "mac": hexed(report.mac),
        "valid": hexed(report.valid),
        **_td_facts(report.body),
        "hashes_match": report.consistent,
    }


def quote_facts(quote: Quote, crypto: QuoteCrypto, size: int) -> Facts:
    """A quote of ``size`` bytes: header, body, who signed it and what the signatures are worth, dates apart."""
    header, signature = quote.header, quote.signature
    facts: Facts = {
        "version": header.version,
        "attestation_key_type": header.attestation_key_type,
        "tee": header.tee,
        "qe_vendor_id": hexed(header.qe_vendor_id),
        "user_data": hexed(header.user_data),
        "bytes": size,
    }
    if header.version == 3:  # reserved since
        facts |= {"header_qe_svn": header.qe_svn, "header_pce_svn": header.pce_svn}
    if quote.body_type is not None:
        facts["body_type"] = quote.body_type
    facts |= {
        "body": body_facts(quote.body),
        "signature_data_bytes": signature.size,
        "trailing_bytes": len(quote.trailing),
        "trailing_zeros": not any(quote.trailing),
    }
    if signature.outer_type is not None:
        facts["outer_cert_data_type"] = signature.outer_type
    facts |= {"cert_data_type": signature.cert_data_type, "qe": body_facts(signature.qe_report)}
    if crypto.pck is not None:
        facts["fmspc"] = hexed(crypto.pck.fmspc)
        facts["pck"] = {**certificate_facts(crypto.chain[0]), **pck_facts(crypto.pck)}
    if crypto.chain:
        facts["chain"] = [certificate_facts(certificate) for certificate in crypto.chain]
    facts["crypto"] = {
        "quote_signature": crypto.quote_signature,
        "qe_binding": crypto.qe_binding,
        "qe_signature": crypto.qe_signature,
        "chain": crypto.path is not None,
        "root_is_intel": _root_is_intel(crypto.chain),
    }
    if crypto.path_problem:
        facts["chain_problem"] = crypto.path_problem
    return facts


def _root_is_intel(chain: tuple[x509.Certificate, ...]) -> bool:
    return bool(chain) and certificate_facts(chain[-1])["sha256"] == INTEL_ROOT_SHA256


def pck_facts(pck: PckExtension) -> Facts:
    """The SGX extension of a PCK certificate."""
    instance: JSON = None if pck.platform_instance_id is None else hexed(pck.platform_instance_id)
    facts: Facts = {
        "ppid": hexed(pck.ppid),
        "pce_id": hexed(pck.pce_id),
        "fmspc": hexed(pck.fmspc),
        "sgx_type": pck.sgx_type,
        "components": list(pck.components),
        "pce_svn": pck.pce_svn,
        "cpu_svn": hexed(pck.cpu_svn),
    }
    if instance is not None:
        facts["platform_instance_id"] = instance
    if pck.configuration:
        facts["configuration"] = dict(pck.configuration)
    return facts


def collateral_facts(collateral: IntelCollateral) -> Facts:
    """Which platforms a collateral is for, and when each part of it holds."""
    tcb_info, qe = collateral.tcb_info, collateral.qe_identity
    window = collateral.window
    return {
        "fmspc": tcb_info.fmspc.lower(),
        "pce_id": tcb_info.pce_id.lower(),
        "tcb_info_id": tcb_info.id,
        "tcb_info_version": tcb_info.version,
        "tcb_evaluation_data_number": tcb_info.tcb_evaluation_data_number,
        "tcb_info_window": [rfc3339(tcb_info.issue_date), rfc3339(tcb_info.next_update)],
        "tcb_levels": len(tcb_info.tcb_levels),
        "qe_identity_id": qe.id,
        "qe_identity_window": [rfc3339(qe.issue_date), rfc3339(qe.next_update)],
        "pck_crl_issuer": collateral.pck_crl.issuer.rfc4514_string(),
        "pck_crl_entries": len(collateral.pck_crl),
        "pck_crl_window": _crl_window(collateral.pck_crl),
        "root_crl_entries": len(collateral.root_crl),
        "root_crl_window": _crl_window(collateral.root_crl),
        "window": None if window is None else [rfc3339(moment) for moment in window],
    }


def _crl_window(crl: x509.CertificateRevocationList) -> JSON:
    end = crl.next_update_utc
    return [rfc3339(crl.last_update_utc), None if end is None else rfc3339(end)]
