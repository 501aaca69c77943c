"""The procedure, stated once: evidence, endorsements, reference values and policy in, a verdict out. Pure.

1. genuine      tee.signature  tee.chain  tee.revocation  tee.tcb  tee.debug
2. bound        tee.report_data: nonce, TLS key and AK of this very connection
3. ours         tee.measurement  tee.instance
4. the TPM      tpm.ak  tpm.signature  tpm.nonce  tpm.pcr_selection  tpm.clock  tpm.boot_pcrs
5. what ran     ima.replay  ima.boot_aggregate  ima.files  ima.policy  ima.violations
6. the wire     tls.certificate  tls.application
7. the owner    vm.owner

The machine is held against its snapshot, against the reference values of the image that it booted (``build``), or both:
then both must hold. Everything is checked and every failure is kept. Missing evidence fails; a check skips only where
there is nothing to compare with, and a skipped check that is *required* still withholds trust (``required_checks``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
from cryptography import x509

from cosmian_vm.certificates import spki_sha256
from cosmian_vm.endorsements.amd import AmdEndorsements
from cosmian_vm.errors import CosmianVmError
from cosmian_vm.evidence.binding import compute_binding, report_data, report_data_v1
from cosmian_vm.evidence.bundle import V2_PCRS, Evidence
from cosmian_vm.evidence.ima import IMA_PCR
from cosmian_vm.evidence.tpm import name as tpm_name
from cosmian_vm.evidence.tpm import parse_quote
from cosmian_vm.reference.snapshot import Anchor, Snapshot
from cosmian_vm.verifier._context import Against, Expected
from cosmian_vm.verifier._tpm_certificates import TpmRoots
from cosmian_vm.verifier.anchor import OPERATOR, Anchored, find_anchor
from cosmian_vm.verifier.boot import appraise_boot
from cosmian_vm.verifier.build import with_unpinned
from cosmian_vm.verifier.ima import ImaSession, ImaState, appraise_ima
from cosmian_vm.verifier.owner import check_owner
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.result import CHECK_IDS, Check, Status, Verdict, fail, skip, with_required
from cosmian_vm.verifier.tee import TeeFindings, appraise_tee
from cosmian_vm.verifier.tls import check_tls
from cosmian_vm.verifier.tpm import appraise_tpm, quoted_pcrs

if TYPE_CHECKING:
    from cosmian_vm.endorsements.intel_collateral import IntelCollateral
    from cosmian_vm.reference.build_reference import BuildReference
    from cosmian_vm.reference.whitelist import Whitelist

__all__ = ["Appraisal", "appraise", "required_checks"]

_NO_TPM_ROOTS = TpmRoots()

_NEED_REFERENCE = frozenset({"tee.measurement", "tee.instance", "ima.files", "ima.policy", "vm.owner"})
"""Checks that compare with a snapshot (or an image's reference values) and nothing else: not required while there is
none.
"""

_HOLD_FOR_REBOOT = (
    "tpm.ak",
    "tpm.boot_pcrs",
    "ima.replay",
    "ima.boot_aggregate",
    "ima.files",
    "ima.policy",
    "ima.violations",
)
"""What must hold before a reboot can be a mere warning."""

_NOT_MADE = "This check was not made: nothing was given to make it of (an application's address: --application)"
_REBOOT_CHECKS = ("tee.instance", "tpm.clock")


class Appraisal(msgspec.Struct, frozen=True):
    """A verdict, and what a verifier stores to let the next one continue from here (None: start from the beginning).

    ``anchor``: who vouches for the AK; None without a TPM.
    """

    verdict: Verdict
    ima_state: ImaState | None
    anchor: Anchor | None = None


def appraise(
    evidence: Evidence,
    endorsements: AmdEndorsements,
    reference: Snapshot | None,
    policy: Policy,
    *,
    nonce: bytes,
    roots: Sequence[x509.Certificate],
    now: datetime,
    whitelist: Whitelist | None = None,
    prior: ImaState | None = None,
    reference_id: bytes = b"",
    build: BuildReference | None = None,
    collateral: IntelCollateral | None = None,
    tpm_roots: TpmRoots = _NO_TPM_ROOTS,
) -> Appraisal:
    """Appraise one machine's evidence.

    ``nonce``: the 32 bytes that this verifier sent. ``roots``: root certificates of the processors' makers that are
    trusted; ``tpm_roots``: of those who certify TPMs.
    ``reference``, ``build``: the snapshot and the image's reference values; both None while a snapshot is being taken.
    ``collateral``: Intel's, of the quote's platform, where there is any. ``now``: aware, the one reading of the clock.
    ``prior``: the state that this verifier itself stored, where ``evidence.ima_from`` is not 0. ``reference_id``: what
    identifies snapshot, whitelist and reference values together (a hash of the files), for verifiers that keep such a
    state.

    Never raises for anything that the evidence contains.
    """
    policy = _with_references(policy, reference, build)
    lower = replace(policy, api=1) if evidence.api == 1 else policy  # that nobody asked for version 1 fails elsewhere
    expected = _expected(evidence, policy, nonce)
    against = Against(expected, endorsements, collateral, reference, build, roots, tpm_roots, now)
    tee = appraise_tee(evidence, against, lower)
    if tee.enclave and build is None:
        policy, lower = replace(policy, without_tpm=True), replace(lower, without_tpm=True)
    anchored = _anchor(evidence, against, tee)
    checks = [*tee.checks, *_tpm_checks(evidence, against, lower, anchored)]
    ima = appraise_ima(
        evidence.ima_log,
        ima_from=evidence.ima_from,
        quoted=quoted_pcrs(evidence.tpm),
        boot_pcrs=_boot_pcrs(evidence),
        reference=reference,
        whitelist=whitelist,
        policy=lower,
        prior=prior,
        session=_session(evidence, reference_id),
        build=build,
    )
    checks += ima.checks
    checks += check_tls(evidence)
    checks.append(check_owner(evidence, reference, policy))
    checks = _settled(checks, evidence, against, policy)
    if policy.allow_reboot and not _reboot_is_excusable(checks, reference):
        checks = _without_excuse(checks, evidence, against, replace(lower, allow_reboot=False), anchored)
    checks = [_as_strict(check, policy) for check in checks]
    verdict = _verdict(checks, required_checks(reference, policy, build))
    anchor = None if evidence.tpm is None or anchored.problem else anchored.anchor
    return Appraisal(verdict, ima.state if verdict.trusted else None, anchor)


def _with_references(policy: Policy, reference: Snapshot | None, build: BuildReference | None) -> Policy:
    if build is not None:
        return replace(policy, without_tpm=False)  # what was built is compared with what a TPM quotes, or not at all
    return replace(policy, without_tpm=True) if reference is not None and reference.without_tpm else policy


def required_checks(reference: Snapshot | None, policy: Policy, build: BuildReference | None = None) -> frozenset[str]:
    """The ids without whose answer there is no trust: all ``tee.*``, and all ``tpm.*`` and ``ima.*`` unless the
    snapshot was taken without a TPM; less, while there is nothing to compare with, what only compares.
    """
    required = {check_id for check_id in CHECK_IDS if check_id.startswith("tee.")}
    if not policy.without_tpm:
        required |= {check_id for check_id in CHECK_IDS if check_id.startswith(("tpm.", "ima."))}
    if reference is None and build is None:
        required -= _NEED_REFERENCE
    elif reference is not None and reference.owners is not None:
        required.add("vm.owner")
    if policy.owner is not None:
        required.add("vm.owner")
    return frozenset(required | policy.required)


def _expected(evidence: Evidence, policy: Policy, nonce: bytes) -> Expected:
    """Section "binding": what must stand in report_data and extraData, over which PCRs."""
    tpm = evidence.tpm
    if evidence.api == 1:
        problem = ""
        if policy.api != 1:
            problem = (
                "the agent speaks only version 1 of the protocol, which lets another machine answer in its place: "
                "update the agent, or accept that with --api 1"
            )
        return Expected(report_data_v1(nonce, evidence.tls.leaf), nonce, frozenset({IMA_PCR}), problem)
    try:
        spki = spki_sha256(evidence.tls.leaf)
    except CosmianVmError as exc:
        return Expected(None, bytes(32), frozenset(V2_PCRS), f"the key of the TLS certificate cannot be read: {exc}")
    binding = compute_binding(nonce, spki, None if tpm is None else tpm.ak_public)
    return Expected(report_data(nonce, binding), binding, frozenset(V2_PCRS))


def _settled(checks: list[Check], evidence: Evidence, against: Against, policy: Policy) -> list[Check]:
    """The same checks, in the light of how much there was to compare with."""
    checks = _settle_version_1(checks, evidence, against.reference)
    if against.build is not None and against.reference is None:
        checks = with_unpinned(checks, policy)
    return [_complete(check, against.reference) for check in checks]


def _anchor(evidence: Evidence, against: Against, tee: TeeFindings) -> Anchored:
    if evidence.api == 1:
        return OPERATOR
    return find_anchor(
        evidence,
        binding=against.expected.qualifying_data,
        roots=against.tpm_roots,
        now=against.now,
        svsm=tee.svsm,
    )


def _as_strict(check: Check, policy: Policy) -> Check:
    """A warning that the policy does not put up with is a failure."""
    if check.status is not Status.WARNING or check.id not in policy.no_warning:
        return check
    return replace(check, status=Status.FAIL, line=f"{check.line} (the policy accepts no warning here)")


def _tpm_checks(evidence: Evidence, against: Against, policy: Policy, anchored: Anchored) -> list[Check]:
    """``tpm.*``."""
    checks = appraise_tpm(
        evidence.tpm,
        binding=against.expected.qualifying_data,
        expected_pcrs=against.expected.pcrs,
        reference=against.reference,
        policy=policy,
        api=evidence.api,
        anchored=anchored,
    )
    checks += appraise_boot(evidence.boot_event_log, _boot_pcrs(evidence), against.reference, policy, against.build)
    return checks


def _boot_pcrs(evidence: Evidence) -> Mapping[int, bytes]:
    """PCR values, but only those that the quote's digest vouches for."""
    return quoted_pcrs(evidence.tpm).values


_UNKNOWN_TO_1_3 = ("tpm.ak", "tpm.boot_pcrs", "tpm.clock", "ima.policy", "vm.owner")
"""Checks that compare with values which a snapshot of 1.3.x has no place for. No other may be skipped for its age."""

_OF_THE_TPM = {
    "tpm_policy": "tpm.clock",
    "clock": "tpm.clock",
    "ak_name": "tpm.ak",
    "anchor": "tpm.ak",
    "boot_pcrs": "tpm.boot_pcrs",
    "filehashes": "ima.files",
    "ima_policy": "ima.policy",
}
_OF_SNP = {
    "vmpl": "tee.measurement",
    "host_data": "tee.measurement",
    "reported_tcb": "tee.tcb",
    "platform_info": "tee.tcb",
}
_OF_TDX = {"rtmrs": "tee.measurement"}
_OF_SGX = {"enclave": "tee.measurement"}
"""What every snapshot of our own has, and the check that compares with it."""


def _complete(check: Check, reference: Snapshot | None) -> Check:
    """A snapshot of ours that lacks a value was cut: what compares with that value fails, it is not left out."""
    if reference is None or reference.version < 2 or check.status is Status.FAIL:
        return check
    expected = {"owners": "vm.owner"}
    expected |= {} if reference.without_tpm or reference.sgx is not None else _OF_THE_TPM
    expected |= _OF_SNP if reference.sev is not None else _OF_TDX if reference.tdx is not None else _OF_SGX
    cut = [name for name, check_id in expected.items() if check_id == check.id and getattr(reference, name) is None]
    if check.id == "tee.measurement" and check.status is not Status.SKIP:
        cut += reference.tee_policy.absent
    if cut:
        return fail(check.id, f"The snapshot has no {cut[0]}, it was cut: take a new one", check.details)
    return check


def _session(evidence: Evidence, reference_id: bytes) -> ImaSession | None:
    """What a state to continue from belongs to: this AK, this boot, this snapshot."""
    if evidence.tpm is None:
        return None
    try:
        quote = parse_quote(evidence.tpm.quote)
        ak_name = tpm_name(evidence.tpm.ak_public)
    except CosmianVmError:
        return None
    return ImaSession(
        ak_name=ak_name,
        reset_count=quote.reset_count,
        restart_count=quote.restart_count,
        reference=reference_id,
    )


def _settle_version_1(checks: list[Check], evidence: Evidence, reference: Snapshot | None) -> list[Check]:
    """Say, at each line that it weakens, what version 1 cannot show.

    A check that version 1, or a snapshot of 1.3.x, has no values for is a warning and not a skip.
    """
    old_snapshot = reference is not None and reference.version < 2
    settled = []
    for check in checks:
        if check.status is Status.SKIP and old_snapshot and check.id in _UNKNOWN_TO_1_3:
            line = f"{check.line}; the snapshot was taken by version 1.3: take a new one"
            settled.append(replace(check, status=Status.WARNING, line=line))
        elif check.status is Status.SKIP and evidence.api == 1 and check.id.startswith("tpm."):
            settled.append(replace(check, status=Status.WARNING))
        elif evidence.api == 1 and check.status is Status.OK and check.id in ("tee.report_data", "tpm.nonce"):
            line = f"{check.line}; version 1: nothing ties the TPM to this connection, another machine may answer"
            settled.append(replace(check, status=Status.WARNING, line=line))
        else:
            settled.append(check)
    return settled


def _without_excuse(
    checks: list[Check], evidence: Evidence, against: Against, policy: Policy, anchored: Anchored
) -> list[Check]:
    """The same checks, those that a reboot fails asked once more under a ``policy`` that allows none."""
    once_more = (*appraise_tee(evidence, against, policy).checks, *_tpm_checks(evidence, against, policy, anchored))
    again = {check.id: check for check in once_more}
    return [again.get(c.id, c) if c.id in _REBOOT_CHECKS else c for c in checks]


def _reboot_is_excusable(checks: Sequence[Check], reference: Snapshot | None) -> bool:
    """Whether everything that tells a reboot from a swap was compared, and holds: a mere warning that the snapshot
    (of 1.3.x) has no AK and no boot PCRs would let any other machine pass for this one after a reboot.
    """
    if reference is None or reference.ak_name is None or reference.boot_pcrs is None:
        return False
    holds = {c.id for c in checks if c.status in (Status.OK, Status.WARNING)}
    fails = {c.id for c in checks if c.status in (Status.FAIL, Status.SKIP)}
    return all(check_id in holds and check_id not in fails for check_id in _HOLD_FOR_REBOOT)


def _verdict(checks: list[Check], required: frozenset[str]) -> Verdict:
    unmade = [skip(check_id, _NOT_MADE) for check_id in required.difference(check.id for check in checks)]
    return Verdict(_in_order(with_required([*checks, *unmade], required)))


def _in_order(checks: Sequence[Check]) -> tuple[Check, ...]:
    """By CHECK_IDS; checks of one id keep their order."""
    rank = {check_id: index for index, check_id in enumerate(CHECK_IDS)}
    return tuple(sorted(checks, key=lambda check: rank[check.id]))
