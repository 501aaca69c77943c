"""Is an Intel quote genuine? SGX and TDX, every version that evidence.intel_quote reads. Pure.

1. tee.signature   The attestation key signed header and body; its hash is in the quoting enclave's report; the PCK
                   signed that report; the enclave is Intel's quoting enclave (QE identity; without collateral, the
                   signer and product that Intel has used ever since).
2. tee.chain       The PCK certificate hangs on a root that we trust, by way of Intel's Platform or Processor CA;
                   everything in the chain, and all collateral given, is signed and current.
3. tee.revocation  Neither CA nor PCK stands in the CRLs, which their issuers signed.
4. tee.tcb         The TCB level by Intel's procedure, once by ours (_intel_tcb) and once by dcap-qvl: both must agree.
5. tee.debug       The host cannot look into it: no debug, no profiling, no migration, no service TD.

Without collateral 3 (unless CRLs are given) and 4 are skipped, naming what to fetch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from cosmian_vm.endorsements.intel import PckExtension, is_pinned_root, p256_key, parse_chain, pck_extension
from cosmian_vm.endorsements.intel_collateral import IntelCollateral
from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.intel_quote import CERT_DATA_PCK_CHAIN, INTEL_QE_VENDOR_ID, Quote
from cosmian_vm.evidence.sgx import EnclaveReport
from cosmian_vm.evidence.tdx import TdReportBody, td_attribute_names
from cosmian_vm.verifier._dcap import opinion
from cosmian_vm.verifier._intel_chain import (
    CA_NAMES,
    PCK_NAME,
    Path,
    build_path,
    crl_dated,
    crl_problem,
    dated,
    is_of,
    is_signed,
    named,
    revoked,
)
from cosmian_vm.verifier._intel_collateral import QE_IDENTITY, CollateralFindings, examine_collateral
from cosmian_vm.verifier._intel_tcb import REVOKED, UP_TO_DATE, TcbOutcome, evaluate, qe_problem
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.result import Check, Status, fail, ok, skip, warning

__all__ = [
    "QuoteCrypto",
    "debug_check",
    "examine_collateral",
    "examine_quote",
    "verify_quote",
]

_QE_SIGNERS = {
    "SGX": ("8c4f5775d796503e96137f77c68a829a0056ac8ded70140b081b094490c57bff", 1),
    "TDX": ("dc9e2a7c6f948f17474e34a7fc43ed030f7c1563f1babddf6340c82e0e54a8c5", 2),
}
"""MRSIGNER and ISVPRODID of Intel's quoting enclaves, as every QE identity of Intel's has said so far."""

_PASSING = ("SWHardeningNeeded", "ConfigurationNeeded")
"""Statuses that pass with a warning: what they ask for is the administrator's own work, not older firmware."""

_REMEDIES = {
    REVOKED: "the platform's keys are compromised: leave it",
    "TDRelaunchAdvised": "stop the VM and start it again",
    "TDRelaunchAdvisedConfigurationNeeded": "stop the VM and start it again",
    "ConfigurationAndSWHardeningNeeded": "the platform's firmware is to be configured by its operator",
}
_DEFAULT = Policy()

_FETCH = "fetch Intel's collateral of this platform (TCB info, QE identity, CRLs) from Intel's PCS or a PCCS"

# Where dcap-qvl refuses for what tee.debug shows, not for the TCB: our own level stands.
_ATTRIBUTE_REFUSALS = (
    "Debug mode is enabled",
    "TD profiling is enabled",
    "Reserved bits in TD attributes are set",
    "TD migration is enabled",
    "SERVTD_EXT is enabled",
    "SEPT_VE_DISABLE is not enabled",
    "Invalid MR service TD",
)
_PROFILING = ("HGS_PLUS_PROF", "PERF_PROF", "PMT_PROF")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuoteCrypto:
    """What the signatures of a quote are worth, dates apart. ``path``: the PCK's, None where there is none to a root
    that we trust, and ``path_problem`` says why. ``chain``: the quote's certificates, () where they cannot be read.
    """

    quote_signature: bool
    qe_binding: bool
    qe_signature: bool
    chain: tuple[x509.Certificate, ...]
    path: Path | None
    path_problem: str
    pck: PckExtension | None


def examine_quote(quote: Quote, roots: Iterable[x509.Certificate]) -> QuoteCrypto:
    """Check each signature of ``quote`` by itself, and its chain up to one of ``roots``."""
    signature = quote.signature
    chain, problem = _chain_of(quote)
    path, pck = None, None
    if chain:
        path, problem = build_path(chain, roots)
        if path is not None:
            path, problem = _pck_path(path)
        try:
            pck = pck_extension(chain[0])
        except EvidenceFormatError as exc:
            path, problem = None, str(exc)
    key = p256_key(chain[0]) if chain else None
    hashed = sha256(signature.attestation_key + signature.qe_auth_data).digest()
    return QuoteCrypto(
        quote_signature=_signed_by_point(signature.attestation_key, signature.signature, quote.signed),
        qe_binding=signature.qe_report.report_data == hashed.ljust(64, b"\x00"),
        qe_signature=key is not None and is_signed(key, signature.qe_report_signature, signature.qe_report.raw),
        chain=chain,
        path=path,
        path_problem=problem,
        pck=pck,
    )


def _chain_of(quote: Quote) -> tuple[tuple[x509.Certificate, ...], str]:
    if quote.signature.cert_data_type != CERT_DATA_PCK_CHAIN:
        kind = quote.signature.cert_data_type
        return (), f"the quote names its PCK in another form (certification data type {kind}) than by certificates (5)"
    try:
        return parse_chain(quote.signature.cert_data, "PCK certificate chain"), ""
    except EvidenceFormatError as exc:
        return (), str(exc)


def _pck_path(path: Path) -> tuple[Path | None, str]:
    """Whether the path is that of a PCK certificate, and not of something else that Intel signed."""
    if len(path.certificates) != 2 or named(path.leaf) != PCK_NAME or named(path.certificates[1]) not in CA_NAMES:
        names = " < ".join(named(certificate) for certificate in path.certificates)
        return None, f"the chain is not that of a PCK certificate but of {names}"
    return path, ""


def _signed_by_point(point: bytes, signature: bytes, message: bytes) -> bool:
    """The same as is_signed, for a key given as x and y (64 bytes); a point that is not on the curve signs nothing."""
    try:
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + point)
    except ValueError:
        return False
    return is_signed(key, signature, message)


def verify_quote(
    quote: Quote,
    collateral: IntelCollateral | None,
    roots: Sequence[x509.Certificate],
    now: datetime,
    *,
    crls: Sequence[x509.CertificateRevocationList] = (),
    policy: Policy = _DEFAULT,
) -> list[Check]:
    """tee.signature, tee.chain, tee.revocation, tee.tcb, tee.debug, in this order.

    ``roots``: certificates that a chain may end in. ``now``: aware. ``crls``: further ones, beside the collateral's.
    ``policy``: which TCB statuses and advisories pass.
    """
    crypto = examine_quote(quote, roots)
    findings = None if collateral is None else examine_collateral(collateral, roots, now)
    if collateral is not None:
        crls = (*crls, collateral.root_crl, collateral.pck_crl)
    genuine = [
        _signature_check(quote, crypto, collateral, findings),
        _chain_check(crypto, findings, now),
        _revocation_check(crypto, crls, now),
    ]
    unsound = next((check.id for check in genuine if check.status is Status.FAIL), None)
    if collateral is None:
        tcb = skip("tee.tcb", f"no TCB info: {_FETCH}")
    elif unsound is not None or crypto.path is None or crypto.pck is None:
        tcb = skip("tee.tcb", f"not asked: the platform is not known for sure (see {unsound or 'tee.chain'})")
    else:
        outcome = evaluate(quote, crypto.pck, collateral.tcb_info, collateral.qe_identity)
        tcb = _judge_tcb(_second_opinion(outcome, quote, crypto.path, collateral, now), collateral, policy)
    return [*genuine, tcb, debug_check(quote.body)]


def _signature_check(
    quote: Quote, crypto: QuoteCrypto, collateral: IntelCollateral | None, findings: CollateralFindings | None
) -> Check:
    problem = ""
    if quote.header.qe_vendor_id != INTEL_QE_VENDOR_ID:
        problem = f"the quoting enclave is of vendor {quote.header.qe_vendor_id.hex()}, not of Intel"
    elif not crypto.quote_signature:
        problem = "the signature of the quote is wrong: header or body is not what the quoting enclave signed"
    elif not crypto.qe_binding:
        problem = "the key that signed the quote is not the one in the quoting enclave's report"
    elif not crypto.chain:
        problem = f"the quoting enclave's report cannot be checked: {crypto.path_problem}"
    elif not crypto.qe_signature:
        problem = "the quoting enclave's report is not signed by the PCK certificate of the quote"
    elif collateral is not None and findings is not None and QE_IDENTITY not in findings.forged:
        problem = qe_problem(quote.signature.qe_report, collateral.qe_identity, quote.header.tee)
    else:
        problem = _unusual_qe(quote.signature.qe_report, quote.header.tee)
    if problem:
        return fail("tee.signature", problem)
    return ok(
        "tee.signature", f"the {quote.header.tee} quote is signed by Intel's quoting enclave, and that by the PCK"
    )


def _unusual_qe(report: EnclaveReport, tee: str) -> str:
    signer, product = _QE_SIGNERS[tee]
    if report.debug:
        return "the quoting enclave is in debug mode"
    if report.mr_signer.hex() != signer or report.isv_prod_id != product:
        return f"the enclave that signed the quote (signer {report.mr_signer.hex()}) is not Intel's quoting enclave"
    return ""


def _chain_check(crypto: QuoteCrypto, findings: CollateralFindings | None, now: datetime) -> Check:
    path = crypto.path
    if path is None:
        return fail("tee.chain", f"no chain to Intel's root: {crypto.path_problem}")
    problems = [problem] if (problem := dated((*path.certificates, path.root), now)) else []
    if findings is not None:
        problems += findings.problems
    if problems:
        return fail("tee.chain", problems[0], problems[1:])
    root = "Intel's pinned root" if is_pinned_root(path.root) else f"{named(path.root)}, a root of your own"
    return ok("tee.chain", f"the PCK certificate chains to {root} by way of {named(path.certificates[1])}")


def _revocation_check(crypto: QuoteCrypto, crls: Sequence[x509.CertificateRevocationList], now: datetime) -> Check:
    """Each of the two authorities must have one CRL here that it signed and that is current."""
    path = crypto.path
    if not crls:
        return skip("tee.revocation", f"no CRLs: {_FETCH}")
    if path is None:
        return skip("tee.revocation", "not asked: there is no chain to look up (see tee.chain)")
    links = [*zip(path.certificates, (*path.certificates[1:], path.root), strict=True), (path.root, path.root)]
    for certificate, issuer in links:
        own = [crl for crl in crls if is_of(crl, issuer)]
        if not own:
            return fail("tee.revocation", f"no CRL of {named(issuer)}: {_FETCH}")
        genuine = [crl for crl in own if not crl_problem(crl, issuer)]
        if not genuine:
            return fail("tee.revocation", crl_problem(own[0], issuer))
        for crl in genuine:
            if problem := revoked(crl, certificate):
                return fail("tee.revocation", problem)
        if all(crl_dated(crl, now) for crl in genuine):
            return fail("tee.revocation", f"{crl_dated(genuine[0], now)}: {_FETCH}")
    return ok("tee.revocation", "neither the PCK certificate nor an authority above it is revoked")


def _judge_tcb(outcome: TcbOutcome, collateral: IntelCollateral, policy: Policy) -> Check:
    level = f"TCB evaluation {collateral.tcb_info.tcb_evaluation_data_number}"
    advisories = tuple(ascii(advisory)[1:-1] for advisory in outcome.advisories)
    known = f" ({', '.join(advisories)})" if advisories else ""
    status = outcome.status
    if status is None:
        return fail("tee.tcb", outcome.problem, advisories)
    if status != UP_TO_DATE and (status == REVOKED or status not in {*_PASSING, *policy.tcb_statuses}):
        remedy = _REMEDIES.get(status, "the platform's firmware is to be updated by its operator")
        return fail("tee.tcb", f"{status} by {level}{known}: {remedy}", advisories)
    refused = () if policy.advisories is None else tuple(a for a in advisories if a not in policy.advisories)
    if refused:
        line = f"{status} by {level}, but the policy does not accept {', '.join(refused)}"
        return fail("tee.tcb", f"{line}: have the operator update it, or add them to the policy", advisories)
    if status == UP_TO_DATE:
        return ok("tee.tcb", f"UpToDate by {level}", advisories)
    remedy = "see that these advisories are followed on this machine"
    if status not in _PASSING:
        remedy = "it passes because the policy names this status"
    return warning("tee.tcb", f"{status} by {level}{known}: {remedy}", advisories)


def _second_opinion(
    ours: TcbOutcome, quote: Quote, path: Path, collateral: IntelCollateral, now: datetime
) -> TcbOutcome:
    """Our outcome, unless dcap-qvl comes to another or refuses the quote for a reason that we do not see."""
    theirs = opinion(quote, path.root, collateral, now)
    if theirs.status is None:
        return _refused(ours, theirs.problem)
    if ours.status is None:
        return ours
    if theirs.status != ours.status or set(theirs.advisories) != set(ours.advisories):
        problem = f"dcap-qvl says {theirs.status}, our own procedure {ours.status}: neither is trusted"
        return TcbOutcome(None, problem, ours.advisories)
    return ours


def _refused(ours: TcbOutcome, reason: str) -> TcbOutcome:
    if ours.status is None or ours.status == "Revoked" or any(known in reason for known in _ATTRIBUTE_REFUSALS):
        return ours
    return TcbOutcome(None, f"dcap-qvl refuses the quote: {reason}", ours.advisories)


def debug_check(body: EnclaveReport | TdReportBody) -> Check:
    """tee.debug: whether the host, or a service TD, can look into the enclave or TD, or move it."""
    if isinstance(body, EnclaveReport):
        if body.debug:
            return fail("tee.debug", "the enclave is in debug mode: the host can read its memory; build it without")
        return ok("tee.debug", "the enclave is not in debug mode")
    names = td_attribute_names(body.td_attributes)
    problems = []
    if body.debug:
        problems.append("the TD is in debug mode: the host can read its memory; launch it without")
    unknown = [name for name in names if name.startswith("bit ")]
    if named_profiling := [name for name in names if name in _PROFILING]:
        problems.append(f"the TD can be profiled by the host ({', '.join(named_profiling)})")
    if "MIGRATABLE" in names:
        problems.append("the TD can be migrated to another host")
    if "SERVTD_EXT" in names or any(body.mr_service_td or b""):
        problems.append("a service TD is bound to the TD")
    if unknown:
        problems.append(f"reserved TD attributes are set ({', '.join(unknown)})")
    shown = [f"td_attributes: {', '.join(names) or 'none'}"]
    if problems:
        return fail("tee.debug", problems[0], (*problems[1:], *shown))
    if not body.sept_ve_disable:
        shown.append("SEPT_VE_DISABLE is off: the TD's kernel must not resume after a #VE on its own memory")
    return ok("tee.debug", "the TD is not in debug mode, not migratable and bound to no service TD", shown)
