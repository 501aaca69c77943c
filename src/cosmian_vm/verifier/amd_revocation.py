"""Is anything in an SNP chain revoked? Pure.

AMD's key service publishes, for each product, a CRL signed by the ARK (AMD 57230, "Certificate Revocation List"). It
revokes an ASK or ASVK by serial number. Chip certificates all have the serial number 0: an entry with that number in a
CRL of the chain revokes every chip certificate under it, and is taken at its word.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.endorsements.amd import (
    common_name,
    crl_url,
    is_pinned_root,
    load_certificate,
    load_crl,
    revoked_serials,
    serial_number,
)
from cosmian_vm.verifier.amd_chain import Chain
from cosmian_vm.verifier.result import Check, fail, ok, skip

__all__ = ["check_revocation"]

_ID = "tee.revocation"


@dataclass(slots=True)
class _Found:
    """What the CRLs at hand say. ``current``: one that is authentic and covers ``now``."""

    current: x509.CertificateRevocationList | None = None
    outdated: list[str] = field(default_factory=list)
    forged: list[str] = field(default_factory=list)
    revoked: list[str] = field(default_factory=list)


def check_revocation(chain: Chain, crls: Iterable[x509.CertificateRevocationList], now: datetime) -> Check:
    """``tee.revocation``: an authentic, current CRL of the root is there, and no authentic CRL names the chain.

    An outdated CRL still revokes; it just cannot clear. CRLs of other issuers are passed over.
    """
    found = _Found()
    for crl in crls:
        _read(crl, chain, now, found)
    if found.revoked:
        return fail(_ID, f"{found.revoked[0]}: its key is no longer to be trusted", found.revoked[1:] + found.forged)
    where = _where(chain)
    if found.current is not None:
        until = (
            ""
            if found.current.next_update_utc is None
            else f" (list valid to {found.current.next_update_utc:%Y-%m-%d})"
        )
        return ok(_ID, f"Nothing in the chain is revoked{until}", found.forged)
    if found.forged:
        return fail(_ID, f"{found.forged[0]}; {where}", found.forged[1:] + found.outdated)
    if found.outdated:
        return fail(_ID, f"{found.outdated[0]}; {where}", found.outdated[1:])
    root = common_name(chain.root.subject)
    return skip(_ID, f"No revocation list (CRL) of {root!r} is at hand: {where}")


def _where(chain: Chain) -> str:
    if not is_pinned_root(chain.root) or chain.product is None:
        return "get a current one from the maker of that root"
    return f"get the current one from {crl_url(chain.product, chain.chip.kind)}"


def _read(crl: x509.CertificateRevocationList, chain: Chain, now: datetime, found: _Found) -> None:
    """Take one CRL into account, if it is of this chain's root or intermediate."""
    issuer = next((c for c in (chain.root, chain.intermediate) if c.subject == crl.issuer), None)
    if issuer is None:
        return
    name = common_name(issuer.subject)
    der = crl.public_bytes(Encoding.DER)
    if not _is_authentic(der, issuer.public_bytes(Encoding.DER)):
        found.forged.append(f"A revocation list in the name of {name!r} is not signed by its key")
        return
    serials = revoked_serials(der)
    under = (chain.intermediate, chain.chip.certificate) if issuer is chain.root else (chain.chip.certificate,)
    for certificate in under:
        serial = serial_number(certificate)
        if serial in serials:
            found.revoked.append(f"{name!r} has revoked {common_name(certificate.subject)!r} (serial {serial:#x})")
    if issuer is not chain.root:
        return
    if _is_partial(crl):
        found.outdated.append(f"The revocation list of {name!r} covers a part of its certificates only")
    elif now < crl.last_update_utc:
        found.outdated.append(f"The revocation list of {name!r} is valid only from {crl.last_update_utc:%Y-%m-%d} on")
    elif crl.next_update_utc is None or now > crl.next_update_utc:
        ended = "has no end of validity" if crl.next_update_utc is None else f"ended on {crl.next_update_utc:%Y-%m-%d}"
        found.outdated.append(f"The revocation list of {name!r} {ended}")
    else:
        found.current = crl


@lru_cache(maxsize=32)
def _is_authentic(crl_der: bytes, issuer_der: bytes) -> bool:
    """Whether the issuer's key signed the CRL. Remembered by the bytes of both."""
    crl, key = load_crl(crl_der), load_certificate(issuer_der).public_key()
    try:
        return isinstance(key, rsa.RSAPublicKey) and crl.is_signature_valid(key)
    except (InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        return False


def _is_partial(crl: x509.CertificateRevocationList) -> bool:
    """A critical extension narrows a CRL down (delta, distribution point): RFC 5280, 5.2, forbids to rely on it."""
    try:
        return any(extension.critical for extension in crl.extensions)
    except (ValueError, x509.DuplicateExtension):
        return True
