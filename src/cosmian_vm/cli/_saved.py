"""Evidence as a file: what ``verify --save-evidence`` writes and ``inspect`` reads."""

from __future__ import annotations

import msgspec

from cosmian_vm.evidence.bundle import Evidence, tee_kind
from cosmian_vm.wire import SavedEvidence, svsm_answer, tpm_answer

__all__ = ["evidence_file"]


def evidence_file(evidence: Evidence, nonce: bytes) -> bytes:
    """The whole of it as JSON, with the nonce and the TLS certificate that it is bound to."""
    kind = None if evidence.tee is None else tee_kind(evidence.tee)
    saved = SavedEvidence(
        api=evidence.api,
        agent_version=evidence.agent_version,
        tee_kind=kind,
        tee_quote=evidence.tee,
        endorsements=list(evidence.endorsements),
        tpm=None if evidence.tpm is None else tpm_answer(evidence.tpm),
        boot_event_log=evidence.boot_event_log,
        ima_log=evidence.ima_log,
        ima_from=evidence.ima_from,
        owners=list(evidence.owners),
        cloud=evidence.cloud,
        nonce=nonce,
        tls_certificate=evidence.tls.leaf,
        hcl_report=evidence.hcl_report,
        cc_event_log=evidence.cc_event_log,
        svsm=svsm_answer(evidence.svsm),
    )
    return msgspec.json.encode(saved) + b"\n"
