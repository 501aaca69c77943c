"""Appraisal of an RA-TLS certificate: is its key that of a genuine confidential machine, and of which? Pure.

1. certificate.dates      the certificate is valid now
2. certificate.signature  what signs itself holds together (another's signature vouches for nothing here)
3. ratls.platform         the evidence is of the kind of TEE that its extension is for
4. tee.signature ...      the evidence is genuine: as in the appraisal of a machine, each check under its id there
5. tee.report_data        the evidence names the certificate's key
6. ratls.extra_data       the 32 bytes behind that are those expected, short or zeros where nothing is: an agent gives
                          anybody evidence whose first 32 bytes he chose, a hash of its own stands behind them
7. tee.measurement        what runs there is what is pinned

4 to 7 for each piece of evidence, where a certificate carries several: all of them must hold.
What is not pinned is a warning that says what was found; a check that could not be made withholds trust.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from cosmian_vm.endorsements.amd import UNUSABLE, AmdEndorsements
from cosmian_vm.endorsements.intel_collateral import IntelCollateral
from cosmian_vm.errors import CosmianVmError
from cosmian_vm.evidence.bundle import TeeKind
from cosmian_vm.evidence.intel_quote import Quote, parse_quote
from cosmian_vm.evidence.sgx import EnclaveReport
from cosmian_vm.evidence.snp import SnpEvidence, parse_evidence
from cosmian_vm.evidence.tdx import TdReportBody
from cosmian_vm.ra_tls import EXTRA_DATA_SIZE, UNEXPECTED_EXTRA_DATA, Embedded, binding_problem, may_be_an_agents
from cosmian_vm.verifier.amd_chain import validity_problem
from cosmian_vm.verifier.intel import verify_quote
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.result import Check, Status, Verdict, fail, ok, skip, warning
from cosmian_vm.verifier.snp import appraise_snp

__all__ = ["NOT_ALWAYS_TO_BE_HAD", "Pins", "Vouchers", "appraise_certificate"]

_GENUINE = ("tee.signature", "tee.chain", "tee.revocation", "tee.tcb", "tee.debug")
_LEAST_PRIVILEGED = 3  # VMPLs are 0 to 3; a report that the host asked for has 0xFFFFFFFF
_OPTIONAL = frozenset({"certificate.signature"})
NOT_ALWAYS_TO_BE_HAD = ("tee.revocation", "tee.tcb")
"""Checks that take what the hardware's maker publishes anew all the time; a user may do without, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pins:
    """What the evidence must show; None: not pinned. ``measurement``: SEV-SNP, 48 bytes. ``mr_td``: TDX, 48.
    ``mr_enclave``, ``mr_signer``: SGX, 32. ``extra_data``: 32, the second half of report_data.
    """

    measurement: bytes | None = None
    mr_td: bytes | None = None
    mr_enclave: bytes | None = None
    mr_signer: bytes | None = None
    extra_data: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Vouchers:
    """Who vouches for the hardware, and which roots are trusted. ``crls``: Intel's, beside the collateral's."""

    amd: AmdEndorsements
    collateral: IntelCollateral | None = None
    crls: Sequence[x509.CertificateRevocationList] = ()
    amd_roots: Sequence[x509.Certificate]
    intel_roots: Sequence[x509.Certificate]


_PIN_NAMES = {
    "measurement": (TeeKind.SNP, "launch measurement"),
    "mr_td": (TeeKind.TDX, "MRTD"),
    "mr_enclave": (TeeKind.SGX, "MRENCLAVE"),
    "mr_signer": (TeeKind.SGX, "MRSIGNER"),
}


def appraise_certificate(
    certificate: x509.Certificate,
    evidence: Sequence[tuple[Embedded, Vouchers]],
    pins: Pins,
    *,
    now: datetime,
    unchecked: Iterable[str] = (),
) -> Verdict:
    """The whole procedure. ``evidence``: what the certificate carries, with what vouches for each. ``now``: aware.
    ``unchecked``: ids of NOT_ALWAYS_TO_BE_HAD that need no answer; what they do answer counts all the same.

    Never raises for anything in the certificate or its evidence.
    """
    checks = [_dates(certificate, now), _own_signature(certificate)]
    if not evidence:
        line = "The certificate carries no evidence: it is no RA-TLS certificate"
        checks += [fail(check_id, line) for check_id in ("ratls.platform", *_GENUINE, "tee.report_data")]
    for item, vouchers in evidence:
        checks += _one(item, certificate, vouchers, pins, now)
    waived = frozenset(unchecked) & frozenset(NOT_ALWAYS_TO_BE_HAD)
    return Verdict(tuple(_settle(check, waived) for check in checks))


def _settle(check: Check, waived: frozenset[str]) -> Check:
    if check.id in waived and check.status is Status.SKIP:
        return replace(check, status=Status.WARNING, line=f"Not checked, as you allowed: {check.line}")
    return replace(check, required=check.id not in _OPTIONAL)


def _dates(certificate: x509.Certificate, now: datetime) -> Check:
    problem = validity_problem(certificate, now)
    if problem is not None:
        return fail("certificate.dates", f"The certificate is not valid at this time: {problem}")
    return ok("certificate.dates", "The certificate is valid at this time")


def _own_signature(certificate: x509.Certificate) -> Check:
    name = "certificate.signature"
    try:
        if certificate.issuer != certificate.subject:
            return skip(name, "Issued by another: the certificate's key is vouched for by the evidence alone")
        verify: Callable[[x509.Certificate], None] = certificate.verify_directly_issued_by
        verify(certificate)
    except (InvalidSignature, *UNUSABLE):
        return fail(name, "The certificate was changed after it was made: its own signature does not verify")
    return ok(name, "The certificate is signed by its own key")


def _one(item: Embedded, certificate: x509.Certificate, vouchers: Vouchers, pins: Pins, now: datetime) -> list[Check]:
    platform = _platform(item)
    try:
        if item.kind is None:
            unknown = "The certificate's evidence is of no kind that is known"
            return [platform, *(fail(check_id, unknown) for check_id in (*_GENUINE, "tee.report_data"))]
        if item.kind is TeeKind.SNP:
            snp = parse_evidence(item.raw)
            genuine, report_data = _snp(snp, vouchers, now), snp.report.report_data
            values = {"measurement": snp.report.measurement}
        else:
            quote = parse_quote(item.raw)
            genuine, report_data, values = _intel(quote, vouchers, now)
    except CosmianVmError as exc:
        line = f"The evidence cannot be read: {exc}"
        return [platform, *(fail(check_id, line) for check_id in (*_GENUINE, "tee.report_data"))]
    named, problem = binding_problem(report_data, item.claims, certificate)
    bound = fail("tee.report_data", problem) if problem else ok("tee.report_data", named)
    return [platform, *genuine, bound, _extra_data(report_data[32:], pins), _pinned(item.kind, values, pins)]


def _platform(item: Embedded) -> Check:
    found = "of no kind that is known" if item.kind is None else f"{item.kind.upper()} evidence"
    if item.misplaced or item.kind is None:
        return fail("ratls.platform", f"The extension {item.oid} holds what does not belong there: it is {found}")
    return ok("ratls.platform", f"The extension {item.oid} holds {found}")


def _snp(snp: SnpEvidence, vouchers: Vouchers, now: datetime) -> list[Check]:
    vmpl = snp.report.vmpl if snp.report.vmpl <= _LEAST_PRIVILEGED else 0
    checks = appraise_snp(
        snp,
        vouchers.amd,
        report_data=None,  # compared by the caller, who knows the key
        reference=None,
        policy=Policy(vmpl=vmpl),
        roots=vouchers.amd_roots,
        now=now,
    )
    return [_with_vmpl(check, vmpl) for check in checks if check.id in _GENUINE]


def _with_vmpl(check: Check, vmpl: int) -> Check:
    """1.3.x asks for its reports at VMPL 1, and under an SVSM a guest must: no failure, but not passed over either."""
    if check.id != "tee.debug" or check.status is not Status.OK or vmpl == 0:
        return check
    line = f"{check.line}: not only the most privileged software of the machine (VMPL 0) can ask for such a report"
    return replace(check, status=Status.WARNING, line=line)


def _intel(quote: Quote, vouchers: Vouchers, now: datetime) -> tuple[list[Check], bytes, dict[str, bytes]]:
    checks = verify_quote(quote, vouchers.collateral, vouchers.intel_roots, now, crls=vouchers.crls)
    body = quote.body
    values: dict[str, bytes] = {}
    if isinstance(body, EnclaveReport):
        values = {"mr_enclave": body.mr_enclave, "mr_signer": body.mr_signer}
    elif isinstance(body, TdReportBody):
        values = {"mr_td": body.mr_td}
    return [check for check in checks if check.id in _GENUINE], body.report_data, values


def _extra_data(found: bytes, pins: Pins) -> Check:
    name = "ratls.extra_data"
    if pins.extra_data is None:
        if any(found) and not may_be_an_agents(found):
            return warning(name, f"Not pinned (--extra-data): the evidence carries the extra data {found.hex()}")
        if any(found):
            line = f"{UNEXPECTED_EXTRA_DATA}; if you know what it is: --extra-data"
            return fail(name, line, [f"it is {found.hex()}"])
        return ok(name, "The evidence carries no extra data")
    if found != pins.extra_data.ljust(EXTRA_DATA_SIZE, b"\0"):
        return fail(name, f"The evidence carries other extra data: {found.hex()}")
    return ok(name, "The evidence carries the extra data that is expected")


def _pinned(kind: TeeKind, values: dict[str, bytes], pins: Pins) -> Check:
    """``tee.measurement``: every pin that was given is met; a pin of another kind of TEE is not."""
    name = "tee.measurement"
    given = {key: value for key in _PIN_NAMES if (value := getattr(pins, key)) is not None}
    problems = []
    for key, expected in given.items():
        of, called = _PIN_NAMES[key]
        if of is not kind:
            problems.append(f"{called} is pinned, which {of.upper()} machines have, and this is {kind.upper()}")
        elif values[key] != expected:
            problems.append(f"{called} is {values[key].hex()}, expected is {expected.hex()}")
    if problems:
        return fail(name, f"This is not the machine that is expected: {problems[0]}", problems[1:])
    free = [f"{_PIN_NAMES[key][1]} {value.hex()}" for key, value in values.items() if key not in given]
    if not given:
        line = f"Nothing is pinned: any genuine {kind.upper()} machine passes. This one has {free[0]}"
        return warning(name, line, free[1:])
    met = ", ".join(_PIN_NAMES[key][1] for key in given)
    if free:
        return warning(name, f"{met} as expected; not pinned is {free[0]}", free[1:])
    return ok(name, f"{met} as expected")
