"""``inspect`` on single answers of Intel's service: TCB info and QE identity, each with its signature."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

import msgspec

from cosmian_vm.endorsements.intel_collateral import QeIdentity, TcbInfo
from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.inspection._intel_join import QE_IDENTITY, TCB_INFO, Answer, answer_in, signer
from cosmian_vm.inspection.intel import intel_roots
from cosmian_vm.inspection.model import Facts, Kind, Material, Roots, rfc3339
from cosmian_vm.verifier._intel_chain import SIGNER_NAME, dated, document_problem
from cosmian_vm.verifier._intel_collateral import document_dated
from cosmian_vm.verifier.result import Check, fail, ok

__all__ = ["KINDS"]

_TITLES = {TCB_INFO: "Intel TCB info", QE_IDENTITY: "Intel QE identity"}
_MODELS: dict[str, type[TcbInfo | QeIdentity]] = {TCB_INFO: TcbInfo, QE_IDENTITY: QeIdentity}


def _answer(raw: bytes, kind: str) -> Answer:
    answer = answer_in(raw)
    if answer is None:
        raise EvidenceFormatError(_TITLES[kind], "not a signed answer of Intel's service")
    return answer


def _document(answer: Answer) -> TcbInfo | QeIdentity:
    try:
        return msgspec.json.decode(answer.text, type=_MODELS[answer.kind])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise EvidenceFormatError(_TITLES[answer.kind], f"cannot be read: {' '.join(str(exc).split())}") from exc


def _facts(raw: bytes, kind: str) -> Facts:
    answer = _answer(raw, kind)
    document = _document(answer)
    facts: Facts = {
        "bytes": len(raw),
        "id": document.id,
        "version": document.version,
        "issue_date": rfc3339(document.issue_date),
        "next_update": rfc3339(document.next_update),
        "tcb_evaluation_data_number": document.tcb_evaluation_data_number,
    }
    if isinstance(document, TcbInfo):
        facts |= {"fmspc": document.fmspc.lower(), "pce_id": document.pce_id.lower(), "tcb_type": document.tcb_type}
    else:
        facts |= {"mrsigner": document.mrsigner.lower(), "isvprodid": document.isvprodid}
    return facts | {"tcb_levels": len(document.tcb_levels), "signature": answer.signature.hex()}


def _verify(raw: bytes, kind: str, material: Material, at: datetime, roots: Roots) -> list[Check]:
    """Signed by Intel's TCB signer, whose certificate was given, and current."""
    answer = _answer(raw, kind)
    name = f"collateral.{kind.removeprefix('intel-').replace('-', '_')}"
    title = _TITLES[kind]
    own = intel_roots(roots)
    certificate = signer(answer, material, own)
    if certificate is None:
        return [fail(name, f"{title}: give its issuer chain with --with, the certificate {SIGNER_NAME!r}")]
    path, problem = document_problem([certificate], answer.signature, answer.text, own)
    problem = problem or document_dated(_document(answer), at)
    if path is not None:
        problem = problem or dated((*path.certificates, path.root), at)
    if problem:
        return [fail(name, f"{title}: {problem}")]
    return [ok(name, f"{title}: signed under Intel's root and current")]


def _matching(kind: str) -> Callable[[bytes], bool]:
    def matches(raw: bytes) -> bool:
        answer = answer_in(raw)
        return answer is not None and answer.kind == kind

    return matches


def _kind(name: str) -> Kind:
    return Kind(
        name=name,
        title=_TITLES[name],
        matches=_matching(name),
        facts=lambda raw, _: _facts(raw, name),
        verify=lambda raw, material, at, roots: _verify(raw, name, material, at, roots),
    )


KINDS = (_kind(TCB_INFO), _kind(QE_IDENTITY))
