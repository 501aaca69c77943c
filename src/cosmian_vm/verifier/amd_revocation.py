"""Is anything in an SNP chain revoked? Pure.

AMD's key service publishes, for each product, a CRL signed by the ARK (AMD 57230, "Certificate Revocation List"). It
revokes an ASK or ASVK by serial number. Chip certificates all have the serial number 0: an entry with that number in a
CRL of the chain revokes every chip certificate under it, and is taken at its word.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import rsa

from cosmian_vm.endorsements.amd import (
    UNUSABLE,
    RevocationList,
    crl_url,
    is_pinned_root,
    names,
    read_crl,
)
from cosmian_vm.endorsements.remembered import remembered
from cosmian_vm.verifier.amd_chain import Chain
from cosmian_vm.verifier.result import Check, fail, ok, skip

__all__ = ["check_revocation"]

_ID = "tee.revocation"


class _Found(msgspec.Struct):
    """What the CRLs at hand say. ``current``: one that is authentic and covers ``now``."""

    current: RevocationList | None = None
    outdated: list[str] = msgspec.field(default_factory=list)
    forged: list[str] = msgspec.field(default_factory=list)
    revoked: list[str] = msgspec.field(default_factory=list)


def check_revocation(chain: Chain, crls: Iterable[bytes], now: datetime) -> Check:
    """``tee.revocation``: an authentic, current CRL of the root is there, and no authentic CRL names the chain.

    ``crls``: DER. An outdated CRL still revokes; it just cannot clear. CRLs of other issuers are passed over.
    """
    found = _Found()
    for der in crls:
        _read(der, chain, now, found)
    if found.revoked:
        return fail(_ID, f"{found.revoked[0]}: its key is no longer to be trusted", found.revoked[1:] + found.forged)
    if found.current is not None:
        of = f"list of {found.current.last_update:%Y-%m-%d}"
        return ok(_ID, f"Nothing in the chain is revoked ({of})", found.forged)
    where = _where(chain)
    if found.forged:
        return fail(_ID, f"{found.forged[0]}; {where}", found.forged[1:] + found.outdated)
    if found.outdated:
        return fail(_ID, f"{found.outdated[0]}; {where}", found.outdated[1:])
    root = names(chain.root).subject_cn
    return skip(_ID, f"No revocation list (CRL) of {root!r} is at hand: {where}")


def _where(chain: Chain) -> str:
    if not is_pinned_root(chain.root) or chain.product is None:
        return "get a current one from the maker of that root"
    return f"get the current one from {crl_url(chain.product, chain.chip.kind)}"


def _read(der: bytes, chain: Chain, now: datetime, found: _Found) -> None:
    """Take one CRL into account, if it is of this chain's root or intermediate."""
    crl = read_crl(der)
    issuer = next((c for c in (chain.root, chain.intermediate) if names(c).subject == crl.issuer), None)
    if issuer is None:
        return
    name = names(issuer).subject_cn
    if not _is_authentic(crl.crl, issuer):
        found.forged.append(f"A revocation list in the name of {name!r} is not signed by its key")
        return
    if names(chain.intermediate).serial in crl.serials and issuer is chain.root:
        found.revoked.append(_revoked(name, chain.intermediate))
    if chain.chip.serial in crl.serials:
        found.revoked.append(_revoked(name, chain.chip.certificate))
    if issuer is not chain.root:
        return
    if crl.partial:
        found.outdated.append(f"The revocation list of {name!r} covers a part of its certificates only")
    elif now < crl.last_update:
        found.outdated.append(f"The revocation list of {name!r} is valid only from {crl.last_update:%Y-%m-%d} on")
    elif crl.next_update is None or now > crl.next_update:
        ended = "has no end of validity" if crl.next_update is None else f"ended on {crl.next_update:%Y-%m-%d}"
        found.outdated.append(f"The revocation list of {name!r} {ended}")
    else:
        found.current = crl


def _revoked(issuer: str, certificate: x509.Certificate) -> str:
    return f"{issuer!r} has revoked {names(certificate).subject_cn!r} (serial {names(certificate).serial:#x})"


@remembered
def _is_authentic(crl: x509.CertificateRevocationList, issuer: x509.Certificate) -> bool:
    """Whether the issuer's key signed the CRL."""
    key = issuer.public_key()
    try:
        return isinstance(key, rsa.RSAPublicKey) and crl.is_signature_valid(key)
    except (InvalidSignature, *UNUSABLE):
        return False
