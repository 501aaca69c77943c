"""What dcap-qvl makes of a quote and its collateral: the second opinion on the TCB level. Pure.

Its verdict depends on the platform, the quoting enclave, attributes and versions of the TD or enclave, and the
collateral. It does not depend on what the TD or enclave put into the quote itself, whose signature intel.py checks each
time. So it is remembered for a minute of the verifier's time, for quotes that differ in nothing else.
"""

from __future__ import annotations

from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.endorsements.intel_collateral import IntelCollateral
from cosmian_vm.evidence.intel_quote import Quote, serialise_quote, serialise_signature
from cosmian_vm.evidence.tdx import TdReportBody
from cosmian_vm.verifier._intel_tcb import TcbOutcome

__all__ = ["opinion"]

_MOST_REMEMBERED = 256
_MINUTE = 60
_SIGNATURE = 64
_RTMRS, _BEHIND_REPORT_DATA = 328, 584  # of a TD report body
_SGX_REPORT_DATA = 320

_Key = tuple[bytes, bytes, bytes, bytes, int, int]
_remembered: dict[_Key, tuple[TcbOutcome, IntelCollateral]] = {}


def opinion(quote: Quote, root: x509.Certificate, collateral: IntelCollateral, now: datetime) -> TcbOutcome:
    """Status and advisories by dcap-qvl; where it refuses the quote ``status`` is None and ``problem`` its words."""
    moment = max(int(now.timestamp()), 0)
    der = root.public_bytes(Encoding.DER)
    key = (*_platform(quote), der, id(collateral), moment // _MINUTE)
    known = _remembered.get(key)
    if known is None:
        known = _ask(quote, der, collateral, moment), collateral  # kept, so that its identity stays its own
        if len(_remembered) >= _MOST_REMEMBERED:
            _remembered.clear()
        _remembered[key] = known
    return known[0]


def _platform(quote: Quote) -> tuple[bytes, bytes, bytes]:
    """All of the quote but its own signature, report_data and (TDX) RTMRs."""
    body = quote.body
    fixed = body.raw[:_SGX_REPORT_DATA]
    if isinstance(body, TdReportBody):
        fixed = body.raw[:_RTMRS] + body.raw[_BEHIND_REPORT_DATA:]
    head = quote.signed[: len(quote.signed) - len(body.raw)]
    return head, fixed, serialise_signature(quote.signature)[_SIGNATURE:]


def _ask(quote: Quote, root: bytes, collateral: IntelCollateral, moment: int) -> TcbOutcome:
    from dcap_qvl import QuoteCollateralV3, verify_with_root_ca  # a native library, loaded where it is needed

    raw = collateral.raw
    try:
        told = verify_with_root_ca(
            serialise_quote(quote),
            QuoteCollateralV3(
                raw["pck_crl_issuer_chain"],
                bytes.fromhex(raw["root_ca_crl"]),
                bytes.fromhex(raw["pck_crl"]),
                raw["tcb_info_issuer_chain"],
                raw["tcb_info"],
                collateral.tcb_info_signature,
                raw["qe_identity_issuer_chain"],
                raw["qe_identity"],
                collateral.qe_identity_signature,
            ),
            root,
            moment,
        )
    except Exception as exc:
        return TcbOutcome(None, " ".join(str(exc).removeprefix("Verification failed:").split())[:300])
    return TcbOutcome(told.status, "", tuple(told.advisory_ids))
