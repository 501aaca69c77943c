"""``inspect`` on Intel's formats: TDX and SGX quotes, TDREPORT, collateral."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from cryptography import x509

from cosmian_vm.endorsements import amd
from cosmian_vm.endorsements.intel import crl_of, pinned_root
from cosmian_vm.endorsements.intel_collateral import IntelCollateral
from cosmian_vm.errors import EndorsementError, EvidenceFormatError
from cosmian_vm.evidence.intel_quote import INTEL_QE_VENDOR_ID, TEE_TYPE_SGX, TEE_TYPE_TDX, Quote, parse_quote
from cosmian_vm.evidence.tdx import TDREPORT_SIZE, parse_tdreport
from cosmian_vm.inspection import _intel_join
from cosmian_vm.inspection._intel_facts import collateral_facts, quote_facts, tdreport_facts
from cosmian_vm.inspection.model import CRL, OTHER, Facts, Kind, Material, Roots
from cosmian_vm.verifier.azure import check_tdreport_hashes
from cosmian_vm.verifier.intel import QuoteCrypto, examine_collateral, examine_quote, verify_quote
from cosmian_vm.verifier.result import Check, fail, ok, warning

__all__ = [
    "COLLATERAL",
    "KINDS",
    "SGX_QUOTE",
    "TDX_QUOTE",
    "fitting_collateral",
    "intel_roots",
    "report_data_check",
    "verify_with",
]

TDX_QUOTE, SGX_QUOTE, TDREPORT, COLLATERAL = "tdx-quote", "sgx-quote", "tdreport", "intel-collateral"

_HEADER_SIZE = 48
_ECDSA_KEY_TYPES = (2, 3)
_LATEST_VERSION = 9
_REPORT_DATA_SIZE = 64

# TEE_TCB_INFO.VALID as TDX modules write it: 1.0, and 1.5 with tee_tcb_svn2
_VALID = (bytes.fromhex("ff01000000000000"), bytes.fromhex("ff01030000000000"))
_VALID_AT = 256
_LOST_HEAD = 48
"""Some recorded TDREPORTs lack their first bytes: the buffer was read from a wrong place. Told all the same."""


def _is_quote(raw: bytes, tee_type: int) -> bool:
    """The header of a quote for this TEE; of whatever version, so that a damaged one is still called a quote."""
    if len(raw) < _HEADER_SIZE or int.from_bytes(raw[4:8], "little") != tee_type:
        return False
    version, key_type = int.from_bytes(raw[:2], "little"), int.from_bytes(raw[2:4], "little")
    plausible = 1 <= version <= _LATEST_VERSION and key_type in _ECDSA_KEY_TYPES
    return plausible or (raw[12:28] == INTEL_QE_VENDOR_ID and version <= _LATEST_VERSION)


def _is_tdreport(raw: bytes) -> bool:
    if len(raw) != TDREPORT_SIZE:
        return False
    places = (_VALID_AT, _VALID_AT - _LOST_HEAD)
    return raw[:2] == b"\x81\x00" or any(raw[at : at + 8] in _VALID for at in places)


def intel_roots(roots: Roots) -> tuple[x509.Certificate, ...]:
    """Intel's pinned root and the user's own; one that cannot be used vouches for nothing."""
    usable = []
    for der in roots.extra:
        try:
            usable.append(amd.load_certificate(der))
        except EndorsementError:
            continue
    return (pinned_root(), *usable)


def _examined(raw: bytes) -> tuple[Quote, QuoteCrypto]:
    quote = parse_quote(raw)
    return quote, examine_quote(quote, intel_roots(Roots()))


def _quote_facts(raw: bytes, material: Material) -> Facts:  # noqa: ARG001 - the interface of a kind
    quote, crypto = _examined(raw)
    return quote_facts(quote, crypto, len(raw))


def _verify_quote(raw: bytes, material: Material, at: datetime, roots: Roots) -> list[Check]:
    quote = parse_quote(raw)
    checks = verify_with(quote, material, at, roots)
    if (bound := report_data_check(quote.body.report_data, material)) is not None:
        checks.append(bound)
    if any(quote.trailing):
        line = f"{len(quote.trailing)} bytes that nobody signed stand behind the quote and are ignored"
        checks.append(warning("trailing_bytes", line))
    return checks


def verify_with(quote: Quote, material: Material, at: datetime, roots: Roots) -> list[Check]:
    """Whether a quote (TDX or SGX) is authentic, with the collateral and CRLs of the material."""
    crls: list[x509.CertificateRevocationList] = []
    unusable: list[str] = []
    for item in material.of(CRL):
        try:
            crls.append(crl_of(item.raw, item.name))
        except EvidenceFormatError as exc:
            unusable.append(str(exc))
    own = intel_roots(roots)
    collateral, problems = fitting_collateral(quote, material, own)
    unusable += problems
    intel_names = {root.subject for root in own}
    # CRLs of others (AMD's) in the same folder say nothing about this chain, not even that they are missing.
    fitting = [c for c in crls if c.issuer in intel_names or "Intel SGX" in c.issuer.rfc4514_string()]
    checks = verify_quote(quote, collateral, own, at, crls=fitting)
    if unusable:
        checks = [replace(c, details=(*c.details, *unusable)) if c.id == "tee.revocation" else c for c in checks]
    return checks


def fitting_collateral(
    quote: Quote, material: Material, own: tuple[x509.Certificate, ...]
) -> tuple[IntelCollateral | None, list[str]]:
    """The collateral that is for this platform, else the first that can be read; and why others cannot.

    Intel's answers as separate files are put together.
    """
    crypto = examine_quote(quote, ())
    pck = crypto.pck
    usable: list[IntelCollateral] = []
    problems: list[str] = []
    for item in material.of(COLLATERAL):
        try:
            usable.append(_intel_join.parse(item.raw))
        except EvidenceFormatError as exc:
            problems.append(f"{item.name}: {exc}")
    try:
        joined = _intel_join.collateral_from_parts(material, quote.header.tee, own, crypto.chain)
        usable += [] if joined is None else [joined]
    except EvidenceFormatError as exc:
        problems.append(str(exc))
    if pck is not None:
        usable.sort(key=lambda c: (c.tcb_info.value("fmspc"), c.tcb_info.id) != (pck.fmspc, quote.header.tee))
    return (usable[0] if usable else None), problems


def report_data_check(report_data: bytes, material: Material) -> Check | None:
    """``tee.report_data``, if 64 bytes that are nothing else were given: what the quote should be bound to."""
    given = [item for item in material.of(OTHER) if len(item.raw) == _REPORT_DATA_SIZE]
    if not given:
        return None
    for item in given:
        if item.raw == report_data:
            return ok("tee.report_data", f"report_data is the content of {item.name}")
    return fail("tee.report_data", f"report_data is not the content of {given[0].name}")


def _tdreport_facts(raw: bytes, material: Material) -> Facts:  # noqa: ARG001 - the interface of a kind
    return {"bytes": len(raw), **tdreport_facts(parse_tdreport(raw))}


def _verify_tdreport(raw: bytes, material: Material, at: datetime, roots: Roots) -> list[Check]:  # noqa: ARG001
    line = "a TDREPORT carries a MAC whose key never leaves the processor: only a quote made of it can be verified"
    checks = [fail("tee.signature", line)]
    try:
        report = parse_tdreport(raw)
    except EvidenceFormatError as exc:
        return [*checks, fail("format", str(exc))]
    return [*checks, check_tdreport_hashes(report)]


def _collateral_facts(raw: bytes, material: Material) -> Facts:  # noqa: ARG001 - the interface of a kind
    return collateral_facts(_intel_join.parse(raw))


def _verify_collateral(raw: bytes, material: Material, at: datetime, roots: Roots) -> list[Check]:  # noqa: ARG001
    return examine_collateral(_intel_join.parse(raw), intel_roots(roots), at).checks()


KINDS = (
    Kind(
        name=TDX_QUOTE,
        title="Intel TDX quote",
        matches=lambda raw: _is_quote(raw, TEE_TYPE_TDX),
        facts=_quote_facts,
        verify=_verify_quote,
    ),
    Kind(
        name=SGX_QUOTE,
        title="Intel SGX quote",
        matches=lambda raw: _is_quote(raw, TEE_TYPE_SGX),
        facts=_quote_facts,
        verify=_verify_quote,
    ),
    Kind(
        name=TDREPORT,
        title="Intel TDREPORT (local to its machine)",
        matches=_is_tdreport,
        facts=_tdreport_facts,
        verify=_verify_tdreport,
    ),
    Kind(
        name=COLLATERAL,
        title="Intel collateral (TCB info, QE identity, CRLs)",
        matches=_intel_join.is_collateral,
        facts=_collateral_facts,
        verify=_verify_collateral,
    ),
)
