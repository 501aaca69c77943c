"""One forged thing a test, and the one check that names it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509

from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.endorsements.amd import AmdEndorsements
from cosmian_vm.endorsements.intel_collateral import IntelCollateral
from cosmian_vm.evidence.bundle import Evidence
from cosmian_vm.reference.build_reference import BuildReference
from cosmian_vm.reference.snapshot import Snapshot
from cosmian_vm.reference.whitelist import Whitelist
from cosmian_vm.verifier._tpm_certificates import TpmRoots
from cosmian_vm.verifier.appraisal import appraise
from cosmian_vm.verifier.ima import ImaState
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.result import Verdict

KEYS = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
NONCE = sha256(b"the verifier's fresh nonce").digest()


@dataclass
class Judge:
    """Appraises as a verifier does who knows ``snapshot`` and trusts ``roots``."""

    roots: tuple[x509.Certificate, ...]
    snapshot: Snapshot | None
    nonce: bytes = NONCE
    now: datetime = NOW
    policy: Policy = field(default_factory=Policy)
    whitelist: Whitelist | None = None
    prior: ImaState | None = None
    build: BuildReference | None = None
    collateral: IntelCollateral | None = None
    tpm_roots: TpmRoots = TpmRoots()  # noqa: RUF009 - frozen

    def verdict(self, evidence: Evidence, endorsements: AmdEndorsements | None = None) -> Verdict:
        from cosmian_vm.endorsements.amd import collect

        return appraise(
            evidence,
            collect(evidence.endorsements) if endorsements is None else endorsements,
            self.snapshot,
            self.policy,
            nonce=self.nonce,
            roots=self.roots,
            now=self.now,
            whitelist=self.whitelist,
            prior=self.prior,
            build=self.build,
            collateral=self.collateral,
            tpm_roots=self.tpm_roots,
        ).verdict

    def failed(self, evidence: Evidence, endorsements: AmdEndorsements | None = None) -> set[str]:
        """Ids of the checks that failed; an untrusted verdict without a failure gives the skipped required ones."""
        verdict = self.verdict(evidence, endorsements)
        failures = {check.id for check in verdict.failures}
        assert verdict.trusted == (not failures and not verdict.skipped_required)
        return failures or {check.id for check in verdict.skipped_required}

    def with_policy(self, **choices: object) -> Judge:
        return replace(self, policy=replace(self.policy, **choices))  # type: ignore[arg-type] # names of Policy's fields


@pytest.fixture(scope="session")
def keys() -> VendorKeys:
    return VendorKeys.load(KEYS)


@pytest.fixture(scope="session")
def vendor(keys: VendorKeys) -> AmdVendor:
    return AmdVendor.create(keys=keys, now=NOW - timedelta(days=30))


@pytest.fixture
def machine(vendor: AmdVendor) -> Machine:
    return Machine.create(vendor, now=NOW - timedelta(days=1))


@pytest.fixture
def judge(machine: Machine) -> Judge:
    """A verifier that took its snapshot of ``machine`` when it was honest."""
    return Judge(roots=machine.roots, snapshot=machine.snapshot())


@pytest.fixture
def honest(machine: Machine) -> Callable[[], Evidence]:
    return lambda: machine.evidence(NONCE)
