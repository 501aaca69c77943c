"""The appraisal as the commands call it. All of the verifier is imported here, while the agent is still at work."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from cosmian_vm.cli._vendors import endorsement_store
from cosmian_vm.cli.render import BuiltImage, Outcome
from cosmian_vm.endorsements.amd import pinned_roots
from cosmian_vm.evidence.bundle import TeeKind, tee_kind
from cosmian_vm.verifier.appraisal import appraise

if TYPE_CHECKING:
    from cryptography import x509

    from cosmian_vm.cli._session import Setup
    from cosmian_vm.evidence.bundle import Evidence
    from cosmian_vm.reference.build_reference import BuildReference
    from cosmian_vm.reference.snapshot import Snapshot
    from cosmian_vm.reference.whitelist import Whitelist
    from cosmian_vm.verifier.policy import Policy

__all__ = ["judge"]


def judge(
    evidence: Evidence,
    nonce: bytes,
    setup: Setup,
    policy: Policy,
    *,
    url: str,
    reference: Snapshot | None,
    reference_name: str | None,
    build: BuildReference | None,
    build_name: str | None,
    whitelist: Whitelist | None,
    applications: Sequence[str],
) -> Outcome:
    """Look up what endorses the evidence and appraise it, with one reading of the clock."""
    now = datetime.now(UTC)
    store = endorsement_store(pccs=setup.pccs, offline=setup.offline)
    gathered = store.gather(evidence.tee, evidence.endorsements, given=setup.endorsements, now=now)
    appraisal = appraise(
        evidence,
        gathered.endorsements,
        reference,
        policy,
        nonce=nonce,
        roots=(*_makers(evidence), *setup.roots),
        now=now,
        whitelist=whitelist,
        build=build,
        collateral=gathered.collateral,
        tpm_roots=setup.tpm_roots,
    )
    hashes = None if reference is None else reference.filehashes
    return Outcome(
        verdict=appraisal.verdict,
        url=url,
        moment=now,
        api=evidence.api,
        agent_version=evidence.agent_version,
        tls_sha256=hashlib.sha256(evidence.tls.leaf).hexdigest(),
        snapshot=reference_name,
        snapshot_created=None if reference is None else reference.created,
        files=None if hashes is None else len(hashes),
        built=None if build is None or build_name is None else _built(build, build_name),
        applications=tuple(applications),
        notes=(*setup.notes, *gathered.notes),
        anchor=appraisal.anchor,
    )


def _makers(evidence: Evidence) -> tuple[x509.Certificate, ...]:
    """The pinned roots of who may have made this machine's processor."""
    if evidence.tee is None or tee_kind(evidence.tee) is TeeKind.SNP:
        return pinned_roots()
    from cosmian_vm.endorsements.intel import pinned_root  # where it is Intel's: it takes its time

    return (pinned_root(),)


def _built(build: BuildReference, name: str) -> BuiltImage:
    return BuiltImage(
        file=name,
        created=build.created,
        image=build.image.name,
        image_sha256=build.image.sha256,
        files=len(build.filehashes),
        pcrs=tuple(sorted(build.pcr_values())),
        launches=len(build.launches),
    )
