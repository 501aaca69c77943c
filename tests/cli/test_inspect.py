"""``cosmian_vm inspect`` from the command line: what it prints and with which exit status it ends."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.devkit.paravisor import SimulatedHcl, runtime_json
from cosmian_vm.devkit.tee import SimulatedTee

Run = Callable[..., Any]
AT = "2022-09-24T12:00:00Z"
KEYS = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"


@pytest.fixture
def bundle(run: Run, agent: Any, taken: Path, root: Path, tmp_path: Path) -> Path:
    path = tmp_path / "evidence.json"
    options = ["--url", agent.url, "--allow-insecure-tls"]
    ran = run(*options, "verify", "-s", taken, "--trust-root", root, "--save-evidence", path)
    assert ran.status == 0, ran
    return path


class TestBundle:
    def test_facts(self, run: Run, bundle: Path) -> None:
        told = json.loads(run("inspect", bundle, "--json").out)
        assert told["kind"] == "evidence-bundle"
        facts = told["facts"]
        assert facts["tee_quote"]["kind"] == "snp-report"
        assert facts["tpm_quote"]["kind"] == "tpm-quote"
        assert facts["boot_event_log"]["kind"] == "event-log"
        assert facts["ima_log"]["kind"] == "ima-log-binary"
        assert facts["tls_certificate"]["kind"] == "certificate"

    def test_authentic(self, run: Run, bundle: Path, root: Path) -> None:
        ran = run("inspect", bundle, "--verify", "--trust-root", root)
        assert ran.status == 0, ran
        assert "[ OK ] tee.report_data: " in ran.out
        assert "--trust-root" in ran.out
        assert ran.lines[-1].startswith("[ OK ] Authentic: ")

    def test_not_without_the_root(self, run: Run, bundle: Path) -> None:
        assert run("inspect", bundle, "--verify").status == 1

    @pytest.mark.parametrize("part", ["nonce", "tls_certificate"])
    def test_not_without_what_it_is_bound_to(self, run: Run, bundle: Path, root: Path, part: str) -> None:
        told = json.loads(bundle.read_text())
        del told[part]
        bundle.write_text(json.dumps(told))
        ran = run("inspect", bundle, "--verify", "--trust-root", root)
        assert ran.status == 1
        assert "[ SKIP ] tee.report_data" in ran.out

    def test_not_with_another_nonce(self, run: Run, bundle: Path, root: Path) -> None:
        told = json.loads(bundle.read_text())
        told["nonce"] = "A" * 43 + "="
        bundle.write_text(json.dumps(told))
        ran = run("inspect", bundle, "--verify", "--trust-root", root)
        assert ran.status == 1
        assert "[ FAIL ] tee.report_data" in ran.out

    @pytest.mark.parametrize("part", ["tee_quote", "tpm", "ima_log", "boot_event_log", "endorsements"])
    @pytest.mark.parametrize("value", [None, "AAAA", "", 7, [], {}, ["AAAA"]])
    def test_nonsense(self, run: Run, bundle: Path, root: Path, part: str, value: object) -> None:
        told = json.loads(bundle.read_text())
        told[part] = value
        bundle.write_text(json.dumps(told))
        ran = run("inspect", bundle, "--verify", "--trust-root", root, "--json")
        assert ran.status in (0, 1)
        assert "internal" not in ran.err
        assert json.loads(ran.out)["kind"] == "evidence-bundle"


class TestSnapshot:
    def test_facts(self, run: Run, taken: Path, machine: Machine) -> None:
        told = json.loads(run("inspect", taken, "--json").out)
        assert told["kind"] == "snapshot"
        assert told["facts"]["files"] == len(machine.files)
        assert told["facts"]["version"] == 2
        assert "filehashes" not in told["facts"]

    def test_proves_nothing(self, run: Run, taken: Path) -> None:
        ran = run("inspect", taken, "--verify")
        assert ran.status == 2
        assert "not signed" in ran.out
        assert ran.lines[-1].startswith(f"[ SKIP ] Cannot be said: {taken}")
        assert "uthentic: " not in ran.out
        assert ran.err == ""
        ran = run("inspect", taken, "--verify", "--json")
        assert ran.status == 2
        assert json.loads(ran.out)["verify"]["authentic"] is None

    def test_a_broken_one_is_not_authentic(self, run: Run, taken: Path) -> None:
        taken.write_bytes(taken.read_bytes().replace(b'"version":2', b'"version":"2"'))
        ran = run("inspect", taken, "--verify", "--json")
        assert ran.status == 1
        assert json.loads(ran.out)["verify"]["authentic"] is False

    def test_broken(self, run: Run, taken: Path) -> None:
        taken.write_bytes(taken.read_bytes().replace(b'"version":2', b'"version":"2"'))
        ran = run("inspect", taken)
        assert ran.status == 2
        assert "field version" in ran.err
        assert len(ran.err.splitlines()) == 1


@pytest.mark.evidence
class TestRealEvidence:
    def test_policy_decides_only_when_asked(self, run: Run, evidence: Path) -> None:
        folder = evidence / "snp" / "google-milan-v2-debug"
        options = ["inspect", folder / "report.bin", "--verify", "--with", folder / "vcek.der", "--at", AT]
        ran = run(*options)
        assert ran.status == 0, ran
        assert "(policy: does not decide)" in ran.out
        ran = run(*options, "--policy")
        assert ran.status == 1
        assert ran.lines[-1].startswith("[ FAIL ] Not authentic: ")

    def test_json(self, run: Run, evidence: Path) -> None:
        folder = evidence / "snp" / "google-milan-v2-debug"
        ran = run("inspect", folder / "report.bin", "--verify", "--with", folder / "vcek.der", "--at", AT, "--json")
        told = json.loads(ran.out)
        assert set(told) == {"kind", "facts", "verify"}
        assert told["verify"]["authentic"] is True
        assert all(set(check) == {"id", "status", "line"} for check in told["verify"]["checks"])

    def test_standard_input(self, run: Run, evidence: Path) -> None:
        raw = (evidence / "snp" / "virtee-milan-v2" / "report.bin").read_bytes()
        ran = run("inspect", "-", stdin=raw)
        assert ran.status == 0
        assert ran.lines[0].startswith("-: ")
        assert "measurement: " in ran.out

    def test_kind_can_be_told(self, run: Run, evidence: Path) -> None:
        ran = run("inspect", evidence / "snp" / "virtee-milan-v2" / "report.bin", "--kind", "event-log")
        assert ran.status == 2
        assert len(ran.err.splitlines()) == 1

    def test_no_file_crashes_it(self, run: Run, evidence: Path, tmp_path: Path) -> None:
        """Any real file, cut or damaged anywhere: an answer and an exit status, never an internal error."""
        files = sorted(path for path in evidence.rglob("*") if path.is_file() and path.stat().st_size < 60_000)
        dice = random.Random(1)
        for path in files:
            raw = bytearray(path.read_bytes())
            cut = dice.randrange(len(raw) + 1)
            for _ in range(3):
                if raw:
                    raw[dice.randrange(len(raw))] = dice.randrange(256)
            for content in (bytes(raw), bytes(raw[:cut]), bytes(raw[cut:])):
                file = tmp_path / "file.bin"
                file.write_bytes(content)
                ran = run("inspect", file, "--verify", "--with", path, "--with", file)
                assert ran.status in (0, 1, 2), (path, ran)
                assert "internal" not in ran.err, (path, ran.err)
                assert all(line.isprintable() for line in ran.lines)


@pytest.mark.parametrize("content", [b"", b"nothing known\n", b"\x00" * 100, b"\xff" * 5000, b"{", b"[]", b"0\x82"])
def test_unknown_file(run: Run, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    for more in ([], ["--verify"]):
        ran = run("inspect", path, *more)
        assert ran.status == 2, ran
        assert ran.err.startswith(f"cosmian_vm: {path}: ")
        assert len(ran.err.splitlines()) == 1
    told = json.loads(run("inspect", path, "--verify", "--json").out)
    assert told["kind"] == "unknown"
    assert told["verify"]["authentic"] is False


def test_absent_file(run: Run, tmp_path: Path) -> None:
    for arguments in (["inspect", tmp_path / "none"], ["inspect", __file__, "--with", tmp_path / "none"]):
        ran = run(*arguments)
        assert ran.status == 2
        assert "none: cannot be read: No such file or directory" in ran.err
    assert "cannot be read: Is a directory" in run("inspect", tmp_path).err


@pytest.mark.parametrize(
    "at", ["yesterday", "2025-10-02", "2025-10-02T00:00:00", "2025-13-01T00:00:00Z", "0001-01-01T00:00:00+23:59"]
)
def test_time_that_is_none(run: Run, tmp_path: Path, at: str) -> None:
    (tmp_path / "file").write_bytes(b"x")
    ran = run("inspect", tmp_path / "file", "--verify", "--at", at)
    assert ran.status == 2
    assert f"--at {at}: " in ran.err


def test_how_to_verify_needs_verify(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for option in (["--policy"], ["--at", AT], ["--trust-root", tmp_path / "file"]):
        ran = run("inspect", tmp_path / "file", *option)
        assert ran.status == 2
        assert "add --verify" in ran.err


def test_unknown_kind(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    ran = run("inspect", tmp_path / "file", "--kind", "nonsense")
    assert ran.status == 2
    assert "snp-report" in ran.err


def test_what_was_left_open_is_not_called_authentic(run: Run, tmp_path: Path) -> None:
    """An HCL report whose chip certificate was not given: it binds, and nobody has looked at AMD's signature."""
    tee = SimulatedTee.launch(AmdVendor.create(keys=VendorKeys.load(KEYS)), instance=bytes(32))
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
    hcl = SimulatedHcl(inner=tee, data=runtime_json(key)).quote(bytes(64)).hcl_report
    assert hcl is not None
    path = tmp_path / "hcl.bin"
    path.write_bytes(hcl)
    ran = run("inspect", path, "--verify")
    assert ran.status == 0, ran
    assert ran.lines[-1].startswith("[ WARNING ] Nothing speaks against it, but not all was checked (tee.signature, ")
    told = json.loads(run("inspect", path, "--verify", "--json").out)
    assert told["verify"]["left_open"] == ["tee.signature", "tee.chain"]


def test_a_log_alone_is_not_called_authentic(run: Run, tmp_path: Path) -> None:
    """It is consistent, as anybody's would be who writes one; a quote would say whose it is."""
    machine = Machine.create(AmdVendor.create(keys=VendorKeys.load(KEYS)))
    machine.run("/usr/bin/program", b"content")
    for name, log in (("ima.bin", machine.ima_log()), ("boot.bin", machine.boot_event_log())):
        assert log is not None
        path = tmp_path / name
        path.write_bytes(log)
        ran = run("inspect", path, "--verify")
        assert ran.status == 0, ran
        assert ran.lines[-1].startswith(
            "[ WARNING ] Nothing speaks against it, but not all was checked (tpm.signature): "
        )
        assert any(line.startswith("[ SKIP ] tpm.signature: nobody vouches for the ") for line in ran.lines)
        assert json.loads(run("inspect", path, "--verify", "--json").out)["verify"]["left_open"] == ["tpm.signature"]


def test_with_a_folder(run: Run, tmp_path: Path) -> None:
    vendor = AmdVendor.create(keys=VendorKeys.load(KEYS))
    folder = tmp_path / "endorsements"
    folder.mkdir()
    (tmp_path / "report.bin").write_bytes(vendor.sign_report())
    inspect = ("inspect", tmp_path / "report.bin", "--verify", "--with", folder)
    ran = run(*inspect)
    assert ran.status == 2
    assert f"--with {folder}: 0 files in this folder" in ran.err
    (folder / "vcek.der").write_bytes(vendor.chip.public_bytes(Encoding.DER))
    assert "[ OK ] tee.signature: " in run(*inspect).out
