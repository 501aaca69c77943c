"""Machines that lie, one switch each: a Platform in, the same Platform with one thing forged out.

They work on any Platform of the devkit, in one process or behind a running agent (``vm attack NAME``). ``ATTACKS``
says for each which check of an appraisal must fail.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from cosmian_vm.attester.platform import Logs, Platform, TeeDevice, TeeQuote, TpmDevice, TpmQuote
from cosmian_vm.devkit.amd import AmdVendor
from cosmian_vm.devkit.soft_tpm import AK_ATTRIBUTES, SoftTpm
from cosmian_vm.devkit.tee import SimulatedTee
from cosmian_vm.errors import AttesterError
from cosmian_vm.evidence.bundle import EndorsementKey, PlatformAk, TeeKind
from cosmian_vm.evidence.ima import (
    BOOT_AGGREGATE,
    ImaEntry,
    make_entry,
    parse_binary,
    serialise_ascii,
    serialise_binary,
    template_hash,
)
from cosmian_vm.evidence.snp import Product, encode_tcb
from cosmian_vm.evidence.tpm import ObjectAttributes, parse_quote

__all__ = ["ATTACKS", "Attack", "hostile"]

_POLICY_DEBUG = 1 << 19
_RESETTABLE_PCR = 16

ListEdit = Callable[[list[ImaEntry]], list[ImaEntry]]


@dataclass(frozen=True, slots=True)
class Attack:
    """``check``: id of the check that must fail. ``what``: one line for people."""

    check: str
    what: str
    apply: Callable[[Platform], Platform]


def hostile(platform: Platform, name: str) -> Platform:
    """``platform`` with the lie called ``name``. Raises AttesterError where there is no such lie, or it needs a part
    that this platform does not have.
    """
    if name not in ATTACKS:
        raise AttesterError(f"there is no attack {name!r}; known are {', '.join(ATTACKS)}")
    return ATTACKS[name].apply(platform)


# The TEE


def _tee(platform: Platform) -> SimulatedTee:
    if not isinstance(platform.tee, SimulatedTee):
        raise AttesterError("this attack forges a simulated TEE, and the machine has none")
    return platform.tee


def _with_tee(change: Callable[[SimulatedTee], TeeDevice], platform: Platform) -> Platform:
    return replace(platform, tee=change(_tee(platform)))


def _fields(tee: SimulatedTee, **fields: int | bytes) -> SimulatedTee:
    return replace(tee, fields={**tee.fields, **fields})


def _forged_chain(tee: SimulatedTee) -> SimulatedTee:
    """Everything right but the root: keys of the attacker under the vendor's names."""
    vendor = AmdVendor.create(tee.vendor.product, chip_id=tee.vendor.chip_id, tcb=tee.vendor.tcb)
    return replace(tee, vendor=vendor, endorsements=None)


def _other_product(tee: SimulatedTee) -> SimulatedTee:
    """The report of one product under the chain of another."""
    product = Product.GENOA if tee.vendor.product is not Product.GENOA else Product.MILAN
    return replace(tee, vendor=AmdVendor.create(product, keys=tee.vendor.keys), endorsements=None)


def _other_chip(tee: SimulatedTee) -> SimulatedTee:
    """Signed by another chip of the vendor, with the chip_id of ours."""
    return replace(
        tee,
        vendor=tee.vendor.new_chip(),
        fields={**tee.fields, "chip_id": tee.vendor.chip_id},
        endorsements=None,
    )


def _other_vcek(tee: SimulatedTee) -> SimulatedTee:
    """Our report, and the genuine certificate of another chip."""
    other = tee.vendor.new_chip()
    return replace(tee, endorsements=(*other.certificates, other.crl()))


def _revoked(tee: SimulatedTee) -> SimulatedTee:
    return replace(tee, endorsements=(*tee.vendor.certificates, tee.vendor.crl(revoked=[tee.vendor.chip])))


def _old_tcb(tee: SimulatedTee) -> SimulatedTee:
    """The report claims firmware older than what the chip's certificate was issued for."""
    vendor = tee.vendor
    older = {name: svn // 2 for name, svn in vendor.tcb.items()}
    return _fields(tee, reported_tcb=encode_tcb(older, vendor.product.tcb_layout))


@dataclass
class _FlippedBit:
    """One bit of the measurement changed after signing."""

    inner: TeeDevice

    @property
    def kind(self) -> TeeKind:
        return self.inner.kind

    def quote(self, report_data: bytes) -> TeeQuote:
        quote = self.inner.quote(report_data)
        raw = bytearray(quote.raw)
        raw[0x90] ^= 1
        return replace(quote, raw=bytes(raw))


# The TPM


def _tpm(platform: Platform) -> TpmDevice:
    if platform.tpm is None:
        raise AttesterError("this attack forges a TPM, and the machine has none")
    return platform.tpm


def _with_tpm(change: Callable[[TpmDevice], TpmDevice], platform: Platform) -> Platform:
    return replace(platform, tpm=change(_tpm(platform)))


@dataclass
class _TpmWrapper:
    """Hands everything on to the true TPM."""

    inner: TpmDevice

    def provision(self) -> None:
        self.inner.provision()

    def provisioned(self) -> bool:
        return self.inner.provisioned()

    def ak_public(self) -> bytes:
        return self.inner.ak_public()

    def ak_certificate(self) -> bytes | None:
        return self.inner.ak_certificate()

    def platform_ak(self, qualifying_data: bytes) -> PlatformAk | None:
        return self.inner.platform_ak(qualifying_data)

    def ek(self) -> EndorsementKey | None:
        return self.inner.ek()

    def activate(self, credential_blob: bytes, secret: bytes) -> bytes:
        return self.inner.activate(credential_blob, secret)

    def quote(self, qualifying_data: bytes, pcrs: Sequence[int]) -> TpmQuote:
        return self.inner.quote(qualifying_data, pcrs)


class _ReplayedTpm(_TpmWrapper):
    """Hands out the first quote for ever, one that was made for somebody else's nonce."""

    stored: TpmQuote | None = None

    def quote(self, qualifying_data: bytes, pcrs: Sequence[int]) -> TpmQuote:
        if self.stored is None:
            self.stored = self.inner.quote(secrets.token_bytes(len(qualifying_data)), pcrs)
        return self.stored


@dataclass
class _OtherPcrs(_TpmWrapper):
    """Quotes what it likes and claims the values that were asked for."""

    choose: Callable[[Sequence[int]], list[int]]

    def quote(self, qualifying_data: bytes, pcrs: Sequence[int]) -> TpmQuote:
        claimed = self.inner.quote(qualifying_data, pcrs).pcrs
        return replace(self.inner.quote(qualifying_data, self.choose(pcrs)), pcrs=claimed)


@dataclass
class _ForgedKey(_TpmWrapper):
    """The true PCRs and clock, signed by a key that the attacker holds."""

    key: SoftTpm

    def provision(self) -> None:
        """The true TPM's keys too: the attacker starts from a working machine."""
        self.inner.provision()

    def ak_public(self) -> bytes:
        return self.key.ak_public()

    def quote(self, qualifying_data: bytes, pcrs: Sequence[int]) -> TpmQuote:
        true = self.inner.quote(qualifying_data, pcrs)
        info = parse_quote(true.quote)
        self.key.clock, self.key.safe = info.clock, info.safe
        self.key.reset_count, self.key.restart_count = info.reset_count, info.restart_count
        self.key.pcrs["sha256"].update(true.pcrs)
        return self.key.quote(qualifying_data, pcrs)


def _sha1_bank(tpm: TpmDevice) -> TpmDevice:
    """The bank that collides. Only a TPM of the devkit's own can be made to quote it."""
    if not isinstance(tpm, SoftTpm):
        raise AttesterError("the SHA-1 bank can be quoted by the in-process TPM alone")
    return _OtherBank(replace(tpm, bank="sha1"))


class _OtherBank(_TpmWrapper):
    """Claims sha256 values for a quote over the sha1 bank."""

    def quote(self, qualifying_data: bytes, pcrs: Sequence[int]) -> TpmQuote:
        assert isinstance(self.inner, SoftTpm)  # noqa: S101 - see _sha1_bank
        return replace(self.inner.quote(qualifying_data, pcrs), pcrs=self.inner.read_pcrs(pcrs))


# The lists


@dataclass
class _EditedLogs:
    """The IMA list after ``edit``; ``boot`` False denies the boot event log."""

    inner: Logs
    edit: ListEdit | None
    boot: bool = True

    def _entries(self) -> list[ImaEntry] | None:
        raw = self.inner.ima_binary()
        return None if raw is None or self.edit is None else self.edit(list(parse_binary(raw)))

    def ima_binary(self) -> bytes | None:
        entries = self._entries()
        return None if entries is None else serialise_binary(entries)

    def ima_ascii(self) -> bytes | None:
        entries = self._entries()
        return None if entries is None else serialise_ascii(entries)

    def boot_event_log(self) -> bytes | None:
        return self.inner.boot_event_log() if self.boot else None

    def cc_event_log(self) -> bytes | None:
        return self.inner.cc_event_log()


def _with_log(edit: ListEdit | None, platform: Platform) -> Platform:
    return replace(platform, logs=_EditedLogs(platform.logs, edit))


def _last_measured(entries: list[ImaEntry]) -> int:
    """Index of the last entry that is no violation: nothing in the PCR vouches for a violation's data, so a change
    there is no lie that anybody could find out.
    """
    return max(index for index, entry in enumerate(entries) if not entry.is_violation)


def _changed(entries: list[ImaEntry]) -> list[ImaEntry]:
    """The last file has another digest, and the entry's template hash is right again."""
    at = _last_measured(entries)
    true = entries[at]
    forged = make_entry(true.template, "sha256", bytes(range(32)), true.path or b"", pcr=true.pcr)
    return [*entries[:at], forged, *entries[at + 1 :]]


def _stale_template_hash(entries: list[ImaEntry]) -> list[ImaEntry]:
    """Other data under the old template hash: it replays for whoever trusts the hashes of the list."""
    at, forged = _last_measured(entries), _changed(entries)
    forged[at] = forged[at]._replace(template_hash=entries[at].template_hash)
    return forged


def _hidden_violation(entries: list[ImaEntry]) -> list[ImaEntry]:
    """Violations dressed as ordinary entries."""
    if not any(entry.is_violation for entry in entries):
        raise AttesterError("the list has no violation to hide")
    return [
        entry._replace(template_hash=template_hash(entry, "sha1")) if entry.is_violation else entry for entry in entries
    ]


def _appended_in_front(entries: list[ImaEntry]) -> list[ImaEntry]:
    """An entry that was never measured, inside what was quoted."""
    extra = make_entry(entries[0].template, "sha256", bytes(range(32)), b"/never/measured")
    return [*entries[:1], extra, *entries[1:]]


def _no_boot_aggregate(entries: list[ImaEntry]) -> list[ImaEntry]:
    return [entry for entry in entries if entry.path != BOOT_AGGREGATE]


def _log(check: str, what: str, edit: ListEdit | None) -> Attack:
    return Attack(check, what, partial(_with_log, edit))


def _of_tee(check: str, what: str, change: Callable[[SimulatedTee], TeeDevice]) -> Attack:
    return Attack(check, what, partial(_with_tee, change))


def _of_tpm(check: str, what: str, change: Callable[[TpmDevice], TpmDevice]) -> Attack:
    return Attack(check, what, partial(_with_tpm, change))


ATTACKS: Mapping[str, Attack] = {
    # The TEE
    "forged-chain": _of_tee("tee.chain", "a self-made AMD chain under the vendor's names", _forged_chain),
    "other-product": _of_tee("tee.chain", "a report of one product under the chain of another", _other_product),
    "other-chip": _of_tee("tee.chain", "a report signed by another chip than it names", _other_chip),
    "other-vcek": _of_tee("tee.signature", "the genuine certificate of another chip", _other_vcek),
    "revoked-vcek": _of_tee("tee.revocation", "a chip certificate that its vendor has revoked", _revoked),
    "old-tcb": _of_tee("tee.tcb", "a report of older firmware", _old_tcb),
    "debug": _of_tee(
        "tee.debug",
        "a guest whose memory the host can read",
        lambda tee: _fields(tee, policy=tee.vendor.report(**tee.fields).policy | _POLICY_DEBUG),
    ),
    "bit-flip": _of_tee("tee.signature", "one bit of the report changed", _FlippedBit),
    "replay-tee": _of_tee(
        "tee.report_data",
        "yesterday's TEE report",
        lambda tee: replace(tee, frozen=tee.quote(secrets.token_bytes(64)).raw),
    ),
    "other-measurement": _of_tee(
        "tee.measurement", "other boot firmware", lambda tee: _fields(tee, measurement=b"\x11" * 48)
    ),
    "other-instance": _of_tee(
        "tee.instance", "another genuine VM of the same image", lambda tee: _fields(tee, report_id=b"\x22" * 32)
    ),
    "no-tee": Attack("tee.signature", "denies having a TEE", lambda platform: replace(platform, tee=None)),
    # The TPM
    "replay-tpm": _of_tpm("tpm.nonce", "yesterday's TPM quote", _ReplayedTpm),
    "other-ak": _of_tpm("tpm.ak", "another attestation key", lambda tpm: _ForgedKey(tpm, SoftTpm(seed=b"attacker"))),
    "unrestricted-ak": _of_tpm(
        "tpm.ak",
        "an attestation key that signs anything",
        lambda tpm: _ForgedKey(tpm, SoftTpm(seed=b"attacker", attributes=AK_ATTRIBUTES & ~ObjectAttributes.RESTRICTED)),
    ),
    "other-pcrs": _of_tpm(
        "tpm.pcr_selection",
        "a quote without PCR 10",
        lambda tpm: _OtherPcrs(tpm, lambda pcrs: [p for p in pcrs if p != 10]),
    ),
    "resettable-pcr": _of_tpm(
        "tpm.pcr_selection",
        "a quote over PCR 16, which anybody can reset",
        lambda tpm: _OtherPcrs(tpm, lambda pcrs: [_RESETTABLE_PCR if p == 10 else p for p in pcrs]),
    ),
    "sha1-bank": _of_tpm("tpm.pcr_selection", "a quote over the SHA-1 bank", _sha1_bank),
    "no-tpm": Attack("tpm.ak", "denies having a TPM", lambda platform: replace(platform, tpm=None)),
    # The lists
    "no-ima": _log("ima.replay", "denies having IMA", None),
    "log-removed": _log("ima.replay", "an entry removed", lambda entries: [*entries[:-2], *entries[-1:]]),
    "log-changed": _log("ima.replay", "an entry changed", _changed),
    "log-reordered": _log("ima.replay", "two entries swapped", lambda e: [*e[:-2], e[-1], e[-2]]),
    "log-inserted": _log("ima.replay", "an entry that was never measured", _appended_in_front),
    "log-stale-hash": _log("ima.replay", "a template hash that does not match its data", _stale_template_hash),
    "log-hidden-violation": _log("ima.replay", "violations dressed as ordinary entries", _hidden_violation),
    "log-empty": _log("ima.replay", "a list without entries", lambda _entries: []),
    "log-no-boot-aggregate": _log("ima.replay", "a list without boot_aggregate", _no_boot_aggregate),
}
"""Every lie by its name."""
