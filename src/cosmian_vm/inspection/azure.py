"""``inspect`` on Azure's HCL reports, as they are read from the vTPM's NV index 0x01400001."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.azure import HCL_MAGIC, HclReport, parse_hcl_report, runtime_data
from cosmian_vm.evidence.intel_quote import parse_quote
from cosmian_vm.evidence.snp import parse_evidence
from cosmian_vm.evidence.tdx import parse_tdreport
from cosmian_vm.inspection._intel_facts import tdreport_facts
from cosmian_vm.inspection.intel import TDX_QUOTE, verify_with
from cosmian_vm.inspection.model import Facts, Item, Kind, Material, Roots, hexed
from cosmian_vm.inspection.snp import report_facts, verify_evidence
from cosmian_vm.verifier.azure import (
    check_hcl_ak,
    check_hcl_binding,
    check_td_quote_binding,
    check_tdreport_hashes,
)
from cosmian_vm.verifier.result import Check, fail, skip

__all__ = ["KINDS"]

_SHOWN = 64


def _matches(raw: bytes) -> bool:
    return raw.startswith(HCL_MAGIC) and len(raw) >= _SHOWN


def _facts(raw: bytes, material: Material) -> Facts:  # noqa: ARG001 - the interface of a kind
    report = parse_hcl_report(raw)
    facts: Facts = {
        "magic": HCL_MAGIC.decode(),
        "version": report.version,
        "report_size": report.report_size,
        "request_type": report.request_type,
        "status": report.status,
        "bytes": len(raw),
        "data_size": report.data_size,
        "data_version": report.data_version,
        "report_type": report.report_type,
        "hash_type": report.hash_type,
        "var_data_bytes": len(report.var_data),
        "var_data_hash": hexed(report.var_data_hash),
        "report_data": hexed(report.report_data),
        "binds": report.binds,
        **_runtime_facts(report),
    }
    try:
        if report.report_type == "TDX":
            facts["tdreport"] = tdreport_facts(parse_tdreport(report.tee_report))
        else:
            facts["snp"] = report_facts(parse_evidence(report.tee_report).report)
    except EvidenceFormatError as exc:
        facts["report_problem"] = str(exc)
    return facts


def _runtime_facts(report: HclReport) -> Facts:
    try:
        data = runtime_data(report)
    except EvidenceFormatError as exc:
        return {"runtime_problem": str(exc)}
    return {
        "keys": list(data.key_ids),
        "ak": {"kty": "RSA", "modulus": f"{data.ak.modulus:x}", "exponent": data.ak.exponent},
        "user_data": None if data.user_data is None else hexed(data.user_data),
        "vm_configuration": data.claims.get("vm-configuration"),
    }


def _verify(raw: bytes, material: Material, at: datetime, roots: Roots) -> list[Check]:
    report = parse_hcl_report(raw)
    checks = [check_hcl_binding(report), check_hcl_ak(report)]
    verify = _verify_td if report.report_type == "TDX" else _verify_snp
    try:
        return checks + verify(report, material, at, roots)
    except EvidenceFormatError as exc:
        return [*checks, fail("tee.signature", f"the hardware report cannot be read: {exc}")]


def _verify_snp(report: HclReport, material: Material, at: datetime, roots: Roots) -> list[Check]:
    """As for the report alone; without the chip's certificate it is left open, and the binding still says something."""
    return [replace(c, required=False) for c in verify_evidence(parse_evidence(report.tee_report), material, at, roots)]


def _verify_td(report: HclReport, material: Material, at: datetime, roots: Roots) -> list[Check]:
    """A TDREPORT proves nothing by itself: the TD quote of the same runtime data does, if it was given."""
    tdreport = parse_tdreport(report.tee_report)
    checks = [check_tdreport_hashes(tdreport)]
    quotes: tuple[Item, ...] = material.of(TDX_QUOTE)
    if not quotes:
        line = "the report inside is a TDREPORT, which only its own machine can verify: give the TD quote with --with"
        return [*checks, skip("tee.signature", line)]
    quote = parse_quote(quotes[0].raw)
    return [*checks, check_td_quote_binding(report, tdreport, quote), *verify_with(quote, material, at, roots)]


KINDS = (Kind(name="hcl-report", title="Azure HCL report", matches=_matches, facts=_facts, verify=_verify),)
