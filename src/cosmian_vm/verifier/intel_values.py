"""Is this TD, or enclave, the one of the snapshot? ``tee.measurement`` and ``tee.instance`` of Intel's TEEs. Pure.

Source: Intel TDX Module ABI Specification, "TDINFO_STRUCT"; UEFI 2.10, 38.2 (which event goes to which RTMR); Intel SDM
3D, "Layout of REPORT".
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.boot_log import extensions
from cosmian_vm.evidence.cc_event_log import parse_ccel, replay_ccel
from cosmian_vm.evidence.intel_quote import Quote
from cosmian_vm.evidence.sgx import EnclaveReport
from cosmian_vm.evidence.tdx import RTMR_COUNT, TdReportBody
from cosmian_vm.reference.snapshot import SgxPolicy, Snapshot, TdxPolicy
from cosmian_vm.verifier._steps import Steps, culprits, described
from cosmian_vm.verifier.result import Check, fail, ok, skip, warning

__all__ = ["check_instance", "check_measurement"]

_ID = "tee.measurement"
_BANK = "sha384"
_RTMR_SIZE = 48
_OF_THE_BOOT = 2
"""RTMRs below this one are extended by firmware and boot loader alone, which log all that they do."""
_MAX_SHOWN = 12
_ROLES = ("firmware and its settings", "boot loader and kernel", "kernel command line and initrd", "the running system")
_NONE = "There is no snapshot to compare with"


class _Log(NamedTuple):
    """What the CCEL says. ``steps``: events by RTMR. ``values``: what they make of the RTMRs. ``problem``: why it
    cannot be used.
    """

    steps: dict[int, Steps]
    values: tuple[bytes, ...]
    problem: str = ""


_NO_LOG = _Log({}, ())


def check_measurement(quote: Quote, reference: Snapshot | None, cc_event_log: bytes | None) -> Check:
    """``tee.measurement``. ``cc_event_log``: a TD's CCEL; it may not contradict the RTMRs, and explains them."""
    body = quote.body
    if isinstance(body, TdReportBody):
        return _td(quote, body, reference, _NO_LOG if cc_event_log is None else _read(cc_event_log))
    return _enclave(quote, body, reference)


def check_instance(quote: Quote, reference: Snapshot | None) -> Check:
    """``tee.instance``: neither TDs nor enclaves have an identity of their own."""
    if reference is None:
        return skip("tee.instance", _NONE)
    what = "TD" if quote.td is not None else "enclave"
    return warning(
        "tee.instance", f"Intel's quotes tell no {what} from another of the same contents: this may be another instance"
    )


def _td(quote: Quote, body: TdReportBody, reference: Snapshot | None, log: _Log) -> Check:
    bad_log = _bad_log(body, log)
    if reference is None:
        return fail(_ID, bad_log) if bad_log else skip(_ID, _NONE)
    if reference.tdx is None:
        return fail(_ID, "The snapshot is of another kind of machine, not of an Intel TDX one")
    if reference.tdx.body.mr_td is None:
        return skip(_ID, "The snapshot has no launch measurement (MRTD): take a new one")
    differences = _td_differences(quote, body, reference.tdx)
    rtmrs, absent = _rtmr_differences(body, reference, log)
    differences += rtmrs
    if differences:
        return fail(_ID, f"This TD is not the snapshot's ({differences[0]})", differences[1:])
    if bad_log:
        return fail(_ID, bad_log)
    absent += _absent(reference.tdx)
    if absent:
        line = f"What was launched equals the snapshot's, which has no value for {', '.join(absent)}"
        return warning(_ID, f"{line}: take a new snapshot")
    return ok(_ID, "Launch measurement, TD attributes, configuration and RTMRs equal the snapshot's")


_TD_FIELDS = ("mr_seam", "td_attributes", "mr_td", "mr_config_id", "mr_owner", "mr_owner_config")


def _td_differences(quote: Quote, body: TdReportBody, policy: TdxPolicy) -> list[str]:
    found = _header_differences(quote, policy)
    for name in _TD_FIELDS:
        wanted, have = policy.body.bytes_of(name), getattr(body, name)
        if wanted is not None and have != wanted:
            found.append(f"{name}: {have.hex()}, in the snapshot {wanted.hex()}")
    xfam = int.from_bytes(body.xfam, "little")
    if policy.body.xfam is not None and xfam != policy.body.xfam:
        found.append(f"xfam: {xfam:#x}, in the snapshot {policy.body.xfam:#x}")
    least = policy.body.bytes_of("minimum_tee_tcb_svn")
    if least is not None and any(have < svn for have, svn in zip(body.tee_tcb_svn, least, strict=True)):
        found.append(f"tee_tcb_svn: {body.tee_tcb_svn.hex()}, at least {least.hex()} at the snapshot")
    return found


def _header_differences(quote: Quote, policy: TdxPolicy | SgxPolicy) -> list[str]:
    header = policy.header
    vendor = header.bytes_of("qe_vendor_id")
    found = []
    if vendor is not None and quote.header.qe_vendor_id != vendor:
        found.append(f"qe_vendor_id: {quote.header.qe_vendor_id.hex()}, in the snapshot {vendor.hex()}")
    for name, least in (("qe_svn", header.minimum_qe_svn), ("pce_svn", header.minimum_pce_svn)):
        have: int = getattr(quote.header, name)
        if least is not None and have < least:
            found.append(f"{name}: {have}, at least {least} at the snapshot")
    return found


def _absent(policy: TdxPolicy) -> list[str]:
    values = {name: getattr(policy.body, name) for name in (*_TD_FIELDS, "xfam", "minimum_tee_tcb_svn")}
    return [name for name, value in values.items() if value is None]


def _rtmr_differences(body: TdReportBody, reference: Snapshot, log: _Log) -> tuple[list[str], list[str]]:
    """What differs, one thing a line, and what the snapshot has no value for."""
    if reference.rtmrs is None:
        return [], ["rtmrs"]
    found: list[str] = []
    for index, (have, text) in enumerate(zip(body.rtmrs, reference.rtmrs, strict=True)):
        wanted = bytes.fromhex(text)
        if have != wanted:
            found.append(f"RTMR {index} ({_ROLES[index]}): {have.hex()}, in the snapshot {text}")
            found += [f"RTMR {index}: {line}" for line in _explained(index, have, wanted, log)]
    return found, []


def _explained(index: int, have: bytes, wanted: bytes, log: _Log) -> Iterable[str]:
    steps = log.steps.get(index, ())
    if log.problem or not log.values:
        return (f"nothing explains it: {log.problem or 'the agent sent no CC event log'}",)
    if log.values[index] != have:
        return ("the CC event log does not replay to it, so its events explain nothing",)
    found = culprits(bytes(_RTMR_SIZE), steps, wanted, _BANK)
    if found:
        return [f"{described(event)} was not there at the snapshot" for event in found[:_MAX_SHOWN]]
    shown = [described(event) for event, _ in steps[:_MAX_SHOWN]]
    return [f"one of these {len(steps)} events changed, or one is missing:", *shown]


def _read(raw: bytes) -> _Log:
    try:
        log = parse_ccel(raw)
        steps = {register - 1: found for register, found in extensions(log, _BANK).items() if register}
        return _Log(dict(steps), replay_ccel(log))
    except EvidenceFormatError as exc:
        return _Log({}, (), str(exc))


def _bad_log(body: TdReportBody, log: _Log) -> str:
    """The log was sent as evidence: that it is none, or another machine's, is a failure."""
    if log.problem:
        return f"The CC event log cannot be used: {log.problem}"
    for index in range(_OF_THE_BOOT if log.values else 0):
        if log.steps.get(index) and log.values[index] != body.rtmrs[index]:
            return f"The CC event log does not replay to RTMR {index}: it is incomplete or forged"
    return ""


def _enclave(quote: Quote, body: EnclaveReport, reference: Snapshot | None) -> Check:
    if reference is None:
        return skip(_ID, _NONE)
    policy = reference.sgx
    if policy is None:
        return fail(_ID, "The snapshot is of another kind of machine, not of an Intel SGX enclave")
    if policy.body.mr_enclave is None:
        return skip(_ID, "The snapshot has no MRENCLAVE: take a new one")
    found = _header_differences(quote, policy)
    for name in ("mr_enclave", "mr_signer"):
        wanted, have = policy.body.bytes_of(name), getattr(body, name)
        if wanted is not None and have != wanted:
            found.append(f"{name}: {have.hex()}, in the snapshot {wanted.hex()}")
    enclave = reference.enclave
    if enclave is not None:
        if body.attributes != enclave.bytes_of("attributes"):
            found.append(f"attributes: {body.attributes.hex()}, in the snapshot {enclave.attributes}")
        if body.isv_prod_id != enclave.isv_prod_id:
            found.append(f"isv_prod_id: {body.isv_prod_id}, in the snapshot {enclave.isv_prod_id}")
        if body.isv_svn < enclave.isv_svn:
            found.append(f"isv_svn: {body.isv_svn}, at least {enclave.isv_svn} at the snapshot")
    if found:
        return fail(_ID, f"This enclave is not the snapshot's ({found[0]})", found[1:])
    absent = ["mr_signer"] if policy.body.mr_signer is None else []
    absent += ["attributes, isv_prod_id, isv_svn"] if enclave is None else []
    if absent:
        line = f"MRENCLAVE equals the snapshot's, which has no value for {', '.join(absent)}"
        return warning(_ID, f"{line}: take a new snapshot")
    return ok(_ID, "MRENCLAVE, MRSIGNER, attributes and product equal the snapshot's")


assert len(_ROLES) == RTMR_COUNT  # noqa: S101 - one for each
