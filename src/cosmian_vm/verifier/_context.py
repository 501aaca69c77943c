"""What the checks of one appraisal share: all that evidence is held against."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

import msgspec
from cryptography import x509

from cosmian_vm.endorsements.amd import AmdEndorsements
from cosmian_vm.reference.snapshot import Snapshot
from cosmian_vm.verifier._tpm_certificates import TpmRoots

if TYPE_CHECKING:
    from cosmian_vm.endorsements.intel_collateral import IntelCollateral
    from cosmian_vm.reference.build_reference import BuildReference

__all__ = ["Against", "Expected"]


class Expected(msgspec.Struct, frozen=True):
    """What the evidence must be bound to, and which PCRs must have been quoted."""

    report_data: bytes | None
    qualifying_data: bytes
    pcrs: frozenset[int]
    problem: str = ""


class Against(msgspec.Struct, frozen=True):
    """All that evidence is held against. ``roots``: of the makers of processors; ``tpm_roots``: of TPMs."""

    expected: Expected
    endorsements: AmdEndorsements
    collateral: IntelCollateral | None
    reference: Snapshot | None
    build: BuildReference | None
    roots: Sequence[x509.Certificate]
    tpm_roots: TpmRoots
    now: datetime
