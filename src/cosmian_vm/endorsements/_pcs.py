"""What an Intel quote needs of Intel's service (PCS), or of a PCCS, which keeps its answers: the collateral.

Source: Intel SGX and TDX Provisioning Certification Service API, version 4. The root's CRL is where its distribution
point says; a PCCS hands it out as hex. Which platform it is, the PCK certificate in the quote says.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from urllib.parse import unquote, urlsplit

from cryptography import x509

from cosmian_vm.endorsements._fetch import Answer, Request, is_loopback
from cosmian_vm.endorsements._lookup import Lookup, Wanted
from cosmian_vm.endorsements.amd import common_name
from cosmian_vm.endorsements.intel import parse_chain, pck_extension
from cosmian_vm.endorsements.intel_answers import (
    SignedIdentity,
    SignedTcbInfo,
    chain_text,
    crl_in,
    identity_of,
    join,
    qe_identity_in,
    tcb_info_in,
)
from cosmian_vm.endorsements.intel_collateral import IntelCollateral
from cosmian_vm.errors import CosmianVmError, EvidenceFormatError, InputError
from cosmian_vm.evidence.intel_quote import CERT_DATA_PCK_CHAIN, Quote

__all__ = ["Platform", "fitting", "gather_intel", "pccs_base", "platform_of"]

_API = "certification/v4"
_MOST = 4 << 20
_CAS = {"Intel SGX PCK Platform CA": "platform", "Intel SGX PCK Processor CA": "processor"}
_ROOT_NAME = "Intel SGX Root CA"
_TCB_HEADERS = ("TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain")
_QE_HEADERS = ("SGX-Enclave-Identity-Issuer-Chain",)
_CRL_HEADERS = ("SGX-PCK-CRL-Issuer-Chain",)


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """``tee``: SGX or TDX. ``fmspc``: 6 bytes. ``ca``: who certified the PCK, ``platform`` or ``processor``."""

    tee: str
    fmspc: bytes
    ca: str


@dataclass(frozen=True, slots=True)
class _PckCrl:
    crl: x509.CertificateRevocationList
    chain: str


def platform_of(quote: Quote) -> Platform:
    """Whose collateral a quote needs. Raises EvidenceFormatError where the quote does not tell."""
    what = "Intel quote"
    if quote.signature.cert_data_type != CERT_DATA_PCK_CHAIN:
        raise EvidenceFormatError(
            what, f"type {quote.signature.cert_data_type} is no PCK certificate chain (5)", field="cert_data_type"
        )
    pck = parse_chain(quote.signature.cert_data, f"{what}, PCK chain")[0]
    issuer = common_name(pck.issuer)
    if issuer not in _CAS:
        raise EvidenceFormatError(what, f"{issuer!r} has issued the PCK certificate, and is none of Intel's CAs")
    return Platform(tee=quote.header.tee, fmspc=pck_extension(pck).fmspc, ca=_CAS[issuer])


def fitting(collaterals: Iterable[IntelCollateral], platform: Platform, now: datetime) -> IntelCollateral | None:
    """Of several collaterals one that is for the platform, a current one if there is any, else the one that was
    current last; None where none is for it.
    """

    def rank(collateral: IntelCollateral) -> tuple[bool, datetime]:
        return _is_current(collateral, now), _end(collateral)

    return max((c for c in collaterals if _is_for(c, platform)), key=rank, default=None)


def _is_for(collateral: IntelCollateral, platform: Platform) -> bool:
    tcb_info, identity = collateral.tcb_info, collateral.qe_identity
    issuer = common_name(collateral.pck_crl.issuer)
    return (
        tcb_info.id == platform.tee
        and tcb_info.value("fmspc") == platform.fmspc
        and identity.id == identity_of(platform.tee)
        and _CAS.get(issuer) == platform.ca
    )


def _is_current(collateral: IntelCollateral, now: datetime) -> bool:
    window = collateral.window
    return window is not None and window[0] <= now <= window[1]


def _end(collateral: IntelCollateral) -> datetime:
    """When the first of its documents has to be renewed."""
    ends = [collateral.tcb_info.next_update, collateral.qe_identity.next_update]
    return min([*ends, *(_next_update(crl) for crl in (collateral.root_crl, collateral.pck_crl))])


def gather_intel(
    quote: Quote, given: Iterable[IntelCollateral], lookup: Lookup, now: datetime, *, pcs: str, root_crl: str
) -> IntelCollateral | None:
    """The collateral of the quote's platform: among those given, or from the service. What is lacking is noted."""
    try:
        platform = platform_of(quote)
    except CosmianVmError as exc:
        lookup.notes.append(f"Intel's collateral cannot be looked up: {exc}")
        return None
    given = tuple(given)
    best = fitting(given, platform, now)
    if best is not None and _is_current(best, now) and not lookup.renew:
        return best
    if best is None and given:
        lookup.notes.append(
            f"the collateral that was given is of another platform: this quote needs {platform.tee}, FMSPC "
            f"{platform.fmspc.hex()}, {platform.ca} CA"
        )
    if best is not None and not _is_current(best, now):
        lookup.notes.append(f"the collateral that was given was to be renewed by {_end(best):%Y-%m-%d}")
    got = _asked(platform, lookup, pcs, root_crl)
    if got is None:
        return best
    return got if best is None else fitting([got, best], platform, now)


def _asked(platform: Platform, lookup: Lookup, pcs: str, root_crl: str) -> IntelCollateral | None:
    tcb_info = lookup.get(_wanted_tcb_info(platform, pcs))
    identity = lookup.get(_wanted_identity(platform, pcs))
    pck_crl = lookup.get(_wanted_pck_crl(platform, pcs))
    root = lookup.get(_wanted_root_crl(root_crl))
    if tcb_info is None or identity is None or pck_crl is None or root is None:
        return None
    try:
        return join(tcb_info, identity, pck_crl=pck_crl.crl, pck_crl_chain=pck_crl.chain, root_crl=root)
    except EvidenceFormatError as exc:
        lookup.notes.append(f"what {pcs} answered does not make up a collateral: {exc}")
        return None


def _wanted_tcb_info(platform: Platform, pcs: str) -> Wanted[SignedTcbInfo]:
    fmspc = platform.fmspc.hex().upper()
    url = f"{pcs}/{platform.tee.lower()}/{_API}/tcb?fmspc={fmspc}&update=standard"
    return Wanted(
        what=f"Intel's TCB info of the platform ({platform.tee}, FMSPC {fmspc})",
        request=Request(url=url, most=_MOST, headers=_TCB_HEADERS),
        read=lambda answer: tcb_info_in(answer.body, _chain(answer), tee=platform.tee, fmspc=platform.fmspc),
        until=lambda signed: min(signed.content.next_update, _chain_end(signed.chain)),
    )


def _wanted_identity(platform: Platform, pcs: str) -> Wanted[SignedIdentity]:
    return Wanted(
        what=f"Intel's identity of the quoting enclave ({platform.tee})",
        request=Request(
            url=f"{pcs}/{platform.tee.lower()}/{_API}/qe/identity?update=standard", most=_MOST, headers=_QE_HEADERS
        ),
        read=lambda answer: qe_identity_in(answer.body, _chain(answer), tee=platform.tee),
        until=lambda signed: min(signed.content.next_update, _chain_end(signed.chain)),
    )


def _wanted_pck_crl(platform: Platform, pcs: str) -> Wanted[_PckCrl]:
    def read(answer: Answer) -> _PckCrl:
        crl = crl_in(answer.body, "PCK CRL")
        if _CAS.get(common_name(crl.issuer)) != platform.ca:
            raise EvidenceFormatError("PCK CRL", f"is not of the {platform.ca} CA")
        return _PckCrl(crl, _chain(answer))

    return Wanted(
        what=f"the revocation list of Intel's PCK {platform.ca} CA",
        request=Request(url=f"{pcs}/sgx/{_API}/pckcrl?ca={platform.ca}&encoding=der", most=_MOST, headers=_CRL_HEADERS),
        read=read,
        until=lambda found: min(_next_update(found.crl), _chain_end(found.chain)),
    )


def _wanted_root_crl(url: str) -> Wanted[x509.CertificateRevocationList]:
    def read(answer: Answer) -> x509.CertificateRevocationList:
        crl = crl_in(answer.body, "root CRL")
        if common_name(crl.issuer) != _ROOT_NAME:
            raise EvidenceFormatError("root CRL", f"is not of {_ROOT_NAME}")
        return crl

    request = Request(url=url, most=_MOST)
    return Wanted(what="the revocation list of Intel's root", request=request, read=read, until=_next_update)


def _next_update(crl: x509.CertificateRevocationList) -> datetime:
    # One without an end of validity clears nothing, so it is as good as expired.
    return crl.next_update_utc or crl.last_update_utc


def _chain_end(pem: str) -> datetime:
    """When the first certificate of a chain runs out: its documents are signed anew by then."""
    return min(certificate.not_valid_after_utc for certificate in parse_chain(pem.encode(), "issuer chain"))


def _chain(answer: Answer) -> str:
    """The issuer chain in the answer's header: PEM, URL-encoded."""
    if not answer.header:
        raise EvidenceFormatError("issuer chain", "the answer has no header with it")
    return chain_text(unquote(answer.header), "issuer chain")


def pccs_base(url: str) -> str:
    """The base address of a PCCS, with or without the path of the API behind it.

    Raises InputError for an address of another form.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as exc:
        raise InputError(f"--pccs {url}: no address: {exc}") from exc
    plain = parts.scheme == "http" and is_loopback(host)
    if not host or parts.username or parts.query or parts.fragment or not (parts.scheme == "https" or plain):
        raise InputError(
            f"--pccs {url}: an address such as https://pccs.example.com:8081 is expected (http:// for this machine "
            "alone)"
        )
    path = parts.path.rstrip("/").removesuffix(f"/sgx/{_API}")
    return f"{parts.scheme}://{parts.netloc}{path}"
