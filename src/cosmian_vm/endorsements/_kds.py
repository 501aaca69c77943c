"""What a SEV-SNP report needs of AMD's key service (KDS): chip certificate, chain, revocation list.

Source: AMD 57230, "Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface Specification", chapter "KDS
Interface": ``/vcek/v1/{product}/{hwID}?{parameters}``, ``/vcek/v1/{product}/cert_chain``, ``/vcek/v1/{product}/crl``;
the same under ``/vlek``, but for the certificate itself, which a cloud provider alone can get.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from urllib.parse import urlencode

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cosmian_vm.endorsements._fetch import Answer, Request
from cosmian_vm.endorsements._lookup import REMEDY, Lookup, Wanted
from cosmian_vm.endorsements.amd import (
    UNUSABLE,
    AmdEndorsements,
    Product,
    collect,
    common_name,
    is_chip_certificate,
    parse_chip_certificate,
    pinned_intermediates,
)
from cosmian_vm.errors import EndorsementError
from cosmian_vm.evidence.snp import SigningKey, SnpReport, decode_tcb

__all__ = ["KDS", "fits", "gather_amd", "issuers", "vcek_url"]

KDS = "https://kdsintf.amd.com"
"""AMD's key service."""

_MAX_CERTIFICATES = 1 << 20
_MAX_CRL = 4 << 20
_TURIN_HWID = 8
_WITHOUT_CPUID = (Product.MILAN, Product.GENOA)
"""What a version 2 report, which names no product, can be of."""


def vcek_url(report: SnpReport, product: Product, kds: str = KDS) -> str:
    """KDS address of the certificate of the very chip and TCB that signed ``report``.

    Turin's has fmcSPL first, and the first 8 bytes of CHIP_ID as hwID.
    """
    tcb = decode_tcb(report.reported_tcb, product.tcb_layout).components
    query = urlencode({f"{name}SPL": f"{svn:02d}" for name, svn in tcb.items()})
    chip = report.chip_id[:_TURIN_HWID] if product is Product.TURIN else report.chip_id
    return f"{kds}/vcek/v1/{product}/{chip.hex()}?{query}"


def fits(certificate: x509.Certificate, report: SnpReport) -> bool:
    """Whether a chip certificate says that it is for the kind of key, the chip and the TCB that ``report`` names."""
    try:
        chip = parse_chip_certificate(certificate)
    except EndorsementError:
        return False
    product = chip.product or report.product or Product.MILAN
    svns = decode_tcb(report.reported_tcb, product.tcb_layout).components
    if chip.kind is not report.signing_key or any(chip.svns.get(name) != svn for name, svn in svns.items()):
        return False
    if chip.hwid is None or not any(report.chip_id):
        return True
    return report.chip_id[: len(chip.hwid) if product is Product.TURIN else None] == chip.hwid


def gather_amd(report: SnpReport, have: AmdEndorsements, lookup: Lookup, kds: str) -> list[bytes]:
    """What ``have`` lacks (DER): chip certificate, its issuers, a current revocation list. Each lack is noted."""
    found: list[bytes] = []
    chips = [c for c in have.certificates if is_chip_certificate(c)]
    chip = next((c for c in chips if fits(c, report)), None)
    if chip is None:
        got = _chip(report, lookup, kds, having=bool(chips))
        chip = got or next(iter(chips), None)
        found += [] if got is None else [_der(got)]
    product = report.product or _issued_for(chip)
    if product is None:
        return found
    kind = "vlek" if report.signing_key is SigningKey.VLEK else "vcek"
    if chip is not None and not any(_issued(chip, c) for c in have.certificates):
        chain = lookup.get(_wanted_chain(f"{kds}/{kind}/v1/{product}/cert_chain", kind, product))
        found += [_der(certificate) for certificate in chain or ()]
    return [*found, *_revocation(have, product, kind, lookup, kds)]


def _revocation(have: AmdEndorsements, product: Product, kind: str, lookup: Lookup, kds: str) -> list[bytes]:
    ark = f"ARK-{product}"
    wanted = _wanted_crl(f"{kds}/{kind}/v1/{product}/crl", product, ark)
    ours = [crl for crl in have.crls if common_name(crl.issuer) == ark]
    if not lookup.renew and any(lookup.is_current(_next_update(crl)) for crl in ours):
        # The one at hand may have been chosen by the machine: what the cache knows beside it costs nothing.
        cached = lookup.cached(wanted)
        return [] if cached is None else [_der(cached)]
    crl = lookup.get(wanted)
    return [] if crl is None else [_der(crl)]


def _chip(report: SnpReport, lookup: Lookup, kds: str, *, having: bool) -> x509.Certificate | None:
    """The chip's certificate from the key service, by the product that the report names or, in version 2, by trying."""
    what = "the chip's certificate (VCEK)"
    if report.signing_key is not SigningKey.VCEK or not any(report.chip_id):
        if not having:
            kind = "VLEK" if report.signing_key is SigningKey.VLEK else "VCEK"
            lookup.notes.append(
                f"no chip certificate ({kind}) came with the report, and this one cannot be looked up: the machine "
                "must send it, or give it with --endorsements DIR"
            )
        return None
    if report.version >= 3:
        if report.product is None:
            cpu = f"family {report.cpuid_fam_id:#x}, model {report.cpuid_mod_id:#x}"
            lookup.notes.append(f"{what} cannot be looked up: the report is of a processor that is not known ({cpu})")
            return None
        return lookup.get(_wanted_chip(report, report.product, kds))
    if lookup.offline:
        cached = [c for p in _WITHOUT_CPUID if (c := lookup.cached(_wanted_chip(report, p, kds))) is not None]
        if cached:
            return next((c for c in cached if _signed(report, c)), cached[0])
        places = " or ".join(vcek_url(report, product, kds) for product in _WITHOUT_CPUID)
        lookup.notes.append(f"{what} is at {places}, and the network is not to be used; {REMEDY}")
        return None
    return _tried(report, lookup, kds, what)


def _tried(report: SnpReport, lookup: Lookup, kds: str, what: str) -> x509.Certificate | None:
    first: x509.Certificate | None = None
    failures: list[str] = []
    for product in _WITHOUT_CPUID:
        certificate = lookup.get(_wanted_chip(report, product, kds), failures)
        if certificate is not None and _signed(report, certificate):
            lookup.notes.append(
                f"the report is of version 2, which names no processor: by its chip certificate it is a {product}"
            )
            return certificate
        first = first or certificate
    if first is None:
        lookup.notes.extend(failures)
    else:
        lookup.notes.append(f"{what}: of those that {kds} has for this chip and TCB, none has signed this report")
    return first


def _signed(report: SnpReport, certificate: x509.Certificate) -> bool:
    """Whether the certificate's key signed the report. It chooses a candidate; the verifier asks again."""
    try:
        signature = encode_dss_signature(report.r, report.s)
        key = parse_chip_certificate(certificate).public_key
        key.verify(signature, report.signed, ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, EndorsementError, *UNUSABLE):
        return False
    return True


def _issued(chip: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        chip.verify_directly_issued_by(issuer)
    except (InvalidSignature, *UNUSABLE):
        return False
    return True


def _issued_for(chip: x509.Certificate | None) -> Product | None:
    """The product by the name of a chip certificate's issuer (SEV-Milan, SEV-VLEK-Milan)."""
    family = "" if chip is None else common_name(chip.issuer).rpartition("-")[2]
    return Product(family) if family in set(Product) else None


def _wanted_chip(report: SnpReport, product: Product, kds: str) -> Wanted[x509.Certificate]:
    def read(answer: Answer) -> x509.Certificate:
        for certificate in collect([answer.body], pinned=False).certificates:
            if is_chip_certificate(certificate) and fits(certificate, report):
                return certificate
        raise EndorsementError("what came is not the certificate of this chip and TCB")

    return Wanted(
        what="the chip's certificate (VCEK)",
        request=Request(url=vcek_url(report, product, kds), most=_MAX_CERTIFICATES),
        read=read,
        until=lambda certificate: certificate.not_valid_after_utc,
        lasting=True,
    )


def _wanted_chain(url: str, kind: str, product: Product) -> Wanted[tuple[x509.Certificate, ...]]:
    def read(answer: Answer) -> tuple[x509.Certificate, ...]:
        certificates = collect([answer.body], pinned=False).certificates
        if not certificates:
            raise EndorsementError("what came holds no certificate")
        return certificates

    names = "ASVK and ARK" if kind == "vlek" else "ASK and ARK"
    return Wanted(
        what=f"the certificates between chip and root ({names} of {product})",
        request=Request(url=url, most=_MAX_CERTIFICATES),
        read=read,
        until=lambda certificates: min(certificate.not_valid_after_utc for certificate in certificates),
        lasting=True,
    )


def _wanted_crl(url: str, product: Product, ark: str) -> Wanted[x509.CertificateRevocationList]:
    def read(answer: Answer) -> x509.CertificateRevocationList:
        for crl in collect([answer.body], pinned=False).crls:
            if common_name(crl.issuer) == ark:
                return crl
        raise EndorsementError(f"what came is no revocation list of {ark}")

    return Wanted(
        what=f"the revocation list of {product}", request=Request(url=url, most=_MAX_CRL), read=read, until=_next_update
    )


def _next_update(crl: x509.CertificateRevocationList) -> datetime | None:
    # One without an end of validity clears nothing, so it is as good as expired.
    return crl.next_update_utc or crl.last_update_utc


def _der(thing: x509.Certificate | x509.CertificateRevocationList) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return thing.public_bytes(Encoding.DER)


def issuers(chip: x509.Certificate, among: Iterable[x509.Certificate]) -> list[x509.Certificate]:
    """The certificates above ``chip`` (intermediate, root) that are among those given, by signature."""
    chain: list[x509.Certificate] = []
    below = chip
    pool = [*among, *pinned_intermediates()]
    while len(chain) < 2 and (issuer := next((c for c in pool if _issued(below, c)), None)) is not None:
        chain.append(issuer)
        if issuer.subject == issuer.issuer:
            break
        below = issuer
    return chain
