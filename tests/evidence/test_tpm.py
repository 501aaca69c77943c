"""TPM structures: exact inverses, total parsers, and the facts of real quotes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence import tpm
from cosmian_vm.evidence.tpm import Alg, Curve, ObjectAttributes, PcrSelection

QUOTE = tpm.TpmQuoteInfo(
    qualified_signer=b"\x00\x0b" + bytes(range(32)),
    extra_data=b"nonce",
    clock=0xA1A2A3A4A5A6A7A8,
    reset_count=7,
    restart_count=9,
    safe=True,
    firmware_version=0x2019102300163636,
    pcr_selections=(tpm.pcr_selection("sha256", range(16)),),
    pcr_digest=bytes(32),
)
ATTRIBUTES = ObjectAttributes.RESTRICTED | ObjectAttributes.SIGN | ObjectAttributes.FIXED_TPM
ECC = tpm.TpmPublic(
    Alg.SHA256,
    ATTRIBUTES,
    b"",
    tpm.EccParameters(
        tpm.Symmetric(), tpm.Scheme(Alg.ECDSA, Alg.SHA256), Curve.NIST_P256, tpm.Scheme(), bytes(32), bytes(32)
    ),
)
RSA_STORAGE = tpm.TpmPublic(
    Alg.SHA256,
    ObjectAttributes.RESTRICTED | ObjectAttributes.DECRYPT,
    bytes(32),
    tpm.RsaParameters(tpm.Symmetric(Alg.AES, 128, 0x43), tpm.Scheme(), 2048, 0, bytes(range(256))),
)
ECDSA = tpm.TpmSignature(Alg.ECDSA, Alg.SHA256, r=bytes(range(32)), s=bytes(range(1, 33)))
RSAPSS = tpm.TpmSignature(Alg.RSAPSS, Alg.SHA384, rsa=bytes(range(256)))

Parser = Callable[[bytes], Any]
EXAMPLES: list[tuple[Parser, Callable[[Any], bytes], Any]] = [
    (tpm.parse_quote, tpm.serialise_quote, QUOTE),
    (tpm.parse_quote, tpm.serialise_quote, QUOTE._replace(safe=False, extra_data=b"", pcr_selections=())),
    (tpm.parse_public, tpm.serialise_public, ECC),
    (tpm.parse_public, tpm.serialise_public, RSA_STORAGE),
    (tpm.parse_signature, tpm.serialise_signature, ECDSA),
    (tpm.parse_signature, tpm.serialise_signature, RSAPSS),
    (tpm.parse_signature, tpm.serialise_signature, RSAPSS._replace(algorithm=Alg.RSASSA)),
]
PARSERS: list[Parser] = [tpm.parse_quote, tpm.parse_public, tpm.parse_public_2b, tpm.parse_signature, tpm.name]


@pytest.mark.parametrize(("parse", "serialise", "value"), EXAMPLES)
def test_round_trip(parse: Parser, serialise: Callable[[Any], bytes], value: Any) -> None:
    assert parse(serialise(value)) == value


@pytest.mark.parametrize(("parse", "serialise", "value"), EXAMPLES)
def test_every_truncation_and_a_byte_more(parse: Parser, serialise: Callable[[Any], bytes], value: Any) -> None:
    raw = serialise(value)
    for size in range(len(raw)):
        with pytest.raises(EvidenceFormatError):
            parse(raw[:size])
    with pytest.raises(EvidenceFormatError, match="too many"):
        parse(raw + b"\0")


@pytest.mark.parametrize("parse", PARSERS)
@given(raw=st.binary(max_size=300))
def test_any_bytes(parse: Parser, raw: bytes) -> None:
    try:
        parse(raw)
    except EvidenceFormatError as exc:
        line = str(exc)
    else:
        return
    assert "\n" not in line


@pytest.mark.parametrize(("parse", "serialise", "value"), EXAMPLES)
@given(data=st.data())
def test_mutations_are_read_as_they_are_or_refused(
    parse: Parser, serialise: Callable[[Any], bytes], value: Any, data: st.DataObject
) -> None:
    """What is accepted comes back byte for byte: no byte of the input is without meaning."""
    raw = bytearray(serialise(value))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        parsed = parse(bytes(raw))
    except EvidenceFormatError:
        return
    assert serialise(parsed) == bytes(raw)


@given(data=st.data())
def test_the_short_way_accepts_what_the_long_way_does(data: st.DataObject) -> None:
    raw = bytearray(tpm.serialise_quote(QUOTE))
    for _ in range(data.draw(st.integers(0, 2))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(raw[: data.draw(st.integers(0, len(raw)))]) if data.draw(st.booleans()) else bytes(raw)
    short = tpm._usual_quote(cut)
    if short is not None:
        assert tpm._any_quote(cut) == short


def test_the_short_way_is_taken() -> None:
    assert tpm._usual_quote(tpm.serialise_quote(QUOTE)) == QUOTE


def field_of(parse: Parser, raw: bytes) -> tuple[str | None, int | None]:
    with pytest.raises(EvidenceFormatError) as caught:
        parse(raw)
    return caught.value.field, caught.value.offset


def test_errors_name_field_and_offset() -> None:
    raw = tpm.serialise_quote(QUOTE)
    assert field_of(tpm.parse_quote, b"\xff\x54\x43\x48" + raw[4:]) == ("magic", 0)
    assert field_of(tpm.parse_quote, raw[:4] + b"\x80\x17" + raw[6:]) == ("type", 4)
    assert field_of(tpm.parse_quote, raw[:5]) == ("type", 4)
    safe = raw.index(QUOTE.clock.to_bytes(8, "big")) + 16
    assert field_of(tpm.parse_quote, raw[:safe] + b"\x02" + raw[safe + 1 :]) == ("clockInfo.safe", safe)
    public = tpm.serialise_public(ECC)
    assert field_of(tpm.parse_public, b"\x00\x08" + public[2:]) == ("type", 0)
    assert field_of(tpm.parse_public, public[:2] + b"\x00\x10" + public[4:])[0] == "nameAlg"
    assert field_of(tpm.parse_public, public[:4] + b"\x80\x00\x00\x00" + public[8:]) == ("objectAttributes", 4)
    signature = tpm.serialise_signature(ECDSA)
    assert field_of(tpm.parse_signature, b"\x00\x10" + signature[2:]) == ("sigAlg", 0)
    assert field_of(tpm.parse_signature, signature[:2] + b"\x00\x10" + signature[4:])[0] == "hash"


@pytest.mark.parametrize("kind", [0x8014, 0x8015, 0x8016, 0x8017, 0x8019, 0x801A, 0x801C])
def test_other_attestations_are_no_quotes(kind: int) -> None:
    raw = tpm.serialise_quote(QUOTE)
    with pytest.raises(EvidenceFormatError, match="is not a quote"):
        tpm.parse_quote(raw[:4] + kind.to_bytes(2, "big") + raw[6:])


def test_lengths_over_the_limit_are_refused_before_anything_is_read() -> None:
    raw = tpm.serialise_quote(QUOTE._replace(extra_data=bytes(tpm.MAX_EXTRA_DATA + 1)))
    assert field_of(tpm.parse_quote, raw)[0] == "extraData"
    many = QUOTE._replace(pcr_selections=QUOTE.pcr_selections * 17)
    assert field_of(tpm.parse_quote, tpm.serialise_quote(many))[0] == "pcrSelect.count"
    wide = QUOTE._replace(pcr_selections=(PcrSelection(Alg.SHA256, bytes(5)),))
    assert field_of(tpm.parse_quote, tpm.serialise_quote(wide))[0] == "pcrSelect.sizeofSelect"


@given(pcrs=st.sets(st.integers(0, 23)))
def test_selection(pcrs: set[int]) -> None:
    selection = tpm.pcr_selection("sha256", pcrs)
    assert selection.pcrs == tuple(sorted(pcrs))
    assert selection.bank == "sha256"
    assert len(selection.select) == 3


@pytest.mark.parametrize(("bank", "pcrs"), [("sha256", [24]), ("sha256", [-1]), ("md5", [0])])
def test_impossible_selections(bank: str, pcrs: list[int]) -> None:
    with pytest.raises(ValueError, match=r"PCR"):
        tpm.pcr_selection(bank, pcrs)


def test_pcr_digest_is_ascending_within_and_banks_in_order() -> None:
    banks = {"sha256": {3: b"c" * 32, 1: b"a" * 32}, "sha1": {0: b"z" * 20}}
    selections = (tpm.pcr_selection("sha256", [3, 1]), tpm.pcr_selection("sha1", [0]))
    expected = hashlib.sha256(b"a" * 32 + b"c" * 32 + b"z" * 20).digest()
    assert tpm.compute_pcr_digest(selections, banks, Alg.SHA256) == expected
    assert len(tpm.compute_pcr_digest(selections, banks, Alg.SHA384)) == 48


@pytest.mark.parametrize("bank", [{}, {1: b"short"}, {2: bytes(32)}])
def test_pcr_digest_needs_every_value(bank: dict[int, bytes]) -> None:
    with pytest.raises(EvidenceFormatError, match="sha256 PCR 1"):
        tpm.compute_pcr_digest([tpm.pcr_selection("sha256", [1])], {"sha256": bank}, Alg.SHA256)


def test_name() -> None:
    raw = tpm.serialise_public(ECC)
    assert tpm.name(raw) == b"\x00\x0b" + hashlib.sha256(raw).digest()
    sha384 = tpm.serialise_public(ECC._replace(name_alg=Alg.SHA384))
    assert tpm.name(sha384) == b"\x00\x0c" + hashlib.sha384(sha384).digest()


def test_length_in_front() -> None:
    raw = tpm.serialise_public(ECC)
    assert tpm.parse_public_2b(len(raw).to_bytes(2, "big") + raw) == raw
    for size in (len(raw) - 1, len(raw) + 1):
        with pytest.raises(EvidenceFormatError, match="TPM2B_PUBLIC"):
            tpm.parse_public_2b(size.to_bytes(2, "big") + raw)
    with pytest.raises(EvidenceFormatError):
        tpm.parse_public(len(raw).to_bytes(2, "big") + raw)


@pytest.mark.evidence
def test_real_structures_come_back_byte_for_byte(evidence: Path) -> None:
    seen = 0
    rows: list[tuple[str, Parser, Callable[[Any], bytes]]] = [
        ("**/q*.msg", tpm.parse_quote, tpm.serialise_quote),
        ("tpm/**/quote.sig", tpm.parse_signature, tpm.serialise_signature),
        ("vm/**/*.sig", tpm.parse_signature, tpm.serialise_signature),
        ("**/*.tpmt_public", tpm.parse_public, tpm.serialise_public),
    ]
    for pattern, parse, serialise in rows:
        for file in evidence.glob(pattern):
            raw = file.read_bytes()
            assert serialise(parse(raw)) == raw
            for size in range(len(raw)):
                with pytest.raises(EvidenceFormatError):
                    parse(raw[:size])
            seen += 1
    assert seen >= 25


@pytest.mark.evidence
def test_real_name(evidence: Path) -> None:
    folder = evidence / "tpm" / "keylime-simulator"
    public = tpm.parse_public_2b((folder / "ak.tpm2b_public").read_bytes())
    assert tpm.name(public) == (folder / "ak.name").read_bytes()
    parsed = tpm.parse_public(public)
    assert parsed.type == Alg.RSA
    assert parsed.scheme == tpm.Scheme(Alg.RSASSA, Alg.SHA256)
