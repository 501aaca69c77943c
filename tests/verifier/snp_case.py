"""One SNP appraisal, each part of which a test may change."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from cosmian_vm.devkit.amd import AmdVendor
from cosmian_vm.endorsements.amd import AmdEndorsements
from cosmian_vm.evidence.snp import SnpEvidence, SnpReport
from cosmian_vm.reference.snapshot import SevPolicy, Snapshot, TeePolicy, TpmPolicy
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.result import Check, Status
from cosmian_vm.verifier.snp import appraise_snp

KEYS = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"
NOW = datetime(2026, 6, 1, tzinfo=UTC)
NONCE, BINDING = b"\x01" * 32, b"\x02" * 32
BOUND = NONCE + BINDING
IDS = [
    "tee.signature",
    "tee.chain",
    "tee.revocation",
    "tee.tcb",
    "tee.debug",
    "tee.report_data",
    "tee.measurement",
    "tee.instance",
]


@dataclass
class Case:
    """One appraisal, each part of which a test may change."""

    vendor: AmdVendor
    report: SnpReport
    endorsements: AmdEndorsements
    roots: tuple[x509.Certificate, ...]
    reference: Snapshot | None
    policy: Policy = field(default_factory=Policy)
    now: datetime = NOW
    report_data: bytes | None = BOUND

    def appraise(self, evidence: SnpEvidence | None = None) -> list[Check]:
        return appraise_snp(
            evidence or SnpEvidence(report=self.report),
            self.endorsements,
            report_data=self.report_data,
            reference=self.reference,
            policy=self.policy,
            roots=self.roots,
            now=self.now,
        )

    def bad(self, evidence: SnpEvidence | None = None) -> dict[str, str]:
        """Ids that failed or were skipped, with their lines."""
        checks = self.appraise(evidence)
        assert [check.id for check in checks] == IDS
        for check in checks:
            assert "\n" not in check.line
            assert not any("\n" in detail for detail in check.details)
        return {c.id: c.line for c in checks if c.status in (Status.FAIL, Status.SKIP)}

    def sign(self, **fields: int | bytes) -> Case:
        return replace(self, report=self.vendor.sign(self.vendor.report(**{"report_data": BOUND, **fields})))


def snapshot_of(report: SnpReport) -> Snapshot:
    sev = SevPolicy(
        measurement=report.measurement.hex(),
        report_data=bytes(64).hex(),
        family_id=report.family_id.hex(),
        image_id=report.image_id.hex(),
        guest_svn=report.guest_svn,
        id_key_digest=report.id_key_digest.hex(),
        author_key_digest=report.author_key_digest.hex(),
        policy=report.policy,
        report_id=report.report_id.hex(),
        report_id_ma=report.report_id_ma.hex(),
    )
    return Snapshot(
        version=2,
        tee_policy=TeePolicy(sev=sev),
        tpm_policy=TpmPolicy(reset_count=1, restart_count=0),
        vmpl=report.vmpl,
        host_data=report.host_data.hex(),
    )


def case_of(vendor: AmdVendor, **fields: int | bytes) -> Case:
    report = vendor.sign(vendor.report(**{"report_data": BOUND, **fields}))
    return Case(vendor, report, vendor.endorsements(), (vendor.ark,), snapshot_of(report))
