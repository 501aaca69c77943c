"""What an image's reference values add to an appraisal, and what they leave open where there is no snapshot. Pure.

They say what was built, so they pin software: files, the predicted PCRs, a launch measurement. They cannot say which
machine it is, whose, or whether it was rebooted: every check that would tell machines apart is a warning that says so.
With them alone the TPM is anybody's, and so is its word on what was booted and run: they help against mistakes, and
against attackers only together with a snapshot, or with a certificate of the name that nobody else can have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from cosmian_vm.evidence.snp import SnpReport
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.result import Check, Status, both, fail, ok, warning

if TYPE_CHECKING:
    from cosmian_vm.reference.build_reference import BuildReference, Launch

__all__ = ["check_launch", "with_launch", "with_unpinned"]

_REMEDY = "a snapshot pins it"
_UNPINNED = {
    "tee.instance": "Any machine that booted this image passes: which one it is, is not pinned",
    "tpm.ak": "which TPM it is, is not pinned: whoever has any genuine machine can quote with a key of their own",
    "tpm.clock": "reboots are not seen, the reference values have no counters",
    "vm.owner": "who should own it, is not pinned (--owner)",
}
_INSECURE = (
    "The certificate's name and issuer were not checked (--allow-insecure-tls), and no snapshot says which machine "
    "this is: it may be anybody's that booted this image"
)
_NOT_IN_A_MEASUREMENT = "guest policy, family and image id, key digests and host data are not pinned: " + _REMEDY


def check_launch(report: SnpReport, build: BuildReference, *, alone: bool) -> Check:
    """``tee.measurement``: the launch measurement is one of those that were computed for the image.

    ``alone``: there is no snapshot, which would have one too.
    """
    name = "tee.measurement"
    if not build.launches:
        if not alone:
            return ok(name, "The reference values have no launch measurement")
        line = "The launch measurement is not pinned, any firmware passes: the reference values have none"
        return warning(name, f"{line} (image/build --ovmf FILE)", [f"it is {report.measurement.hex()}"])
    for launch in build.launches:
        if bytes.fromhex(launch.measurement) == report.measurement:
            line = f"The launch measurement is the one computed for {_of(launch)}"
            return ok(name, line, [_NOT_IN_A_MEASUREMENT] if alone else ())
    line = (
        "This machine was launched with other firmware, processors or features than the reference values were computed"
    )
    wanted = [f"{launch.measurement} for {_of(launch)}" for launch in build.launches]
    return fail(name, f"{line} for: its launch measurement is {report.measurement.hex()}", wanted)


def _of(launch: Launch) -> str:
    firmware = f"the firmware with SHA-256 {launch.ovmf_sha256[:16]}..."
    return f"{firmware}, {launch.vcpus} x {launch.vcpu_type} ({launch.vmm}), features {launch.guest_features:#x}"


def with_launch(checks: Sequence[Check], report: SnpReport, build: BuildReference, *, alone: bool) -> list[Check]:
    """The same checks, and what the reference values say of the launch."""
    launch = check_launch(report, build, alone=alone)
    return [
        check if check.id != launch.id else launch if alone and check.status is Status.SKIP else both(check, launch)
        for check in checks
    ]


def with_unpinned(checks: Sequence[Check], policy: Policy) -> list[Check]:
    """The checks of an appraisal without a snapshot: what passes for want of a value to compare with, warns.

    A failure stays one.
    """
    settled = []
    for check in checks:
        missing = _UNPINNED.get(check.id)
        if check.id == "tls.certificate" and check.status is Status.WARNING:
            settled.append(replace(check, line=_INSECURE))
        elif missing is None or check.status is Status.FAIL or (check.id == "vm.owner" and policy.owner is not None):
            settled.append(check)
        else:
            line = missing if check.status is Status.SKIP else f"{check.line}; {missing}"
            settled.append(replace(check, status=Status.WARNING, line=f"{line}: {_REMEDY}"))
    return settled
