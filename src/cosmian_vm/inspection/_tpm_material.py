"""What the material says beside a TPM quote: signatures, keys, PCR values, and the IMA list that leads to PCR 10."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import new as new_hash
from hashlib import sha256

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from cosmian_vm.endorsements.amd import load_certificate
from cosmian_vm.errors import EndorsementError, EvidenceFormatError
from cosmian_vm.evidence.azure import parse_hcl_report, runtime_data
from cosmian_vm.evidence.ima import BOOT_AGGREGATE, IMA_PCR, PCR_SIZES, ImaEntry, extension, parse_ascii, parse_binary
from cosmian_vm.evidence.tpm import (
    Alg,
    TpmPublic,
    TpmQuoteInfo,
    TpmSignature,
    compute_pcr_digest,
    parse_public,
    parse_quote,
    parse_signature,
)
from cosmian_vm.inspection._quote_texts import plain_base64
from cosmian_vm.inspection._wrapping import layers
from cosmian_vm.inspection.model import CERTIFICATE, OTHER, PUBLIC_KEY, TPM_PUBLIC, TPM_SIGNATURE, Material
from cosmian_vm.verifier.tpm import SigningKey, key_of

__all__ = [
    "HCL_REPORT",
    "QUOTE",
    "Key",
    "Resolved",
    "SignatureItem",
    "boot_aggregate_problem",
    "hcl_keys",
    "keys_in",
    "nonces_in",
    "parsed_quotes",
    "quotes_in",
    "resolve_pcrs",
    "signatures_in",
    "signatures_of",
    "spki_sha256",
]

QUOTE = "tpm-quote"
HCL_REPORT = "hcl-report"
_IMA_LOGS: Mapping[str, Callable[[bytes], tuple[ImaEntry, ...]]] = {
    "ima-log-binary": parse_binary,
    "ima-log-ascii": parse_ascii,
}

_BARE_RSA_SIZES = frozenset({256, 384, 512})
"""A file of so many bytes may be a bare RSA signature, as Azure's tools write it."""
_MAX_ECC_BYTES = 66
_MAX_NONCE = 66
_DIGEST_ALGORITHMS = {20: Alg.SHA1, 32: Alg.SHA256, 48: Alg.SHA384, 64: Alg.SHA512}


@dataclass(frozen=True, slots=True)
class SignatureItem:
    """A signature that may be the quote's. ``form``: TPMT_SIGNATURE, or bare and of a scheme that is only guessed."""

    name: str
    signature: TpmSignature
    form: str = "TPMT_SIGNATURE"

    @property
    def bare(self) -> bool:
        """Whether the scheme is a guess."""
        return self.form != "TPMT_SIGNATURE"


@dataclass(frozen=True, slots=True)
class Key:
    """A key that may have signed. ``public``, ``tpmt_public``: its public area, None where only the bare key is known.
    ``problem``: why it cannot be used (``key`` is then None).
    """

    name: str
    key: SigningKey | None
    public: TpmPublic | None = None
    tpmt_public: bytes | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Resolved:
    """PCR values for a quote. ``banks``: the selected values if they hash to the quote's digest, else empty.

    ``problem``: why they do not; empty where nothing was given. ``ima_log``: name of the IMA list that was given.
    ``entries``: length of its prefix that leads to the quoted PCR 10, None where there is none; ``prefix``: it.
    ``ima_problem``: why the list cannot be read.
    """

    banks: Mapping[str, Mapping[int, bytes]]
    problem: str = ""
    ima_log: str = ""
    ima_total: int = 0
    entries: int | None = None
    prefix: tuple[ImaEntry, ...] = ()
    ima_problem: str = ""


def quotes_in(material: Material) -> list[tuple[str, bytes]]:
    """Name and bytes of the quotes in the material."""
    return [(item.name, item.raw) for item in material.of(QUOTE)]


def signatures_of(name: str, raw: bytes) -> list[SignatureItem]:
    """What a file may be as a signature: a TPMT_SIGNATURE; or a bare one of unknown scheme, RSA or ECDSA (DER)."""
    with contextlib.suppress(EvidenceFormatError):
        return [SignatureItem(name, parse_signature(raw[2:] if _sized(raw) else raw))]
    hashes = (Alg.SHA256, Alg.SHA384, Alg.SHA512)
    if len(raw) in _BARE_RSA_SIZES:
        schemes = (Alg.RSASSA, Alg.RSAPSS)
        return [SignatureItem(name, TpmSignature(s, h, rsa=raw), "raw RSA") for s in schemes for h in hashes]
    try:
        r, s = (value.to_bytes(_MAX_ECC_BYTES, "big") for value in decode_dss_signature(raw))
    except (ValueError, OverflowError):
        return []
    return [SignatureItem(name, TpmSignature(Alg.ECDSA, h, r=r, s=s), "raw ECDSA") for h in hashes]


def _sized(raw: bytes) -> bool:
    """Whether two bytes of length stand in front."""
    return len(raw) > 2 and int.from_bytes(raw[:2], "big") == len(raw) - 2


def signatures_in(material: Material) -> list[SignatureItem]:
    """All that may be signatures, those that say so first."""
    items = [*material.of(TPM_SIGNATURE), *material.of(OTHER)]
    return [found for item in items for found in signatures_of(item.name, item.raw)]


def keys_in(material: Material) -> list[Key]:
    """Every key that may be the AK, in the order given."""
    keys = []
    for item in material.items:
        if item.kind == TPM_PUBLIC:
            keys.append(_tpm_key(item.name, item.raw))
        elif item.kind in (PUBLIC_KEY, CERTIFICATE):
            key = _bare_key(item.raw, certificate=item.kind == CERTIFICATE)
            if key is not None:
                keys.append(Key(item.name, key))
    return keys + [Key(name, key) for name, key in hcl_keys(material)]


def _tpm_key(name: str, raw: bytes) -> Key:
    try:
        public = parse_public(raw)
        return Key(name, key_of(public), public, raw)
    except EvidenceFormatError as exc:
        return Key(name, None, problem=str(exc))


def _bare_key(raw: bytes, *, certificate: bool) -> SigningKey | None:
    """An RSA or elliptic curve key; None for any other, which no TPM has."""
    try:
        key = load_certificate(raw).public_key() if certificate else load_der_public_key(raw)
    except (EndorsementError, ValueError, TypeError, UnsupportedAlgorithm):
        return None
    return key if isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey) else None


def hcl_keys(material: Material) -> list[tuple[str, SigningKey]]:
    """The AK that each HCL report names, where the report's hardware part vouches for it."""
    found: list[tuple[str, SigningKey]] = []
    for item in material.of(HCL_REPORT):
        try:
            report = parse_hcl_report(item.raw)
            ak = runtime_data(report).ak
            if report.binds:
                found.append((item.name, rsa.RSAPublicNumbers(ak.exponent, ak.modulus).public_key()))
        except (EvidenceFormatError, ValueError):
            continue
    return found


def spki_sha256(key: SigningKey) -> bytes:
    """SHA-256 of the key's SubjectPublicKeyInfo."""
    return sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def nonces_in(material: Material, tpm_names: Iterable[bytes]) -> list[tuple[str, frozenset[bytes]]]:
    """What may be a nonce: name, and the byte strings that its content may stand for (raw, text, hex, base64)."""
    known = frozenset(tpm_names)
    found = []
    for item in material.of(OTHER):
        if item.raw in known or len(item.raw) > 2 * _MAX_NONCE + 2 or signatures_of(item.name, item.raw):
            continue
        readings = {item.raw, item.raw.rstrip(b"\r\n")}
        with contextlib.suppress(ValueError):  # of which UnicodeDecodeError is one
            readings.add(bytes.fromhex(item.raw.decode("ascii")))
        if base64 := plain_base64(item.raw):
            readings.add(base64)
        found.append((item.name, frozenset(readings)))
    return found


def resolve_pcrs(quote: TpmQuoteInfo, material: Material, hash_alg: int | None) -> Resolved:
    """Find the PCR values that were quoted among those given; PCR 10 also from the IMA list that leads to it.

    ``hash_alg``: of the signature, None where it is not known: then the one of the digest's size.
    """
    algorithm = hash_alg if hash_alg is not None else _DIGEST_ALGORITHMS.get(len(quote.pcr_digest), Alg.SHA256)
    log, entries, ima_problem = _ima_list(material)
    found = Resolved({}, ima_log=log, ima_total=len(entries), ima_problem=ima_problem)
    for banks in _candidates(quote, material):
        values = {bank: dict(pcrs) for bank, pcrs in banks.items()}
        if _matches(quote, values, algorithm):
            length = _prefix(quote, values, entries)
            return _with_prefix(found, values, entries, length)
        for length, value, bank in _prefixes(quote, entries):
            trial = {**values, bank: {**values.get(bank, {}), IMA_PCR: value}}
            if _matches(quote, trial, algorithm):
                return _with_prefix(found, trial, entries, length)
    problem = ""
    if material.pcrs or (log and _selects_only_ima(quote)):
        problem = "no PCR values that were given hash to the digest in the quote"
    return Resolved({}, problem, log, len(entries), ima_problem=ima_problem)


def _with_prefix(
    found: Resolved, banks: Mapping[str, Mapping[int, bytes]], entries: tuple[ImaEntry, ...], length: int | None
) -> Resolved:
    return Resolved(
        banks=banks,
        ima_log=found.ima_log,
        ima_total=found.ima_total,
        entries=length,
        prefix=entries[: length or 0],
        ima_problem=found.ima_problem,
    )


def _ima_list(material: Material) -> tuple[str, tuple[ImaEntry, ...], str]:
    """Name, entries and problem of the first IMA list in the material."""
    for item in material.items:
        if item.kind in _IMA_LOGS:
            try:
                return item.name, _IMA_LOGS[item.kind](item.raw), ""
            except EvidenceFormatError as exc:
                return item.name, (), str(exc)
    return "", (), ""


def _selects_only_ima(quote: TpmQuoteInfo) -> bool:
    return all(selection.pcrs == (IMA_PCR,) for selection in quote.pcr_selections)


def _candidates(quote: TpmQuoteInfo, material: Material) -> Iterator[Mapping[str, Mapping[int, bytes]]]:
    """The selected values from each file of PCR values; nothing at all where only PCR 10 matters."""
    for values in material.pcrs:
        yield {
            selection.bank: {
                pcr: values.banks[selection.bank][pcr]
                for pcr in selection.pcrs
                if pcr in values.banks.get(selection.bank, {})
            }
            for selection in quote.pcr_selections
        }
    for item in material.of(OTHER):
        for raw in (item.raw, *(inside.raw for inside in layers(item.raw))):
            if (bare := _bare_values(quote, raw)) is not None:
                yield bare
    if _selects_only_ima(quote):
        yield {}


def _bare_values(quote: TpmQuoteInfo, raw: bytes) -> Mapping[str, Mapping[int, bytes]] | None:
    """The selected values where ``raw`` is nothing but these, one behind the other; None where its length is not."""
    wanted = [(s.bank, pcr) for s in quote.pcr_selections for pcr in s.pcrs]
    size = sum(PCR_SIZES.get(bank, 0) for bank, _ in wanted)
    if len(raw) != size or size <= 2 * _MAX_NONCE:
        return None
    banks: dict[str, dict[int, bytes]] = {}
    at = 0
    for bank, pcr in wanted:
        banks.setdefault(bank, {})[pcr] = raw[at : at + PCR_SIZES[bank]]
        at += PCR_SIZES[bank]
    return banks


def _matches(quote: TpmQuoteInfo, banks: Mapping[str, Mapping[int, bytes]], algorithm: int) -> bool:
    try:
        return compute_pcr_digest(quote.pcr_selections, banks, algorithm) == quote.pcr_digest
    except EvidenceFormatError:
        return False


def _prefixes(quote: TpmQuoteInfo, entries: tuple[ImaEntry, ...]) -> Iterator[tuple[int, bytes, str]]:
    """Length, PCR 10 and bank after each entry, for every bank in which PCR 10 is quoted; at least one entry."""
    for bank in {s.bank for s in quote.pcr_selections if IMA_PCR in s.pcrs and s.bank in PCR_SIZES}:
        for padded in (False, True):  # kernels before 5.8 padded the SHA-1
            value = bytes(PCR_SIZES[bank])
            for number, entry in enumerate(entries, 1):
                if entry.pcr == IMA_PCR:
                    value = _hash(bank, value + extension(entry, bank, padded_sha1=padded))
                yield number, value, bank


def _prefix(quote: TpmQuoteInfo, banks: Mapping[str, Mapping[int, bytes]], entries: tuple[ImaEntry, ...]) -> int | None:
    """Length of the prefix that leads to the quoted PCR 10; None where there is none."""
    for length, value, bank in _prefixes(quote, entries):
        if banks[bank].get(IMA_PCR) == value:
            return length
    return None


def _hash(algorithm: str, data: bytes) -> bytes:
    return new_hash(algorithm, data, usedforsecurity=False).digest()


def boot_aggregate_problem(first: ImaEntry, banks: Mapping[str, Mapping[int, bytes]]) -> str | None:
    """Why the list's boot_aggregate is not the hash of the quoted boot PCRs; empty if it is, None where that cannot be
    told: PCRs 0 to 7 were not quoted in a bank, or the entry is none.

    Linux hashes PCRs 0 to 9 since 5.8, 0 to 7 before and for SHA-1, of the bank of the same algorithm.
    """
    if first.path != BOOT_AGGREGATE or first.digest is None:
        return "the list does not begin with boot_aggregate"
    algorithm = first.digest_algorithm or "sha1"
    if algorithm not in PCR_SIZES:
        return None
    told = False
    for pcrs in banks.values():
        for last in (9, 7):
            if all(pcr in pcrs for pcr in range(last + 1)):
                told = True
                if _hash(algorithm, b"".join(pcrs[pcr] for pcr in range(last + 1))) == first.digest:
                    return ""
    return "boot_aggregate is not the hash of the quoted boot PCRs" if told else None


def parsed_quotes(material: Material) -> Iterator[tuple[str, TpmQuoteInfo]]:
    """The quotes in the material that can be read."""
    for name, raw in quotes_in(material):
        try:
            yield name, parse_quote(raw)
        except EvidenceFormatError:
            continue
