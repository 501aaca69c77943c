"""Where endorsements come from: with the evidence, from the disk cache, from AMD's key service (KDS), in this order.

Nothing that is fetched is trusted for being fetched: certificates and CRLs count only once they chain to a pinned root,
which is the verifier's work. Source of the paths: AMD 57230, "KDS Interface".
"""

from __future__ import annotations

import hashlib
import http.client
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import msgspec

from cosmian_vm.endorsements.amd import (
    AmdEndorsements,
    Product,
    collect,
    common_name,
    crl_url,
    is_chip_certificate,
    load_crl,
)
from cosmian_vm.endorsements.intel_collateral import IntelCollateral
from cosmian_vm.errors import CosmianVmError, EndorsementError, TransportError
from cosmian_vm.evidence.bundle import TeeKind, tee_kind
from cosmian_vm.evidence.snp import MAX_OBJECTS, SigningKey, SnpEvidence, SnpReport, decode_tcb, parse_evidence

__all__ = ["EndorsementStore", "Gathered", "fetch", "vcek_url"]

Fetch = Callable[[str], bytes]

_MAX_BODY = 1 << 20
_TIMEOUT = 10.0
_KDS = "https://kdsintf.amd.com"


class Gathered(msgspec.Struct, frozen=True):
    """What was found, and one line for each thing that was looked for in vain (what, where, and the remedy)."""

    endorsements: AmdEndorsements
    collateral: IntelCollateral | None = None
    notes: tuple[str, ...] = ()


def vcek_url(report: SnpReport, product: Product) -> str:
    """KDS address of the certificate of the very chip and TCB that signed ``report``."""
    tcb = decode_tcb(report.reported_tcb, product.tcb_layout).components
    query = urlencode({f"{name}SPL": f"{svn:02d}" for name, svn in tcb.items()})
    chip = report.chip_id[:8] if product is Product.TURIN else report.chip_id
    return f"{_KDS}/vcek/v1/{product}/{chip.hex()}?{query}"


def fetch(url: str) -> bytes:
    """GET ``url`` over TLS with the usual CA checks: at most 1 MiB, ten seconds. Raises TransportError."""
    parts = urlsplit(url)
    path = f"{parts.path}?{parts.query}" if parts.query else parts.path
    connection = http.client.HTTPSConnection(parts.hostname or "", parts.port or 443, timeout=_TIMEOUT)
    try:
        connection.request("GET", path, headers={"User-Agent": "cosmian-vm"})
        answer = connection.getresponse()
        body = answer.read(_MAX_BODY + 1)
    except (OSError, http.client.HTTPException) as exc:
        raise TransportError(f"{parts.hostname} cannot be reached: {exc or type(exc).__name__}") from exc
    finally:
        connection.close()
    if answer.status != 200:
        raise TransportError(f"{parts.hostname} answered {answer.status} {answer.reason}")
    if len(body) > _MAX_BODY:
        raise TransportError(f"{parts.hostname} sent more than {_MAX_BODY} bytes")
    return body


class EndorsementStore:
    """Looks endorsements up. ``cache``: a folder, or None for none; ``fetcher``: None stays off the network."""

    def __init__(self, *, cache: Path | None, fetcher: Fetch | None) -> None:
        self._cache = cache
        self._fetch = fetcher

    def gather(self, tee: bytes | None, blobs: Iterable[bytes], *, now: datetime) -> Gathered:
        """Everything for one TEE quote: what is in it, what came beside it (``blobs``), and what is missing then.

        Never raises: what cannot be had becomes a note, and the verifier withholds trust for want of it.
        """
        notes: list[str] = []
        found = _readable(blobs, notes)
        snp = _snp(tee)
        if snp is None:
            return Gathered(_all(found), notes=tuple(notes))
        found += [*snp.certificates, *snp.crls]
        have = _all(found)
        chips = [c for c in have.certificates if is_chip_certificate(c)]
        product = snp.report.product
        if not chips:
            found += self._chip(snp.report, product, notes)
        ark = _root_of(have, product)
        if ark and not any(common_name(crl.issuer) == ark and _fresh(crl.next_update_utc, now) for crl in have.crls):
            found += self._crl(Product(ark.removeprefix("ARK-")), snp.report, now, notes)
        return Gathered(_all(found), notes=tuple(notes))

    def _chip(self, report: SnpReport, product: Product | None, notes: list[str]) -> list[bytes]:
        if report.signing_key is not SigningKey.VCEK or product is None:
            notes.append(
                "no chip certificate came with the report, and this one cannot be looked up: the machine must send it"
            )
            return []
        return self._one(vcek_url(report, product), "the chip's certificate (VCEK)", notes)

    def _crl(self, product: Product, report: SnpReport, now: datetime, notes: list[str]) -> list[bytes]:
        url = crl_url(product, report.signing_key or SigningKey.VCEK)
        cached = self._read(url)
        if cached is not None:
            with suppress(EndorsementError):
                if _fresh(load_crl(cached).next_update_utc, now):
                    return [cached]
        return self._one(url, f"the revocation list of {product}", notes, cached=False)

    def _one(self, url: str, what: str, notes: list[str], *, cached: bool = True) -> list[bytes]:
        raw = self._read(url) if cached else None
        if raw is None:
            if self._fetch is None:
                notes.append(f"{what} is not at hand, and the network is not to be used: it is at {url}")
                return []
            try:
                raw = self._fetch(url)
                collect([raw])
            except CosmianVmError as exc:
                notes.append(f"{what} could not be had from {url}: {exc}")
                return []
            self._write(url, raw)
        return [raw]

    def _path(self, url: str) -> Path | None:
        return None if self._cache is None else self._cache / hashlib.sha256(url.encode()).hexdigest()

    def _read(self, url: str) -> bytes | None:
        path = self._path(url)
        try:
            raw = None if path is None else path.read_bytes()
            if raw is not None:
                collect([raw])
        except (OSError, EndorsementError):
            return None
        return raw

    def _write(self, url: str, raw: bytes) -> None:
        """Keep ``raw``; a cache that cannot be written is no reason to fail."""
        path = self._path(url)
        if path is None:
            return
        with suppress(OSError):
            import tempfile

            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=path.parent)
            with os.fdopen(descriptor, "wb") as file:
                file.write(raw)
            Path(name).replace(path)


def _readable(blobs: Iterable[bytes], notes: list[str]) -> list[bytes]:
    """The blobs that are certificates or CRLs; the others are noted, for they came from the other side."""
    good: list[bytes] = []
    room = MAX_OBJECTS
    for number, blob in enumerate(blobs):
        try:
            found = collect([blob], pinned=False)
            room -= len(found.certificates) + len(found.crls)
        except EndorsementError as exc:
            notes.append(f"the machine sent something that is no certificate and no revocation list: {exc}")
        else:
            good.append(blob)
        if room < 0 or number == MAX_OBJECTS:
            notes.append(f"more than {MAX_OBJECTS} certificates and revocation lists were sent; the rest is left out")
            return good[:-1] if room < 0 else good
    return good


def _all(blobs: Iterable[bytes]) -> AmdEndorsements:
    """What was readable, each from a source with a bound of its own: beside the quote, in it, chip certificate, CRL."""
    return collect(blobs, most=4 * MAX_OBJECTS)


def _snp(tee: bytes | None) -> SnpEvidence | None:
    if tee is None or tee_kind(tee) is not TeeKind.SNP:
        return None
    try:
        return parse_evidence(tee)
    except CosmianVmError:
        return None


def _root_of(have: AmdEndorsements, product: Product | None) -> str | None:
    """Common name of AMD's root for this evidence: by the report's CPUID, else by the chip certificate's issuer."""
    if product is not None:
        return f"ARK-{product}"
    for certificate in have.certificates:
        if is_chip_certificate(certificate):
            family = common_name(certificate.issuer).rpartition("-")[2]
            return f"ARK-{family}" if family in set(Product) else None
    return None


def _fresh(next_update: datetime | None, now: datetime) -> bool:
    return next_update is not None and now < next_update
