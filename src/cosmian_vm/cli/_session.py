"""Gather, then appraise: what ``snapshot``, ``verify`` and ``app init`` have in common. All reading is done here."""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
from cryptography import x509

from cosmian_vm.cli._common import read_file, working
from cosmian_vm.cli.render import Outcome
from cosmian_vm.client import AgentClient, application_peer, one_line
from cosmian_vm.endorsements.amd import collect, is_pinned_root, load_certificate, pinned_roots
from cosmian_vm.endorsements.store import EndorsementStore, fetch
from cosmian_vm.errors import EndorsementError, InputError, RefusedError
from cosmian_vm.evidence.binding import NONCE_SIZE
from cosmian_vm.evidence.bundle import Evidence
from cosmian_vm.reference.snapshot import Snapshot
from cosmian_vm.reference.whitelist import Whitelist
from cosmian_vm.verifier.appraisal import appraise
from cosmian_vm.verifier.policy import Policy

__all__ = ["Examined", "Setup", "appraisal_options", "examine", "load_roots", "setup_from"]

_Function = TypeVar("_Function", bound=Callable[..., Any])
_NOT_FOUND = 404


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What the user gave beside the agent's answer. ``notes``: to be said on every verdict."""

    roots: tuple[x509.Certificate, ...]
    endorsements: tuple[bytes, ...]
    offline: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Examined:
    """The evidence of one moment, the nonce that it answers, and what came of it."""

    evidence: Evidence
    nonce: bytes
    outcome: Outcome


def appraisal_options(function: _Function) -> _Function:
    """The options of :func:`setup_from`."""
    options = (
        click.option(
            "--trust-root",
            "trust_roots",
            metavar="PEM",
            multiple=True,
            help="Trust this root certificate too, beside the hardware makers' (a simulated machine's, say). Every "
            "verdict says so. May be given several times.",
        ),
        click.option(
            "--endorsements",
            metavar="FILE",
            multiple=True,
            help="Certificates and revocation lists (PEM or DER) that the agent did not send. May be given several "
            "times.",
        ),
        click.option("--offline", is_flag=True, help="Do not ask the hardware maker for what is missing."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def setup_from(trust_roots: Sequence[str], endorsements: Sequence[str], *, offline: bool) -> Setup:
    """Read what the options name. Raises InputError."""
    blobs = []
    for path in endorsements:
        raw = read_file(path)
        try:
            collect([raw])
        except EndorsementError as exc:
            raise InputError(f"{path}: neither certificates nor revocation lists: {exc}") from exc
        blobs.append(raw)
    extra, notes = load_roots(trust_roots)
    return Setup(roots=(*pinned_roots(), *extra), endorsements=tuple(blobs), offline=offline, notes=notes)


def load_roots(paths: Sequence[str]) -> tuple[tuple[x509.Certificate, ...], tuple[str, ...]]:
    """The certificates of --trust-root, and what every verdict says about them. Raises InputError."""
    roots: list[x509.Certificate] = []
    notes: list[str] = []
    for path in paths:
        for certificate in _certificates(path):
            name = certificate.subject.rfc4514_string()
            if certificate.subject != certificate.issuer:
                issuer = certificate.issuer.rfc4514_string()
                raise InputError(f"{path}: {name} is no root, {issuer} issued it; --trust-root takes roots alone")
            if is_pinned_root(certificate):
                continue
            roots.append(certificate)
            notes.append(
                f"Trusting {name} from {path} (--trust-root): it is no hardware maker's root, whoever has its key can "
                "make this machine up"
            )
    return tuple(roots), tuple(notes)


def _certificates(path: str) -> list[x509.Certificate]:
    """The certificates in a file (PEM or DER), and nothing but them. Raises InputError where there is none."""
    raw = read_file(path)
    try:
        blocks = x509.load_pem_x509_certificates(raw) if b"-----BEGIN" in raw else [load_certificate(raw)]
    except (ValueError, TypeError, EndorsementError) as exc:
        raise InputError(f"{path}: no root certificate in PEM: {one_line(str(exc))}") from exc
    return blocks


def examine(
    client: AgentClient,
    setup: Setup,
    policy: Policy,
    *,
    reference: Snapshot | None = None,
    reference_name: str | None = None,
    whitelist: Whitelist | None = None,
    applications: Sequence[str] = (),
    quiet: bool = False,
) -> Examined:
    """Ask the agent for fresh evidence and appraise it, with one reading of the clock.

    Raises TransportError where there is no evidence to be had.
    """
    nonce = secrets.token_bytes(NONCE_SIZE)
    with working(f"Asking {client.url} for evidence", quiet=quiet):
        evidence = _evidence(client, nonce, policy)
        peers = tuple(application_peer(address, client.timeout) for address in applications)
        evidence = replace(evidence, applications=peers)
        now = datetime.now(UTC)
        store = EndorsementStore(cache=_cache_folder(), fetcher=None if setup.offline else fetch)
        gathered = store.gather(evidence.tee, [*setup.endorsements, *evidence.endorsements], now=now)
        appraisal = appraise(
            evidence,
            gathered.endorsements,
            reference,
            policy,
            nonce=nonce,
            roots=setup.roots,
            now=now,
            whitelist=whitelist,
        )
    hashes = None if reference is None else reference.filehashes
    outcome = Outcome(
        verdict=appraisal.verdict,
        url=client.url,
        moment=now,
        api=evidence.api,
        agent_version=evidence.agent_version,
        tls_sha256=hashlib.sha256(evidence.tls.leaf).hexdigest(),
        snapshot=reference_name,
        snapshot_created=None if reference is None else reference.created,
        files=None if hashes is None else len(hashes),
        applications=tuple(applications),
        notes=(*setup.notes, *gathered.notes),
    )
    return Examined(evidence, nonce, outcome)


def _evidence(client: AgentClient, nonce: bytes, policy: Policy) -> Evidence:
    """Version 2's evidence; version 1's if the user asked for it, or if the agent has nothing else to offer: the
    appraisal then says why that is not enough.
    """
    if policy.api == 1:
        return client.evidence_v1(nonce)
    try:
        return client.evidence(nonce)
    except RefusedError as exc:
        if exc.status != _NOT_FOUND:
            raise
        refused = exc
    evidence = client.evidence_v1(nonce)
    if evidence.tee is None and evidence.tpm is None and evidence.ima_log is None:
        raise refused  # whatever answers there, it is no agent
    return evidence


def _cache_folder() -> Path | None:
    """Where vendors' certificates and revocation lists are kept between runs: public, and verified each time."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or ("~/.cache" if os.environ.get("HOME") else None)
    return None if not base else Path(base).expanduser() / "cosmian_vm"
