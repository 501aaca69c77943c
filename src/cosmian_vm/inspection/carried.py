"""The TEE report or quote in a file of evidence, whatever it is wrapped in, and the endorsements beside it. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.azure import parse_hcl_report
from cosmian_vm.inspection import ra_tls
from cosmian_vm.inspection._wrapping import layers
from cosmian_vm.inspection.identify import identify
from cosmian_vm.inspection.model import Kind, Material
from cosmian_vm.wire import SavedEvidence

__all__ = ["Carried", "quote_in"]


@dataclass(frozen=True, slots=True)
class Carried:
    """``kind``, ``title``: of the file. ``quote``: report or quote, with what stands behind it. ``beside``: what came
    along (certificates and CRLs, perhaps), unverified.
    """

    kind: str
    title: str
    quote: bytes
    beside: tuple[bytes, ...] = ()


def quote_in(raw: bytes) -> Carried:
    """The report or quote in ``raw``: an SNP report, a TDX or SGX quote, an HCL report, an evidence bundle, an RA-TLS
    certificate, or one of these in hex, base64 and the like.

    Raises EvidenceFormatError where there is none.
    """
    for inside, along in [(raw, ()), *((layer.raw, layer.beside) for layer in layers(raw))]:
        kind = identify(inside, Material())
        if kind is not None and kind.name in _READERS:
            found = _READERS[kind.name](inside, kind)
            beside = tuple(content for _, content in along)
            return Carried(found.kind, found.title, found.quote, (*found.beside, *beside))
    kind = identify(raw, Material())
    what = "it is nothing known" if kind is None else f"it is of the kind {kind.name} ({kind.title})"
    raise EvidenceFormatError("evidence", f"there is no TEE report or quote in it: {what}")


def _plain(raw: bytes, kind: Kind) -> Carried:
    return Carried(kind.name, kind.title, raw)


def _hcl(raw: bytes, kind: Kind) -> Carried:
    report = parse_hcl_report(raw)
    if report.report_type != "SNP":
        raise EvidenceFormatError(
            "HCL report", "the report inside is a TDREPORT, which is for its own machine alone: give the TD quote"
        )
    return Carried(kind.name, kind.title, report.tee_report)


def _bundle(raw: bytes, kind: Kind) -> Carried:
    try:
        bundle = msgspec.json.decode(raw, type=SavedEvidence)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise EvidenceFormatError("evidence bundle", " ".join(str(exc).split())) from exc
    if bundle.tee_quote is None:
        raise EvidenceFormatError("evidence bundle", "there is no TEE report or quote in it", field="tee_quote")
    return Carried(kind.name, kind.title, bundle.tee_quote, tuple(bundle.endorsements))


def _ra_tls(raw: bytes, kind: Kind) -> Carried:
    quotes = ra_tls.quotes_in(raw)
    if len(quotes) != 1:
        raise EvidenceFormatError("RA-TLS certificate", f"it carries {len(quotes)} reports or quotes, not one")
    return Carried(kind.name, kind.title, quotes[0])


_READERS: dict[str, Callable[[bytes, Kind], Carried]] = {
    "snp-report": _plain,
    "tdx-quote": _plain,
    "sgx-quote": _plain,
    "hcl-report": _hcl,
    "evidence-bundle": _bundle,
    "ra-tls-certificate": _ra_tls,
}
