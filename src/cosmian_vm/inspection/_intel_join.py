"""Intel's collateral in the forms it is met in, brought to the one that is parsed (QuoteCollateralV3).

* One JSON object: member names with or without underscores; TCB info and QE identity as text, as an object, or as the
  whole answer with its signature inside; CRLs in hex, base64 or PEM; chains as PEM, or as in the HTTP header.
* The answers of Intel's service as separate files: TCB info, QE identity, CRLs, issuer chains. What is signed is the
  very text in the answer.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.endorsements.amd import load_certificate, load_crl
from cosmian_vm.endorsements.intel import pinned_root
from cosmian_vm.endorsements.intel_collateral import MAX_COLLATERAL, IntelCollateral, parse_collateral_cached
from cosmian_vm.errors import EndorsementError, EvidenceFormatError
from cosmian_vm.evidence.snp import split_objects
from cosmian_vm.inspection._wrapping import layers
from cosmian_vm.inspection.model import CERTIFICATE, CRL, Material
from cosmian_vm.verifier._intel_chain import CA_NAMES, SIGNER_NAME, document_problem, named

__all__ = [
    "QE_IDENTITY",
    "TCB_INFO",
    "Answer",
    "answer_in",
    "collateral_from_parts",
    "is_collateral",
    "parse",
    "signer",
]

TCB_INFO, QE_IDENTITY = "intel-tcb-info", "intel-qe-identity"
_WHAT = "Intel collateral"
_ESCAPED = re.compile("%([0-9a-fA-F]{2})")
_SIGNED = {"tcb_info": "tcbInfo", "qe_identity": "enclaveIdentity"}
_KINDS = {"tcbInfo": TCB_INFO, "enclaveIdentity": QE_IDENTITY}
_NAMES = (
    "pck_crl_issuer_chain",
    "root_ca_crl",
    "pck_crl",
    "tcb_info_issuer_chain",
    "tcb_info",
    "tcb_info_signature",
    "qe_identity_issuer_chain",
    "qe_identity",
    "qe_identity_signature",
)
_BY_PLAIN_NAME = {name.replace("_", ""): name for name in _NAMES} | {"rootcrl": "root_ca_crl"}


@dataclass(frozen=True, slots=True)
class Answer:
    """One signed document of Intel's service. ``kind``: TCB_INFO or QE_IDENTITY. ``text``: what is signed."""

    kind: str
    text: bytes
    signature: bytes


def is_collateral(raw: bytes) -> bool:
    """Whether it looks like the one JSON object."""
    if raw[:64].lstrip()[:1] != b"{":
        return False
    plain = raw.replace(b"_", b"").lower()
    return b'"tcbinfo"' in plain and b'"qeidentity"' in plain


@lru_cache(maxsize=16)
def parse(raw: bytes) -> IntelCollateral:
    """The one JSON object, in any of its forms. Raises EvidenceFormatError as parse_collateral does."""
    try:
        return parse_collateral_cached(raw)
    except EvidenceFormatError:
        members = _members(raw)
        if members is None:
            raise
    return parse_collateral_cached(msgspec.json.encode(members))


def _members(raw: bytes) -> dict[str, str] | None:
    """The members under the names and in the forms of QuoteCollateralV3; None where nothing differs from them."""
    if len(raw) > MAX_COLLATERAL:
        return None
    try:
        found = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    by_name = {_BY_PLAIN_NAME.get(key.replace("_", "").lower(), key): bytes(value) for key, value in found.items()}
    members: dict[str, str] = {}
    for name in _NAMES:
        if name not in by_name or by_name[name] == b"null":
            continue
        text = _text(by_name[name])
        if name in _SIGNED:
            members |= _document(name, text)
        elif name.endswith("_chain"):
            members[name] = _ESCAPED.sub(lambda found: chr(int(found[1], 16)), text).strip("\x00")
        else:
            members.setdefault(name, _in_hex(text, crl=name.endswith("_crl")))
    return members


def _text(raw: bytes) -> str:
    """A JSON value as text: what a string says; anything else as it stands there, arrays of bytes in hex."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        return raw.decode("utf-8", "replace")
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(type(item) is int and 0 <= item <= 255 for item in value):
        return bytes(value).hex()
    return raw.decode("utf-8", "replace")


def _document(name: str, text: str) -> dict[str, str]:
    """TCB info or QE identity, with its signature where that is in the same text."""
    answer = answer_in(text.strip("\x00").encode())
    if answer is None:
        return {name: text}
    return {name: answer.text.decode(), f"{name}_signature": answer.signature.hex()}


def _in_hex(text: str, *, crl: bool) -> str:
    """Binary content in hex, whatever it came in."""
    raw = text.encode("utf-8", "surrogatepass")
    if b"-----BEGIN" in raw:
        try:
            _, crls = split_objects(raw, _WHAT)
        except EvidenceFormatError:
            return text
        return crls[0].hex() if crls else text
    for inside in layers(raw):
        if inside.raw[:1] == b"\x30" if crl else len(inside.raw) == 64:
            return inside.raw.hex()
        if crl and b"-----BEGIN" in inside.raw:
            return _in_hex(inside.raw.decode("utf-8", "replace"), crl=True)
    return text


@lru_cache(maxsize=16)
def answer_in(raw: bytes) -> Answer | None:
    """A signed answer of Intel's service, ``{"tcbInfo": ..., "signature": ...}``; None if it is none."""
    if raw[:64].lstrip()[:1] != b"{" or len(raw) > MAX_COLLATERAL:
        return None
    try:
        found = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        signature = bytes.fromhex(msgspec.json.decode(found["signature"], type=str))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError, KeyError):
        return None
    for member, kind in _KINDS.items():
        if member in found and len(signature) == 64:
            return Answer(kind, bytes(found[member]), signature)
    return None


def signer(answer: Answer, material: Material, roots: Iterable[x509.Certificate]) -> x509.Certificate | None:
    """The certificate among those given that signed; the last that could have, if none did."""
    candidates = [certificate for certificate in _certificates(material) if named(certificate) == SIGNER_NAME]
    roots = tuple(roots)
    for certificate in candidates:
        if not document_problem([certificate], answer.signature, answer.text, roots)[1]:
            return certificate
    return candidates[-1] if candidates else None


def collateral_from_parts(
    material: Material, tee: str, roots: Iterable[x509.Certificate], chain: Iterable[x509.Certificate] = ()
) -> IntelCollateral | None:
    """The collateral that separate answers make for a TEE (SGX, TDX); None where a part is missing.

    ``chain``: of the quote, which has the issuer of the PCK CRL. Raises EvidenceFormatError where a part is unreadable.
    """
    roots = tuple(roots)
    answers = [answer for raw in (*material.raw(TCB_INFO), *material.raw(QE_IDENTITY)) if (answer := answer_in(raw))]
    documents = {answer.kind: answer for answer in reversed(answers) if _is_for(answer, tee)}
    certificates = {c.subject: c for c in (*_certificates(material), *chain) if named(c) in CA_NAMES}
    crls = [crl for raw in material.raw(CRL) if (crl := _crl(raw)) is not None]
    root_crl = next((crl for crl in crls if crl.issuer in {root.subject for root in roots}), None)
    pck_crl = next((crl for crl in crls if crl.issuer in certificates), None)
    signers = {kind: signer(answer, material, roots) for kind, answer in documents.items()}
    tcb_signer, qe_signer = signers.get(TCB_INFO), signers.get(QE_IDENTITY)
    if root_crl is None or pck_crl is None or tcb_signer is None or qe_signer is None:
        return None
    tcb_info, identity = documents[TCB_INFO], documents[QE_IDENTITY]
    members = {
        "pck_crl_issuer_chain": _pem(certificates[pck_crl.issuer]),
        "root_ca_crl": root_crl.public_bytes(Encoding.DER).hex(),
        "pck_crl": pck_crl.public_bytes(Encoding.DER).hex(),
        "tcb_info_issuer_chain": _pem(tcb_signer),
        "tcb_info": tcb_info.text.decode(),
        "tcb_info_signature": tcb_info.signature.hex(),
        "qe_identity_issuer_chain": _pem(qe_signer),
        "qe_identity": identity.text.decode(),
        "qe_identity_signature": identity.signature.hex(),
    }
    return parse_collateral_cached(msgspec.json.encode(members))


def _is_for(answer: Answer, tee: str) -> bool:
    wanted = {TCB_INFO: tee, QE_IDENTITY: "TD_QE" if tee == "TDX" else "QE"}
    return f'"id":"{wanted[answer.kind]}"'.encode() in b"".join(answer.text[:200].split())


def _certificates(material: Material) -> list[x509.Certificate]:
    found = []
    for der in material.raw(CERTIFICATE):
        try:
            found.append(load_certificate(der))
        except EndorsementError:
            continue
    return [*found, pinned_root()]


def _crl(der: bytes) -> x509.CertificateRevocationList | None:
    try:
        return load_crl(der)
    except EndorsementError:
        return None


def _pem(certificate: x509.Certificate) -> str:
    body = base64.encodebytes(certificate.public_bytes(Encoding.DER)).decode()
    return f"-----BEGIN CERTIFICATE-----\n{body}-----END CERTIFICATE-----\n"
