"""The answers of Intel's service (PCS) and of a PCCS, one by one, and the collateral that they make together. Pure.

Source: Intel SGX and TDX Provisioning Certification Service API, version 4: "Get TCB Info V4", "Get Enclave Identity
V4", "Get PCK CRL V4". A signed document is ``{"tcbInfo": {...}, "signature": "hex"}``; what is signed is its text as it
stands there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.endorsements.intel import crl_of, parse_chain
from cosmian_vm.endorsements.intel_collateral import (
    MAX_COLLATERAL,
    IntelCollateral,
    QeIdentity,
    TcbInfo,
    parse_collateral_cached,
)
from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.snp import split_objects

__all__ = [
    "SignedIdentity",
    "SignedTcbInfo",
    "chain_text",
    "crl_in",
    "identity_of",
    "join",
    "qe_identity_in",
    "tcb_info_in",
]

_TDX = "TDX"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedTcbInfo:
    """TCB info. ``text``: what is signed; ``signature``: in hex; ``chain``: its signer's, PEM."""

    content: TcbInfo
    text: str = field(repr=False)
    signature: str
    chain: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedIdentity:
    """QE identity. ``text``: what is signed; ``signature``: in hex; ``chain``: its signer's, PEM."""

    content: QeIdentity
    text: str = field(repr=False)
    signature: str
    chain: str = field(repr=False)


def tcb_info_in(body: bytes, chain: str, *, tee: str, fmspc: bytes) -> SignedTcbInfo:
    """Read the answer to "Get TCB Info". ``tee``: SGX or TDX. ``chain``: PEM.

    Raises EvidenceFormatError, also where it is of another TEE or platform.
    """
    what = "TCB info"
    text, signature = _signed(body, "tcbInfo", what)
    try:
        content = msgspec.json.decode(text, type=TcbInfo)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise EvidenceFormatError(what, f"cannot be read: {_line(exc)}", field="tcbInfo") from exc
    if content.id != tee or content.value("fmspc") != fmspc:
        raise EvidenceFormatError(what, f"is of {content.id[:20]} {content.fmspc}, not of {tee} {fmspc.hex()}")
    return SignedTcbInfo(content=content, text=text, signature=signature, chain=chain)


def qe_identity_in(body: bytes, chain: str, *, tee: str) -> SignedIdentity:
    """Read the answer to "Get Enclave Identity" of a quoting enclave.

    Raises EvidenceFormatError, also where it is of another TEE's.
    """
    what = "QE identity"
    text, signature = _signed(body, "enclaveIdentity", what)
    try:
        content = msgspec.json.decode(text, type=QeIdentity)
    except (msgspec.MsgspecError, RecursionError) as exc:
        raise EvidenceFormatError(what, f"cannot be read: {_line(exc)}", field="enclaveIdentity") from exc
    wanted = identity_of(tee)
    if content.id != wanted:
        raise EvidenceFormatError(what, f"is of {content.id[:20]}, not of {wanted}")
    return SignedIdentity(content=content, text=text, signature=signature, chain=chain)


def identity_of(tee: str) -> str:
    """What the QE identity of a TEE calls itself."""
    return "TD_QE" if tee == _TDX else "QE"


def crl_in(body: bytes, what: str) -> x509.CertificateRevocationList:
    """A CRL in DER, PEM or, as a PCCS gives it, in hex. Raises EvidenceFormatError."""
    if body[:1] != b"\x30":
        text = body.strip()
        if text.startswith(b"-----BEGIN"):
            _, crls = split_objects(text, what)
            body = crls[0] if crls else b""
        else:
            try:
                body = bytes.fromhex(text.decode("ascii").strip('"'))
            except ValueError as exc:
                raise EvidenceFormatError(what, "is neither DER nor PEM nor hex") from exc
    return crl_of(body, what)


def chain_text(pem: str, what: str) -> str:
    """An issuer chain, PEM, once it has been read. Raises EvidenceFormatError."""
    if not pem.isascii():
        raise EvidenceFormatError(what, "is no PEM text")
    parse_chain(pem.encode(), what)
    return pem


def join(
    tcb_info: SignedTcbInfo,
    identity: SignedIdentity,
    *,
    pck_crl: x509.CertificateRevocationList,
    pck_crl_chain: str,
    root_crl: x509.CertificateRevocationList,
) -> IntelCollateral:
    """The collateral that the answers make. Raises EvidenceFormatError."""
    members: Mapping[str, str] = {
        "pck_crl_issuer_chain": pck_crl_chain,
        "root_ca_crl": root_crl.public_bytes(Encoding.DER).hex(),
        "pck_crl": pck_crl.public_bytes(Encoding.DER).hex(),
        "tcb_info_issuer_chain": tcb_info.chain,
        "tcb_info": tcb_info.text,
        "tcb_info_signature": tcb_info.signature,
        "qe_identity_issuer_chain": identity.chain,
        "qe_identity": identity.text,
        "qe_identity_signature": identity.signature,
    }
    return parse_collateral_cached(msgspec.json.encode(members))


def _signed(body: bytes, member: str, what: str) -> tuple[str, str]:
    """Text of a signed member and the signature (hex, 64 bytes: r and s)."""
    if len(body) > MAX_COLLATERAL:
        raise EvidenceFormatError(what, f"{len(body)} bytes, more than {MAX_COLLATERAL}")
    try:
        found = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        text = bytes(found[member]).decode("utf-8")
        signature = msgspec.json.decode(found["signature"], type=str)
        size = len(bytes.fromhex(signature))
    except KeyError as exc:
        raise EvidenceFormatError(what, "is missing", field=str(exc.args[0])) from exc
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise EvidenceFormatError(what, f"cannot be read: {_line(exc)}") from exc
    if size != 64:
        raise EvidenceFormatError(what, f"is {size} bytes long, not 64", field="signature")
    return text, signature


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
