"""Boot event logs: exact inverses, total parsers, replay as TCG says."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence import boot_log
from cosmian_vm.evidence._boot_events import describe_data, format_guid
from cosmian_vm.evidence.boot_log import EventType, make_log, parse, replay, serialise

EVENTS = [
    (0, EventType.EV_NO_ACTION, b"", b"StartupLocality\0\x03"),
    (0, EventType.EV_S_CRTM_VERSION, b"v1", b"v1"),
    (4, EventType.EV_EFI_ACTION, b"Calling", b"Calling"),
    (4, EventType.EV_SEPARATOR, bytes(4), bytes(4)),
    (14, EventType.EV_IPL, b"mok", b"MokList\0"),
]


def agile(*banks: str) -> bytes:
    return make_log(banks or ("sha256",), EVENTS)


def legacy_event(pcr: int, kind: int, hashed: bytes, data: bytes) -> bytes:
    return struct.pack("<II", pcr, kind) + hashlib.sha1(hashed).digest() + struct.pack("<I", len(data)) + data


def legacy() -> bytes:
    spec = b"Spec ID Event00\0" + bytes(13)
    head = struct.pack("<II", 0, EventType.EV_NO_ACTION) + bytes(20) + struct.pack("<I", len(spec)) + spec
    return head + b"".join(legacy_event(*event) for event in EVENTS[1:])


@pytest.mark.parametrize("raw", [agile(), agile("sha1", "sha256", "sha384"), legacy()])
@pytest.mark.parametrize("padding", [b"", b"\xff" * 100, bytes(100), b"\xff", b"\0"])
def test_round_trip(raw: bytes, padding: bytes) -> None:
    log = parse(raw + padding)
    assert serialise(log) == raw + padding
    assert log.bytes_used == len(raw)
    assert log.trailing == len(padding)
    assert len(log.events) == len(EVENTS) + (raw != legacy())


def test_replay_per_bank() -> None:
    log = parse(agile("sha1", "sha256"))
    assert log.format == boot_log.CRYPTO_AGILE
    assert log.banks == ("sha1", "sha256")
    for bank, size in (("sha1", 20), ("sha256", 32)):
        value = bytes(size)
        for hashed in (b"Calling", bytes(4)):
            value = hashlib.new(bank, value + hashlib.new(bank, hashed).digest()).digest()
        assert replay(log, bank)[4] == value
    assert set(replay(log, "sha256")) == {0, 4, 14}


def test_startup_locality_is_the_last_byte_of_pcr_0() -> None:
    log = parse(agile())
    assert boot_log.startup_locality(log) == 3
    assert replay(log, "sha256")[0] == hashlib.sha256(bytes(31) + b"\x03" + hashlib.sha256(b"v1").digest()).digest()
    assert boot_log.startup_value(log, "sha256", 4) == bytes(32)


@pytest.mark.parametrize("other", [b"StartupLocality\0\x04", b"StartupLocality\0", b"StartupLocality\0\x03\x00"])
def test_contradicting_or_malformed_locality(other: bytes) -> None:
    log = parse(make_log(["sha256"], [*EVENTS, (0, EventType.EV_NO_ACTION, b"", other)]))
    with pytest.raises(EvidenceFormatError, match="StartupLocality"):
        replay(log, "sha256")


def test_no_action_never_extends() -> None:
    log = parse(make_log(["sha256"], [(0xFFFFFFFF, EventType.EV_NO_ACTION, b"", b"anything")]))
    assert replay(log, "sha256") == {}


def test_legacy() -> None:
    log = parse(legacy())
    assert log.format == boot_log.SHA1_LEGACY
    assert log.banks == ("sha1",)
    first = hashlib.sha1(bytes(20) + hashlib.sha1(b"mok").digest()).digest()
    assert replay(log, "sha1")[14] == first
    with pytest.raises(EvidenceFormatError, match="has no sha256 bank"):
        replay(log, "sha256")


@pytest.mark.parametrize("raw", [agile(), agile("sha1", "sha256"), legacy()])
def test_every_truncation_is_refused_or_a_shorter_log(raw: bytes) -> None:
    ends = {event.offset for event in parse(raw).events[1:]} | {len(raw)}
    for size in range(len(raw)):
        try:
            log = parse(raw[:size])
        except EvidenceFormatError:
            refused = True
        else:
            refused = False
        assert not (refused and size in ends)
        if not refused:
            # Only at the end of an event, or within the zeros that some event begins with, which look like padding.
            assert log.bytes_used in ends
            assert not raw[log.bytes_used : size].strip(b"\0")


@given(data=st.data())
def test_mutations(data: st.DataObject) -> None:
    raw = bytearray(data.draw(st.sampled_from([agile("sha1", "sha256"), legacy(), agile() + bytes(40)])))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        log = parse(bytes(raw))
    except EvidenceFormatError:
        return
    assert serialise(log) == bytes(raw)
    for event in log.events:
        assert event.description.isprintable()


@given(raw=st.binary(max_size=400))
def test_any_bytes(raw: bytes) -> None:
    try:
        parse(raw)
    except EvidenceFormatError:
        return


def broken(raw: bytes, at: int, value: bytes) -> str:
    with pytest.raises(EvidenceFormatError) as caught:
        parse(raw[:at] + value + raw[at + len(value) :])
    return str(caught.value)


def test_errors_name_the_event() -> None:
    raw = agile()
    second = parse(raw).events[2].offset
    assert "event 2.pcrIndex" in broken(raw, second, struct.pack("<I", 24))
    assert "event 2.digests.count" in broken(raw, second + 8, struct.pack("<I", 0))
    assert "event 2.digests.count" in broken(raw, second + 8, struct.pack("<I", 2))
    assert "sha1 is not announced" in broken(raw, second + 12, struct.pack("<H", 4))
    assert "numberOfAlgorithms" in broken(raw, 56, struct.pack("<I", 0))
    assert "numberOfAlgorithms" in broken(raw, 56, struct.pack("<I", 0xFFFFFFFF))
    assert "digestSizes" in broken(raw, 62, struct.pack("<H", 33))
    with pytest.raises(EvidenceFormatError, match="empty"):
        parse(b"")
    with pytest.raises(EvidenceFormatError, match="padding"):
        parse(raw + bytes(20) + b"\x01")
    with pytest.raises(EvidenceFormatError, match="padding"):
        parse(raw + b"\xff" * 20 + b"\x01")


def test_a_digest_twice_in_one_event() -> None:
    raw = agile("sha1", "sha256")
    second = parse(raw).events[2].offset
    at = second + 12 + 2 + 20
    doubled = raw[: second + 8] + struct.pack("<I", 2) + raw[second + 12 : at] + raw[second + 12 : at]
    with pytest.raises(EvidenceFormatError, match="sha1 is there twice"):
        parse(doubled + bytes(4))


def test_event_without_the_digest_of_a_bank_does_not_replay() -> None:
    log = parse(agile("sha1", "sha256"))
    one = log.events[3]._replace(digests=log.events[3].digests[:1])
    cut = log._replace(events=(*log.events[:3], one, *log.events[4:]))
    again = parse(serialise(cut))
    assert 4 in replay(again, "sha1")
    with pytest.raises(EvidenceFormatError, match=r"event 3.*has no sha256 digest"):
        replay(again, "sha256")


def test_too_many_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot_log, "MAX_EVENTS", 5)
    with pytest.raises(EvidenceFormatError, match="more than 5 events"):
        parse(agile())


def test_unknown_bank_of_a_new_log() -> None:
    with pytest.raises(ValueError, match="md5"):
        make_log(["md5"], [])


@pytest.mark.parametrize(
    ("kind", "data", "words"),
    [
        (EventType.EV_SEPARATOR, bytes(4), "00000000"),
        (EventType.EV_SEPARATOR, b"\x01\0\0\0", "error"),
        (EventType.EV_IPL, b"grub_cmd: linux /vmlinuz\0", "grub_cmd: linux /vmlinuz"),
        (EventType.EV_IPL, "kernel".encode("utf-16-le"), "kernel"),
        (EventType.EV_IPL, b"\x1b[2J", "4 bytes"),
        (EventType.EV_EVENT_TAG, struct.pack("<II", 5, 4) + b"args", "tag 0x00000005: args"),
        (EventType.EV_EFI_VARIABLE_BOOT, b"short", "do not have the form"),
        (EventType.EV_EFI_VARIABLE_BOOT, bytes(16) + b"\xff" * 16, "do not have the form"),
        (0x12345678, b"", "0 bytes"),
    ],
)
def test_descriptions(kind: int, data: bytes, words: str) -> None:
    assert words in describe_data(kind, data)


@given(kind=st.sampled_from([int(kind) for kind in EventType]), data=st.binary(max_size=200))
def test_descriptions_are_harmless(kind: int, data: bytes) -> None:
    line = describe_data(kind, data)
    assert line.isprintable()
    assert 0 < len(line) <= 200


def test_guid() -> None:
    assert format_guid(bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")) == "8be4df61-93ca-11d2-aa0d-00e098032b8c"


@pytest.mark.evidence
def test_real_logs(evidence: Path) -> None:
    seen = 0
    for row in json.loads((evidence / "expected.json").read_bytes()):
        if row["kind"] not in ("event-log", "cc-event-log") or "replay" not in row["facts"]:
            continue
        raw = (evidence / row["file"]).read_bytes()
        log = parse(raw)
        assert serialise(log) == raw
        facts = row["facts"]
        assert (log.format, list(log.banks), len(log.events)) == (facts["format"], facts["banks"], facts["events"])
        assert (log.bytes_used, log.bytes_used + log.trailing) == (facts["bytes_used"], facts["bytes"])
        for bank, values in facts["replay"].items():
            assert {str(pcr): value.hex() for pcr, value in replay(log, bank).items()} == values
        seen += 1
    assert seen == 8


@pytest.mark.evidence
def test_real_descriptions(evidence: Path) -> None:
    events = parse((evidence / "vm" / "uefi-tcb" / "bios.bin").read_bytes()).events
    told = [f"{event.pcr} {event.type_name} {event.description}" for event in events]
    assert any("SecureBoot of 8be4df61" in line for line in told)
    assert any(r"\EFI\BOOT\BOOTX64.EFI" in line for line in told)
    assert any("esp, root" in line for line in told)
