"""Which TCB level a platform is at, by Intel's own procedure: the status and the advisories that come with it.

Source: Intel SGX and TDX PCS API 4, "Get TCB Info" ("determine the status of a platform's TCB"); Intel's Quote
Verification Library (TcbLevel order, convergence of statuses, relaunch advice), which decides where the text is silent.

1. The TCB info is for this FMSPC, PCE and kind of TEE.
2. Levels are tried highest first; the first that the platform reaches in the PCE's SVN, every SGX component and (TDX)
   every TDX component is its level. With a module version above 0, components 0 and 1 are left to the module.
3. TDX: the module is signed by whom the TCB info names, its attributes fit, and its own level joins the platform's.
4. The quoting enclave's level joins it.
5. TDX 1.5: the same for the TCB as it is now (tee_tcb_svn2); an old launch on a current platform means: relaunch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cosmian_vm.endorsements.intel import PckExtension
from cosmian_vm.endorsements.intel_collateral import ModuleLevel, QeIdentity, TcbInfo, TcbLevel, TdxModule
from cosmian_vm.evidence.intel_quote import Quote
from cosmian_vm.evidence.sgx import EnclaveReport
from cosmian_vm.evidence.tdx import TdReportBody

__all__ = ["OUT_OF_DATE", "REVOKED", "UP_TO_DATE", "TcbOutcome", "evaluate", "qe_problem"]

UP_TO_DATE, REVOKED, OUT_OF_DATE = "UpToDate", "Revoked", "OutOfDate"
_CONFIGURE, _OUT_CONFIGURE = "ConfigurationNeeded", "OutOfDateConfigurationNeeded"
_HARDEN, _CONFIGURE_HARDEN = "SWHardeningNeeded", "ConfigurationAndSWHardeningNeeded"
_RELAUNCH, _RELAUNCH_CONFIGURE = "TDRelaunchAdvised", "TDRelaunchAdvisedConfigurationNeeded"
_PLATFORM = (UP_TO_DATE, OUT_OF_DATE, REVOKED, _CONFIGURE, _OUT_CONFIGURE, _HARDEN, _CONFIGURE_HARDEN)
_MODULE = (UP_TO_DATE, OUT_OF_DATE, REVOKED)
_QE = (UP_TO_DATE, OUT_OF_DATE, REVOKED, _CONFIGURE, _OUT_CONFIGURE)


@dataclass(frozen=True, slots=True)
class TcbOutcome:
    """``status`` as Intel writes it, None where there is none and ``problem`` says why. ``advisories``: their ids."""

    status: str | None
    problem: str = ""
    advisories: tuple[str, ...] = field(default=())


class _NoLevelError(Exception):
    """No status can be had; its text says why. Does not leave this module."""


def evaluate(quote: Quote, pck: PckExtension, tcb_info: TcbInfo, qe_identity: QeIdentity) -> TcbOutcome:
    """The TCB status of ``quote``'s platform; both documents must have been verified before."""
    try:
        _fits(quote, pck, tcb_info)
        levels = sorted(tcb_info.tcb_levels, key=lambda v: (v.tcb.sgx, v.tcb.pcesvn, v.tcb.tdx), reverse=True)
        qe = _module_level(qe_identity.tcb_levels, quote.signature.qe_report.isv_svn, "quoting enclave", _QE)
        if not isinstance(quote.body, TdReportBody):
            level = _platform_level(levels, pck, None)
            return TcbOutcome(_converge(level.status, qe.status), "", _joined(level.advisory_ids, qe.advisory_ids))
        _check_module(tcb_info, quote.body)
        status, advisories = _tdx_level(levels, pck, tcb_info, quote.body.tee_tcb_svn)
        status, advisories = _converge(status, qe.status), _joined(advisories, qe.advisory_ids)
        if quote.body.tee_tcb_svn2 is not None:
            now, _ = _tdx_level(levels, pck, tcb_info, quote.body.tee_tcb_svn2)
            status = _relaunch(status, _converge(now, qe.status))
        return TcbOutcome(status, "", advisories)
    except _NoLevelError as exc:
        return TcbOutcome(None, str(exc))


def _fits(quote: Quote, pck: PckExtension, tcb_info: TcbInfo) -> None:
    if tcb_info.id != quote.header.tee:
        raise _NoLevelError(f"the TCB info is for {tcb_info.id!a}, the quote is of {quote.header.tee}")
    if tcb_info.value("fmspc") != pck.fmspc:
        raise _NoLevelError(f"the TCB info is for FMSPC {tcb_info.fmspc.lower()}, the platform has {pck.fmspc.hex()}")
    if tcb_info.value("pce_id") != pck.pce_id:
        raise _NoLevelError(f"the TCB info is for PCE {tcb_info.pce_id.lower()}, the platform has {pck.pce_id.hex()}")


def _reaches(have: Iterable[int], need: Iterable[int]) -> bool:
    return all(a >= b for a, b in zip(have, need, strict=True))


def _platform_level(levels: Sequence[TcbLevel], pck: PckExtension, tdx: bytes | None) -> TcbLevel:
    """The first level that the platform reaches; ``tdx``: TEE_TCB_SVN, None for SGX."""
    skip = 2 if tdx is not None and tdx[1] > 0 else 0
    for level in levels:
        if tdx is not None and not level.tcb.tdx:
            raise _NoLevelError("a level of the TCB info has no TDX components")
        if pck.pce_svn < level.tcb.pcesvn or not _reaches(pck.components, level.tcb.sgx):
            continue
        if tdx is not None and not _reaches(tdx[skip:], level.tcb.tdx[skip:]):
            continue
        if level.status not in _PLATFORM:
            raise _NoLevelError(f"the TCB info has the status {level.status!a}, which nobody knows")
        return level
    raise _NoLevelError("the platform is below every TCB level that Intel lists: its firmware is too old")


def _module_level(levels: Iterable[ModuleLevel], svn: int, what: str, known: tuple[str, ...]) -> ModuleLevel:
    level = next((v for v in sorted(levels, key=lambda v: v.tcb.isvsvn, reverse=True) if svn >= v.tcb.isvsvn), None)
    if level is None:
        raise _NoLevelError(f"the {what} (ISVSVN {svn}) is below every level that Intel lists")
    if level.status not in known:
        raise _NoLevelError(f"the {what} has the status {level.status!a}, which nobody knows")
    return level


def _tdx_level(
    levels: Sequence[TcbLevel], pck: PckExtension, tcb_info: TcbInfo, svn: bytes
) -> tuple[str, tuple[str, ...]]:
    """Status and advisories of platform and TDX module together, for one TEE_TCB_SVN (16 bytes)."""
    level = _platform_level(levels, pck, svn)
    if svn[1] == 0:
        return level.status, level.advisory_ids
    identity = next((m for m in tcb_info.tdx_module_identities if m.id.upper() == f"TDX_{svn[1]:02X}"), None)
    if identity is None:
        raise _NoLevelError(f"the TCB info does not know TDX modules of version {svn[1]}")
    module = _module_level(identity.tcb_levels, svn[0], "TDX module", _MODULE)
    return _converge(level.status, module.status), _joined(level.advisory_ids, module.advisory_ids)


def _check_module(tcb_info: TcbInfo, body: TdReportBody) -> None:
    """Who signed the TDX module that made the report, and with which attributes it ran."""
    version = body.tee_tcb_svn[1]
    expected: TdxModule | None = tcb_info.tdx_module
    if version:
        expected = next((m for m in tcb_info.tdx_module_identities if m.id.upper() == f"TDX_{version:02X}"), None)
    if expected is None:
        raise _NoLevelError(f"the TCB info does not know TDX modules of version {version}")
    if expected.value("mrsigner") != body.mr_signer_seam:
        raise _NoLevelError(f"the TDX module is signed by {body.mr_signer_seam.hex()}, not by Intel")
    mask = expected.value("attributes_mask")
    have = _masked(body.seam_attributes, mask)
    if have != _masked(expected.value("attributes"), mask) or have != body.seam_attributes:
        raise _NoLevelError(f"the TDX module runs with attributes {body.seam_attributes.hex()}")


def qe_problem(report: EnclaveReport, identity: QeIdentity, tee: str) -> str:
    """Why the enclave that reported ``report`` is not Intel's quoting enclave for ``tee``; empty if it is."""
    wanted = "TD_QE" if tee == "TDX" else "QE"
    if identity.id != wanted:
        return f"the QE identity is that of {identity.id!a}, not of {wanted}"
    if report.debug:
        return "the quoting enclave is in debug mode"
    masked = (
        ("MISCSELECT", report.misc_select, "miscselect", "miscselect_mask"),
        ("attributes", report.attributes, "attributes", "attributes_mask"),
    )
    for name, have, value, mask in masked:
        bits = identity.value(mask)
        if _masked(have, bits) != _masked(identity.value(value), bits):
            return f"the quoting enclave has other {name} than Intel's"
    if report.mr_signer != identity.value("mrsigner"):
        return f"the quoting enclave is signed by {report.mr_signer.hex()}, not by Intel"
    if report.isv_prod_id != identity.isvprodid:
        return f"the quoting enclave is Intel's product {report.isv_prod_id}, not {identity.isvprodid}"
    return ""


def _masked(value: bytes, mask: bytes) -> bytes:
    return bytes(a & m for a, m in zip(value, mask, strict=True))


def _converge(platform: str, component: str) -> str:
    """A component that is revoked or out of date drags the platform with it; others do not count."""
    if component == REVOKED:
        return REVOKED
    if component in (OUT_OF_DATE, _OUT_CONFIGURE):
        if platform in (UP_TO_DATE, _HARDEN):
            return OUT_OF_DATE
        if platform in (_CONFIGURE, _CONFIGURE_HARDEN):
            return _OUT_CONFIGURE
    return platform


def _relaunch(launch: str, now: str) -> str:
    """A TD that was launched on an old TCB and runs on a current one is to be launched again."""
    if REVOKED in (launch, now):
        return REVOKED
    if launch not in (OUT_OF_DATE, _OUT_CONFIGURE) or now in (OUT_OF_DATE, _OUT_CONFIGURE):
        return launch
    configure = (_CONFIGURE, _OUT_CONFIGURE, _CONFIGURE_HARDEN)
    return _RELAUNCH_CONFIGURE if launch in configure or now in configure else _RELAUNCH


def _joined(*lists: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(advisory for advisories in lists for advisory in advisories))
