"""Appraisal of AMD SEV-SNP evidence: is it genuine, is it bound to this connection, is it the machine we expect? Pure.

The procedure, each step under its check id:

1. tee.signature    the report is signed by the key of a chip certificate that came with it
2. tee.chain        that certificate chains to a trusted root, is for this chip and product, all dates hold
3. tee.revocation   an authentic, current CRL of the root revokes nothing of it
4. tee.tcb          REPORTED_TCB is what the certificate was issued for, and no TCB is below the minimum
5. tee.debug        the guest cannot be debugged; VMPL and migration are as expected
6. tee.report_data  the binding: nonce, TLS key and AK of this connection
7. tee.measurement  launch measurement and launch parameters equal the snapshot's
8. tee.instance     REPORT_ID equals the snapshot's: the very guest that was launched

Source: AMD 56860 (report, guest policy, TCB_VERSION), AMD 57230 (certificates, CRLs).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec
from cryptography import x509

from cosmian_vm.endorsements.amd import AmdEndorsements, ChipCertificate, is_pinned_root, names
from cosmian_vm.evidence.snp import SigningKey, SnpEvidence, SnpReport, decode_tcb
from cosmian_vm.reference.snapshot import SevPolicy, Snapshot
from cosmian_vm.verifier._report_data import check_report_data
from cosmian_vm.verifier._snp_rules import launch_problems, platform_changes, platform_problems
from cosmian_vm.verifier.amd_chain import (
    Chain,
    Gathered,
    build_chain,
    by_fitness,
    chain_problems,
    chip_id_problem,
    chip_signature_problem,
    gather,
    signature_problem,
)
from cosmian_vm.verifier.amd_revocation import check_revocation
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.result import Check, fail, ok, skip, warning

__all__ = ["Origin", "appraise_snp", "chain_line", "check_debug", "check_tcb", "missing_certificate", "trace"]

_LOWEST_VMPL = 3
_ANY_VMPL = 0xFFFFFFFF
"""VMPL of a report that the host, not the guest, asked for."""


class Origin(msgspec.Struct, frozen=True):
    """Where a report comes from, as far as it could be traced.

    ``signature``, ``chain``: None if all is well, else what is wrong, one line. ``link``: the chain whose signatures
    hold (dates or product may still be wrong: ``chain`` then says so). ``gathered``: all candidates.
    """

    chip: ChipCertificate | None
    link: Chain | None
    signature: str | None
    chain: tuple[str, ...]
    chip_id: str | None
    gathered: Gathered


def trace(
    evidence: SnpEvidence, endorsements: AmdEndorsements, *, roots: Sequence[x509.Certificate], now: datetime
) -> Origin:
    """Find the chip certificate that signed a report and the chain above it. Of several candidates the first that
    fulfils everything is taken, else the first that signed, else the first.
    """
    report = evidence.report
    gathered = gather(evidence, endorsements)
    unsigned = signature_problem(report)
    best: Origin | None = None
    for chip in by_fitness(gathered.chips, report):
        signature = unsigned or chip_signature_problem(report, chip)
        chip_id = chip_id_problem(report, chip)
        if signature is not None and best is not None:
            continue
        link = build_chain(chip, gathered.others, roots)
        problems = [link] if isinstance(link, str) else chain_problems(report, link, now)
        found = Origin(chip, None if isinstance(link, str) else link, signature, tuple(problems), chip_id, gathered)
        if signature is None and not problems and chip_id is None:
            return found
        if best is None or (best.signature is not None and signature is None):
            best = found
    if best is not None:
        return best
    return Origin(None, None, unsigned or "", (), None, gathered)


def appraise_snp(
    evidence: SnpEvidence,
    endorsements: AmdEndorsements,
    *,
    report_data: bytes | None,
    reference: Snapshot | None,
    policy: Policy,
    roots: Sequence[x509.Certificate],
    now: datetime,
) -> list[Check]:
    """Appraise a report: one check for each of the eight ids, in order.

    ``report_data``: the 64 bytes that it must be bound to; None where none can be expected (the check then skips).
    ``reference``: None while a snapshot is being taken. ``roots``: trusted root certificates, AMD's pinned ones or the
    user's. ``now``: aware. Never raises for anything in ``evidence`` or ``endorsements``.
    """
    origin = trace(evidence, endorsements, roots=roots, now=now)
    report = evidence.report
    return [
        _signature(report, origin),
        _chain(report, origin),
        _revocation(origin, now),
        check_tcb(report, origin.chip, policy, reference),
        check_debug(report, reference, policy),
        check_report_data(report.report_data, report_data),
        _measurement(report, reference, policy),
        _instance(report, reference, policy),
    ]


def missing_certificate(report: SnpReport) -> str:
    """What to do where no chip certificate came with a report."""
    kind = "VLEK" if report.signing_key is SigningKey.VLEK else "VCEK"
    return f"no {kind} certificate of the chip came with the report: give one (--with), or have the host load one"


def _signature(report: SnpReport, origin: Origin) -> Check:
    if origin.chip is None:
        line = f"The report's signature cannot be checked: {origin.signature or missing_certificate(report)}"
        return fail("tee.signature", line, origin.gathered.problems)
    if origin.signature is not None:
        return fail("tee.signature", f"The report is not genuine: {origin.signature}", origin.gathered.problems)
    return ok("tee.signature", f"The report is signed by the chip's {origin.chip.kind.name}")


def _chain(report: SnpReport, origin: Origin) -> Check:
    if origin.chip is None:
        return fail("tee.chain", f"No chain to a root: {missing_certificate(report)}", origin.gathered.problems)
    problems = [*origin.chain, *([origin.chip_id] if origin.chip_id else [])]
    if problems:
        return fail("tee.chain", f"The chain does not hold: {problems[0]}", problems[1:])
    if origin.link is None:  # cannot be: there is a problem or a chain; never pass by accident
        return fail("tee.chain", "The chain could not be built")
    return ok("tee.chain", chain_line(origin.link), _chip_details(report, origin.chip))


def chain_line(link: Chain) -> str:
    """Whom a chain that holds leads to, in plain words; a root that is not AMD's is called that."""
    root = names(link.root).subject_cn
    if is_pinned_root(link.root):
        return f"The chip is genuine AMD {link.product}: its certificate leads to {root!r}"
    return f"The chip's certificate leads to {root!r}, a root that you chose to trust and that is not AMD's"


def _chip_details(report: SnpReport, chip: ChipCertificate) -> list[str]:
    details = []
    if chip.kind is SigningKey.VLEK:
        details.append(f"the signing key is one that AMD gave to the provider {chip.csp_id or 'unnamed'!r}")
    elif not any(report.chip_id):
        details.append("the host masks the chip's identity in reports; the signature is its chip's all the same")
    return details


def _revocation(origin: Origin, now: datetime) -> Check:
    if origin.link is None:
        return skip("tee.revocation", "There is no chain to a trusted root to look up (see tee.chain)")
    return check_revocation(origin.link, origin.gathered.crls, now)


def check_tcb(
    report: SnpReport, chip: ChipCertificate | None, policy: Policy, reference: Snapshot | None = None
) -> Check:
    """``tee.tcb``. The chip key is derived from the TCB: REPORTED_TCB must be the one in the certificate. The policy's
    minimum holds for all four TCBs: what is reported, what runs, what the host can go back to, what the guest started
    on. No component of REPORTED_TCB may be lower than in the snapshot: a host that goes back to firmware with known
    holes could forge everything. PLATFORM_INFO is as in the snapshot, and as the policy wants it.
    """
    if chip is None:
        return fail("tee.tcb", f"The firmware versions are unproven: {missing_certificate(report)}")
    product = chip.product or report.product
    if product is None:
        return fail("tee.tcb", f"The firmware versions cannot be read: unknown product {chip.product_name!r}")
    layout = product.tcb_layout
    reported = decode_tcb(report.reported_tcb, layout)
    wrong = [
        f"{name}: report {svn}, certificate {chip.svns.get(name, 'none')}"
        for name, svn in reported.components.items()
        if chip.svns.get(name) != svn
    ]
    if wrong:
        line = f"The report's firmware versions are not those that its {chip.kind.name} certificate was issued for"
        return fail("tee.tcb", f"{line} ({wrong[0]})", wrong[1:])
    raws = {"current": report.current_tcb, "committed": report.committed_tcb, "launch": report.launch_tcb}
    others = {which: decode_tcb(raw, layout) for which, raw in raws.items() if raw != reported.raw}
    if policy.minimum_tcb and product not in policy.minimum_tcb:  # else older firmware would be had by another product
        line = f"The policy has no minimum for {product}, but for {', '.join(sorted(policy.minimum_tcb))}"
        return fail("tee.tcb", f"{line}: this is another machine, or add [amd.minimum_tcb.{product}]")
    minimum: Mapping[str, int] = policy.minimum_tcb.get(product, {})
    low = [
        f"{which} {name} {tcb.components.get(name, 'none')} is below {least}"
        for which, tcb in {"reported": reported, **others}.items()
        for name, least in minimum.items()
        if tcb.components.get(name, -1) < least
    ]
    if reference is not None and reference.reported_tcb is not None:
        then = decode_tcb(bytes.fromhex(reference.reported_tcb), layout)
        now = reported.components
        low += [f"{name} is {now[name]}, it was {svn}" for name, svn in then.components.items() if now[name] < svn]
    if low:
        return fail("tee.tcb", f"The host's firmware is too old ({low[0]}): have the provider update it", low[1:])
    host = platform_problems(report, policy.snp)
    if reference is not None and reference.platform_info is not None:
        host += platform_changes(report, reference.platform_info)
    if host:
        line = f"The host is set up otherwise than it should be ({host[0]}): ask the provider, or take a new snapshot"
        return fail("tee.tcb", line, host[1:])
    details = [f"{which}: {tcb}" for which, tcb in others.items()]
    return ok("tee.tcb", f"Firmware versions are those of the chip's certificate: {reported}", details)


def check_debug(report: SnpReport, reference: Snapshot | None, policy: Policy) -> Check:
    """``tee.debug``: debugging off always; VMPL and migration as in the policy or the snapshot, else 0 and off."""
    problems = []
    if report.policy_debug:
        problems.append("debugging is allowed (policy bit 19): the host can read this machine's memory")
    vmpl = _expected_vmpl(reference, policy)
    # Agents of 1.3.x ask for reports at a lower level than their own, and their snapshots do not say which.
    unknown = policy.vmpl is None and (reference is None or reference.vmpl is None)
    lower = policy.api == 1 and unknown and 0 < report.vmpl <= _LOWEST_VMPL
    if report.vmpl == _ANY_VMPL:
        problems.append("the report was asked for by the host, not from within the machine")
    elif report.vmpl != vmpl and not lower:
        problems.append(f"the report is from VMPL {report.vmpl}, expected is {vmpl}")
    if report.policy_migrate_ma and not _migration_expected(reference):
        problems.append("a migration agent may move the machine to another host (policy bit 18), which is not expected")
    if problems:
        return fail("tee.debug", f"The machine is open: {problems[0]}", problems[1:])
    if lower:
        line = f"Debugging is off; the report is from VMPL {report.vmpl}, as agents of 1.3 may ask for it"
        return warning("tee.debug", line)
    migration = "allowed, as in the snapshot" if report.policy_migrate_ma else "off"
    return ok("tee.debug", f"Debugging is off, VMPL is {report.vmpl}, migration is {migration}")


def _expected_vmpl(reference: Snapshot | None, policy: Policy) -> int:
    if policy.vmpl is not None:
        return policy.vmpl
    return 0 if reference is None or reference.vmpl is None else reference.vmpl


def _migration_expected(reference: Snapshot | None) -> bool:
    launch = None if reference is None or reference.sev is None else reference.sev.policy
    return launch is not None and bool(launch >> 18 & 1)


_HEX_FIELDS = ("family_id", "image_id", "id_key_digest", "author_key_digest", "report_id_ma")
_NUMBER_FIELDS = ("policy", "guest_svn")


def _measurement(report: SnpReport, reference: Snapshot | None, policy: Policy) -> Check:
    """``tee.measurement``. What a snapshot has no value for (a null of 1.3.x) is named, never passed over in silence;
    without a measurement there is nothing to compare.
    """
    if problems := launch_problems(report, policy.snp):
        line = f"This machine was launched otherwise than the policy allows ({problems[0]})"
        return fail("tee.measurement", line, problems[1:])
    if reference is None:
        return skip("tee.measurement", "There is no snapshot to compare with")
    sev = reference.sev
    if sev is None:
        return fail("tee.measurement", "The snapshot is of another kind of machine, not of an AMD SEV-SNP one")
    if sev.measurement is None:
        return skip("tee.measurement", "The snapshot has no launch measurement: take a new one")
    expected = _expected_values(sev, reference, policy)
    differences = [
        f"{name}: {_shown(name, getattr(report, name))}, in the snapshot {_shown(name, value)}"
        for name, value in expected.items()
        if value is not None and getattr(report, name) != value
    ]
    if differences:
        line = f"This machine was launched differently from the snapshot's ({differences[0]})"
        return fail("tee.measurement", line, differences[1:])
    absent = [name for name, value in expected.items() if value is None]
    if absent:
        line = f"The launch measurement equals the snapshot's, which has no value for {', '.join(absent)}"
        return warning("tee.measurement", f"{line}: take a new snapshot")
    return ok("tee.measurement", "Launch measurement and launch parameters equal the snapshot's")


def _expected_values(sev: SevPolicy, reference: Snapshot, policy: Policy) -> dict[str, int | bytes | None]:
    """The snapshot's values by the report's field names."""
    values: dict[str, int | bytes | None] = {"measurement": sev.bytes_of("measurement")}
    values |= {name: getattr(sev, name) for name in _NUMBER_FIELDS}
    values |= {name: sev.bytes_of(name) for name in _HEX_FIELDS}
    values["host_data"] = reference.host_data_bytes
    values["vmpl"] = reference.vmpl if policy.vmpl is None else policy.vmpl
    return values


def _shown(name: str, value: int | bytes | None) -> str:
    if isinstance(value, bytes):
        return value.hex()
    return f"{value:#x}" if name == "policy" and value is not None else str(value)


def _instance(report: SnpReport, reference: Snapshot | None, policy: Policy) -> Check:
    """``tee.instance``. A guest has one REPORT_ID until it is shut down: another is a reboot, or another guest."""
    if reference is None:
        return skip("tee.instance", "There is no snapshot to compare with")
    expected = None if reference.sev is None else reference.sev.bytes_of("report_id")
    if expected is None:
        if reference.sev is None:
            return fail("tee.instance", "The snapshot is of another kind of machine, not of an AMD SEV-SNP one")
        return skip("tee.instance", "The snapshot does not tell which machine it is of (report_id): take a new one")
    if report.report_id == expected:
        return ok("tee.instance", "This is the very guest that the snapshot was taken of")
    ids = f"report_id {report.report_id[:8].hex()}..., was {expected[:8].hex()}..."
    line = f"This is not the guest of the snapshot ({ids}): it was rebooted, or it is another genuine machine"
    if policy.allow_reboot:
        return warning("tee.instance", f"{line}; accepted because of --allow-reboot")
    return fail("tee.instance", f"{line}; if you rebooted it, use --allow-reboot or take a new snapshot")
