"""Is Intel's collateral genuine and current? One finding for each of its four documents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from cosmian_vm.endorsements.intel_collateral import IntelCollateral, QeIdentity, TcbInfo
from cosmian_vm.verifier._intel_chain import (
    CA_NAMES,
    Path,
    build_path,
    crl_dated,
    crl_problem,
    dated,
    document_problem,
    is_of,
    named,
    revoked,
)
from cosmian_vm.verifier.result import Check, fail, ok

__all__ = [
    "PCK_CRL",
    "QE_IDENTITY",
    "ROOT_CRL",
    "TCB_INFO",
    "CollateralFindings",
    "document_dated",
    "examine_collateral",
]

TCB_INFO, QE_IDENTITY, ROOT_CRL, PCK_CRL = "TCB info", "QE identity", "root CRL", "PCK CRL"


@dataclass(frozen=True, slots=True)
class CollateralFindings:
    """By document: ``forged``, why it is not Intel's (signature, chain, revoked signer); ``stale``, why it does not
    hold at the time asked about.
    """

    forged: Mapping[str, str]
    stale: Mapping[str, str]

    @property
    def problems(self) -> tuple[str, ...]:
        """All of them, one line each."""
        return tuple(f"{part}: {problem}" for found in (self.forged, self.stale) for part, problem in found.items())

    def checks(self) -> list[Check]:
        """One check for each document, ids ``collateral.tcb_info`` and so on."""
        found = []
        for part in (TCB_INFO, QE_IDENTITY, ROOT_CRL, PCK_CRL):
            check_id = f"collateral.{part.lower().replace(' ', '_')}"
            problem = self.forged.get(part) or self.stale.get(part)
            if problem:
                found.append(fail(check_id, f"{part}: {problem}"))
            else:
                found.append(ok(check_id, f"{part}: signed under Intel's root and current"))
        return found


def examine_collateral(
    collateral: IntelCollateral, roots: Iterable[x509.Certificate], now: datetime
) -> CollateralFindings:
    """Signatures, chains to ``roots``, dates, and that the signers are not revoked. Whom it fits is not asked here."""
    roots = tuple(roots)
    forged: dict[str, str] = {}
    stale: dict[str, str] = {}
    signers = {
        TCB_INFO: document_problem(
            collateral.tcb_info_chain, collateral.tcb_info_signature, collateral.tcb_info_text, roots
        ),
        QE_IDENTITY: document_problem(
            collateral.qe_identity_chain, collateral.qe_identity_signature, collateral.qe_identity_text, roots
        ),
        PCK_CRL: _pck_crl(collateral, roots),
    }
    forged.update({part: problem for part, (_, problem) in signers.items() if problem})
    if problem := _root_crl_problem(collateral.root_crl, roots):
        forged[ROOT_CRL] = problem
    dates = {
        TCB_INFO: document_dated(collateral.tcb_info, now),
        QE_IDENTITY: document_dated(collateral.qe_identity, now),
        ROOT_CRL: crl_dated(collateral.root_crl, now),
        PCK_CRL: crl_dated(collateral.pck_crl, now),
    }
    for part, (path, _) in signers.items():
        if path is None:
            continue
        dates[part] = dates[part] or dated((*path.certificates, path.root), now)
        if ROOT_CRL not in forged and (problem := revoked(collateral.root_crl, path.certificates[-1])):
            forged[part] = problem
    stale.update({part: problem for part, problem in dates.items() if problem})
    return CollateralFindings(forged, stale)


def _pck_crl(collateral: IntelCollateral, roots: Iterable[x509.Certificate]) -> tuple[Path | None, str]:
    path, problem = build_path(collateral.pck_crl_chain, roots, authority=True)
    if path is None:
        return None, problem
    if len(path.certificates) != 1 or named(path.leaf) not in CA_NAMES:
        return None, f"it comes with the chain of {named(path.leaf)}, not of a PCK CA"
    problem = crl_problem(collateral.pck_crl, path.leaf)
    return (None, problem) if problem else (path, "")


def _root_crl_problem(crl: x509.CertificateRevocationList, roots: Iterable[x509.Certificate]) -> str:
    problem = "it is not of a root that we trust"
    for root in roots:
        if is_of(crl, root):
            problem = crl_problem(crl, root)
            if not problem:
                return revoked(crl, root)
    return problem


def document_dated(document: TcbInfo | QeIdentity, now: datetime) -> str:
    """Why a document says nothing about ``now``; an empty string where it does."""
    if now < document.issue_date:
        return f"it is of {document.issue_date:%Y-%m-%dT%H:%M:%SZ}, later than the time of this verification"
    if now > document.next_update:
        return f"it expired on {document.next_update:%Y-%m-%dT%H:%M:%SZ}"
    return ""
