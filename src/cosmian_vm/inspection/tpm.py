"""``cosmian_vm inspect`` for TPM quotes, and for the signature of one where the quote stands beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.ima import IMA_PCR
from cosmian_vm.evidence.tpm import TPM_GENERATED_VALUE, Attest, TpmQuoteInfo, algorithm_name, name, parse_quote
from cosmian_vm.inspection._tpm_material import (
    QUOTE,
    Key,
    Resolved,
    SignatureItem,
    boot_aggregate_problem,
    hcl_keys,
    keys_in,
    nonces_in,
    quotes_in,
    resolve_pcrs,
    signatures_in,
    signatures_of,
    spki_sha256,
)
from cosmian_vm.inspection.model import JSON, Facts, Kind, Material, Roots
from cosmian_vm.verifier.result import Check, fail, ok, skip, warning
from cosmian_vm.verifier.tpm import ak_problems, signature_problem

__all__ = ["KINDS", "check_digest", "check_nonce", "no_quote"]

_MAGIC = TPM_GENERATED_VALUE.to_bytes(4, "big")


@dataclass(frozen=True, slots=True)
class _Parts:
    """A quote with what was given beside it. ``signature``, ``key``: those that fit together, else the first given.
    ``problem``: why the signature does not verify; empty if it does.
    """

    quote: bytes
    signature: SignatureItem | None
    key: Key | None
    problem: str


def _matches(raw: bytes) -> bool:
    return raw[:4] == _MAGIC


def _claims(raw: bytes, material: Material) -> bool:
    """A signature beside a quote: of its own form, or as long as a bare RSA signature."""
    return bool(quotes_in(material)) and bool(signatures_of("", raw))


def _parts(raw: bytes, material: Material) -> _Parts:
    """What belongs together: the file is the quote, or the signature of the first quote in the material."""
    if _matches(raw):
        quote, signatures = raw, signatures_in(material)
    else:
        quotes = quotes_in(material)
        quote, signatures = quotes[0][1] if quotes else b"", signatures_of("this file", raw)
    keys = keys_in(material)
    problem = ""
    for item in signatures:
        for key in keys:
            trouble = key.problem if key.key is None else signature_problem(key.key, item.signature, quote)
            if not trouble:
                return _Parts(quote, item, key, "")
            problem = problem or f"{key.name}: {trouble}"
    return _Parts(quote, signatures[0] if signatures else None, keys[0] if keys else None, problem)


def _facts(raw: bytes, material: Material) -> Facts:
    parts = _parts(raw, material)
    if not _matches(raw):
        return {"bytes": len(raw), **_signature_facts(parts.signature)}
    quote = parse_quote(raw)
    facts: Facts = {
        "bytes": len(raw),
        "magic": f"{TPM_GENERATED_VALUE:#010x}",
        "type": f"{Attest.QUOTE:#06x}",
        "qualified_signer": quote.qualified_signer.hex(),
        "extra_data": quote.extra_data.hex(),
        "clock": quote.clock,
        "reset_count": quote.reset_count,
        "restart_count": quote.restart_count,
        "safe": int(quote.safe),
        "firmware_version": f"{quote.firmware_version:016x}",
        "pcr_selection": [{"bank": s.bank, "pcrs": list(s.pcrs)} for s in quote.pcr_selections],
        "pcr_digest": quote.pcr_digest.hex(),
        **_signature_facts(parts.signature),
        **_key_facts(parts.key),
    }
    resolved = resolve_pcrs(quote, material, _hash_of(parts))
    if resolved.banks:
        facts["pcrs"] = {bank: _hex_values(values) for bank, values in resolved.banks.items()}
    if resolved.entries is not None:
        facts["ima_entries"] = resolved.entries
    return facts


def _hex_values(values: Mapping[int, bytes]) -> dict[str, JSON]:
    return {str(pcr): value.hex() for pcr, value in sorted(values.items())}


def _signature_facts(item: SignatureItem | None) -> Facts:
    if item is None:
        return {}
    return {"signature_scheme": item.signature.scheme_name, "signature_form": item.form}


def _key_facts(key: Key | None) -> Facts:
    """``ak``: the whole public area where it was given; ``ak_spki_sha256``: of a bare key."""
    if key is None or key.key is None:
        return {}
    spki = spki_sha256(key.key).hex()
    if key.public is None or key.tpmt_public is None:
        return {"ak_spki_sha256": spki}
    scheme = key.public.scheme
    return {
        "ak": {
            "type": algorithm_name(key.public.type),
            "attributes": f"{int(key.public.attributes):#x}",
            "scheme": f"{scheme.scheme:#x}",
            "scheme_hash": algorithm_name(scheme.hash_alg) if scheme.hash_alg else None,
            "name": name(key.tpmt_public).hex(),
            "spki_sha256": spki,
        }
    }


def _hash_of(parts: _Parts) -> int | None:
    """Hash of the signature's scheme; a bare signature does not say."""
    return None if parts.signature is None or parts.signature.bare else parts.signature.signature.hash_alg


def _verify(raw: bytes, material: Material, at: datetime, roots: Roots) -> list[Check]:  # noqa: ARG001 - a Kind's form
    parts = _parts(raw, material)
    checks = [_check_ak(parts, material), _check_signature(parts)]
    try:
        quote = parse_quote(parts.quote)
    except EvidenceFormatError as exc:
        return [*checks, fail("tpm.nonce", f"the quote cannot be read ({exc})")]
    resolved = resolve_pcrs(quote, material, _hash_of(parts))
    checks.append(check_nonce(quote, material))
    checks.append(check_digest(resolved))
    if resolved.ima_log:
        checks += _check_ima(quote, resolved)
    return checks


def _check_signature(parts: _Parts) -> Check:
    if parts.signature is None:
        return replace(skip("tpm.signature", "give the quote's signature with --with"), required=True)
    if parts.key is None:
        return replace(skip("tpm.signature", "give the key that signed with --with"), required=True)
    if parts.problem:
        return fail("tpm.signature", f"the signature is not of this quote by the key given ({parts.problem})")
    try:
        parse_quote(parts.quote)
    except EvidenceFormatError as exc:
        return fail("tpm.signature", f"what is signed is no quote ({exc})")
    return ok("tpm.signature", f"signed by {parts.key.name} ({parts.signature.signature.scheme_name})")


def _check_ak(parts: _Parts, material: Material) -> Check:
    """Is the key that signed an attestation key, and whose?"""
    key = parts.key
    if key is None:
        return skip("tpm.ak", "no key was given")
    if parts.signature is not None and parts.problem:
        return fail("tpm.ak", f"the key given is not the one that signed ({parts.problem})")
    if key.public is not None:
        problems = ak_problems(key.public)
        if problems:
            return fail("tpm.ak", f"{key.name} is no attestation key: {problems[0]}", problems[1:])
    named = hcl_keys(material)
    if named and key.key is not None:
        if any(spki_sha256(other) == spki_sha256(key.key) for _, other in named):
            return ok("tpm.ak", f"the key is HCLAkPub of {named[0][0]}; inspect that report for who vouches for it")
        return fail("tpm.ak", f"the key is not HCLAkPub of {named[0][0]}: another machine's")
    if key.public is None:
        return warning("tpm.ak", f"{key.name} is a bare key: nothing says that it is a restricted key of a TPM")
    return ok("tpm.ak", f"{key.name} is a restricted signing key of one TPM")


def check_nonce(quote: TpmQuoteInfo, material: Material) -> Check:
    """Is extraData the nonce that was given? Without one: does the quote carry any?"""
    names = [name(key.tpmt_public) for key in keys_in(material) if key.tpmt_public is not None]
    nonces = nonces_in(material, names)
    if any(quote.extra_data in readings for _, readings in nonces) and quote.extra_data:
        return ok("tpm.nonce", "the quote answers the nonce given")
    if nonces:
        line = f"extraData is {quote.extra_data.hex() or 'empty'}: not the nonce in {nonces[0][0]}"
        return fail("tpm.nonce", line)
    if not quote.extra_data:
        return warning("tpm.nonce", "the quote carries no nonce: nothing says when it was made")
    return ok("tpm.nonce", f"the quote carries the nonce {quote.extra_data.hex()}; none was given to compare it with")


def check_digest(resolved: Resolved) -> Check:
    """Do the PCR values given hash to the digest in the quote?"""
    if resolved.banks:
        return ok("pcr_digest", "the PCR values are those that were quoted")
    if resolved.problem:
        return fail("pcr_digest", resolved.problem)
    return skip("pcr_digest", "give the PCR values with --with to check them against the quote")


def no_quote(log: str) -> Check:
    """Of a log that was given alone: whoever has the file can have written it."""
    return skip("tpm.signature", f"nobody vouches for the {log}: give a quote with its signature and key with --with")


def _check_ima(quote: TpmQuoteInfo, resolved: Resolved) -> list[Check]:
    """An IMA list beside the quote: does a prefix of it lead to PCR 10, and is boot_aggregate right?"""
    if resolved.ima_problem:
        return [fail("ima.replay", resolved.ima_problem)]
    if not any(IMA_PCR in selection.pcrs for selection in quote.pcr_selections):
        return [skip("ima.replay", f"PCR {IMA_PCR} was not quoted")]
    if not resolved.banks and not resolved.problem:
        return [skip("ima.replay", "give the other PCR values with --with: the digest covers them all")]
    if resolved.entries is None:
        return [fail("ima.replay", f"no prefix of {resolved.ima_log} leads to the quoted PCR {IMA_PCR}")]
    wrong = [number for number, entry in enumerate(resolved.prefix) if not entry.hash_matches]
    if wrong:
        return [
            fail("ima.replay", f"entry {wrong[0]} of {resolved.ima_log}: its template hash is not that of its data")
        ]
    line = f"PCR {IMA_PCR} is the first {resolved.entries} of {resolved.ima_total} entries of {resolved.ima_log}"
    checks = [ok("ima.replay", line)]
    problem = boot_aggregate_problem(resolved.prefix[0], resolved.banks)
    if problem:
        checks += [fail("ima.boot_aggregate", problem), fail("tpm.boot_pcrs", problem)]
    elif problem is not None:
        line = "boot_aggregate is the hash of the quoted boot PCRs"
        checks += [ok("ima.boot_aggregate", line), ok("tpm.boot_pcrs", line)]
    return checks


KINDS = (Kind(name=QUOTE, title="TPM 2.0 quote", matches=_matches, facts=_facts, verify=_verify, claims=_claims),)
