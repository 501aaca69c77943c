"""Where endorsements come from: what was given or came with the evidence, the disk cache, the vendors' services.

Nothing is trusted for where it came from: certificates, CRLs and collateral count only once they chain to a pinned
root, which is the verifier's work. What is at hand and has run out is looked up again; if that fails, it is
handed on with a note, for the verifier judges dates.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cosmian_vm.endorsements._cache import Cache
from cosmian_vm.endorsements._fetch import Answer, Fetch, Fetcher, Limits, Request, fetch
from cosmian_vm.endorsements._kds import KDS, fits, gather_amd, issuers, vcek_url
from cosmian_vm.endorsements._lookup import REMEDY, Lookup
from cosmian_vm.endorsements.amd import AmdEndorsements, collect, is_chip_certificate
from cosmian_vm.errors import CosmianVmError, EndorsementError, EvidenceFormatError
from cosmian_vm.evidence.bundle import TeeKind, tee_kind
from cosmian_vm.evidence.snp import MAX_OBJECTS, SnpEvidence, parse_evidence

if TYPE_CHECKING:
    from cosmian_vm.endorsements.intel_collateral import IntelCollateral
    from cosmian_vm.evidence.intel_quote import Quote

# All of Intel's is imported where there is something of Intel's: it takes its time.

__all__ = [
    "REMEDY",
    "Answer",
    "EndorsementStore",
    "Fetch",
    "Fetcher",
    "Gathered",
    "Limits",
    "Request",
    "Services",
    "fetch",
    "fits",
    "issuers",
    "vcek_url",
]

PCS = "https://api.trustedservices.intel.com"
"""Intel's service."""
ROOT_CRL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
"""The CRL distribution point of Intel's root."""

MAX_GIVEN = 1024
"""Most certificates and CRLs that are taken of what the user gives."""
MAX_COLLATERALS = 8
"""Most collaterals that are taken of what came with the evidence."""


class Gathered(msgspec.Struct, frozen=True):
    """What was found, and one line for each thing that was looked for in vain: what and where, and behind the last of
    them what to do.
    """

    endorsements: AmdEndorsements
    collateral: IntelCollateral | None = None
    notes: tuple[str, ...] = ()


class Services(msgspec.Struct, frozen=True):
    """The vendors' services, base addresses without a slash at the end. ``root_crl``: the whole address of the CRL of
    Intel's root.
    """

    kds: str = KDS
    pcs: str = PCS
    root_crl: str = ROOT_CRL

    def through(self, pccs: str) -> Services:
        """The same, but all of Intel's from a PCCS. Raises InputError where ``pccs`` is no address."""
        from cosmian_vm.endorsements._pcs import pccs_base

        base = pccs_base(pccs)
        return Services(self.kds, base, f"{base}/sgx/certification/v4/rootcacrl")


class EndorsementStore:
    """Looks endorsements up. ``cache``: a folder, or None for none; ``fetcher``: None stays off the network.

    ``limits``: of one round of looking up; a fetcher that was made with others keeps its own.
    """

    def __init__(
        self,
        *,
        cache: Path | None,
        fetcher: Fetch | None,
        services: Services | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._cache = Cache(cache)
        self._fetch = fetcher
        self._services = services or Services()
        self._limits = limits or Limits()

    def gather(
        self,
        tee: bytes | None,
        blobs: Iterable[bytes],
        *,
        now: datetime,
        given: Iterable[bytes] = (),
        renew: bool = False,
    ) -> Gathered:
        """Everything for one TEE quote: what is in it, what came beside it (``blobs``), what the user has (``given``),
        and what is missing then. Of ``given``, certificates of other chips are left out. ``renew``: look up anew what
        may have changed since, although what is at hand is current.

        Never raises: what cannot be had becomes a note, and the verifier withholds trust for want of it.
        """
        notes: list[str] = []
        lookup = Lookup(self._cache, self._fetch, now=now, limits=self._limits, notes=notes, renew=renew)
        snp, quote = _snp(tee), _quote(tee)
        own = _sorted(given, notes, "--endorsements", most=MAX_GIVEN, collaterals=MAX_GIVEN)
        sent = _sorted(blobs, notes, "the machine", most=MAX_OBJECTS, collaterals=MAX_COLLATERALS)
        collaterals = [*own.collaterals, *sent.collaterals]
        found = [*_ours(own.blobs, snp), *sent.blobs]
        if quote is not None:
            from cosmian_vm.endorsements._pcs import gather_intel

            pcs, root_crl = self._services.pcs, self._services.root_crl
            collateral = gather_intel(quote, collaterals, lookup, now, pcs=pcs, root_crl=root_crl)
            return Gathered(_all(found), collateral, _remedy_once(notes))
        if snp is not None:
            found += [*snp.certificates, *snp.crls]
            found += gather_amd(snp.report, _all(found), lookup, self._services.kds)
        return Gathered(_all(found), notes=_remedy_once(notes))


def _remedy_once(notes: list[str]) -> tuple[str, ...]:
    """The same helps against all of them; Intel's collateral alone is four things that may be missing."""
    last = max((place for place, note in enumerate(notes) if note.endswith(REMEDY)), default=0)
    return (*(note.removesuffix(f"; {REMEDY}") for note in notes[:last]), *notes[last:])


class _Sorted(msgspec.Struct, frozen=True):
    """``blobs``: certificates and CRLs, readable."""

    blobs: list[bytes]
    collaterals: list[IntelCollateral]


def _sorted(blobs: Iterable[bytes], notes: list[str], source: str, *, most: int, collaterals: int) -> _Sorted:
    """What is usable, within bounds; the rest is noted, for it came from the other side."""
    good: list[bytes] = []
    intel: list[IntelCollateral] = []
    room = most
    for number, blob in enumerate(blobs):
        try:
            if number < most and _is_json(blob):
                from cosmian_vm.endorsements.intel_collateral import parse_collateral_cached

                if len(intel) == collaterals:
                    notes.append(f"more than {collaterals} collaterals came from {source}; the rest is left out")
                    break
                intel.append(parse_collateral_cached(blob))
                continue
            found = collect([blob], pinned=False, most=most) if number < most else None
            room -= most + 1 if found is None else len(found.certificates) + len(found.crls)
        except (EndorsementError, EvidenceFormatError) as exc:
            notes.append(f"{source} gave something that is no certificate, no revocation list and no collateral: {exc}")
            continue
        if room < 0:
            notes.append(f"more than {most} certificates and revocation lists came from {source}; the rest is left out")
            break
        good.append(blob)
    return _Sorted(good, intel)


def _is_json(blob: bytes) -> bool:
    return blob[:64].lstrip()[:1] == b"{"


def _ours(given: Iterable[bytes], snp: SnpEvidence | None) -> list[bytes]:
    """What the user gave without the certificates of other chips: of a whole fleet they may lie in one folder."""
    ours: list[bytes] = []
    for blob in given:
        found = collect([blob], pinned=False, most=MAX_GIVEN)
        foreign = [c for c in found.certificates if is_chip_certificate(c) and not (snp and fits(c, snp.report))]
        if len(foreign) < len(found.certificates) + len(found.crls):
            ours.append(blob)
    return ours


def _all(blobs: Iterable[bytes]) -> AmdEndorsements:
    """What was readable, each from a source with a bound of its own: given, beside the quote, in it, looked up."""
    return collect(blobs, most=MAX_GIVEN + 4 * MAX_OBJECTS)


def _snp(tee: bytes | None) -> SnpEvidence | None:
    if tee is None or tee_kind(tee) is not TeeKind.SNP:
        return None
    try:
        return parse_evidence(tee)
    except CosmianVmError:
        return None


def _quote(tee: bytes | None) -> Quote | None:
    if tee is None or tee_kind(tee) not in (TeeKind.TDX, TeeKind.SGX):
        return None
    from cosmian_vm.evidence.intel_quote import parse_quote

    try:
        return parse_quote(tee)
    except CosmianVmError:
        return None
