"""Is this TPM quote genuine, ours, now, and of the machine that the snapshot describes? Pure.

The procedure; each step is the check of that number below:

1. ``tpm.ak``: the key is one that signs nothing but what its own TPM attests (restricted, sign, fixedTPM, fixedParent,
   made inside the TPM, not for decryption), it is the key of the snapshot, and somebody vouches for it.
2. ``tpm.signature``: the quote's bytes are signed by that key, under the scheme that is fixed in it, and are a quote.
3. ``tpm.nonce``: the quote answers this very verification, over this very connection.
4. ``tpm.pcr_selection``: exactly the PCRs that we asked for, the sha256 bank alone; the claimed values hash to it.
5. ``tpm.clock``: no reboot since the snapshot, no rolled-back TPM.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, TypeVar

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.bundle import TpmEvidence
from cosmian_vm.evidence.tpm import (
    Alg,
    PcrSelection,
    TpmPublic,
    TpmQuoteInfo,
    TpmSignature,
    algorithm_name,
    compute_pcr_digest,
    name,
    parse_public,
    parse_quote,
    parse_signature,
)
from cosmian_vm.reference.snapshot import Anchor, Snapshot
from cosmian_vm.verifier._quoted import NOTHING_QUOTED, QuotedPcrs, listed_pcrs
from cosmian_vm.verifier._tpm_ak import AK_ATTRIBUTES, ak_problems
from cosmian_vm.verifier._tpm_signature import SigningKey, key_of, signature_problem
from cosmian_vm.verifier.anchor import OPERATOR, Anchored, rank
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.result import Check, fail, ok, skip, warning

__all__ = [
    "AK_ATTRIBUTES",
    "TPM_CHECKS",
    "SigningKey",
    "ak_problems",
    "appraise_tpm",
    "key_of",
    "quoted_pcrs",
    "signature_problem",
]

TPM_CHECKS = ("tpm.ak", "tpm.signature", "tpm.nonce", "tpm.pcr_selection", "tpm.clock")

_ANSWERED = ok("tpm.nonce", "the quote answers this challenge, over this connection")
_T = TypeVar("_T")
_SHA256 = "sha256"
_SHA256_ALG = int(Alg.SHA256)
_NO_SCHEME = int(Alg.NULL)
_STATIC_BYTES = 2  # of the bitmap: PCRs 0 to 15 keep their values until the TPM is reset

_NO_TPM = "the agent sent no TPM quote, so nothing proves what was booted and run; fix the VM's TPM"
_NO_TPM_REMEDY = "a VM that has none needs a snapshot taken with --without-tpm"
_UNSAFE_CLOCK = "the TPM lost power without a shutdown and cannot vouch for its clock yet"
_RELAY = "version 1 of the API does not tie it to this connection: another machine's quote could be relayed"


class _Ak(NamedTuple):
    """An AK, ready to verify with. ``name``: its TPM name. ``problems``: what keeps it from being an AK."""

    public: TpmPublic
    key: SigningKey
    name: bytes
    problems: tuple[str, ...]


class _Read(NamedTuple):
    """The three structures, each parsed or the reason why not."""

    ak: _Ak | EvidenceFormatError
    signature: TpmSignature | EvidenceFormatError
    quote: TpmQuoteInfo | EvidenceFormatError


@lru_cache(maxsize=64)
def load_ak(tpmt_public: bytes) -> _Ak:
    """What there is to know about a key; kept by its very bytes, for the next quote of the same machine.

    Raises EvidenceFormatError.
    """
    public = parse_public(tpmt_public)
    return _Ak(public, key_of(public), name(tpmt_public), tuple(ak_problems(public)))


def _attempt(parse: Callable[[bytes], _T], raw: bytes) -> _T | EvidenceFormatError:
    try:
        return parse(raw)
    except EvidenceFormatError as exc:
        return exc


def _read(tpm: TpmEvidence) -> _Read:
    try:
        return _Read(load_ak(tpm.ak_public), parse_signature(tpm.signature), parse_quote(tpm.quote))
    except EvidenceFormatError:
        return _Read(
            _attempt(load_ak, tpm.ak_public),
            _attempt(parse_signature, tpm.signature),
            _attempt(parse_quote, tpm.quote),
        )


def appraise_tpm(
    tpm: TpmEvidence | None,
    *,
    binding: bytes,
    expected_pcrs: frozenset[int],
    reference: Snapshot | None,
    policy: Policy,
    api: int,
    anchored: Anchored = OPERATOR,
) -> list[Check]:
    """The checks of TPM_CHECKS, in that order.

    ``binding``: what extraData must be: the binding of version 2 (32 bytes), the nonce in version 1.
    ``expected_pcrs``: the PCRs that were asked for. ``reference``: None while a snapshot is being taken. ``api``: the
    version that was spoken. ``anchored``: who vouches for the AK (find_anchor). A reboot is a warning
    with ``policy.allow_reboot``: that AK, boot PCRs and the IMA log hold is for the caller to combine.
    """
    if tpm is None:
        if policy.without_tpm:
            return [skip(check_id, "no TPM is expected on this machine (--without-tpm)") for check_id in TPM_CHECKS]
        return [fail(check_id, f"{_NO_TPM}; {_NO_TPM_REMEDY}") for check_id in TPM_CHECKS]
    read = _read(tpm)
    checks = [_check_ak(tpm, read, reference, policy.anchors, anchored, api=api), _check_signature(tpm, read)]
    if isinstance(read.quote, EvidenceFormatError):
        line = f"the quote cannot be read ({read.quote})"
        return [*checks, *(fail(check_id, line) for check_id in TPM_CHECKS[2:])]
    return [
        *checks,
        _check_nonce(read.quote, binding, api),
        _check_selection(tpm, read.quote, read.signature, expected_pcrs, api),
        _check_clock(read.quote, reference, policy),
    ]


def quoted_pcrs(tpm: TpmEvidence | None) -> QuotedPcrs:
    """The PCR values of the sha256 bank that the quote's digest covers; NOTHING_QUOTED where it covers none.

    Says nothing about the quote's signature or freshness: these are checks of their own.
    """
    if tpm is None:
        return NOTHING_QUOTED
    try:
        quote, signature = parse_quote(tpm.quote), parse_signature(tpm.signature)
    except EvidenceFormatError:
        return NOTHING_QUOTED
    if _selection_problem(quote.pcr_selections):
        return NOTHING_QUOTED
    selected = quote.pcr_selections[0].pcrs
    if tpm.pcrs:
        if _digest_problem(tpm, quote, signature):
            return NOTHING_QUOTED
        return QuotedPcrs(values={pcr: tpm.pcrs[pcr] for pcr in selected})
    if len(selected) == 1 and signature.hash_alg == Alg.SHA256:
        return QuotedPcrs(digest=quote.pcr_digest, digest_pcr=selected[0])
    return NOTHING_QUOTED


def _check_ak(
    tpm: TpmEvidence,
    read: _Read,
    reference: Snapshot | None,
    accepted: frozenset[Anchor],
    anchored: Anchored,
    *,
    api: int,
) -> Check:
    """Step 1. That the TEE's report_data names this key is ``tee.report_data``."""
    if isinstance(read.ak, EvidenceFormatError):
        return fail("tpm.ak", f"the attestation key cannot be used ({read.ak})")
    return _judge_ak(
        tpm.ak_public,
        None if reference is None else reference.ak_name,
        None if reference is None else reference.anchor,
        accepted,
        anchored,
        api=api,
        named=reference is None or reference.ak_name is not None,
    )


@lru_cache(maxsize=64)
def _judge_ak(
    tpmt_public: bytes,
    expected: str | None,
    recorded: Anchor | None,
    accepted: frozenset[Anchor],
    anchored: Anchored,
    *,
    api: int,
    named: bool,
) -> Check:
    """``expected``, ``recorded``: the snapshot's AK name in hex and its anchor. ``accepted``: the policy's anchors.
    ``named``: False where a snapshot is there and names no AK. Kept like load_ak.
    """
    ak = load_ak(tpmt_public)
    if ak.problems:
        line = f"the key that signed is no attestation key: {ak.problems[0]}; let the agent make its AK anew"
        return fail("tpm.ak", line, ak.problems[1:])
    details = [f"name {ak.name.hex()}"]
    if expected is not None and ak.name.hex() != expected:
        details.append(f"the snapshot has {expected}")
        line = "the attestation key is not the snapshot's: another TPM, or this one was cleared"
        return fail("tpm.ak", f"{line}; take a new snapshot only if you know why", details)
    details += anchored.details
    if anchored.problem:
        return fail("tpm.ak", f"the attestation key is not what it is said to be: {anchored.problem}", details)
    anchor = anchored.anchor
    if recorded is not None and rank(anchor) < rank(recorded):
        line = f"the snapshot's anchor of the attestation key was {recorded!r}, now it is {anchor!r}"
        return fail("tpm.ak", f"{line}: what vouched for the key is gone", details)
    line = f"the attestation key has the anchor {anchor!r}: {anchored.line}"
    if anchor not in accepted:
        return fail("tpm.ak", f"{line}; the policy accepts {', '.join(sorted(accepted)) or 'none'}", details)
    if api == 1:
        return warning("tpm.ak", f"the attestation key is a proper one, but {_RELAY}", [*details, line])
    if not named:
        unnamed = "the snapshot does not name its attestation key, so any TPM would do; take a new snapshot"
        return warning("tpm.ak", unnamed, [*details, line])
    return warning("tpm.ak", line, details) if anchor == "operator" else ok("tpm.ak", line, details)


def _check_signature(tpm: TpmEvidence, read: _Read) -> Check:
    """Step 2, over the bytes that came: nothing is serialised again."""
    ak, signature = read.ak, read.signature
    if isinstance(signature, EvidenceFormatError):
        return fail("tpm.signature", f"the quote's signature cannot be read ({signature})")
    if isinstance(ak, EvidenceFormatError):
        return fail("tpm.signature", f"there is no key to check the quote with ({ak})")
    scheme = ak.public.scheme
    if scheme.scheme != _NO_SCHEME and (scheme.scheme, scheme.hash_alg) != (signature.algorithm, signature.hash_alg):
        fixed = f"{algorithm_name(scheme.scheme)}-{algorithm_name(scheme.hash_alg)}"
        return fail("tpm.signature", f"signed with {signature.scheme_name}, the attestation key is fixed to {fixed}")
    problem = signature_problem(ak.key, signature, tpm.quote)
    if problem:
        return fail("tpm.signature", f"the quote is not by this attestation key: {problem}; do not trust this machine")
    if isinstance(read.quote, EvidenceFormatError):
        return fail("tpm.signature", f"what is signed is no quote ({read.quote})")
    return _signed(signature.algorithm, signature.hash_alg)


@lru_cache(maxsize=8)
def _signed(algorithm: int, hash_alg: int) -> Check:
    scheme = f"{algorithm_name(algorithm)}-{algorithm_name(hash_alg)}"
    return ok("tpm.signature", f"the quote is signed by the attestation key ({scheme})")


def _check_nonce(quote: TpmQuoteInfo, binding: bytes, api: int) -> Check:
    """Step 3."""
    if not binding or quote.extra_data != binding:
        line = (
            "the quote answers another challenge: replayed, or made for another connection; do not trust this machine"
        )
        return fail("tpm.nonce", line, [f"quoted {quote.extra_data.hex() or 'nothing'}", f"expected {binding.hex()}"])
    if api == 1:
        return warning("tpm.nonce", f"the quote answers this challenge, but {_RELAY}")
    return _ANSWERED


@lru_cache(maxsize=64)
def _selection_problem(selections: tuple[PcrSelection, ...]) -> str:
    """Why the selection is not one of static PCRs in the sha256 bank alone; empty if it is."""
    if len(selections) != 1 or selections[0].hash_alg != _SHA256_ALG:
        banks = ", ".join(s.bank for s in selections) or "none"
        return f"the quote is over the banks {banks}; exactly one selection, of the sha256 bank, is accepted"
    if any(selections[0].select[_STATIC_BYTES:]):
        resettable = [pcr for pcr in selections[0].pcrs if pcr >= 8 * _STATIC_BYTES]
        return f"the quote covers PCR {listed_pcrs(frozenset(resettable))}, which software can reset"
    return ""


def _digest_problem(tpm: TpmEvidence, quote: TpmQuoteInfo, signature: TpmSignature) -> str:
    """Why the claimed PCR values are not those that were quoted; empty if they are."""
    claimed, selected = tpm.pcrs, quote.pcr_selections[0].pcrs
    if len(claimed) != len(selected):
        sent, quoted = listed_pcrs(frozenset(claimed)), listed_pcrs(frozenset(selected))
        return f"values were sent for PCR {sent}, quoted is PCR {quoted}"
    try:
        digest = compute_pcr_digest(quote.pcr_selections, {_SHA256: claimed}, signature.hash_alg)
    except EvidenceFormatError as exc:
        return str(exc)
    return "" if digest == quote.pcr_digest else "the PCR values that were sent are not those that the TPM quoted"


def _check_selection(
    tpm: TpmEvidence,
    quote: TpmQuoteInfo,
    signature: TpmSignature | EvidenceFormatError,
    expected: frozenset[int],
    api: int,
) -> Check:
    """Step 4."""
    if isinstance(signature, EvidenceFormatError):
        return fail("tpm.pcr_selection", f"the hash of the PCR values is not known ({signature})")
    problem = _selection_problem(quote.pcr_selections)
    if problem:
        return fail("tpm.pcr_selection", f"{problem}; the agent does not do what it was asked for")
    selected = _set_of(quote.pcr_selections[0].pcrs)
    if not expected or selected != expected:
        line = f"the quote covers PCR {listed_pcrs(selected)}; asked for were exactly {listed_pcrs(expected)}"
        return fail("tpm.pcr_selection", f"{line}: the agent does not do what it was asked for")
    if api != 1 or tpm.pcrs:
        problem = _digest_problem(tpm, quote, signature)
        if problem:
            return fail("tpm.pcr_selection", f"{problem}; do not trust this machine")
    if api == 1:
        line = f"version 1 of the API quotes PCR {listed_pcrs(selected)} alone: what was booted is not proven"
        return warning("tpm.pcr_selection", line)
    return _covered(selected)


@lru_cache(maxsize=8)
def _covered(pcrs: frozenset[int]) -> Check:
    return ok("tpm.pcr_selection", f"the quote covers PCR {listed_pcrs(pcrs)} of the sha256 bank, as asked")


def _check_clock(quote: TpmQuoteInfo, reference: Snapshot | None, policy: Policy) -> Check:
    """Step 5."""
    counters = f"resetCount {quote.reset_count}, restartCount {quote.restart_count}, clock {quote.clock} ms"
    problems = []
    if not quote.safe:
        problems.append(f"{_UNSAFE_CLOCK}; reboot the VM properly, or verify again in 70 minutes")
    if reference is None:
        return fail("tpm.clock", problems[0]) if problems else ok("tpm.clock", f"the TPM's clock is safe ({counters})")
    recorded = reference.tpm_policy
    resets = restarts = 0
    if recorded is not None and recorded.reset_count is not None:
        resets = _advance(recorded.reset_count, quote.reset_count)
    if recorded is not None and recorded.restart_count is not None and resets == 0:
        restarts = _advance(recorded.restart_count, quote.restart_count)
    if resets < 0 or restarts < 0:
        problems.append("the TPM counts fewer reboots than at the snapshot: it was rolled back or replaced")
    if reference.clock is not None and quote.clock < reference.clock:
        problems.append(
            f"the TPM's clock ({quote.clock} ms) is before the snapshot's ({reference.clock} ms): it was rolled back"
        )
    if problems:
        return fail("tpm.clock", f"{problems[0]}", [*problems[1:], counters])
    if resets or restarts:
        what, count = ("rebooted", resets) if resets else ("suspended or restarted", restarts)
        line = f"the VM was {what} {count} time{'' if count == 1 else 's'} since the snapshot"
        if policy.allow_reboot:
            return warning("tpm.clock", f"{line} (accepted by --allow-reboot)", [counters])
        return fail(
            "tpm.clock", f"{line}: if that was you, verify with --allow-reboot or take a new snapshot", [counters]
        )
    if recorded is None or recorded.reset_count is None or recorded.restart_count is None:
        return skip("tpm.clock", "the snapshot has no TPM counters, so a reboot cannot be seen; take a new snapshot")
    return ok("tpm.clock", f"no reboot since the snapshot ({counters})")


def _advance(recorded: int, now: int) -> int:
    """How far a 32-bit counter went on, negative if back.

    A TPM adds a constant to the counters for keys outside the endorsement hierarchy (part 1, 36.7), so they may wrap.
    """
    step = (now - recorded) & 0xFFFFFFFF
    return step if step < 1 << 31 else step - (1 << 32)


_set_of: Callable[[tuple[int, ...]], frozenset[int]] = lru_cache(maxsize=64)(frozenset)
