"""``tee.*`` of one machine's evidence, whichever TEE it has: the quote's bytes tell the kind, nobody's word does. Pure.

Direct (SNP, TDX, SGX): report_data is the binding of this very connection. On Azure the firmware (HCL) chose it: the
hash of runtime data that name the vTPM's key. Then the TPM's quote carries freshness and TLS key, and ``tpm.ak`` that
it is this key's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from cosmian_vm.errors import CosmianVmError, EvidenceFormatError
from cosmian_vm.evidence.bundle import Evidence, TeeKind, tee_kind
from cosmian_vm.evidence.snp import SnpEvidence, SnpReport, parse_evidence, parse_report
from cosmian_vm.verifier._context import Against
from cosmian_vm.verifier._report_data import check_report_data
from cosmian_vm.verifier.amd_revocation import check_revocation
from cosmian_vm.verifier.anchor import svsm_problem
from cosmian_vm.verifier.build import with_launch
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.result import CHECK_IDS, Check, Status, fail, ok, warning
from cosmian_vm.verifier.snp import appraise_snp, check_tcb, trace

if TYPE_CHECKING:
    from cosmian_vm.evidence.azure import HclReport
    from cosmian_vm.evidence.intel_quote import Quote
    from cosmian_vm.reference.build_reference import BuildReference

# What judges Intel's and Azure's evidence is imported where there is such evidence: it takes its time.

__all__ = ["TeeFindings", "appraise_tee"]


class TeeFindings(NamedTuple):
    """``checks``: one for each id of ``tee.*``. ``enclave``: a genuine SGX enclave, which has no TPM and no IMA.
    ``svsm``: what is wrong with the SVSM's report, "" if nothing, None where there is none.
    """

    checks: list[Check]
    enclave: bool = False
    svsm: str | None = None


def appraise_tee(evidence: Evidence, against: Against, policy: Policy) -> TeeFindings:
    """See the module. Never raises."""
    raw = evidence.tee
    if raw is None:
        return _no_tee("the machine has no TEE quote: this is not a confidential machine, or its agent hides it")
    kind = tee_kind(raw)
    if kind is None:
        return _no_tee("the TEE quote is of no kind that is known")
    try:
        hcl = None if evidence.hcl_report is None else _parsed_hcl(evidence.hcl_report)
        appraise = _snp if kind is TeeKind.SNP else _intel
        findings = appraise(raw, evidence, against, policy)
        checks = findings.checks
        if hcl is not None:
            bound = _hcl_bound(raw, kind, hcl, evidence, against)
            checks = [bound if check.id == bound.id else check for check in checks]
    except CosmianVmError as exc:
        return _no_tee(f"the TEE quote cannot be read: {exc}")
    if against.expected.problem:
        checks = [fail(c.id, against.expected.problem) if c.id == "tee.report_data" else c for c in checks]
    if kind not in policy.kinds:
        line = f"this is a machine of the kind {kind}; the policy accepts {', '.join(sorted(policy.kinds)) or 'none'}"
        checks = [fail(c.id, line) if c.id == "tee.measurement" else c for c in checks]
    return findings._replace(checks=checks)


def _parsed_hcl(raw: bytes) -> HclReport:
    from cosmian_vm.evidence.azure import parse_hcl_report

    return parse_hcl_report(raw)


def _no_tee(problem: str) -> TeeFindings:
    """Missing evidence fails under every id: the agent's word that there is none counts for nothing."""
    return TeeFindings([fail(check_id, problem) for check_id in CHECK_IDS if check_id.startswith("tee.")])


def _snp(raw: bytes, evidence: Evidence, against: Against, policy: Policy) -> TeeFindings:
    snp = parse_evidence(raw)
    svsm = _svsm(evidence, snp.report, against, policy)
    if svsm == "" and policy.vmpl is None and against.reference is None:
        policy = replace(policy, vmpl=snp.report.vmpl)  # an SVSM has VMPL 0, so the guest cannot
    checks = appraise_snp(
        snp,
        against.endorsements,
        report_data=against.expected.report_data,
        reference=against.reference,
        policy=policy,
        roots=against.roots,
        now=against.now,
    )
    if against.build is not None:
        checks = with_launch(checks, snp.report, against.build, alone=against.reference is None)
    return TeeFindings(checks, svsm=svsm)


def _svsm(evidence: Evidence, guest: SnpReport, against: Against, policy: Policy) -> str | None:
    """See TeeFindings.svsm."""
    told = evidence.svsm
    if told is None:
        return None
    problem = svsm_problem(told, guest, against.expected.report_data or b"")
    if problem:
        return problem
    report = parse_report(told.report)
    origin = trace(SnpEvidence(report=report), against.endorsements, roots=against.roots, now=against.now)
    if origin.chip is None or origin.signature is not None:
        return f"the SVSM's report is not genuine: {origin.signature or 'there is no certificate of the chip'}"
    chain = [*origin.chain, *([origin.chip_id] if origin.chip_id else [])]
    if chain or origin.link is None:
        return f"the chain of the SVSM's report does not hold: {chain[0] if chain else 'there is none'}"
    tcb = check_tcb(report, origin.chip, policy, against.reference)  # the key must be of the TCB that it vouches for
    revocation = check_revocation(origin.link, origin.gathered.crls, against.now)
    wrong = [check.line for check in (tcb, revocation) if check.status is Status.FAIL]
    return f"the SVSM's report does not count: {wrong[0]}" if wrong else ""


def _intel(raw: bytes, evidence: Evidence, against: Against, policy: Policy) -> TeeFindings:
    from cosmian_vm.evidence.intel_quote import parse_quote
    from cosmian_vm.verifier.intel import verify_quote
    from cosmian_vm.verifier.intel_values import check_instance, check_measurement

    quote = parse_quote(raw)
    checks = verify_quote(quote, against.collateral, against.roots, against.now, policy=policy)
    if any(quote.trailing):
        note = f"{len(quote.trailing)} bytes that nobody signed stand behind the quote and are ignored"
        checks = [replace(c, details=(*c.details, note)) if c.id == "tee.signature" else c for c in checks]
    measurement = check_measurement(quote, against.reference, evidence.cc_event_log)
    if against.build is not None:
        measurement = _as_built(measurement, quote, against.build, alone=against.reference is None)
    checks += [
        check_report_data(quote.body.report_data, against.expected.report_data),
        measurement,
        check_instance(quote, against.reference),
    ]
    holds = {check.id for check in checks if check.status in (Status.OK, Status.WARNING)}
    return TeeFindings(checks, enclave=quote.enclave is not None and {"tee.signature", "tee.chain"} <= holds)


def _as_built(check: Check, quote: Quote, build: BuildReference, *, alone: bool) -> Check:
    """Reference values of an image have launch measurements of SNP guests alone."""
    if check.status is Status.FAIL or not alone:
        return check
    name = quote.header.tee
    if build.launches:
        return fail(check.id, f"The reference values are of an AMD SEV-SNP machine, this is {name}: use a snapshot")
    measured = quote.td.mr_td if quote.td is not None else quote.body.raw[64:96]
    line = f"The launch measurement is not pinned, any firmware passes: the reference values have none for {name}"
    return warning(check.id, line, [f"it is {measured.hex()}"])


def _hcl_bound(raw: bytes, kind: TeeKind, hcl: HclReport, evidence: Evidence, against: Against) -> Check:
    """``tee.report_data`` where Azure's firmware chose it. That the AK is the one in the runtime data is ``tpm.ak``."""
    from cosmian_vm.evidence.intel_quote import parse_quote
    from cosmian_vm.evidence.tdx import parse_tdreport
    from cosmian_vm.verifier.azure import check_hcl_binding, check_td_quote_binding

    name = "tee.report_data"
    reference = against.reference
    if reference is not None and reference.anchor is not None and reference.anchor != "tee":
        return fail(name, "The snapshot's machine bound its report to the connection, this one shows an HCL report")
    if evidence.tpm is None:
        return fail(name, "The report is bound to the vTPM's key alone, and no quote is by it: nothing is fresh")
    if against.expected.report_data is None:
        return fail(name, "Nothing is known that the TPM's quote should be bound to")
    if kind is TeeKind.SNP:
        if raw[: len(hcl.tee_report)] != hcl.tee_report:
            return fail(name, "The report is not the one in the HCL report")
        if hcl.report_type != "SNP":
            return fail(name, f"The HCL report is of a {hcl.report_type} machine")
    else:
        if hcl.report_type != "TDX":
            return fail(name, f"The HCL report is of a {hcl.report_type} machine")
        try:
            bound = check_td_quote_binding(hcl, parse_tdreport(hcl.tee_report), parse_quote(raw))
        except EvidenceFormatError as exc:
            return fail(name, f"The TDREPORT in the HCL report cannot be read: {exc}")
        if bound.status is Status.FAIL:
            return fail(name, bound.line)
    binds = check_hcl_binding(hcl)
    if binds.status is Status.FAIL:
        return fail(name, binds.line)
    return ok(name, "The report is bound to the vTPM's key (HCL), whose quote answers this request (tpm.nonce)")
