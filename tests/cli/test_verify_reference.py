"""``cosmian_vm verify --reference``, alone and beside a snapshot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cosmian_vm.devkit.machine import Machine
from cosmian_vm.reference import build_reference

Run = Callable[..., Any]


@pytest.fixture
def built(machine: Machine, tmp_path: Path) -> Path:
    path = tmp_path / "built.reference.json"
    path.write_bytes(build_reference.serialise(machine.build_reference()))
    return path


@pytest.fixture
def verify(run: Run, agent: Any, root: Path) -> Run:
    def verify(*more: object) -> Any:
        return run("--url", agent.url, "--allow-insecure-tls", "verify", "--trust-root", root, *more)

    return verify


def changed(path: Path, **values: object) -> Path:
    path.write_text(json.dumps(json.loads(path.read_bytes()) | values))
    return path


def test_alone(verify: Run, built: Path) -> None:
    ran = verify("--reference", built)
    assert ran.status == 0, ran
    assert "[ OK ] Verifying VM integrity (against 6 files)" in ran.lines
    assert ran.lines[-1].startswith("[ OK ] Trusted: https://127.0.0.1:")
    assert ran.lines[-1].endswith(
        f"booted the image of {built} (simulated.img); which machine it is, only a snapshot tells"
    )
    for check in ("tee.instance", "tpm.ak", "tpm.clock", "tpm.boot_pcrs", "vm.owner", "tls.certificate"):
        assert f"warning: {check}: " in ran.out, check
    assert "skip" not in ran.out.lower()
    assert "No files hash" not in ran.out


def test_beside_a_snapshot(verify: Run, built: Path, taken: Path) -> None:
    ran = verify("--snapshot", taken, "--reference", built)
    assert ran.status == 0, ran
    assert ran.lines[-1].endswith(f"is the machine of {taken}, and as the image of {built} was built")
    assert "not pinned" not in ran.out


@pytest.mark.parametrize("with_snapshot", [False, True])
def test_a_forged_pcr(verify: Run, built: Path, taken: Path, with_snapshot: bool) -> None:
    pcrs = json.loads(built.read_bytes())["pcrs"]
    changed(built, pcrs=pcrs | {"11": "11" * 32})
    ran = verify("--reference", built, *(["--snapshot", taken] if with_snapshot else []))
    assert ran.status == 1
    assert "fail: tpm.boot_pcrs: the machine did not boot the image as it was built: PCR 11 (" in ran.out
    assert "failed: tpm.boot_pcrs" in ran.lines[-1]


@pytest.mark.parametrize("with_snapshot", [False, True])
def test_a_forged_file(verify: Run, built: Path, taken: Path, with_snapshot: bool) -> None:
    files = json.loads(built.read_bytes())["filehashes"]
    changed(built, filehashes=[[path, "11" * 32 if path == "/usr/bin/ls" else digest] for path, digest in files])
    ran = verify("--reference", built, *(["--snapshot", taken] if with_snapshot else []))
    assert ran.status == 1
    assert "/usr/bin/ls sha256:" in ran.out
    assert "failed: ima.files" in ran.lines[-1]


def test_without_launch_measurement(verify: Run, built: Path) -> None:
    ran = verify("--reference", changed(built, launches=[]))
    assert ran.status == 0
    assert "warning: tee.measurement: The launch measurement is not pinned" in ran.out


def test_json(verify: Run, built: Path, taken: Path) -> None:
    told = json.loads(verify("--reference", built, "--json").out)
    assert (told["trusted"], told["snapshot"]) == (True, None)
    whole = json.loads(built.read_bytes())
    assert told["reference"] == {
        "file": str(built),
        "created": whole["created"],
        "image": whole["image"]["name"],
        "image_sha256": whole["image"]["sha256"],
        "files": 6,
        "pcrs": [4, 9, 11, 12, 13],
        "launches": 1,
    }
    assert json.loads(verify("--snapshot", taken, "--json").out)["reference"] is None


@pytest.mark.parametrize("with_snapshot", [False, True])
def test_report(verify: Run, built: Path, taken: Path, tmp_path: Path, with_snapshot: bool) -> None:
    page = tmp_path / "verdict.html"
    changed(built, image={"name": "<script>alert(1)</script>", "size": 1, "sha256": "ab" * 32})
    more = ["--snapshot", taken] if with_snapshot else []
    assert verify("--reference", built, "--report", page, *more).status == 0
    html = page.read_text("utf-8")
    assert "built.reference.json" in html
    assert "ab" * 32 in html
    assert "<script" not in html
    assert ("only a snapshot tells" in html) is not with_snapshot


def test_report_of_a_failure(verify: Run, built: Path, tmp_path: Path) -> None:
    page = tmp_path / "verdict.html"
    changed(built, filehashes=[])
    assert verify("--reference", built, "--report", page).status == 1
    assert "a machine of this image" in page.read_text("utf-8")


# Wrong usage


def test_one_of_the_two_is_needed(verify: Run) -> None:
    ran = verify()
    assert ran.status == 2
    assert "--snapshot" in ran.err
    assert "--reference" in ran.err


@pytest.mark.parametrize(("option", "named"), [(["--allow-reboot"], "--allow-reboot"), (["--api", "1"], "--api 1")])
def test_options_that_make_no_sense_with_it(verify: Run, built: Path, option: list[str], named: str) -> None:
    ran = verify("--reference", built, *option)
    assert ran.status == 2
    assert named in ran.err
    assert ran.out == ""


def test_a_reboot_can_be_allowed_with_both(verify: Run, built: Path, taken: Path, machine: Machine) -> None:
    machine.reboot()
    assert verify("--reference", built, "--snapshot", taken).status == 1
    assert verify("--reference", built, "--snapshot", taken, "--allow-reboot").status == 0
    assert verify("--reference", built).status == 0


def test_a_snapshot_without_tpm_has_nothing_to_compare(verify: Run, built: Path, taken: Path) -> None:
    changed(taken, without_tpm=True, filehashes=None, tpm_policy=None)
    ran = verify("--reference", built, "--snapshot", taken)
    assert ran.status == 2
    assert "without TPM" in ran.err


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff\xfe",
        b"null",
        b'{"tee_policy": {}}',
        b'{"format": "cosmian-vm-reference"}',
        b"[" * 10**5,
    ],
)
def test_a_file_that_is_none(run: Run, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.reference.json"
    path.write_bytes(content)
    ran = run("--url", "https://127.0.0.1:1", "verify", "--reference", path)
    assert ran.status == 2
    assert "broken.reference.json" in ran.err
    assert len(ran.err.splitlines()) == 1


def test_each_of_the_two_files_given_as_the_other(run: Run, built: Path, taken: Path) -> None:
    ran = run("--url", "https://127.0.0.1:1", "verify", "--snapshot", built)
    assert ran.status == 2
    assert ran.err.strip().endswith("no snapshot, but reference values of an image: --reference takes them")
    ran = run("--url", "https://127.0.0.1:1", "verify", "--reference", taken)
    assert ran.status == 2
    assert ran.err.strip().endswith("this looks like a snapshot: --snapshot takes it")


def test_reference_values_are_signed_by_nobody(run: Run, built: Path) -> None:
    ran = run("inspect", built, "--verify")
    assert ran.status == 2
    assert ran.lines[-1].startswith("[ SKIP ] Cannot be said: ")


def test_a_truncated_and_an_altered_file(run: Run, built: Path) -> None:
    whole = built.read_bytes()
    altered = [whole[:-9], whole.replace(b'"pcrs":{', b'"pcrs":{"4":"00",'), whole.replace(b"sha256", b"sha257")]
    for content in (*altered, whole.replace(b'"version":1', b'"version":9'), whole[:-2] + b',"launches":[]}'):
        assert content != whole
        built.write_bytes(content)
        ran = run("--url", "https://127.0.0.1:1", "verify", "--reference", built)
        assert (ran.status, len(ran.err.splitlines())) == (2, 1), content[:80]
        assert "built.reference.json" in ran.err


def test_a_file_that_is_absent(run: Run, tmp_path: Path) -> None:
    ran = run("--url", "https://127.0.0.1:1", "verify", "--reference", tmp_path / "none.json")
    assert ran.status == 2
    assert "none.json: cannot be read: No such file" in ran.err
