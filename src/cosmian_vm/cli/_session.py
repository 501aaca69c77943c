"""Gather, then judge: what ``snapshot``, ``verify`` and ``app init`` have in common. All reading is done here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from threading import Thread
from typing import TYPE_CHECKING

import msgspec

from cosmian_vm.cli._common import working
from cosmian_vm.client import AgentClient, application_peer
from cosmian_vm.errors import EvidenceFormatError, InputError, RefusedError, TransportError
from cosmian_vm.evidence.binding import NONCE_SIZE
from cosmian_vm.evidence.bundle import Activation, Evidence
from cosmian_vm.evidence.tpm import name as tpm_name

if TYPE_CHECKING:
    from cryptography import x509

    from cosmian_vm.cli._options import Chosen
    from cosmian_vm.cli.render import Outcome
    from cosmian_vm.reference.build_reference import BuildReference
    from cosmian_vm.reference.snapshot import Snapshot
    from cosmian_vm.reference.whitelist import Whitelist
    from cosmian_vm.verifier._tpm_certificates import TpmRoots
    from cosmian_vm.verifier.policy import Policy

__all__ = ["Examined", "Setup", "examine", "setup_from"]

_NOT_FOUND = 404
_NO_AGENT = "whatever answers there is no Cosmian VM agent: is its port another one (--url https://HOST:5355)?"
_CREDENTIAL_SIZE = 32
_SEED_SIZE = 64
_BUSY = 503


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What the user gave beside the agent's answer. ``roots``: trusted beside the pinned ones. ``pccs``: address of a
    PCCS to ask instead of Intel. ``notes``: to be said on every verdict.
    """

    policy: Policy
    roots: tuple[x509.Certificate, ...] = ()
    tpm_roots: TpmRoots
    endorsements: tuple[bytes, ...] = ()
    offline: bool = False
    pccs: str | None = None
    notes: tuple[str, ...] = ()


class Examined(msgspec.Struct, frozen=True):
    """The evidence of one moment, the nonce that it answers, and what came of it."""

    evidence: Evidence
    nonce: bytes
    outcome: Outcome


def setup_from(chosen: Chosen) -> Setup:
    """Read what the options name. Raises InputError."""
    from cosmian_vm.verifier._tpm_certificates import TpmRoots
    from cosmian_vm.verifier.policy import Policy

    if chosen.trust_roots or chosen.tpm_roots or chosen.endorsements or chosen.policy:
        from cosmian_vm.cli._roots import load_setup

        setup = load_setup(chosen)
    else:
        setup = Setup(policy=Policy(), tpm_roots=TpmRoots(), offline=chosen.offline, pccs=chosen.pccs)
    if setup.pccs is not None:
        from cosmian_vm.cli._vendors import services

        try:
            services(setup.pccs)
        except InputError as exc:
            if chosen.pccs is not None:
                raise
            raise InputError(f"{chosen.policy}: intel.pccs: {str(exc).removeprefix('--pccs ')}") from exc
    return setup


def examine(
    client: AgentClient,
    setup: Setup,
    policy: Policy,
    *,
    reference: Snapshot | None = None,
    reference_name: str | None = None,
    build: BuildReference | None = None,
    build_name: str | None = None,
    whitelist: Whitelist | None = None,
    applications: Sequence[str] = (),
    quiet: bool = False,
) -> Examined:
    """Ask the agent for fresh evidence and appraise it. ``reference_name``, ``build_name``: the files' names.

    Raises TransportError where there is no evidence to be had.
    """
    nonce = os.urandom(NONCE_SIZE)
    _load_verifier()
    with working(f"Asking {client.url} for evidence", quiet=quiet):
        evidence = _evidence(client, nonce, policy)
        peers = tuple(application_peer(address, client.timeout) for address in applications)
        evidence = replace(evidence, applications=peers, activation=_activate(client, evidence))
        from cosmian_vm.cli._judge import judge

        outcome = judge(
            evidence,
            nonce,
            setup,
            policy,
            url=client.url,
            reference=reference,
            reference_name=reference_name,
            build=build,
            build_name=build_name,
            whitelist=whitelist,
            applications=applications,
        )
    return Examined(evidence, nonce, outcome)


def _activate(client: AgentClient, evidence: Evidence) -> Activation | None:
    """Have the machine prove that the AK is in the TPM of its EK, where that EK has anything to show."""
    tpm = evidence.tpm
    if tpm is None or tpm.ek is None or evidence.hcl_report is not None:
        return None
    if not tpm.ek.certificates and evidence.svsm is None:
        return None
    from cosmian_vm.verifier.credential import make_credential

    secret = os.urandom(_CREDENTIAL_SIZE)
    try:
        ak_name = tpm_name(tpm.ak_public)
        made = make_credential(tpm.ek.public, ak_name, secret, seed=os.urandom(_SEED_SIZE))
    except EvidenceFormatError:
        return None  # what cannot be read vouches for nothing
    try:
        answered = client.activate(made.credential_blob, made.secret)
    except RefusedError:
        answered = b""
    return Activation(ek_public=tpm.ek.public, ak_name=ak_name, expected=secret, answered=answered)


def _load_verifier() -> None:
    """Import what the appraisal needs while the agent takes its quotes: the wait is there anyway."""

    def load() -> None:
        with suppress(Exception):  # the import that follows tells
            import_module("cosmian_vm.cli._judge")

    Thread(target=load, daemon=True).start()


def _speaks_version_2(client: AgentClient) -> bool:
    """It says so: then it had a reason to decline, and is not an old one."""
    try:
        return 2 in client.version().api_versions
    except (RefusedError, TransportError):
        return False


def _comes_as_owner(client: AgentClient) -> bool:
    """Have the client prove that it asks for the machine's owner, who need not wait: where the user has a key, and it
    was not tried yet.
    """
    from cosmian_vm.client.owner_key import config_folder, load

    if client.owner is None:
        with suppress(InputError):  # one that cannot be used, which is no matter here
            client.owner = load(config_folder())
            return client.owner is not None
    return False


def _evidence(client: AgentClient, nonce: bytes, policy: Policy) -> Evidence:
    """Version 2's evidence; version 1's if the user asked for it, or if the agent has nothing else to offer: the
    appraisal then says why that is not enough.
    """
    if policy.api == 1:
        evidence = client.evidence_v1(nonce)
        if _has_nothing(evidence):
            raise TransportError(f"{client.url}: {_NO_AGENT}")
        return evidence
    try:
        return client.evidence(nonce)
    except RefusedError as exc:
        if exc.status == _BUSY and _comes_as_owner(client):
            return client.evidence(nonce)
        if exc.status != _NOT_FOUND:
            raise
        if _speaks_version_2(client):
            raise
        refused = exc
    evidence = client.evidence_v1(nonce)
    if _has_nothing(evidence):
        raise RefusedError(f"{refused}; {_NO_AGENT}", status=refused.status) from refused
    return evidence


def _has_nothing(evidence: Evidence) -> bool:
    """Not one piece of evidence: whatever answers there, it is no agent."""
    return evidence.tee is None and evidence.tpm is None and evidence.ima_log is None
