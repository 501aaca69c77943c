"""PCRs out of a unified kernel image. That firmware, stub and kernel really do so is shown in tests/vm."""

from __future__ import annotations

import struct
from contextlib import suppress
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.devkit.uki import default_uki, make_pe
from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.reference.uki import PHASES, image_hash, predict, sections

CMDLINE = b"root=PARTUUID=5c2d8f0e ima_policy=tcb ima_hash=sha256"


def extended(*digests: bytes) -> bytes:
    value = bytes(32)
    for digest in digests:
        value = sha256(value + digest).digest()
    return value


def of(data: bytes) -> bytes:
    return sha256(data).digest()


# The Authenticode hash


def test_everything_counts_but_checksum_and_signature() -> None:
    plain = make_pe({".a": b"1", ".b": b"2" * 600})
    where = plain.index(b"PE\0\0") + 24 + 64
    table = plain.index(b"PE\0\0") + 24 + 112 + 8 * 4
    expected = sha256(plain[:where] + plain[where + 4 : table] + plain[table + 8 :]).digest()
    assert image_hash(plain) == expected
    assert image_hash(make_pe({".a": b"1", ".b": b"2" * 600}, checksum=77)) == expected
    assert image_hash(make_pe({".a": b"1", ".b": b"2" * 600}, certificate=b"signed")) == expected
    for position in range(len(plain)):
        if where <= position < where + 4 or table <= position < table + 8:
            continue
        changed = bytearray(plain)
        changed[position] ^= 1
        with suppress(EvidenceFormatError):  # the header is none any more
            assert image_hash(bytes(changed)) != expected, position


def test_what_lies_behind_the_sections_counts() -> None:
    parts = {".a": b"1"}
    assert image_hash(make_pe(parts, tail=b"tail")) != image_hash(make_pe(parts))
    assert image_hash(make_pe(parts, tail=b"tail", certificate=b"x" * 8)) == image_hash(make_pe(parts, tail=b"tail"))


def test_a_certificate_table_that_would_hide_sections() -> None:
    raw = bytearray(make_pe({".a": b"1"}, certificate=b"x" * 8))
    struct.pack_into("<I", raw, raw.index(b"PE\0\0") + 24 + 112 + 8 * 4 + 4, 9)
    with pytest.raises(EvidenceFormatError, match="certificate table"):
        image_hash(bytes(raw))


# Sections


def test_sections_are_as_in_memory() -> None:
    raw = make_pe({".a": b"12345", ".b": b"x" * 600})
    assert sections(raw) == {".a": b"12345", ".b": b"x" * 600}
    grown = bytearray(raw)
    struct.pack_into("<I", grown, raw.index(b".a\0") + 8, 700)  # more in memory than in the file
    assert sections(bytes(grown))[".a"] == b"12345".ljust(700, b"\0")


def test_a_section_that_is_there_twice() -> None:
    raw = make_pe({".a": b"1", ".b": b"2"}).replace(b".b\0", b".a\0")
    with pytest.raises(EvidenceFormatError, match="twice"):
        sections(raw)


# Predictions


def test_all_that_is_predicted() -> None:
    uki = default_uki()
    prediction = predict(uki, phases=PHASES)
    kernel = sections(uki)[".linux"]
    assert prediction.left_out == ()
    assert prediction.pcrs == {
        4: extended(of(b"Calling EFI Application from Boot Option"), of(bytes(4)), image_hash(uki), image_hash(kernel)),
        9: extended(of(CMDLINE.decode().encode("utf-16-le") + b"\0\0")),
        11: extended(
            *(of(b".linux\0"), of(kernel)),
            *(of(b".osrel\0"), of(b"ID=debian\n")),
            *(of(b".cmdline\0"), of(CMDLINE)),
            *(of(b"sysinit"), of(b"ready")),
        ),
        12: bytes(32),
        13: bytes(32),
    }


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"cmdline": CMDLINE + b" lockdown=none"}, {4, 9, 11}),
        ({"linux": make_pe({".text": b"another kernel"})}, {4, 11}),
        ({"osrel": b"ID=other\n"}, {4, 11}),
        ({"text": b"another stub"}, {4}),
        ({"splash": b"picture"}, {4, 11}),
        ({"uname": b"6.1.1"}, {4}),
    ],
)
def test_each_part_is_in_the_pcrs_that_measure_it(changes: dict[str, bytes], changed: set[int]) -> None:
    before, after = predict(default_uki(), phases=PHASES), predict(default_uki(**changes), phases=PHASES)
    assert after.left_out == ()
    assert {pcr for pcr in before.pcrs if before.pcrs[pcr] != after.pcrs[pcr]} == changed


@pytest.mark.parametrize(
    ("changes", "left"),
    [
        ({"initrd": b"cpio"}, {9, 11}),
        ({"uname": b"6.12.0"}, {9}),
        ({"uname": b""}, {9}),
        ({"cmdline": b""}, {9}),
        ({"cmdline": "caf\N{LATIN SMALL LETTER E WITH ACUTE}".encode()}, {9}),
        ({"cmdline": b"a\nb"}, {9}),
        ({"sdmagic": b"#### LoaderInfo: systemd-stub 255.4 ####"}, {4, 9, 11, 12, 13}),
        ({"sdmagic": b"#### LoaderInfo: systemd-stub 2524 ####"}, {4, 9, 11, 12, 13}),
        ({"sdmagic": b""}, {4, 9, 11, 12, 13}),
    ],
)
def test_what_is_not_known_is_left_out_and_said(changes: dict[str, bytes], left: set[int]) -> None:
    prediction = predict(default_uki(**changes), phases=PHASES)
    assert set(prediction.pcrs) == {4, 9, 11, 12, 13} - left
    named = "".join(what for what, _ in prediction.left_out).replace("PCR", ",").replace(" ", "").split(",")
    assert {int(pcr) for pcr in named if pcr} == left
    assert all(why for _, why in prediction.left_out)


def test_unknown_phases() -> None:
    prediction = predict(default_uki(), phases=None)
    assert 11 not in prediction.pcrs
    assert "phases" in prediction.left_out[0][1]


def test_an_image_without_kernel() -> None:
    with pytest.raises(EvidenceFormatError, match=r"no kernel"):
        predict(default_uki(linux=b""), phases=PHASES)
    with pytest.raises(EvidenceFormatError, match="kernel in the unified kernel image"):
        predict(default_uki(linux=b"no PE file"), phases=PHASES)


def test_every_truncation() -> None:
    uki = default_uki()
    whole = predict(uki, phases=PHASES)
    for size in range(len(uki)):
        with suppress(EvidenceFormatError):
            assert predict(uki[:size], phases=PHASES) != whole


@given(st.binary(max_size=600))
def test_any_bytes(raw: bytes) -> None:
    for data in (raw, b"MZ" + raw):
        with pytest.raises(EvidenceFormatError):
            predict(data, phases=PHASES)


@given(st.lists(st.tuples(st.integers(0, 1023), st.integers(0, 255)), min_size=1, max_size=8))
def test_any_header(changes: list[tuple[int, int]]) -> None:
    raw = bytearray(default_uki())
    for position, value in changes:
        raw[position] = value
    try:
        predict(bytes(raw), phases=PHASES)
    except EvidenceFormatError as exc:
        told = str(exc)
    else:
        told = ""
    assert told.isprintable()
