"""The parser of LUKS2 headers: what cryptsetup writes is read, and nothing that a forger writes."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.devkit.luks import METADATA_SIZE, header_file
from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.luks.header import MAX_HEADER_SIZE, parse_header

RECORDED = (Path(__file__).parent.parent / "data" / "luks" / "header.json").read_bytes()


def document() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(RECORDED)
    value["config"]["keyslots_size"] = "802816"
    return value


GOOD = header_file(document())


def resum(raw: bytes) -> bytes:
    """With both checksums made to fit again."""
    whole = bytearray(raw)
    for start in (0, METADATA_SIZE):
        whole[start + 448 : start + 512] = bytes(64)
        whole[start + 448 : start + 480] = sha256(whole[start : start + METADATA_SIZE]).digest()
    return bytes(whole)


def refused(raw: bytes, says: str = "") -> None:
    with pytest.raises(EvidenceFormatError, match=says or None):
        parse_header(raw)


def test_what_the_real_programs_wrote_is_read() -> None:
    header = parse_header(header_file(RECORDED, keyslots_size=4194304))
    assert [(slot.number, slot.kdf, slot.cost) for slot in header.keyslots] == [
        (0, "pbkdf2", 1000),
        (1, "pbkdf2", 1000),
    ]
    assert [(token.keyslot, token.pcrs) for token in header.tokens] == [(1, (4, 7, 8, 9, 12, 14))]
    assert header.sector_size == 4096
    assert header.sequence == 3


@pytest.mark.skipif(shutil.which("cryptsetup", path="/usr/sbin:/sbin") is None, reason="cryptsetup is not installed")
def test_our_forgeries_are_headers_to_cryptsetup(tmp_path: Path) -> None:
    forged = document()
    forged["segments"]["0"]["encryption"] = "cipher_null-ecb"
    for name, value in (("good", document()), ("forged", forged)):
        (tmp_path / name).write_bytes(header_file(value))
        done = subprocess.run(
            ["/usr/sbin/cryptsetup", "luksDump", str(tmp_path / name)], capture_output=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert value["segments"]["0"]["encryption"].encode() in done.stdout
    parse_header((tmp_path / "good").read_bytes())
    refused((tmp_path / "forged").read_bytes(), "cipher_null")


@pytest.mark.skipif(shutil.which("cryptsetup", path="/usr/sbin:/sbin") is None, reason="cryptsetup is not installed")
def test_the_binary_header_of_cryptsetup_is_read_up_to_its_missing_integrity(tmp_path: Path) -> None:
    """No device mapper, no integrity: the rest of a real header passes, and this very lack is refused."""
    (tmp_path / "data").write_bytes(bytes(1 << 20))
    (tmp_path / "key").write_bytes(b"secret")
    options = (
        "luksFormat --batch-mode --type luks2 --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --luks2-keyslots-size 4m"
    )
    files = ["--key-file", str(tmp_path / "key"), "--header", str(tmp_path / "header"), str(tmp_path / "data")]
    subprocess.run(["/usr/sbin/cryptsetup", *options.split(), *files], check=True, capture_output=True)
    refused((tmp_path / "header").read_bytes(), r"segments\.0\.integrity: is missing")


ATTACKS: dict[str, Callable[[dict[str, Any]], object]] = {
    "no cipher": lambda d: d["segments"]["0"].update(encryption="cipher_null-ecb"),
    "no cipher, in capitals": lambda d: d["segments"]["0"].update(encryption="CIPHER_NULL-ecb"),
    "keyslot without cipher": lambda d: d["keyslots"]["0"]["area"].update(encryption="cipher_null-ecb"),
    "other cipher": lambda d: d["segments"]["0"].update(encryption="aes-cbc-essiv:sha256"),
    "no integrity": lambda d: d["segments"]["0"].pop("integrity"),
    "weak integrity": lambda d: d["segments"]["0"]["integrity"].update(type="crc32c"),
    "integrity without key": lambda d: d["segments"]["0"]["integrity"].update(type="none"),
    "a linear segment": lambda d: d["segments"]["0"].update(type="linear"),
    "an extra segment": lambda d: d["segments"].update({"1": d["segments"]["0"]}),
    "an extra linear segment": lambda d: d["segments"].update(
        {"1": {"type": "linear", "offset": "0", "size": "dynamic"}}
    ),
    "no segment": lambda d: d["segments"].clear(),
    "a segment with flags": lambda d: d["segments"]["0"].update(flags=["backup-final"]),
    "a segment elsewhere": lambda d: d["segments"]["0"].update(offset="4096"),
    "a shorter segment": lambda d: d["segments"]["0"].update(size="4096"),
    "odd sectors": lambda d: d["segments"]["0"].update(sector_size=1024),
    "other tweak": lambda d: d["segments"]["0"].update(iv_tweak="8"),
    "reencryption": lambda d: d["config"].update(requirements={"mandatory": ["online-reencrypt-v2"]}),
    "persistent flags": lambda d: d["config"].update(flags=["allow-discards"]),
    "reencryption keyslot": lambda d: d["keyslots"]["0"].update(type="reencrypt", mode="decrypt"),
    "a key of another size": lambda d: d["keyslots"]["0"].update(key_size=64),
    "an area without key": lambda d: d["keyslots"]["0"]["area"].update(key_size=0),
    "an area in the header": lambda d: d["keyslots"]["0"]["area"].update(offset="16384"),
    "an area beyond the end": lambda d: d["keyslots"]["0"]["area"].update(offset="802816"),
    "an area too small": lambda d: d["keyslots"]["0"]["area"].update(size="4096"),
    "overlapping areas": lambda d: d["keyslots"]["1"]["area"].update(offset="36864"),
    "an area of no bytes": lambda d: d["keyslots"]["0"]["area"].update(type="none"),
    "no keyslot": lambda d: (d["keyslots"].clear(), d["digests"]["0"].update(keyslots=[]), d["tokens"].clear()),
    "kdf of old": lambda d: d["keyslots"]["0"]["kdf"].update(type="argon2i"),
    "too few iterations": lambda d: d["keyslots"]["0"]["kdf"].update(iterations=1),
    "iterations for ever": lambda d: d["keyslots"]["0"]["kdf"].update(iterations=1 << 40),
    "all memory": lambda d: d["keyslots"]["0"].update(
        kdf={"type": "argon2id", "time": 4, "memory": 1 << 30, "cpus": 4, "salt": d["keyslots"]["0"]["kdf"]["salt"]}
    ),
    "one stripe": lambda d: d["keyslots"]["0"]["af"].update(stripes=1),
    "weak hash": lambda d: d["keyslots"]["0"]["af"].update(hash="md5"),
    "a keyslot without digest": lambda d: d["digests"]["0"].update(keyslots=["0"]),
    "a digest of no keyslot": lambda d: d["digests"]["0"].update(keyslots=["0", "1", "2"]),
    "a digest of no segment": lambda d: d["digests"]["0"].update(segments=[]),
    "an extra digest": lambda d: d["digests"].update({"1": d["digests"]["0"]}),
    "a short digest": lambda d: d["digests"]["0"].update(digest="AAAA"),
    "a digest that is no base64": lambda d: d["digests"]["0"].update(digest="!" * 44),
    "a token of another kind": lambda d: d["tokens"]["0"].update(type="luks2-keyring", key_description="x"),
    "a token with a signing key": lambda d: d["tokens"]["0"].update(tpm2_pubkey="AAAA", tpm2_pubkey_pcrs=[11]),
    "a token without PCRs": lambda d: d["tokens"]["0"].update({"tpm2-pcrs": []}),
    "a token of the bank SHA-1": lambda d: d["tokens"]["0"].update({"tpm2-pcr-bank": "sha1"}),
    "a token of no keyslot": lambda d: d["tokens"]["0"].update(keyslots=["7"]),
    "a PCR that is none": lambda d: d["tokens"]["0"].update({"tpm2-pcrs": [4, 24]}),
    "a PCR that is true": lambda d: d["tokens"]["0"].update({"tpm2-pcrs": [4, True]}),
    "unknown key at the top": lambda d: d.update(more={}),
    "no digests": lambda d: d.pop("digests"),
    "a size in words": lambda d: d["config"].update(keyslots_size="all"),
    "a size that does not fit": lambda d: d["config"].update(keyslots_size="4096"),
    "a JSON size that does not fit": lambda d: d["config"].update(json_size="4096"),
    "a number with a zero before it": lambda d: d["config"].update(keyslots_size="0802816"),
    "a keyslot with a strange name": lambda d: d["keyslots"].update({"00": d["keyslots"]["0"]}),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_forged_header_is_refused(name: str) -> None:
    forged = copy.deepcopy(document())
    ATTACKS[name](forged)
    assert forged != document()
    refused(header_file(forged), "LUKS2 header, JSON")


def test_argon2id_and_newer_fields_are_read() -> None:
    value = document()
    salt = value["keyslots"]["0"]["kdf"]["salt"]
    value["keyslots"]["0"]["kdf"] = {"type": "argon2id", "time": 4, "memory": 262144, "cpus": 2, "salt": salt}
    value["keyslots"]["0"]["priority"] = 2
    value["segments"]["0"]["integrity"]["key_size"] = 32
    value["tokens"]["0"].update({"tpm2_pcrlock": False, "tpm2_srk": "AAAA"})
    assert parse_header(header_file(value)).keyslots[0].kdf == "argon2id"
    del value["tokens"]["0"]["tpm2-pin"], value["tokens"]["0"]["tpm2_pcrlock"]  # as systemd 257 writes it
    assert parse_header(header_file(value)).tokens[0].pcrs == (4, 7, 8, 9, 12, 14)


@pytest.mark.parametrize("key", ["tpm2-pin", "tpm2_pcrlock"])
def test_a_token_opened_in_another_way_is_refused(key: str) -> None:
    value = document()
    value["tokens"]["0"][key] = True
    refused(header_file(value), rf"JSON\.tokens\.0\.{key}")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"config"', b'"config":{},"config"'),
        (
            b'"encryption":"aes-xts-plain64","sector',
            b'"encryption":"cipher_null-ecb","encryption":"aes-xts-plain64","sector',
        ),
        (b'"sector_size":4096', b'"sector_size":4096.0'),
        (b'"sector_size":4096', b'"sector_size":NaN'),
        (b'"sector_size":4096', b'"sector_size":' + b"9" * 5000),
        (b'"sector_size":4096', b'"sector_size":' + b"[" * 3000),
        (b'"tokens":{', b'"tokens":{"\xc3\xa9":0,'),
        (b'"segments":{"0":{', b'"segments":{"0":[{'),
    ],
)
def test_json_that_parsers_read_differently_is_refused(old: bytes, new: bytes) -> None:
    text = json.dumps(document(), separators=(",", ":")).encode()
    assert old in text
    refused(header_file(text.replace(old, new, 1)))


def test_the_second_header_is_as_good_as_the_first() -> None:
    forged = document()
    forged["segments"]["0"]["encryption"] = "cipher_null-ecb"
    refused(header_file(document(), forged), "the two copies")
    refused(header_file(document(), second_sequence=4), "the two copies")
    # what cryptsetup does with a broken first header: it takes the second
    broken = bytearray(header_file(document(), forged))
    broken[500] ^= 1
    refused(bytes(broken), "csum")
    broken = bytearray(GOOD)
    broken[METADATA_SIZE] ^= 1
    refused(bytes(broken), "no LUKS header")


def test_nothing_hides_behind_the_json() -> None:
    text = json.dumps(document(), separators=(",", ":")).encode()
    refused(header_file(text + b"\0\0{}"), "something follows")
    refused(header_file(text + b"{}"), "not JSON")


@pytest.mark.parametrize("at", [6, 8, 16, 24, 72, 168, 208, 256, 264, 447, 448, 480, 512, 4095, 4096, 5000, 16383])
def test_one_bit_of_a_copy_is_enough(at: int) -> None:
    for start in (0, METADATA_SIZE):
        raw = bytearray(GOOD)
        raw[start + at] ^= 1
        refused(bytes(raw))


@pytest.mark.parametrize("at", [264, 300, 447, 512, 4000, 24, 71, 208])
def test_what_must_be_zero_is_zero_even_with_a_checksum_that_fits(at: int) -> None:
    raw = bytearray(GOOD)
    raw[at] = 1
    refused(resum(bytes(raw)))


def test_version_size_place_and_algorithm() -> None:
    for at, value in ((6, b"\0\1"), (8, (1 << 40).to_bytes(8, "big")), (8, bytes(8)), (256, b"\1"), (72, b"sha1\0\0")):
        raw = bytearray(GOOD)
        raw[at : at + len(value)] = value
        refused(resum(bytes(raw)))


def test_every_truncation() -> None:
    for size in (*range(4200), *range(4200, 2 * METADATA_SIZE, 97), len(GOOD) - 4096, len(GOOD) - 1):
        refused(GOOD[:size])
    refused(GOOD + b"\0")
    refused(GOOD + bytes(4096))
    refused(bytes(MAX_HEADER_SIZE + 1), "larger")


def test_every_truncation_of_the_json() -> None:
    text = json.dumps(document(), separators=(",", ":")).encode()
    for size in range(0, len(text), 7):
        refused(header_file(text[:size]))


@given(st.binary(max_size=6000))
def test_any_bytes(raw: bytes) -> None:
    refused(raw)


@given(st.binary(max_size=400))
def test_any_json_area(text: bytes) -> None:
    refused(header_file(text))


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["0", "4096", "dynamic"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["0", "1", "type", "offset"]), inner),
    max_leaves=6,
)


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [path] * bool(path) + [place for key in keys for place in _places(value[key], (*path, key))]


@given(st.sampled_from(_places(document())), JSON)
def test_any_value_anywhere(place: tuple[Any, ...], value: object) -> None:
    """Total: whatever stands wherever, it is read or it is an EvidenceFormatError."""
    changed = document()
    inner: Any = changed
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    try:
        parse_header(header_file(changed))
    except EvidenceFormatError:
        return
    assert changed["segments"] == document()["segments"]
    assert set(changed["digests"]["0"]["keyslots"]) == set(changed["keyslots"])
