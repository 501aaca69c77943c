"""The snapshot file: 1.3.x's JSON types, our additions, and every wrong form an InputError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.errors import InputError
from cosmian_vm.reference import snapshot as module
from cosmian_vm.reference.snapshot import (
    Enclave,
    SevPolicy,
    SgxBody,
    SgxHeader,
    SgxPolicy,
    Snapshot,
    TdxBody,
    TdxHeader,
    TdxPolicy,
    TeePolicy,
    TpmPolicy,
    file_entries,
    load,
    parse,
    serialise,
)

SEV = {
    "measurement": "a1" * 48,
    "report_data": "00" * 64,
    "family_id": "02" * 16,
    "image_id": "03" * 16,
    "guest_svn": 7,
    "id_key_digest": "04" * 48,
    "author_key_digest": "05" * 48,
    "policy": 0x30000,
    "report_id": "06" * 32,
    "report_id_ma": "ff" * 32,
}
TDX = {
    "header": {"minimum_qe_svn": 0, "minimum_pce_svn": 11, "qe_vendor_id": "93" * 16},
    "body": {
        "minimum_tee_tcb_svn": "01" * 16,
        "mr_seam": "02" * 48,
        "td_attributes": "03" * 8,
        "xfam": 0x61AE7,
        "mr_td": "04" * 48,
        "mr_config_id": "05" * 48,
        "mr_owner": "06" * 48,
        "mr_owner_config": "07" * 48,
        "report_data": "00" * 64,
    },
}
SGX = {
    "header": {"minimum_qe_svn": 8, "minimum_pce_svn": 13, "qe_vendor_id": "93" * 16},
    "body": {"mr_enclave": "01" * 32, "mr_signer": "02" * 32, "report_data": "00" * 64},
}
SHA256 = "ab" * 32
V1: dict[str, Any] = {
    "cloud_type": "GCP",
    "tee_policy": {"Sev": SEV},
    "tpm_policy": {"reset_count": 3, "restart_count": 0},
    "filehashes": [["/usr/bin/true", SHA256], ["/usr/bin/a name", "cd" * 20]],
}
V2: dict[str, Any] = {
    **V1,
    "version": 2,
    "created": "2026-01-02T03:04:05Z",
    "agent_version": "2.0.0",
    "hash_algorithm": "sha256",
    "ak_name": "000b" + "11" * 32,
    "anchor": "operator",
    "owners": [],
    "boot_pcrs": {str(pcr): f"{pcr:02x}" * 32 for pcr in range(16) if pcr != 10},
    "clock": 123456,
    "rtmrs": None,
    "vmpl": 0,
    "host_data": "00" * 32,
    "reported_tcb": "04000000000018db",
    "platform_info": 3,
    "enclave": None,
    "without_tpm": False,
    "ima_policy": [["/etc/ima/ima-policy", SHA256]],
    "unreadable": [["/root/x", "Permission denied"]],
    "not_on_disk": [["/usr/bin/gone", SHA256]],
    "path_bytes": {},
}


def raw(data: object) -> bytes:
    return json.dumps(data).encode()


def changed(data: dict[str, Any], *path: str, value: object) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(data))
    target = copy
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return copy


def without(data: dict[str, Any], *path: str) -> dict[str, Any]:
    copy = changed(data, *path, value=None)
    target = copy
    for key in path[:-1]:
        target = target[key]
    del target[path[-1]]
    return copy


def refused(data: object) -> str:
    with pytest.raises(InputError) as info:
        parse(data if isinstance(data, bytes) else raw(data), "some.snapshot")
    text = str(info.value)
    assert text.startswith("some.snapshot"), text
    assert text.isprintable(), text
    assert len(text) < 900
    return text


# --- the 1.3.x file ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tee", [{"Sev": SEV}, {"Tdx": TDX}, {"Sgx": SGX}], ids=["Sev", "Tdx", "Sgx"])
def test_what_1_3_wrote_is_read_and_written_with_the_same_json(tee: dict[str, Any]) -> None:
    data = {**V1, "tee_policy": tee}
    snapshot = parse(raw(data), "f")
    assert snapshot.version == 1
    written = json.loads(serialise(snapshot))
    assert {key: written[key] for key in V1} == data
    assert list(written["tee_policy"]) == list(tee)


def test_a_version_2_file_holds_the_json_types_that_1_3_reads() -> None:
    written = json.loads(serialise(parse(raw(V2), "f")))
    assert written == V2
    sev = written["tee_policy"]["Sev"]
    for name in ("guest_svn", "policy"):
        assert type(sev[name]) is int
    for name in sev.keys() - {"guest_svn", "policy"}:
        assert type(sev[name]) is str
    assert type(written["tpm_policy"]["reset_count"]) is int
    assert all(type(pair) is list and len(pair) == 2 for pair in written["filehashes"])


def test_a_machine_without_ima_has_null_for_files_and_tpm() -> None:
    data = {"cloud_type": None, "tee_policy": {"Sgx": SGX}, "tpm_policy": None, "filehashes": None}
    snapshot = parse(raw(data), "f")
    assert snapshot.filehashes is None
    assert list(snapshot.files) == []
    assert snapshot.sgx is not None
    assert snapshot.sev is None
    assert snapshot.tdx is None
    assert {key: json.loads(serialise(snapshot))[key] for key in data} == data


def test_hex_may_be_null_but_not_absent_and_counters_may_be_absent() -> None:
    for name in SevPolicy.sizes:
        snapshot = parse(raw(changed(V1, "tee_policy", "Sev", name, value=None)), "f")
        assert snapshot.sev is not None
        assert snapshot.sev.bytes_of(name) is None
        assert name in refused(without(V1, "tee_policy", "Sev", name))
    for name in ("guest_svn", "policy"):
        snapshot = parse(raw(without(V1, "tee_policy", "Sev", name)), "f")
        assert json.loads(serialise(snapshot))["tee_policy"]["Sev"][name] is None


def test_the_largest_numbers_are_read() -> None:
    data = changed(V1, "tee_policy", "Sev", "policy", value=2**64 - 1)
    assert parse(raw(data), "f").sev == SevPolicy(**data["tee_policy"]["Sev"])
    assert "policy" in refused(changed(V1, "tee_policy", "Sev", "policy", value=2**64))
    assert "clock" in refused({**V2, "clock": 2**64})
    assert "reset_count" in refused(changed(V1, "tpm_policy", "reset_count", value=2**32))


# --- accessors --------------------------------------------------------------------------------------------------------


def test_accessors_decode_the_hex() -> None:
    snapshot = parse(raw(V2), "f")
    assert snapshot.sev is not None
    assert snapshot.sev.bytes_of("measurement") == b"\xa1" * 48
    with pytest.raises(KeyError):
        snapshot.sev.bytes_of("policy")
    assert snapshot.ak_name_bytes == b"\x00\x0b" + b"\x11" * 32
    assert snapshot.host_data_bytes == bytes(32)
    assert snapshot.boot_pcr_values() == {pcr: bytes([pcr]) * 32 for pcr in range(16) if pcr != 10}
    assert list(snapshot.files) == [
        (b"/usr/bin/true", bytes.fromhex(SHA256)),
        (b"/usr/bin/a name", bytes.fromhex("cd" * 20)),
    ]
    old = parse(raw(V1), "f")
    assert old.boot_pcr_values() == {}
    assert old.ak_name_bytes is None
    assert old.host_data_bytes is None


def test_paths_that_are_not_utf8_keep_their_bytes() -> None:
    files = [(b"/caf\xc3\xa9", b"\1" * 32), (b"/caf\xe9 \xff", b"\2" * 32), (b"/\xef\xbf\xbd", b"\3" * 32)]
    entries, exact = file_entries(files)
    assert [path for path, _ in entries] == ["/café", "/caf� �", "/�"]
    assert exact == {1: b"/caf\xe9 \xff".hex()}
    snapshot = Snapshot(
        tee_policy=TeePolicy(sev=SevPolicy(**SEV)),  # type: ignore[arg-type]  # the literal's values are of two types
        tpm_policy=TpmPolicy(),
        filehashes=entries,
        path_bytes=exact,
    )
    again = parse(serialise(snapshot), "f")
    assert again == snapshot
    assert list(again.files) == files


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=20), st.binary(min_size=32, max_size=32)), max_size=5))
def test_any_path_survives_the_round_trip(files: list[tuple[bytes, bytes]]) -> None:
    entries, exact = file_entries(files)
    data = {**V1, "filehashes": entries, "path_bytes": exact}
    assert list(parse(serialise(parse(raw(data), "f")), "f").files) == files


def test_constructors_build_the_other_platforms() -> None:
    tdx = TdxPolicy(header=TdxHeader(qe_vendor_id=None), body=TdxBody(**TDX["body"]))  # type: ignore[arg-type]
    sgx = SgxPolicy(header=SgxHeader(qe_vendor_id=None), body=SgxBody(**SGX["body"]))  # type: ignore[arg-type]
    enclave = Enclave(attributes="00" * 16, isv_prod_id=1, isv_svn=2)
    snapshot = Snapshot(tee_policy=TeePolicy(tdx=tdx), rtmrs=("00" * 48,) * 4)
    assert parse(serialise(snapshot), "f").tdx == tdx
    snapshot = Snapshot(tee_policy=TeePolicy(sgx=sgx), enclave=enclave)
    assert parse(serialise(snapshot), "f").enclave == enclave
    with pytest.raises(ValueError, match="attributes"):
        Enclave(attributes="00", isv_prod_id=1, isv_svn=2)


# --- wrong forms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SevPolicy.sizes))
@pytest.mark.parametrize("value", ["", "00", "zz", 5, ["00"], " ", "A1"], ids=repr)
def test_hex_of_another_form_is_refused(name: str, value: object) -> None:
    if value == "A1":
        value = "A1" * SevPolicy.sizes[name]
    elif value == "zz":
        value = "zz" * SevPolicy.sizes[name]
    elif value == " ":
        value = "a " * SevPolicy.sizes[name]
    assert name in refused(changed(V1, "tee_policy", "Sev", name, value=value))


@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({**V1, "surprise": 1}, "surprise"),
        ({**V1, "sur\x1b[2Jprise\n": 1}, "prise"),
        ({**V1, "s" * 5000: 1}, "sss"),
        ({**V2, "boot_pcrs": {"\x1b[2J": ""}}, "boot_pcrs"),
        (changed(V1, "tee_policy", "Sev", "surprise", value=1), "surprise"),
        (changed(V1, "tpm_policy", "surprise", value=1), "surprise"),
        ({**V1, "tee_policy": {}}, "exactly one"),
        ({**V1, "tee_policy": {"Sev": SEV, "Sgx": SGX}}, "exactly one"),
        ({**V1, "tee_policy": {"Sev": None}}, "tee_policy.Sev"),
        ({**V1, "tee_policy": {"Sev": SEV, "Tdx": None}}, "tee_policy.Tdx"),
        ({**V1, "tee_policy": {"SEV": SEV}}, "SEV"),
        (without(V1, "tee_policy"), "tee_policy"),
        ({**V1, "tpm_policy": None}, "only together"),
        ({**V1, "cloud_type": "gcp"}, "cloud_type"),
        ({**V1, "filehashes": [["/a"]]}, "filehashes"),
        ({**V1, "filehashes": [["/a", SHA256, "x"]]}, "filehashes"),
        ({**V1, "filehashes": {"/a": SHA256}}, "filehashes"),
        ({**V1, "filehashes": [["/a", SHA256], ["/b", "abc"]]}, "filehashes[1] ('/b')"),
        ({**V1, "filehashes": [["/a", "AB" * 32]]}, "filehashes[0]"),
        ({**V1, "filehashes": [["/a", "ab" * 31 + "a "]]}, "filehashes[0]"),
        ({**V1, "filehashes": [["/a", "é" * 64]]}, "filehashes[0]"),
        ({**V1, "filehashes": [["/a", "ab" * 31]]}, "filehashes[0]"),
        ({**V1, "not_on_disk": [["/a", "x"]]}, "not_on_disk[0]"),
        ({**V1, "ima_policy": [["/a", ""]]}, "ima_policy[0]"),
        ({**V1, "path_bytes": {"9": "2f"}}, "path_bytes.9"),
        ({**V1, "path_bytes": {"-1": "2f"}}, "path_bytes.-1"),
        ({**V1, "path_bytes": {"0": "2f"}}, "path_bytes.0"),
        ({**V1, "path_bytes": {"0": "x"}}, "path_bytes.0"),
        ({**V1, "path_bytes": {"a": "2f"}}, "path_bytes"),
        ({**V2, "boot_pcrs": {"10": "00" * 32}}, "boot_pcrs"),
        ({**V2, "boot_pcrs": {"16": "00" * 32}}, "boot_pcrs"),
        ({**V2, "boot_pcrs": {"01": "00" * 32}}, "boot_pcrs"),
        ({**V2, "boot_pcrs": {"1": "00" * 20}}, "boot_pcrs.1"),
        ({**V2, "ak_name": "00"}, "ak_name"),
        ({**V2, "ak_name": "zz" * 34}, "ak_name"),
        ({**V2, "anchor": "friend"}, "anchor"),
        ({**V2, "host_data": "00"}, "host_data"),
        ({**V2, "reported_tcb": "00"}, "reported_tcb"),
        ({**V2, "rtmrs": ["00" * 48] * 3}, "rtmrs"),
        ({**V2, "rtmrs": ["00"] * 4}, "rtmrs"),
        ({**V2, "vmpl": -1}, "vmpl"),
        ({**V2, "version": 3}, "version"),
        ({**V2, "version": 0}, "version"),
        ({**V2, "version": True}, "version"),
        ({**V2, "without_tpm": "no"}, "without_tpm"),
        ([], "object"),
        (None, "object"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_form_is_named(data: object, named: str) -> None:
    assert named in refused(data)


def test_what_is_something_else_is_told_to_be() -> None:
    assert "this is no snapshot: cosmian_vm snapshot takes one" in refused({"api": 2})
    assert "this is no snapshot" not in refused({**V2, "api": 2})


@pytest.mark.parametrize("index", [0, 1023, 1024, 1025, 2999])
def test_one_wrong_digest_among_many_is_named(index: int) -> None:
    files = [[f"/{number}", SHA256] for number in range(3000)]
    assert parse(raw({**V1, "filehashes": files}), "f").filehashes is not None
    for wrong in ("AB" * 32, "a" * 63, "ab" * 31 + "a\n", "é" * 64):
        files[index][1] = wrong
        assert f"filehashes[{index}] ('/{index}')" in refused({**V1, "filehashes": files})


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b'{"created": "\xff"}', b'{"created": "\\ud800"}', b"[" * 100_000, b"nonsense", b"{}"]
)
def test_what_is_no_json_is_refused(data: bytes) -> None:
    refused(data)


def test_every_truncation_is_refused() -> None:
    whole = serialise(parse(raw(V2), "f"))
    assert whole.endswith(b"}\n")
    for size in range(len(whole) - 1):
        refused(whole[:size])


@given(st.data())
def test_no_mutation_ends_in_another_error(data: st.DataObject) -> None:
    whole = bytearray(raw(V2))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        snapshot = parse(bytes(whole), "f")
    except InputError:
        return
    list(snapshot.files)
    snapshot.boot_pcr_values()
    assert parse(serialise(snapshot), "f") == snapshot


# --- files ------------------------------------------------------------------------------------------------------------


def test_load_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cosmian_vm.snapshot"
    for bad in (file, tmp_path, tmp_path / "a\0b"):
        with pytest.raises(InputError, match="cannot be read"):
            load(bad)
    file.write_bytes(raw(V2))
    assert load(file) == parse(raw(V2), "f")
    file.write_bytes(b"{}")
    with pytest.raises(InputError, match=r"cosmian_vm\.snapshot.*tee_policy"):
        load(file)
    monkeypatch.setattr(module, "MAX_SNAPSHOT_SIZE", 1)
    with pytest.raises(InputError, match="larger"):
        load(file)
