"""image/_reference.py: what image/build prints as the reference values of a tree and a unified kernel image."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from cosmian_vm.devkit.uki import default_uki
from cosmian_vm.reference.build_reference import BuildReference, parse
from cosmian_vm.reference.uki import PHASES, predict

ROOT = Path(__file__).resolve().parent.parent
WANTED = "usr/lib/systemd/system/sysinit.target.wants"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    for path, content in {
        "usr/bin/ls": b"list",
        "usr/lib/systemd/systemd-pcrphase": b"phases",
        "etc/ima/ima-policy": b"measure\n",
        "etc/a name": b"spaces",
        "var/lib/state": b"not walked",
        "tmp/x": b"not walked",
    }.items():
        file = tree / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (tree / WANTED).mkdir(parents=True)
    for unit in ("systemd-pcrphase-sysinit.service", "systemd-pcrphase.service"):
        (tree / WANTED / unit).symlink_to(f"../{unit}")
    (tree / "usr/bin/link").symlink_to("ls")
    return tree


def printed(tree: Path, *more: object, uki: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    kernel, image = tree.parent / "linux.efi", tree.parent / "disk.img"
    kernel.write_bytes(default_uki() if uki is None else uki)
    image.write_bytes(b"disk")
    command = [sys.executable, ROOT / "image" / "_reference.py", tree, kernel, image, "--name", "my.img", *more]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "SOURCE_DATE_EPOCH": "1767225600"}
    return subprocess.run(
        [str(part) for part in command], env=environment, capture_output=True, check=False, timeout=60
    )


def reference(tree: Path, *more: object, uki: bytes | None = None) -> BuildReference:
    done = printed(tree, *more, uki=uki)
    assert done.returncode == 0, done.stderr
    return parse(done.stdout, "printed")


def left_out(found: BuildReference) -> str:
    return "\n".join(f"{what}: {why}" for what, why in found.left_out)


def test_all_of_it(tree: Path) -> None:
    found = reference(tree)
    files = dict(found.filehashes)
    assert set(files) == {"/usr/bin/ls", "/usr/lib/systemd/systemd-pcrphase", "/etc/ima/ima-policy", "/etc/a name"}
    assert files["/etc/a name"] == sha256(b"spaces").hexdigest()
    assert found.ima_policy == (("/etc/ima/ima-policy", sha256(b"measure\n").hexdigest()),)
    assert found.pcr_values() == predict(default_uki(), phases=PHASES).pcrs
    assert (found.image.name, found.image.size, found.image.sha256) == ("my.img", 4, sha256(b"disk").hexdigest())
    assert found.created == "2026-01-01T00:00:00Z"
    assert found.launches == ()
    for what in ("/var", "PCR 0, 1, 2, 3, 7", "PCR 5", "launch measurement"):
        assert what in left_out(found)
    assert printed(tree).stdout == printed(tree).stdout


@pytest.mark.parametrize("gone", [f"{WANTED}/systemd-pcrphase.service", "usr/lib/systemd/systemd-pcrphase"])
def test_without_boot_phases_pcr_11_is_not_known(tree: Path, gone: str) -> None:
    (tree / gone).unlink()
    found = reference(tree)
    assert "11" not in found.pcrs
    assert "PCR 11: which boot phases" in left_out(found)


def test_without_a_measured_policy_none_is_expected(tree: Path) -> None:
    found = reference(tree, uki=default_uki(cmdline=b"root=/dev/sda"))
    assert found.ima_policy is None
    assert "IMA policy" in left_out(found)


def test_what_is_no_kernel_image(tree: Path) -> None:
    done = printed(tree, uki=b"no PE file")
    assert done.returncode == 2
    assert done.stdout == b""
    assert b"image/build: unified kernel image" in done.stderr


def test_the_options_belong_together(tree: Path) -> None:
    assert printed(tree, "--vcpus", 4).returncode == 2
    done = subprocess.run([ROOT / "image" / "build", "--ovmf", "x"], capture_output=True, check=False, timeout=60)
    assert done.returncode == 2


@pytest.mark.skipif(importlib.util.find_spec("sevsnpmeasure") is None, reason="sev-snp-measure is not installed")
def test_launch_measurements(tree: Path) -> None:
    firmware = Path("/usr/share/ovmf/OVMF.fd")
    if not firmware.exists():
        pytest.skip("ovmf is not installed")
    options = ("--ovmf", firmware, "--vcpus", "4,2", "--vcpu-type", "EPYC-Milan")
    found = reference(tree, *options)
    assert [launch.vcpus for launch in found.launches] == [2, 4]
    assert len({launch.measurement for launch in found.launches}) == 2
    assert {launch.ovmf_sha256 for launch in found.launches} == {sha256(firmware.read_bytes()).hexdigest()}
    assert "launch measurement" not in left_out(found)
    other = tree.parent / "other.fd"
    other.write_bytes(bytes(4096))
    for wrong in (("--ovmf", other), ("--vcpus", "x"), ("--vcpus", "0"), ("--vcpu-type", "none")):
        done = printed(tree, *options, *wrong)
        assert (done.returncode, done.stdout) == (2, b""), wrong
        assert str(wrong[1]).encode() in done.stderr
