"""``inspect`` on what only means something beside something else: keys, signatures, PCR values.

They are told apart and shown. Nothing in them says who made them, so nothing in them is authentic by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.tpm import algorithm_name, name, parse_public, parse_signature
from cosmian_vm.inspection._tpm_material import keys_in, spki_sha256
from cosmian_vm.inspection.material import gather
from cosmian_vm.inspection.model import (
    PCR_VALUES,
    PUBLIC_KEY,
    TPM_PUBLIC,
    TPM_SIGNATURE,
    Facts,
    Kind,
    Material,
    Roots,
    hexed,
)
from cosmian_vm.verifier.result import Check, skip

__all__ = ["KINDS", "tpm_public_facts"]


def _alone(raw: bytes, kind: str) -> bytes:
    """The one item of ``kind`` that ``raw`` is."""
    items = gather([("", raw)], ()).of(kind)
    if not items:
        raise EvidenceFormatError(kind, "not one that can be read")
    return items[0].raw


def tpm_public_facts(tpmt_public: bytes) -> Facts:
    """What a TPMT_PUBLIC says, its TPM name included."""
    public = parse_public(tpmt_public)
    return {
        "type": algorithm_name(public.type),
        "attributes": f"{int(public.attributes):#x}",
        "scheme": f"{public.scheme.scheme:#x}",
        "scheme_hash": algorithm_name(public.scheme.hash_alg) if public.scheme.hash_alg else None,
        "name": hexed(name(tpmt_public)),
    }


def _public_facts(raw: bytes, _: Material) -> Facts:
    return {"bytes": len(raw), **tpm_public_facts(_alone(raw, TPM_PUBLIC)), **_key_facts(raw)}


def _key_facts(raw: bytes) -> Facts:
    found: list[str] = [hexed(spki_sha256(key.key)) for key in keys_in(gather([("", raw)], ())) if key.key is not None]
    return {"spki_sha256": found[0] if found else None}


def _bare_key_facts(raw: bytes, _: Material) -> Facts:
    _alone(raw, PUBLIC_KEY)
    return {"bytes": len(raw), **_key_facts(raw)}


def _signature_facts(raw: bytes, _: Material) -> Facts:
    signature = parse_signature(_alone(raw, TPM_SIGNATURE))
    return {"bytes": len(raw), "signature_scheme": signature.scheme_name}


def _pcr_facts(raw: bytes, _: Material) -> Facts:
    given = gather([("", raw)], ()).pcrs
    if not given:
        raise EvidenceFormatError(PCR_VALUES, "not one that can be read")
    banks = given[0].banks
    return {
        "bytes": len(raw),
        "pcrs": {bank: {str(pcr): hexed(value) for pcr, value in sorted(pcrs.items())} for bank, pcrs in banks.items()},
    }


def _kind(name_: str, title: str, facts: Callable[[bytes, Material], Facts], beside: str) -> Kind:
    def verify(raw: bytes, material: Material, at: datetime, roots: Roots) -> list[Check]:  # noqa: ARG001
        line = f"Nothing in it says who made it: inspect the {beside}, and give this one --with it"
        return [replace(skip("origin", line), required=True)]

    return Kind(
        name=name_,
        title=title,
        matches=lambda _: False,
        facts=facts,
        verify=verify,
        signed=False,
        claims=lambda raw, _: [item.kind for item in gather([("", raw)], ()).items] == [name_],
    )


KINDS = (
    _kind(TPM_PUBLIC, "TPM 2.0 public key (TPMT_PUBLIC)", _public_facts, "quote that it signed"),
    _kind(TPM_SIGNATURE, "TPM 2.0 signature (TPMT_SIGNATURE)", _signature_facts, "quote that it signs"),
    _kind(PCR_VALUES, "PCR values", _pcr_facts, "quote over them"),
    _kind(PUBLIC_KEY, "Public key", _bare_key_facts, "quote or list that it signed"),
)
