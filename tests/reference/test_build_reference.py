"""The reference values of an image as a file: round trip, and every wrong form an InputError."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.errors import InputError
from cosmian_vm.reference import build_reference as module
from cosmian_vm.reference.build_reference import BuildReference, Image, Launch, parse, serialise

SHA256 = "ab" * 32
LAUNCH: dict[str, Any] = {
    "measurement": "a1" * 48,
    "ovmf_sha256": "b2" * 32,
    "vcpus": 4,
    "vcpu_type": "EPYC-Milan",
    "vcpu_signature": 0x00A00F11,
    "guest_features": 1,
    "vmm": "QEMU",
}
WHOLE: dict[str, Any] = {
    "format": "cosmian-vm-reference",
    "version": 1,
    "created": "2026-01-01T00:00:00Z",
    "image": {"name": "cosmian_vm.img", "size": 2216689664, "sha256": "cd" * 32},
    "hash_algorithm": "sha256",
    "filehashes": [
        ["/usr/bin/true", SHA256],
        ["/usr/bin/a name", "cd" * 32],
        ["/caf\N{REPLACEMENT CHARACTER}", SHA256],
    ],
    "path_bytes": {"2": b"/caf\xe9".hex()},
    "ima_policy": [["/etc/ima/ima-policy", SHA256]],
    "pcrs": {"4": "04" * 32, "9": "09" * 32, "11": "0b" * 32},
    "launches": [LAUNCH],
    "left_out": [["PCR 7", "of the firmware's settings"]],
}


def raw_of(value: object) -> bytes:
    return json.dumps(value).encode()


def refusal(raw: bytes) -> str:
    with pytest.raises(InputError) as caught:
        parse(raw, "my.reference.json")
    text = str(caught.value)
    assert text.startswith("my.reference.json")
    assert text.isprintable()
    return text


def test_round_trip() -> None:
    reference = parse(raw_of(WHOLE), "file")
    assert json.loads(serialise(reference)) == WHOLE
    assert parse(serialise(reference), "file") == reference
    assert reference.pcr_values() == {4: b"\x04" * 32, 9: b"\x09" * 32, 11: b"\x0b" * 32}
    assert [path for path, _ in reference.files] == [b"/usr/bin/true", b"/usr/bin/a name", b"/caf\xe9"]


def test_what_may_be_unknown() -> None:
    reference = parse(raw_of(WHOLE | {"ima_policy": None, "pcrs": {}, "launches": []}), "file")
    assert (reference.ima_policy, reference.pcr_values(), reference.launches) == (None, {}, ())


def test_every_truncation() -> None:
    raw = serialise(parse(raw_of(WHOLE), "file"))
    for size in range(len(raw) - 1):  # the last byte is a line feed
        refusal(raw[:size])


@pytest.mark.parametrize("key", list(WHOLE))
def test_every_key_is_needed(key: str) -> None:
    if key != "path_bytes":
        refusal(raw_of({name: value for name, value in WHOLE.items() if name != key}))


@pytest.mark.parametrize("key", list(LAUNCH))
def test_every_key_of_a_launch_is_needed(key: str) -> None:
    launch = {name: value for name, value in LAUNCH.items() if name != key}
    assert "launches" in refusal(raw_of(WHOLE | {"launches": [launch]}))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"more": 1}, "more"),
        ({"format": "other"}, "no reference values"),
        ({"version": 2}, "newer release"),
        ({"version": "1"}, "version"),
        ({"created": "yesterday"}, "created"),
        ({"created": "2026-01-01T00:00:00Z<script>"}, "created"),
        ({"created": "2026-01-01T00:00:00Z\n"}, "created"),
        ({"hash_algorithm": "sha1"}, "hash_algorithm"),
        ({"image": {"name": "x", "size": 1, "sha256": "AB" * 32}}, "sha256"),
        ({"image": {"name": "x", "size": -1, "sha256": SHA256}}, "size"),
        ({"image": {"name": "", "size": 1, "sha256": SHA256}}, "name"),
        ({"filehashes": [["/a", "ab" * 20]]}, "filehashes"),
        ({"filehashes": [["/a", "AB" * 32]], "path_bytes": {}}, "filehashes"),
        ({"filehashes": [["a", SHA256]], "path_bytes": {}}, "absolute"),
        ({"filehashes": [["/a\0b", SHA256]], "path_bytes": {}}, "absolute"),
        ({"filehashes": [["/a", SHA256], ["/b", SHA256], ["/a", "cd" * 32]], "path_bytes": {}}, "twice"),
        ({"path_bytes": {"0": "2f61"}}, "path_bytes"),
        ({"path_bytes": {"9": "2f61"}}, "path_bytes"),
        ({"ima_policy": [["/etc/ima/ima-policy", "zz" * 32]]}, "ima_policy"),
        ({"pcrs": {"10": SHA256}}, "pcrs"),
        ({"pcrs": {"16": SHA256}}, "pcrs"),
        ({"pcrs": {"04": SHA256}}, "pcrs"),
        ({"pcrs": {"4": "ab" * 20}}, "pcrs.4"),
        ({"pcrs": {"4": None}}, "pcrs"),
        ({"launches": [LAUNCH | {"measurement": "a1" * 47}]}, "measurement"),
        ({"launches": [LAUNCH | {"ovmf_sha256": "a1" * 20}]}, "ovmf_sha256"),
        ({"launches": [LAUNCH | {"vcpus": 0}]}, "vcpus"),
        ({"launches": [LAUNCH | {"vcpu_signature": 1 << 32}]}, "vcpu_signature"),
        ({"launches": [LAUNCH | {"guest_features": 1 << 64}]}, "guest_features"),
        ({"launches": [LAUNCH | {"vmm": "other"}]}, "vmm"),
        ({"launches": None}, "launches"),
        ({"left_out": [["PCR 7"]]}, "left_out"),
    ],
)
def test_wrong_values(change: dict[str, Any], named: str) -> None:
    assert named in refusal(raw_of(WHOLE | change))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b'"version": 1', b'"version": 1, "version": 1'),
        (b'"pcrs": {', b'"pcrs": {"4": "' + b"11" * 32 + b'", '),
        (b'"launches": [{', b'"launches": [{"vcpus": 1, '),
        (b'"image": {', b'"image": {"size": 7, '),
    ],
)
def test_a_key_that_is_there_twice(before: bytes, after: bytes) -> None:
    """Two readers of such a file could expect two different values."""
    raw = raw_of(WHOLE)
    assert raw.count(before) == 1
    assert "there twice" in refusal(raw.replace(before, after))


@pytest.mark.parametrize(
    "raw", [b"", b"{}", b"[]", b"null", b"1", b'"x"', b"{", b"\xff\xfe{}", b"[" * 100_000, b"NaN", b"\xef\xbb\xbf{}"]
)
def test_something_else(raw: bytes) -> None:
    assert "reference values" in refusal(raw)


def test_a_lone_surrogate_is_no_path() -> None:
    refusal(raw_of(WHOLE).replace(b"/usr/bin/true", rb"/usr/\ud800"))


def test_a_snapshot_is_told_from_it() -> None:
    assert "--snapshot" in refusal(b'{"cloud_type": null, "tee_policy": {"Sev": {}}}')


def test_size_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = raw_of(WHOLE)
    monkeypatch.setattr(module, "MAX_REFERENCE_SIZE", len(raw) - 1)
    assert "larger than" in refusal(raw)


@given(st.data())
def test_any_change_is_refused_or_read(data: st.DataObject) -> None:
    raw = bytearray(raw_of(WHOLE))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        reference = parse(bytes(raw), "file")
    except InputError as exc:
        told = str(exc)
    else:
        told = ""
        assert parse(serialise(reference), "file") == reference
    assert told.isprintable()


_HEX32 = st.binary(min_size=32, max_size=32).map(bytes.hex)
_PATHS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20).map("/{}".format)


@given(
    files=st.dictionaries(_PATHS, _HEX32, max_size=5),
    pcrs=st.dictionaries(st.sampled_from([str(pcr) for pcr in module.PREDICTABLE_PCRS]), _HEX32),
    name=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
)
def test_any_values_come_back(files: dict[str, str], pcrs: dict[str, str], name: str) -> None:
    reference = BuildReference(
        format="cosmian-vm-reference",
        version=1,
        created="2026-01-01T00:00:00Z",
        image=Image(name=name, size=1, sha256=SHA256),
        hash_algorithm="sha256",
        filehashes=tuple(files.items()),
        ima_policy=None,
        pcrs=pcrs,
        launches=(Launch(**LAUNCH),),
        left_out=(),
    )
    assert parse(serialise(reference), "file") == reference
