"""Who may give the machine orders? Pure. The owners are the agent's word, by a key that the TEE vouched for."""

from __future__ import annotations

from cosmian_vm.evidence.bundle import Evidence
from cosmian_vm.reference.snapshot import Snapshot
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.result import Check, fail, ok, skip, warning

__all__ = ["check_owner"]


def check_owner(evidence: Evidence, reference: Snapshot | None, policy: Policy) -> Check:
    """``vm.owner``."""
    owners = tuple(sorted(evidence.owners))
    named = ", ".join(owners) if owners else "nobody"
    if owners == ("unknown",):
        line = "The agent cannot read who owns the machine: its encrypted container is locked, or the file is broken"
        return (
            fail("vm.owner", line) if policy.owner is not None or reference is not None else warning("vm.owner", line)
        )
    told = "Version 1 of the protocol does not tell who owns the machine"
    if evidence.api == 1 and (policy.owner is not None or (reference is not None and reference.owners)):
        return fail(
            "vm.owner", f"{told}, and an owner is expected: ask with version 2, or without --owner and snapshot"
        )
    if policy.owner is not None and policy.owner not in owners:
        return fail("vm.owner", f"The machine is owned by {named}, not by {policy.owner}")
    if reference is not None and reference.owners is not None and tuple(sorted(reference.owners)) != owners:
        if not reference.owners and owners == (policy.owner,):
            return ok("vm.owner", f"The machine is owned by {named}, who claimed it after the snapshot was taken")
        then = ", ".join(sorted(reference.owners)) or "nobody (if that is you: --owner, or take a new snapshot)"
        return fail("vm.owner", f"The machine is owned by {named}; when the snapshot was taken it was {then}")
    if evidence.api == 1:
        return skip("vm.owner", told)
    if not owners:
        return warning("vm.owner", "Nobody owns this machine: whoever is the first to give it an order will")
    if "anyone" in owners:
        return warning("vm.owner", 'Its agent takes orders from anyone (owners = "anyone" in agent.toml)')
    return ok("vm.owner", f"The machine is owned by {named}")
