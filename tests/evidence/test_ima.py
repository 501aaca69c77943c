"""IMA lists: every template, both forms, replay; nothing but a value or EvidenceFormatError comes out."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence import ima
from cosmian_vm.evidence.ima import ImaEntry, make_entry, make_violation

SHA = hashlib.sha256(b"content").digest()
EVM = {
    "xattrnames": b"security.ima|security.selinux\0",
    "xattrlengths": struct.pack("<II", 26, 33),
    "xattrvalues": bytes(59),
    "iuid": struct.pack("<I", 1000),
    "igid": struct.pack("<I", 0),
    "imode": struct.pack("<H", 0o100755),
}
ENTRIES = {
    "ima": make_entry("ima", "sha1", hashlib.sha1(b"x").digest(), b"/usr/bin/true"),
    "ima-ng": make_entry("ima-ng", "sha256", SHA, b"/usr/bin/true"),
    "ima-ngv2": make_entry("ima-ngv2", "verity:sha256", SHA, b"/usr/bin/true"),
    "ima-sig": make_entry("ima-sig", "sha512", hashlib.sha512(b"x").digest(), b"/usr/bin/true", b"\x03\x02sig"),
    "ima-sig unsigned": make_entry("ima-sig", "sha256", SHA, b"/usr/bin/true"),
    "ima-sigv2": make_entry("ima-sigv2", "sha256", SHA, b"/usr/bin/true"),
    "ima-buf": make_entry("ima-buf", "sha256", SHA, b"kexec-cmdline", b"root=/dev/vda1 quiet"),
    "ima-modsig": make_entry(
        "ima-modsig", "sha256", SHA, b"/lib/a.ko", others={"d-modsig": b"sha256:\0" + SHA, "modsig": b"\x30\x01\x02"}
    ),
    "ima-modsig empty": make_entry("ima-modsig", "sha256", SHA, b"/lib/a.ko"),
    "evm-sig": make_entry("evm-sig", "sha256", SHA, b"/usr/bin/true", b"\x05\x02", others=EVM),
    "evm-sig empty": make_entry("evm-sig", "sha256", SHA, b"/usr/bin/true"),
    "list": make_entry("d-ng|n-ng|sig", "sha256", SHA, b"/usr/bin/true"),
    "unknown field": make_entry("d-ng|n-ng|x-new", "sha256", SHA, b"/bin/a", others={"x-new": b"\x01\x02\x03"}),
    "unknown string": make_entry("d-ng|n-ng|x-new", "sha256", SHA, b"/bin/a", others={"x-new": b"two words\0"}),
    "unknown raw": make_entry("d-ng|n-ng|x-new", "sha256", SHA, b"/bin/a", others={"x-new": b"zz top"}),
    "other pcr": make_entry("ima-ng", "sha256", SHA, b"/usr/bin/true", pcr=8),
    "violation": make_violation("ima-sig", "sha256", 32, b"/srv/model.bin"),
    "violation of 20 zeros": make_violation("ima-ng", "sha256", 20, b"/srv/model.bin"),
    "not utf-8": make_entry("ima-ng", "sha256", SHA, b"/tmp/caf\xe9"),
    "unknown algorithm": make_entry("ima-ng", "kupyna", bytes(7), b"/bin/a"),
    "md5": make_entry("ima-ng", "md5", bytes(range(16)), b"/bin/a"),
    "tricky digest": make_entry("ima-ng", "sha256", b":\0" * 16, b"/bin/a"),
}


def _field(value: bytes) -> bytes:
    return struct.pack("<I", len(value)) + value


def _entry(template: str, *fields: bytes) -> ImaEntry:
    data = b"".join(map(_field, fields))
    return ImaEntry(10, hashlib.sha1(data).digest(), template, data)


DIGEST = b"sha256:\0" + SHA
AWKWARD = {
    "space, no signature": _entry("ima-sig", DIGEST, b"/a b c\0", b""),
    "space, signature": _entry("ima-sig", DIGEST, b"/a b\0", b"\x03\x02"),
    "a name that ends like a signature": _entry("ima-sig", DIGEST, b"/a 0302\0", b""),
    "trailing space": _entry("ima-ng", DIGEST, b"/a \0"),
    "line feed": _entry("ima-sig", DIGEST, b"/a\nb c\n\n\0", b"\x03"),
    "an entry in a name": _entry("ima-sig", DIGEST, b"/a\n10 no\0", b""),
    "two strings": _entry("evm-sig", DIGEST, b"/a b\0", b"", b"x y z\0", b"", b"", b"\0\0\0\0", b"\1\0\0\0", b"\2\0"),
    "empty name": _entry("ima-ng", DIGEST, b"\0"),
    "buffer": _entry("ima-buf", DIGEST, b"x y z\0", b"\xab"),
    "legacy": ImaEntry(
        10,
        hashlib.sha1(bytes(20) + b"/a  b ".ljust(256, b"\0")).digest(),
        "ima",
        bytes(20) + b"/a  b ".ljust(256, b"\0"),
    ),
}


@pytest.mark.parametrize("entry", [pytest.param(e, id=n) for n, e in (ENTRIES | AWKWARD).items()])
def test_round_trips(entry: ImaEntry) -> None:
    raw = ima.serialise_entry(entry)
    assert ima.parse_binary(raw) == (entry,)
    assert ima.serialise_binary(ima.parse_binary(raw)) == raw


@pytest.mark.parametrize("entry", [pytest.param(e, id=n) for n, e in (ENTRIES | AWKWARD).items() if "raw" not in n])
def test_ascii_round_trips(entry: ImaEntry) -> None:
    line = ima.serialise_ascii([entry])
    assert ima.parse_ascii(line) == (entry,)
    assert ima.parse_ascii(line.removesuffix(b"\n")) == (entry,)
    assert ima.parse_ascii(line + line) == (entry, entry)


def test_a_field_that_is_not_known_may_be_printed_in_any_way() -> None:
    entry = ENTRIES["unknown raw"]
    head = f"10 {entry.template_hash.hex()} d-ng|n-ng|x-new sha256:{SHA.hex()} /bin/a ".encode()
    assert ima.parse_ascii(head + b"zz top\n") == (entry,)
    entry = ENTRIES["unknown string"]
    head = f"10 {entry.template_hash.hex()} d-ng|n-ng|x-new sha256:{SHA.hex()} /bin/a ".encode()
    assert ima.parse_ascii(head + b"two words\n") == (entry,)


def test_lines_as_the_kernel_prints_them() -> None:
    """Byte for byte, of ima_ascii_measurements_show."""
    entry = ENTRIES["evm-sig"]
    assert (
        ima.serialise_ascii([entry])
        == (
            f"10 {entry.template_hash.hex()} evm-sig sha256:{SHA.hex()} /usr/bin/true 0502 "
            f"security.ima|security.selinux 1a00000021000000 {bytes(59).hex()} 1000 0 33261\n"
        ).encode()
    )
    entry = ENTRIES["other pcr"]
    assert ima.serialise_ascii([entry]).startswith(b" 8 ")
    entry = ENTRIES["ima-ngv2"]
    assert f" ima-ngv2 verity:sha256:{SHA.hex()} /usr/bin/true\n".encode() in ima.serialise_ascii([entry])
    entry = ENTRIES["ima-modsig empty"]
    assert ima.serialise_ascii([entry]).endswith(b" /lib/a.ko   \n")


def test_windows_and_stripped_lines() -> None:
    entries = (ENTRIES["ima-sig unsigned"], ENTRIES["ima-ng"])
    text = ima.serialise_ascii(entries)
    assert ima.parse_ascii(text.replace(b"\n", b"\r\n")) == entries
    assert ima.parse_ascii(b"\n".join(line.rstrip() for line in text.splitlines())) == entries


def test_fields() -> None:
    entry = ENTRIES["ima-sig"]
    assert (entry.digest_algorithm, entry.path, entry.signature) == ("sha512", b"/usr/bin/true", b"\x03\x02sig")
    assert entry.buffer is None
    assert ENTRIES["ima-buf"].buffer == b"root=/dev/vda1 quiet"
    fields = ENTRIES["ima-ngv2"].fields()
    assert fields is not None
    assert (fields.digest_type, fields.digest_algorithm, fields.digest) == ("verity", "sha256", SHA)
    assert ENTRIES["tricky digest"].digest == b":\0" * 16
    assert (ENTRIES["ima"].digest_algorithm, ENTRIES["ima"].path) == ("sha1", b"/usr/bin/true")
    assert ENTRIES["evm-sig"].signature == b"\x05\x02"


def test_the_kernel_writes_no_spaces() -> None:
    assert make_entry("ima-ng", "sha256", SHA, b"/a b  c").path == b"/a_b__c"


def test_opaque_templates_are_kept_and_replayed() -> None:
    data = b"whatever this is"
    entry = ImaEntry(10, hashlib.sha1(data).digest(), "ima-cgn", data)
    assert ima.parse_binary(ima.serialise_entry(entry)) == (entry,)
    assert (entry.fields(), entry.path, entry.digest, entry.digest_algorithm) == (None, None, None, None)
    expected = hashlib.sha256(bytes(32) + hashlib.sha256(data).digest()).digest()
    assert ima.replay([entry], "sha256") == expected
    with pytest.raises(EvidenceFormatError, match="no known columns"):
        ima.serialise_ascii([entry])


@pytest.mark.parametrize(
    "template", ["n-ng|d-ng", "sig|d-ng|n-ng", "x|d-ng|n-ng", "d-ng|sig|n-ng", "d-ng", "d-ng|d-ng"]
)
def test_a_list_in_another_order_tells_no_path(template: str) -> None:
    """The name of a template is not hashed: whoever writes it must not choose which field is the path."""
    entry = ImaEntry(10, bytes(20), template, _field(b"/bin/evil\0") + _field(DIGEST) + _field(b"/bin/good\0"))
    assert entry.fields() is None


def test_data_that_do_not_follow_the_template() -> None:
    for data in (b"", b"\xff\xff\xff\xff", _field(DIGEST), _field(DIGEST) + _field(b"/a\0") + b"x", _field(b"none")):
        entry = ImaEntry(10, bytes(20), "ima-ng", data)
        with pytest.raises(EvidenceFormatError):
            entry.fields()
        assert entry.path is None


def test_replay_by_hand() -> None:
    entries = [ENTRIES["ima-ng"], ENTRIES["violation"], ENTRIES["other pcr"], ENTRIES["ima-sig"]]
    for algorithm, size in ima.PCR_SIZES.items():
        value = bytes(size)
        for part in (hashlib.new(algorithm, entries[0].data).digest(), b"\xff" * size):
            value = hashlib.new(algorithm, value + part).digest()
        assert ima.replay(entries[:3], algorithm) == value
        last = hashlib.new(algorithm, value + hashlib.new(algorithm, entries[3].data).digest()).digest()
        assert ima.replay(entries, algorithm) == last
        assert ima.replay(entries[3:], algorithm, start=value) == last
        assert ima.replay(entries[:2], algorithm, pcr=8) == bytes(size)
    padded = hashlib.sha256(bytes(32) + hashlib.sha1(entries[0].data).digest() + bytes(12)).digest()
    assert ima.replay(entries[:1], "sha256", padded_sha1=True) == padded


def test_a_zero_file_digest_is_no_violation() -> None:
    entry = make_entry("ima-ng", "sha256", bytes(32), b"/bin/a")
    assert not entry.is_violation
    assert entry.hash_matches
    assert ENTRIES["violation"].is_violation
    assert ENTRIES["violation"].path == b"/srv/model.bin"
    assert not entry._replace(template_hash=bytes(19) + b"\1").hash_matches


@pytest.mark.parametrize("entry", [pytest.param(e, id=n) for n, e in ENTRIES.items()])
def test_every_truncation(entry: ImaEntry) -> None:
    raw = ima.serialise_entry(ENTRIES["ima-ng"]) + ima.serialise_entry(entry)
    whole = len(ima.serialise_entry(ENTRIES["ima-ng"]))
    for size in range(len(raw)):
        if size in (0, whole):
            continue
        with pytest.raises(EvidenceFormatError, match="entry") as caught:
            ima.parse_binary(raw[:size])
        assert caught.value.offset is not None


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (struct.pack("<I20sI", 32, bytes(20), 6) + b"ima-ng" + _field(b""), "no PCR 32"),
        (struct.pack("<I20sI", 10, bytes(20), 0) + _field(b""), "template name of 0 bytes"),
        (struct.pack("<I20sI", 10, bytes(20), 256) + b"a" * 256 + _field(b""), "template name of 256 bytes"),
        (struct.pack("<I20sI", 10, bytes(20), 6) + b"ima ng" + _field(b""), "not printable"),
        (struct.pack("<I20sI", 10, bytes(20), 6) + b"ima-ng" + b"\xff\xff\xff\xff", "4294967295 bytes"),
        (struct.pack("<I20sI", 10, bytes(20), 3) + b"ima" + bytes(20) + _field(b"a" * 256), "255"),
        (struct.pack("<I20sI", 10, bytes(20), 3) + b"ima" + bytes(20) + _field(b"a\0b"), "NUL"),
    ],
)
def test_refused(raw: bytes, problem: str) -> None:
    with pytest.raises(EvidenceFormatError, match=problem):
        ima.parse_binary(raw)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"this is text not an ima entry", "line 1"),
        (b"10 " + b"a" * 40 + b" not-ima sha1:" + b"0" * 40 + b" /bin/a", "unknown template not-ima"),
        (b"10 I" + b"a" * 39 + b" ima-ng sha1:" + b"0" * 40 + b" /bin/a", "template hash"),
        (b"10 " + b"a" * 41 + b" ima-ng sha1:" + b"0" * 40 + b" /bin/a", "odd"),
        (b"99 " + b"a" * 40 + b" ima-ng sha1:" + b"0" * 40 + b" /bin/a", "PCR 99"),
        (b"10 " + b"a" * 40 + b" ima-ng sha1:I" + b"0" * 39 + b" /bin/a", "columns"),
        (b"10 " + b"a" * 40 + b" ima-ng sha256:" + b"0" * 40 + b" /bin/a", "columns"),
        (b"10 " + b"a" * 40 + b" ima-sig sha1:" + b"0" * 40 + b" /bin/a 0x12", None),
        (b"10 " + b"a" * 40 + b" ima " + b"0" * 38 + b" /bin/a", "columns"),
        (b"10 " + b"a" * 40 + b" ima " + b"0" * 40 + b" " + b"/" * 256, "columns"),
    ],
)
def test_refused_lines(line: bytes, problem: str | None) -> None:
    if problem is None:
        assert ima.parse_ascii(line)[0].path == b"/bin/a 0x12"
        return
    with pytest.raises(EvidenceFormatError, match=problem):
        ima.parse_ascii(line)


def test_the_bad_line_is_named() -> None:
    good = ima.serialise_ascii([ENTRIES["ima-ng"]])
    with pytest.raises(EvidenceFormatError, match="line 2") as caught:
        ima.parse_ascii(good + b"\n" + good)
    assert caught.value.offset == len(good)


def test_a_line_of_many_spaces_costs_little() -> None:
    line = b"10 " + b"a" * 40 + b" evm-sig sha1:" + b"0" * 40 + b" x" * 20_000
    path = ima.parse_ascii(line)[0].path
    assert path is not None
    assert path.count(b"x") == 20_000


def test_serialise_refuses_what_the_form_has_no_room_for() -> None:
    entry = ENTRIES["ima-ng"]
    for wrong in (
        entry._replace(template_hash=bytes(32)),
        entry._replace(template="x" * 256),
        entry._replace(template=""),
        entry._replace(template="ima"),
    ):
        with pytest.raises(EvidenceFormatError):
            ima.serialise_entry(wrong)


def test_make_entry_refuses() -> None:
    with pytest.raises(ValueError, match="unknown"):
        make_entry("nonsense", "sha256", SHA, b"/a")
    with pytest.raises(ValueError, match="NUL"):
        make_entry("ima-ng", "sha256", SHA, b"/a\0")
    with pytest.raises(ValueError, match="20 bytes"):
        make_entry("ima", "sha256", SHA, b"/a")


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (b"/bin/true", "/bin/true"),
        ("/srv/café".encode(), "/srv/café"),
        (b"/srv/caf\xe9", r"/srv/caf\xe9"),
        (b"/a\nb", r"/a\x0ab"),
        (b"/a\\b\x1b[2J", r"/a\\b\x1b[2J"),
        ("/a\u202eb".encode(), r"/a\xe2\x80\xaeb"),
    ],
)
def test_names_for_people(path: bytes, shown: str) -> None:
    assert ima.format_path(path) == shown


def test_policy_files() -> None:
    policy = make_entry("ima-sig", "sha256", SHA, b"/etc/ima/ima-policy")
    entries = [
        ENTRIES["ima-ng"],
        policy,
        policy,
        make_entry("ima-ng", "sha256", SHA, b"/usr/share/ima-policy"),
        make_entry("ima-ng", "sha256", SHA, b"/etc/ima/readme/x"),
        make_entry("ima-buf", "sha256", SHA, b"/bin/x", b"/etc/ima/ima-policy"),
        make_violation("ima-ng", "sha256", 32, b"/etc/ima/ima-policy"),
    ]
    assert ima.policy_files(entries) == ((b"/etc/ima/ima-policy", SHA), (b"/usr/share/ima-policy", SHA))


@given(st.binary(max_size=400))
def test_any_bytes(raw: bytes) -> None:
    for parse in (ima.parse_binary, ima.parse_ascii):
        try:
            entries = parse(raw)
        except EvidenceFormatError:
            continue
        for entry in entries:
            assert entry.path is None or isinstance(ima.format_path(entry.path), str)


_TEMPLATES = st.sampled_from(sorted(ima.TEMPLATES))
_PATHS = st.binary(max_size=60).map(lambda raw: raw.replace(b"\0", b"x"))


@given(_TEMPLATES, _PATHS, st.binary(max_size=40), st.integers(0, 31))
def test_any_entry_round_trips(template: str, path: bytes, signature: bytes, pcr: int) -> None:
    digest = hashlib.new("sha1" if template == "ima" else "sha384", path).digest()
    entry = make_entry(template, "sha384", digest, path, signature, pcr=pcr)
    assert ima.parse_binary(ima.serialise_entry(entry)) == (entry,)
    if b"\n" not in path and b"\r" not in path:
        assert ima.parse_ascii(ima.serialise_ascii([entry])) == (entry,)


@given(st.data())
def test_mutations_of_a_list(data: st.DataObject) -> None:
    raw = bytearray(ima.serialise_binary(ENTRIES.values()))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        entries = ima.parse_binary(bytes(raw))
    except EvidenceFormatError:
        return
    assert ima.serialise_binary(entries) == bytes(raw)
    ima.replay(entries, "sha256")


@given(st.data())
def test_mutations_of_an_ascii_list(data: st.DataObject) -> None:
    raw = bytearray(ima.serialise_ascii(e for n, e in ENTRIES.items() if "raw" not in n))
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        entries = ima.parse_ascii(bytes(raw))
    except EvidenceFormatError:
        return
    ima.replay(entries, "sha256")


@pytest.mark.evidence
@pytest.mark.parametrize("run", ["uefi-tcb", "uefi-custom-plus-tcb", "uefi-coldreboot", "direct-custom-notcb"])
def test_lists_of_a_real_kernel(evidence: Path, run: str) -> None:
    raw, text = ((evidence / "vm" / run / name).read_bytes() for name in ("ima.bin", "ima.txt"))
    entries = ima.parse_binary(raw)
    assert ima.parse_ascii(text) == entries
    assert ima.serialise_binary(entries) == raw
    assert ima.serialise_ascii(entries) == text
    assert entries[0].path == ima.BOOT_AGGREGATE
    assert all(entry.hash_matches for entry in entries)
    assert bool(ima.policy_files(entries)) == (run in ("uefi-custom-plus-tcb", "uefi-coldreboot"))
