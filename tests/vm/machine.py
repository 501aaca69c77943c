"""A booted VM and its administrator: what root does in it, and cosmian_vm against it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from cosmian_vm.devkit.qemu import QemuVm, missing_programs

ROOT = Path(__file__).resolve().parent.parent.parent
SSH_KEY = ROOT / ".cache" / "image" / "ssh_key"
BUILD_SECONDS = 1800  # with everything to be downloaded, beside another build, on a busy machine
COMMAND_SECONDS = 400
CLI = ("-c", "from cosmian_vm.cli.main import main; main()")
Checks = dict[str, dict[str, Any]]


def skip_without_tools() -> None:
    missing = missing_programs() + [name for name in ("mmdebstrap", "mcopy", "debugfs") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (image/build and image/run install them)")
    if os.getuid() != 0:
        pytest.skip("image/build needs root")


def build(*command: str | Path) -> Path:
    """Build an image; its path is the last line that the command prints."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip().splitlines()[-1])


def build_once(tmp_path_factory: pytest.TempPathFactory, name: str, *command: str | Path) -> Path:
    """The image that ``command --output FILE`` builds, FILE being ``.cache/tests/NAME-KEY/NAME``.

    Once for all processes of this test run, the others wait; and not at all where it is there from an earlier run that
    had the very same sources and packages. What lies beside it is what the command wrote beside it.
    """
    folder = tmp_path_factory.getbasetemp()
    if os.environ.get("PYTEST_XDIST_WORKER"):
        folder = folder.parent  # what the processes have in common
    with (folder / f"building-{name}").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (found := _kept(name)).exists():
            return found
        draft = found.parent.parent / f"draft-{name}"
        shutil.rmtree(draft, ignore_errors=True)
        try:
            draft.mkdir(parents=True)
            build(*command, "--output", draft / name)
            found = _kept(name)  # packages that were downloaded meanwhile are among what the key is made of
            for old in found.parent.parent.glob(f"{name}-*"):
                shutil.rmtree(old)
            draft.rename(found.parent)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return found


_SOURCES = ("src", "image", "script", "requirements", "tests/vm/second", "pyproject.toml")
_PACKAGES = {"first.img": (".cache/image",), "second.img": (".cache/image", ".cache/second")}


def _kept(name: str) -> Path:
    """Where the image of this tree is kept: by the content of all that it is made of, each file's mode included, and
    of downloaded packages, vendor and SSH key by size and time.
    """
    key = sha256(name.encode())
    for path in sorted(path for source in _SOURCES for path in (ROOT / source, *(ROOT / source).rglob("*"))):
        if path.is_file() and not any(part == "__pycache__" or part.endswith(".egg-info") for part in path.parts):
            content = sha256(path.read_bytes()).hexdigest()
            key.update(f"{path.relative_to(ROOT)}\0{path.stat().st_mode:o}\0{content}\n".encode())
    for path in sorted(path for folder in _PACKAGES[name] for path in (ROOT / folder).glob("*")):
        if not path.name.startswith(("work.", "lock")):
            status = path.stat()
            size = status.st_size if path.is_file() else 0
            key.update(f"{path.relative_to(ROOT)}\0{size}\0{status.st_mtime_ns}\n".encode())
    return ROOT / ".cache" / "tests" / f"{name}-{key.hexdigest()[:32]}" / name


class Machine:
    """The VM, and its administrator's folder beside its disk."""

    def __init__(self, vm: QemuVm, trust_root: Path) -> None:
        self.vm = vm
        self.trust_root = trust_root
        self.reference = trust_root.with_name(trust_root.name.replace(".trust_root.pem", ".reference.json"))
        self.snapshot_file = vm.folder / "cosmian_vm.snapshot"
        self.whitelist = vm.folder / "whitelist.txt"

    def root(self, script: str, *, check: bool = True, stdin: bytes = b"") -> str:
        """What a shell script prints that root runs in the VM; with ``check`` False also what it complains of.

        That is put together there: through ssh they are two streams, which arrive in any order.
        """
        done = subprocess.run(
            [*self.vm.ssh(SSH_KEY, kept=True), script if check else f"exec 2>&1; {script}"],
            input=stdin,
            capture_output=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert not check or done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")
        return done.stdout.decode(errors="replace")

    def until(self, script: str, says: str, *, seconds: float = 240) -> str:
        """Run ``script`` until it prints ``says``."""
        end = time.monotonic() + seconds
        while says not in (said := self.root(script, check=False)):
            assert time.monotonic() < end, said
            time.sleep(1)
        return said

    def cli(self, *arguments: str | Path, trust: bool = True) -> subprocess.CompletedProcess[str]:
        """cosmian_vm against this VM."""
        command: Sequence[str | Path] = [
            *(sys.executable, *CLI, "--url", self.vm.url, "--allow-insecure-tls", *arguments),
            *(("--trust-root", self.trust_root) if trust else ()),
        ]
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
            env={**os.environ, "XDG_CONFIG_HOME": str(Path(self.snapshot_file).parent / "config")},
        )

    def snapshot(self, *arguments: str) -> None:
        done = self.cli("snapshot", "--output", self.snapshot_file, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr

    def verify(self, *arguments: str | Path) -> tuple[int, Checks]:
        """Against the snapshot: exit status, and the checks by id."""
        return self.verify_against("--snapshot", self.snapshot_file, *arguments)

    def verify_against(self, *arguments: str | Path) -> tuple[int, Checks]:
        """As ``verify``; the arguments say what to compare with."""
        done = self.cli("verify", "--json", *arguments)
        assert done.returncode in (0, 1), done.stdout + done.stderr
        return done.returncode, {check["id"]: check for check in json.loads(done.stdout)["checks"]}


def failed(checks: Checks) -> set[str]:
    return {name for name, check in checks.items() if check["status"] == "fail"}


def unexpected_files(checks: Checks) -> str:
    assert checks["ima.files"]["status"] == "fail"
    return "\n".join(checks["ima.files"]["details"])
