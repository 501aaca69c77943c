"""``inspect`` on AMD SEV-SNP reports, alone or with certificates behind them."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from cryptography import x509

from cosmian_vm.endorsements.amd import AmdEndorsements, ChipCertificate, common_name, load_certificate
from cosmian_vm.errors import EndorsementError, EvidenceFormatError
from cosmian_vm.evidence.snp import (
    REPORT_SIZE,
    CertificateLayout,
    Product,
    SnpEvidence,
    SnpReport,
    TcbLayout,
    decode_tcb,
    parse_evidence,
)
from cosmian_vm.inspection.certificate import all_roots, amd_material, certificate_facts
from cosmian_vm.inspection.model import OTHER, Facts, Kind, Material, Roots, hexed
from cosmian_vm.verifier.amd_chain import by_fitness, gather
from cosmian_vm.verifier.amd_revocation import check_revocation
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.result import Check, fail, ok, skip
from cosmian_vm.verifier.snp import Origin, chain_line, check_debug, check_tcb, missing_certificate, trace

__all__ = ["KINDS", "report_facts", "verify_evidence"]

_LEAST_SIZE = 0x188
"""A file that is cut off behind the signed fields is still told to be a report, and what is wrong with it."""
_VERSIONS = range(2, 10)
_HOST_VMPL = 0xFFFFFFFF
_REPORT_DATA_SIZE = 64


def _matches(raw: bytes) -> bool:
    """A plausible version, VMPL and signature algorithm where a report has them."""
    if len(raw) < _LEAST_SIZE:
        return False
    version, vmpl, algorithm = (int.from_bytes(raw[at : at + 4], "little") for at in (0x00, 0x30, 0x34))
    return version in _VERSIONS and (vmpl <= 3 or vmpl == _HOST_VMPL) and algorithm == 1


def _facts(raw: bytes, material: Material) -> Facts:
    evidence = parse_evidence(raw)
    chip = _chip(evidence, amd_material(material)[0])
    facts: Facts = {
        "bytes": len(raw),
        "report": report_facts(evidence.report, None if chip is None else chip.product),
    }
    if evidence.layout is not CertificateLayout.NONE:
        facts["layout"] = str(evidence.layout)
        facts["crls"] = len(evidence.crls)
        facts["certificates"] = [certificate_facts(c) for c in _behind(evidence)]
    if evidence.trailing:
        facts["trailing"] = evidence.trailing
    if chip is not None:
        facts["leaf"] = certificate_facts(chip.certificate)
        facts["chain"] = _chain_name(chip.certificate)
    return facts


def _behind(evidence: SnpEvidence) -> list[x509.Certificate]:
    """The certificates that came behind the report. Raises EvidenceFormatError."""
    try:
        return [load_certificate(der) for der in evidence.certificates]
    except EndorsementError as exc:
        raise EvidenceFormatError("certificate behind the SNP report", str(exc)) from exc


def _chip(evidence: SnpEvidence, endorsements: AmdEndorsements) -> ChipCertificate | None:
    """The chip certificate that claims to be the report's; whether it is, ``verify`` says."""
    chips = by_fitness(gather(evidence, endorsements).chips, evidence.report)
    return chips[0] if chips else None


def _chain_name(certificate: x509.Certificate) -> str | None:
    """``milan``, by the name of the issuer."""
    name = common_name(certificate.issuer).removeprefix("SEV-").removeprefix("VLEK-")
    return name.lower() if name in set(Product) else None


def report_facts(report: SnpReport, product: Product | None = None) -> Facts:
    """Every field of a report. ``product``: as the chip certificate says it; from version 3 on the report's own word
    goes before it. TCBs of unknown products are read as Milan's.
    """
    product = report.product or product
    layout = TcbLayout.MILAN if product is None else product.tcb_layout
    key = report.signing_key
    facts: Facts = {
        "version": report.version,
        "guest_svn": report.guest_svn,
        "policy": f"{report.policy:#x}",
        "policy_abi": report.policy_abi,
        "policy_smt": int(report.policy_smt),
        "policy_migrate_ma": int(report.policy_migrate_ma),
        "policy_debug": int(report.policy_debug),
        "policy_single_socket": int(report.policy_single_socket),
        "family_id": hexed(report.family_id),
        "image_id": hexed(report.image_id),
        "vmpl": report.vmpl,
        "signature_algo": report.signature_algo,
        "platform_info": f"{report.platform_info:#x}",
        "flags": f"{report.flags:#x}",
        "author_key_en": int(report.author_key_en),
        "mask_chip_key": int(report.mask_chip_key),
        "signing_key": f"reserved ({report.flags >> 2 & 7})" if key is None else key.name,
        "report_data": hexed(report.report_data),
        "measurement": hexed(report.measurement),
        "host_data": hexed(report.host_data),
        "id_key_digest": hexed(report.id_key_digest),
        "author_key_digest": hexed(report.author_key_digest),
        "report_id": hexed(report.report_id),
        "report_id_ma": hexed(report.report_id_ma),
        "chip_id": hexed(report.chip_id),
        "current_version": report.current_version,
        "committed_version": report.committed_version,
        "current_tcb": _tcb(report.current_tcb, layout),
        "reported_tcb": _tcb(report.reported_tcb, layout),
        "committed_tcb": _tcb(report.committed_tcb, layout),
        "launch_tcb": _tcb(report.launch_tcb, layout),
    }
    if report.version >= 3:
        facts["cpuid"] = {
            "family": f"{report.cpuid_fam_id:#x}",
            "model": f"{report.cpuid_mod_id:#x}",
            "stepping": f"{report.cpuid_step:#x}",
        }
        facts["product"] = None if report.product is None else str(report.product)
    if report.version >= 5:
        facts["launch_mit_vector"] = f"{report.launch_mit_vector:#x}"
        facts["current_mit_vector"] = f"{report.current_mit_vector:#x}"
    return facts


def _tcb(raw: bytes, layout: TcbLayout) -> Facts:
    return {**decode_tcb(raw, layout).components, "raw": hexed(raw)}


def _verify(raw: bytes, material: Material, at: datetime, roots: Roots) -> list[Check]:
    evidence = parse_evidence(raw)
    checks = verify_evidence(evidence, material, at, roots)
    bound = _report_data(evidence.report, material)
    return checks if bound is None else [*checks, bound]


def verify_evidence(evidence: SnpEvidence, material: Material, at: datetime, roots: Roots) -> list[Check]:
    """Whether a report is authentic: ``tee.signature``, ``tee.chain``, ``chip_id``, ``tee.revocation``, and what is
    policy, ``tee.tcb`` and ``tee.debug``. Without the chip's certificate nothing is proven.
    """
    endorsements, unusable = amd_material(material)
    report = evidence.report
    origin = trace(evidence, endorsements, roots=all_roots(roots), now=at)
    problems = (*origin.gathered.problems, *unusable)
    chip = origin.chip
    debug = check_debug(report, None, Policy(vmpl=report.vmpl if report.vmpl != _HOST_VMPL else 0))
    if chip is None:
        line = f"Cannot be checked: {origin.signature or missing_certificate(report)}"
        make = fail if origin.signature else skip
        return [
            replace(make("tee.signature", line, problems), required=True),
            replace(skip("tee.chain", f"Cannot be checked: {missing_certificate(report)}"), required=True),
            debug,
        ]
    if origin.signature is None:
        signature = ok("tee.signature", f"The report is signed by the key of the {chip.kind.name} certificate")
    else:
        signature = fail("tee.signature", f"The report is not genuine: {origin.signature}", problems)
    return [signature, *_chain(report, origin, at), check_tcb(report, chip, Policy()), debug]


def _chain(report: SnpReport, origin: Origin, at: datetime) -> list[Check]:
    """``tee.chain``, ``chip_id``, ``tee.revocation``."""
    if origin.chain or origin.link is None:
        why = origin.chain or ("there is none",)
        chain = fail("tee.chain", f"The chain does not hold: {why[0]}", why[1:])
    else:
        chain = ok("tee.chain", chain_line(origin.link))
    checks = [chain, _chip_id(report, origin)]
    if origin.link is not None:
        checks.append(check_revocation(origin.link, origin.gathered.crls, at))
    return checks


def _chip_id(report: SnpReport, origin: Origin) -> Check:
    if origin.chip_id is not None:
        return fail("chip_id", f"Not the chip of the report: {origin.chip_id}")
    if origin.chip is None or origin.chip.hwid is None:
        return skip("chip_id", "A VLEK certificate names no chip")
    if not any(report.chip_id):
        return skip("chip_id", "The host masks the chip's identity in its reports")
    return ok("chip_id", "The certificate is for the chip that the report names")


def _report_data(report: SnpReport, material: Material) -> Check | None:
    """``tee.report_data``, if 64 bytes that are nothing else were given: what the report should be bound to."""
    given = [item for item in material.of(OTHER) if len(item.raw) == _REPORT_DATA_SIZE]
    if not given:
        return None
    for item in given:
        if item.raw == report.report_data:
            return ok("tee.report_data", f"report_data is the content of {item.name}")
    return fail("tee.report_data", f"report_data is not the content of {given[0].name}")


KINDS = (
    Kind(
        name="snp-report",
        title=f"AMD SEV-SNP attestation report ({REPORT_SIZE} bytes)",
        matches=_matches,
        facts=_facts,
        verify=_verify,
    ),
)
