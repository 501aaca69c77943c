"""What is remembered of machines, and that it is neither lost nor mixed up."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.cli._machines import Identity, Machines, differences, identity_of
from cosmian_vm.devkit.intel import IntelVendor, enclave_report, td_body
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.errors import EvidenceFormatError, InputError
from cosmian_vm.evidence.bundle import Evidence, TlsPeer
from cosmian_vm.evidence.intel_quote import serialise_quote
from cosmian_vm.evidence.snp import parse_report
from cosmian_vm.evidence.tpm import name

ONE = Identity(tee="sev-snp", measurement="00", report_id="11", ak_name="22", anchor="operator", since="2026")


def test_in_short() -> None:
    assert ONE.short() == "report_id 11..., AK 22..."
    enclave = Identity(tee="sgx", measurement="33")
    assert enclave.short() == "measurement 33..., which every machine of the same contents has"


def evidence_with(tee: bytes | None) -> Evidence:
    return Evidence(
        api=2, tee=tee, tpm=None, ima_log=None, boot_event_log=None, tls=TlsPeer(leaf=b"leaf", trusted=None)
    )


def test_of_an_snp_machine(machine: Machine) -> None:
    evidence = machine.evidence(bytes(32))
    assert evidence.tee is not None
    assert evidence.tpm is not None
    report = parse_report(evidence.tee)
    seen = identity_of(evidence, "operator")
    assert seen == Identity(
        tee="sev-snp",
        measurement=report.measurement.hex(),
        report_id=report.report_id.hex(),
        ak_name=name(evidence.tpm.ak_public).hex(),
        anchor="operator",
    )


def test_of_intels_machines() -> None:
    vendor = IntelVendor.create()
    for body, measurement in (
        (td_body({"mr_td": b"\x05" * 48}), "05" * 48),
        (enclave_report(mr_enclave=b"\x06" * 32), "06" * 32),
    ):
        raw: Any = vendor.quote(body)
        seen = identity_of(evidence_with(raw if isinstance(raw, bytes) else serialise_quote(raw)), "operator")
        assert (seen.measurement, seen.report_id, seen.ak_name, seen.anchor) == (measurement, None, None, None)


@pytest.mark.parametrize("tee", [None, b"", bytes(2000), b"\x02" + bytes(100)])
def test_of_what_is_no_quote(tee: bytes | None) -> None:
    with pytest.raises(EvidenceFormatError):
        identity_of(evidence_with(tee), "operator")


@pytest.mark.parametrize("field", ["tee", "measurement", "report_id", "ak_name", "anchor"])
def test_each_difference_is_said_with_both_values(field: str) -> None:
    import msgspec

    one = msgspec.structs.replace(ONE, anchor="certificate")
    for value in ("other", None, "operator"):
        other = msgspec.structs.replace(one, **{field: value}, since="later")
        assert differences(one, other) == {field: f"{field} was {getattr(one, field)}, is {value}"}
    assert differences(ONE, msgspec.structs.replace(ONE, anchor=None)) == {"anchor": "anchor was operator, is None"}
    assert differences(ONE, msgspec.structs.replace(ONE, anchor="svsm")) == {}  # somebody vouches for it now
    assert differences(ONE, msgspec.structs.replace(ONE, since="later")) == {}


def test_remembered_and_forgotten(tmp_path: Path) -> None:
    machines = Machines(tmp_path / "c")
    assert machines.known() == {}
    assert not (tmp_path / "c").exists()
    machines.remember("https://a", ONE)
    machines.remember("https://b:5355", ONE)
    assert Machines(tmp_path / "c").known() == {"https://a": ONE, "https://b:5355": ONE}
    file = tmp_path / "c" / "known_machines.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert machines.forget("https://a")
    assert not machines.forget("https://a")
    assert machines.known() == {"https://b:5355": ONE}


def test_two_programs_at_once(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=lambda n=n: Machines(tmp_path / "c").remember(f"https://vm-{n}", ONE))
        for n in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Machines(tmp_path / "c").known()) == 12
    assert sorted(os.listdir(tmp_path / "c")) == [".known_machines.json.lock", "known_machines.json"]


@given(st.binary(max_size=60))
def test_a_file_of_any_bytes(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "any-bytes"
    folder.mkdir(exist_ok=True)
    (folder / "known_machines.json").write_bytes(raw)
    with pytest.raises(InputError, match=r"known_machines\.json"):
        Machines(folder).known()


def test_a_file_of_another_version(tmp_path: Path) -> None:
    (tmp_path / "known_machines.json").write_text('{"version":2,"machines":{}}')
    for use in (Machines(tmp_path).known, lambda: Machines(tmp_path).remember("https://a", ONE)):
        with pytest.raises(InputError, match="is of version 2"):
            use()
    assert "2" in (tmp_path / "known_machines.json").read_text()
