"""``cosmian_vm verify`` from the command line to the exit status, a simulated machine at the other end."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm import wire
from cosmian_vm.certificates import self_signed
from cosmian_vm.devkit.amd import AmdVendor
from cosmian_vm.devkit.machine import Machine

Run = Callable[..., Any]


@pytest.fixture
def verify(run: Run, agent: Any, root: Path, taken: Path) -> Run:
    def verify(*more: object, insecure: bool = True) -> Any:
        options = ["--allow-insecure-tls"] if insecure else []
        return run("--url", agent.url, *options, "verify", "--snapshot", taken, "--trust-root", root, *more)

    return verify


def test_unchanged(verify: Run) -> None:
    ran = verify()
    assert ran.status == 0, ran
    assert "[ OK ] Verifying VM integrity (against 6 files)" in ran.lines
    assert any(re.fullmatch(r"\[ (OK|WARNING) \] Verifying TPM attestation", line) for line in ran.lines)
    assert any(re.fullmatch(r"\[ (OK|WARNING) \] Verifying TEE attestation", line) for line in ran.lines)
    assert ran.lines[-1].startswith("[ OK ] Trusted: https://127.0.0.1:")
    assert ran.err == ""


def test_trust_root_is_named_on_every_verdict(verify: Run) -> None:
    assert [line for line in verify().lines if "--trust-root" in line] == [verify().lines[0]]
    (note,) = json.loads(verify("--json").out)["notes"]
    assert "Simulated" in note
    assert "--trust-root" in note


def test_trust_root_takes_roots_alone(verify: Run, vendor: AmdVendor, tmp_path: Path) -> None:
    intermediate = tmp_path / "ask.pem"
    intermediate.write_bytes(vendor.ask.public_bytes(Encoding.PEM))
    ran = verify("--trust-root", intermediate)
    assert ran.status == 2
    assert "ask.pem" in ran.err
    assert "is no root" in ran.err


def test_trust_root_adds_nothing_but_the_file(vendor: AmdVendor, root: Path) -> None:
    """AMD's intermediates are pinned as a convenience; as roots they would escape revocation."""
    from cosmian_vm.cli._roots import load_roots

    roots, _ = load_roots([str(root)])
    assert roots == (vendor.ark,)


def test_without_trust_root(run: Run, agent: Any, taken: Path) -> None:
    ran = run("--url", agent.url, "--allow-insecure-tls", "verify", "-s", taken, "--offline")
    assert ran.status == 1
    assert "[ FAIL ] Verifying TEE attestation" in ran.lines
    assert "tee.chain" in ran.lines[-1]


def test_unknown_program(verify: Run, machine: Machine) -> None:
    machine.run("/usr/bin/intruder", b"unknown")
    ran = verify()
    assert ran.status == 1
    assert "[ FAIL ] Verifying VM integrity (against 6 files)" in ran.lines
    assert "/usr/bin/intruder" in ran.out
    assert "failed: ima.files" in ran.lines[-1]


def test_whitelist(verify: Run, machine: Machine, tmp_path: Path) -> None:
    from hashlib import sha256

    machine.run("/usr/bin/new tool", b"known")
    allowed = tmp_path / "allowed.txt"
    allowed.write_text(f"# updates\n/usr/bin/new tool {sha256(b'known').hexdigest()}\n")
    assert verify().status == 1
    assert verify("--whitelist", allowed).status == 0


def test_whitelist_that_is_none(verify: Run, tmp_path: Path) -> None:
    broken = tmp_path / "allowed.txt"
    broken.write_text("/usr/bin/ls\n")
    ran = verify("--whitelist", broken)
    assert ran.status == 2
    assert "allowed.txt" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_reboot(verify: Run, machine: Machine) -> None:
    machine.reboot()
    ran = verify()
    assert ran.status == 1
    assert "tpm.clock" in ran.lines[-1]
    assert "--allow-reboot" in ran.out
    ran = verify("--allow-reboot")
    assert ran.status == 0
    assert "warning: tpm.clock" in ran.out


def test_certificate_of_no_ca(verify: Run) -> None:
    ran = verify(insecure=False)
    assert ran.status == 1
    assert "failed: tls.certificate" in ran.lines[-1]
    assert "--allow-insecure-tls" in ran.out


def test_application(verify: Run, agent: Any) -> None:
    address = f"127.0.0.1:{agent.port}"
    ran = verify("--application", address)
    assert ran.status == 0
    assert f"[ OK ] Verifying TLS application for {address}" in ran.lines


def test_application_elsewhere(verify: Run, agent: Any) -> None:
    """A mismatch fails the run, whatever the other applications say."""
    good, bad = f"127.0.0.1:{agent.port}", "127.0.0.1:1"
    ran = verify("--application", good, "--application", bad)
    assert ran.status == 1
    assert f"[ OK ] Verifying TLS application for {good}" in ran.lines
    assert f"[ FAIL ] Verifying TLS application for {bad}" in ran.lines


def test_verbose_shows_every_check(verify: Run) -> None:
    from cosmian_vm.verifier.result import CHECK_IDS

    out = verify("--verbose").out
    assert [name for name in CHECK_IDS if f" {name}: " not in out] == ["tls.application"]


def test_json(verify: Run, machine: Machine) -> None:
    machine.run("/usr/bin/intruder", b"unknown")
    ran = verify("--json")
    assert ran.status == 1
    told = json.loads(ran.out)
    assert told["trusted"] is False
    assert told["snapshot"]["files"] == 6
    by_id = {check["id"]: check for check in told["checks"]}
    assert by_id["ima.files"]["status"] == "fail"
    assert any("/usr/bin/intruder" in detail for detail in by_id["ima.files"]["details"])
    assert by_id["tee.signature"] == by_id["tee.signature"] | {"status": "ok", "required": True}


def test_report(verify: Run, machine: Machine, tmp_path: Path) -> None:
    machine.run("/usr/bin/<script>alert(1)</script>", b"unknown")
    page = tmp_path / "verdict.html"
    ran = verify("--report", page)
    assert ran.status == 1
    html = page.read_text("utf-8")
    assert "Not trusted" in html
    assert "&lt;script&gt;" in html
    assert "<script" not in html
    assert not re.search(r"(src|href|url)\s*[=(]", html.replace("color-scheme", ""))
    assert list(tmp_path.glob(".*.part")) == []


def test_report_that_cannot_be_written(verify: Run, tmp_path: Path) -> None:
    ran = verify("--report", tmp_path / "no" / "such" / "folder.html")
    assert ran.status == 2
    assert "folder.html: cannot be written" in ran.err


@pytest.mark.parametrize("option", ["--report", "--save-evidence"])
@pytest.mark.parametrize(
    ("place", "says"),
    [("no/such/page.html", "there is no folder"), ("folder", "it is a folder"), ("", "no name of a file")],
)
def test_where_to_write_is_looked_at_before_the_network(
    run: Run, taken: Path, tmp_path: Path, option: str, place: str, says: str
) -> None:
    """Nobody answers there: status 3 would say that it was asked."""
    (tmp_path / "folder").mkdir()
    ran = run("--url", "https://127.0.0.1:1", "verify", "-s", taken, option, place)
    assert ran.status == 2
    assert f"cannot be written: {says}" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_a_folder_without_the_right_to_write(
    run: Run, taken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)
    ran = run("--url", "https://127.0.0.1:1", "verify", "-s", taken, "--report", tmp_path / "page.html")
    assert ran.status == 2
    assert f"no right to write to {tmp_path}" in ran.err


def test_old_agent_is_a_downgrade(verify: Run, agent: Any, machine: Machine) -> None:
    """It answers version 1 alone: that fails as untrusted, it is not 'unreachable'."""
    del agent.routes["POST", wire.EVIDENCE]

    def quote(call: Any) -> tuple[int, bytes]:
        return 200, json.dumps(list(machine.evidence(bytes(32), api=1).tee or b"")).encode()

    agent.routes["GET", wire.QUOTE_TEE] = quote
    ran = verify("--offline")
    assert ran.status == 1
    assert "tee.report_data" in ran.lines[-1]
    assert "--api 1" in ran.out


def test_a_device_that_fails_is_no_old_agent(verify: Run, agent: Any, machine: Machine) -> None:
    """Its TPM does not answer: that is what is said, and not that --api 1 would help."""
    agent.route("POST", wire.EVIDENCE, 404, b"TPM device:/dev/tpmrm0: cannot be opened: IO failure")
    told = wire.VersionAnswer(agent_version="2.0.0", api_versions=[1, 2], tee_kind="snp", tpm=True, ima=True)
    agent.route("GET", wire.VERSION, 200, msgspec.json.encode(told))
    agent.route("GET", wire.QUOTE_TEE, 200, json.dumps(list(machine.evidence(bytes(32), api=1).tee or b"")).encode())
    ran = verify()
    assert ran.status == 3
    assert "cannot be opened: IO failure" in ran.err
    assert "version 1" not in ran.out + ran.err


def test_something_else_answers(verify: Run, agent: Any) -> None:
    agent.routes.clear()
    ran = verify()
    assert ran.status == 3
    assert ran.out == ""
    assert "404" in ran.err


def test_unreachable_is_not_untrusted(run: Run, taken: Path) -> None:
    ran = run("--url", "https://127.0.0.1:1", "verify", "--snapshot", taken)
    assert ran.status == 3
    assert ran.out == ""
    assert len(ran.err.splitlines()) == 1
    assert "https://127.0.0.1:1: connection refused" in ran.err


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xfe", b"null", b'{"tee_policy": {}}', b"[" * 100_000])
def test_snapshot_that_is_none(run: Run, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.snapshot"
    path.write_bytes(content)
    ran = run("--url", "https://127.0.0.1:1", "verify", "--snapshot", path)
    assert ran.status == 2
    assert "broken.snapshot" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_snapshot_that_is_absent(run: Run, tmp_path: Path) -> None:
    ran = run("--url", "https://127.0.0.1:1", "verify", "--snapshot", tmp_path / "none.snapshot")
    assert ran.status == 2
    assert "none.snapshot: cannot be read: No such file" in ran.err


@pytest.mark.parametrize(
    "content", [b"", b"nothing", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
@pytest.mark.parametrize("option", ["--trust-root", "--endorsements"])
def test_root_that_is_none(run: Run, taken: Path, tmp_path: Path, option: str, content: bytes) -> None:
    path = tmp_path / "no.pem"
    path.write_bytes(content)
    ran = run("--url", "https://127.0.0.1:1", "verify", "-s", taken, option, path)
    assert ran.status == 2
    assert "no.pem" in ran.err
    assert len(ran.err.splitlines()) == 1
    if option == "--trust-root":
        kind = "PEM has no certificate that can be read" if content.startswith(b"---") else "neither PEM nor DER"
        assert ran.err.strip().endswith(f"no.pem: no root certificate: {kind}")


def test_bad_application_is_wrong_usage(verify: Run) -> None:
    ran = verify("--application", "https://service.example.com/")
    assert ran.status == 2
    assert "--application" in ran.err


def test_url_is_missing(run: Run, taken: Path) -> None:
    ran = run("verify", "--snapshot", taken)
    assert ran.status == 2
    assert "--url" in ran.err
    assert "before the command" in ran.err


def test_evidence_of_another_connection(verify: Run, agent: Any) -> None:
    """A relay: it has the true machine's answers but its own TLS key."""
    agent.use(self_signed("relay", ["127.0.0.1"], now=datetime.now(UTC)))
    ran = verify()
    assert ran.status == 1
    assert "tee.report_data" in ran.lines[-1]


def test_names_from_the_machine_cannot_drive_the_terminal(verify: Run, machine: Machine) -> None:
    machine.run("/usr/bin/\x1b[2Jevil\x07\u202e", b"unknown")
    ran = verify("--verbose")
    assert all(line.isprintable() for line in ran.lines)
    assert "evil" in ran.out


@pytest.mark.parametrize("api", ["1", "2"])
def test_a_web_server_is_no_agent(verify: Run, agent: Any, api: str) -> None:
    """No evidence to be had, by either version: neither trusted nor the opposite; its page is not quoted."""
    agent.routes.clear()
    agent.route("POST", wire.EVIDENCE, 404, b"<!DOCTYPE html><p>nothing here")
    ran = verify("--api", api)
    assert ran.status == 3
    assert ran.out == ""
    assert len(ran.err.splitlines()) == 1
    assert "no Cosmian VM agent: is its port another one" in ran.err
    assert "<" not in ran.err
