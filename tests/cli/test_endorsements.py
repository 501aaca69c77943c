"""``cosmian_vm endorsements fetch``, and a verification from what it wrote that needs no network."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.cli import _given, _vendors
from cosmian_vm.devkit.amd import AmdVendor
from cosmian_vm.devkit.intel import IntelVendor, td_body
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.devkit.vendors import FakeVendors, Lie
from cosmian_vm.endorsements.intel_collateral import parse_collateral
from cosmian_vm.errors import InputError

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def intel() -> IntelVendor:
    made = IntelVendor.create()
    return replace(made, issued=datetime.now(UTC).replace(microsecond=0) - timedelta(days=1))


@pytest.fixture
def service(vendor: AmdVendor, intel: IntelVendor, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVendors]:
    """The vendors' services as the commands know them."""
    with FakeVendors(vendor, intel) as service:
        monkeypatch.setattr(_vendors, "_SERVICES", service.services)
        yield service


def _silence(machine: Machine) -> None:
    """The machine sends nothing beside its report."""
    assert machine.tee is not None
    machine.tee.endorsements = ()


def test_fetch_then_verify_with_no_network(
    run: Run, agent: Any, machine: Machine, root: Path, taken: Path, service: FakeVendors, vendor: AmdVendor
) -> None:
    """The whole way: evidence kept where there is no network, endorsements fetched elsewhere, a verdict without any."""
    _silence(machine)
    verify = ("--url", agent.url, "--allow-insecure-tls", "verify", "-s", taken, "--trust-root", root, "--offline")
    ran = run(*verify, "--save-evidence", "evidence.json")
    assert ran.status == 1
    assert service.asked == []
    assert [line for line in ran.lines if "endorsements fetch EVIDENCE --output DIR" in line]

    ran = run("endorsements", "fetch", "evidence.json", "--output", "web-1")
    assert (ran.status, ran.err) == (0, "")
    assert sorted(os.listdir("web-1")) == ["ask_ark.pem", "crl.der", "vcek.der"]
    assert Path("web-1/vcek.der").read_bytes() == vendor.chip.public_bytes(Encoding.DER)
    assert Path("web-1/ask_ark.pem").read_text().count("BEGIN CERTIFICATE") == 2
    assert len(service.asked) == 3

    for command in ("verify", "snapshot", "init"):
        rest = {
            "verify": verify[3:],
            "snapshot": ("snapshot", "--trust-root", root, "--offline"),
            "init": ("app", "init", "-c", taken, "-s", taken, "--trust-root", root, "--offline"),
        }[command]
        for file in (Path("cache") / "cosmian_vm").glob("*"):
            file.unlink()
        ran = run("--url", agent.url, "--allow-insecure-tls", *rest, "--endorsements", "web-1")
        assert ran.status == 0, ran
    assert len(service.asked) == 3


def test_without_offline_verify_looks_up_itself(
    run: Run, agent: Any, machine: Machine, root: Path, taken: Path, service: FakeVendors
) -> None:
    _silence(machine)
    for _ in range(2):
        ran = run("--url", agent.url, "--allow-insecure-tls", "verify", "-s", taken, "--trust-root", root)
        assert ran.status == 0, ran
        assert len(service.asked) == 3


def test_a_report_as_json(run: Run, vendor: AmdVendor, service: FakeVendors) -> None:
    Path("report.bin").write_bytes(vendor.sign_report())
    ran = run("endorsements", "fetch", "report.bin", "--output", "deep/er", "--json")
    assert ran.status == 0, ran
    data = json.loads(ran.out)
    assert data["kind"] == "snp-report"
    assert [entry["file"] for entry in data["written"]] == [
        "deep/er/vcek.der",
        "deep/er/ask_ark.pem",
        "deep/er/crl.der",
    ]
    assert (data["lacking"], data["notes"]) == ([], [])


def test_standard_input(run: Run, vendor: AmdVendor, service: FakeVendors) -> None:
    ran = run("endorsements", "fetch", "-", "--output", "out", stdin=vendor.sign_report())
    assert ran.status == 0, ran


@pytest.mark.parametrize("pccs", [False, True])
def test_a_quote(run: Run, intel: IntelVendor, service: FakeVendors, pccs: bool) -> None:
    Path("quote.bin").write_bytes(intel.quote(td_body()))
    ran = run("endorsements", "fetch", "quote.bin", "-o", "out", *(("--pccs", service.url) if pccs else ()))
    assert ran.status == 0, ran
    assert os.listdir("out") == ["collateral.json"]
    assert parse_collateral(Path("out/collateral.json").read_bytes()).tcb_info.id == "TDX"
    assert ("rootcacrl" in service.asked[-1]) is pccs
    ran = run("endorsements", "fetch", "quote.bin", "-o", "out")
    assert ran.status == 0
    assert len(service.asked) == 8, "what may have changed is asked for anew"


def test_at_another_time(run: Run, intel: IntelVendor, service: FakeVendors) -> None:
    Path("quote.bin").write_bytes(intel.quote(td_body()))
    ran = run("endorsements", "fetch", "quote.bin", "-o", "out", "--at", "2035-01-01T00:00:00Z")
    assert ran.status == 3
    assert "collateral that holds at 2035-01-01" in ran.err
    assert run("endorsements", "fetch", "quote.bin", "-o", "out", "--at", "yesterday").status == 2


@pytest.mark.parametrize("lie", [Lie.GARBAGE, Lie.REDIRECT, Lie.CUT, Lie.HUGE])
def test_what_cannot_be_had(run: Run, vendor: AmdVendor, service: FakeVendors, lie: Lie) -> None:
    service.lie, service.lie_about = lie, "/crl"
    Path("report.bin").write_bytes(vendor.sign_report())
    ran = run("endorsements", "fetch", "report.bin", "--output", "out")
    assert ran.status == 3
    assert sorted(os.listdir("out")) == ["ask_ark.pem", "vcek.der"]
    assert len(ran.err.splitlines()) == 1
    assert "AMD's revocation list" in ran.err
    (note,) = [line for line in ran.lines if line.startswith("[ WARNING ]")]
    assert f"{service.url}/vcek/v1/Milan/crl" in note
    assert "endorsements fetch" not in note


def test_nothing_can_be_had(run: Run, vendor: AmdVendor, service: FakeVendors) -> None:
    service.close()
    Path("report.bin").write_bytes(vendor.sign_report())
    ran = run("endorsements", "fetch", "report.bin", "--output", "out")
    assert ran.status == 3
    assert not Path("out").exists()


def test_a_file_without_a_quote(run: Run, vendor: AmdVendor, service: FakeVendors) -> None:
    for content in (b"", b"garbage", vendor.crl()):
        Path("file").write_bytes(content)
        ran = run("endorsements", "fetch", "file", "--output", "out")
        assert ran.status == 2
        assert ran.err.startswith("cosmian_vm: file: there is no TEE report or quote in it")
    assert run("endorsements", "fetch", "missing", "--output", "out").status == 2
    Path("report.bin").write_bytes(vendor.sign_report())
    assert run("endorsements", "fetch", "report.bin").status == 2
    assert run("endorsements", "fetch", "report.bin", "--output", "file").status == 2


def test_a_pccs_that_is_no_address(run: Run, agent: Any, taken: Path, vendor: AmdVendor) -> None:
    Path("report.bin").write_bytes(vendor.sign_report())
    for rest in (
        ("endorsements", "fetch", "report.bin", "-o", "out"),
        ("--url", agent.url, "--allow-insecure-tls", "verify", "-s", taken),
    ):
        ran = run(*rest, "--pccs", "http://pccs.example.com")
        assert ran.status == 2
        assert "--pccs http://pccs.example.com" in ran.err
    Path("policy.toml").write_text('[intel]\npccs = "http://pccs.example.com"\n')
    ran = run("--url", agent.url, "--allow-insecure-tls", "verify", "-s", taken, "--policy", "policy.toml")
    assert ran.status == 2
    assert ran.err.startswith("cosmian_vm: policy.toml: intel.pccs: http://pccs.example.com: an address")


# --endorsements


def test_a_folder_with_other_things_in_it(vendor: AmdVendor, intel: IntelVendor, tmp_path: Path) -> None:
    (tmp_path / "vcek.der").write_bytes(vendor.certificates[0])
    (tmp_path / "crl.der").write_bytes(vendor.crl())
    (tmp_path / "collateral.json").write_bytes(intel.collateral())
    (tmp_path / "README").write_text("what this is")
    (tmp_path / ".hidden").write_text("not looked at")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    blobs, notes = _given.load_endorsements([str(tmp_path)])
    assert len(blobs) == 3
    (note,) = notes
    assert note.endswith("not used: README, folder, pipe")


@pytest.mark.evidence
def test_intel_s_answers_one_by_one(evidence: Path) -> None:
    """As somebody downloads them, with the issuer chains of the headers: they are put together."""
    folder = evidence / "collateral" / "intel" / "google-parts"
    blobs, notes = _given.load_endorsements([str(folder)])
    found = [parse_collateral(blob) for blob in blobs if blob.startswith(b"{")]
    assert [collateral.tcb_info.fmspc for collateral in found] == ["50806f000000"]
    assert notes == ()


def test_answers_that_make_up_nothing(intel: IntelVendor, tmp_path: Path, vendor: AmdVendor) -> None:
    document = intel.tcb_info()
    text = f'{{"tcbInfo":{document.text},"signature":"{document.signature.hex()}"}}'
    (tmp_path / "tcb_info.json").write_text(text)
    (tmp_path / "crl.der").write_bytes(vendor.crl())
    _, notes = _given.load_endorsements([str(tmp_path)])
    assert notes[0].endswith("not used: tcb_info.json")


def test_folders_without_bounds(tmp_path: Path, vendor: AmdVendor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_given, "MAX_FILES", 3)
    for number in range(4):
        (tmp_path / str(number)).write_bytes(vendor.certificates[0])
    with pytest.raises(InputError, match="4 files, more than 3"):
        _given.load_endorsements([str(tmp_path)])
    monkeypatch.setattr(_given, "MAX_FILES", 4)
    assert len(_given.load_endorsements([str(tmp_path)])[0]) == 4
    monkeypatch.setattr(_given, "MAX_SIZE", 100)
    with pytest.raises(InputError, match="more than 100 bytes"):
        _given.load_endorsements([str(tmp_path)])


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "garbage").write_bytes(b"garbage")
    (tmp_path / "broken.json").write_bytes(b'{"tcb_info": 1, "qe_identity": 2}')
    for name in ("empty", "garbage", "broken.json", "missing"):
        with pytest.raises(InputError, match=name):
            _given.load_endorsements([str(tmp_path / name)])


def test_collateral_in_other_forms_is_brought_to_one(intel: IntelVendor, tmp_path: Path) -> None:
    members = json.loads(intel.collateral())
    other = {name.replace("_", "").upper(): value for name, value in members.items()}
    (tmp_path / "collateral.json").write_text(json.dumps(other))
    (blob,), _ = _given.load_endorsements([str(tmp_path / "collateral.json")])
    assert parse_collateral(blob).tcb_info.id == "TDX"


# A vendor's service that is of no use


@pytest.mark.parametrize("lie", list(Lie))
def test_a_verdict_is_withheld_and_the_remedy_named(
    run: Run,
    agent: Any,
    machine: Machine,
    root: Path,
    taken: Path,
    service: FakeVendors,
    lie: Lie,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exit status 1: there is evidence, and it is not trusted. (3 would say that the machine could not be reached.)"""
    monkeypatch.setattr(_vendors, "fetch", service.fetch)
    _silence(machine)
    service.lie, service.lie_about, service.retry_after = lie, "/crl", "86400"
    ran = run("--url", agent.url, "--allow-insecure-tls", "verify", "-s", taken, "--trust-root", root)
    assert (ran.status, ran.err) == (1, "")
    (note,) = [line for line in ran.lines if "revocation list of Milan" in line]
    assert f"{service.url}/vcek/v1/Milan/crl" in note
    assert "--endorsements DIR" in note
    assert "could not be checked: tee.revocation" in ran.lines[-1]
    assert "failed:" not in ran.lines[-1]
