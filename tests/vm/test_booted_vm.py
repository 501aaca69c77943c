"""What only a real kernel can show: the image is built and booted, and then verified by the command line.

Firmware, kernel, IMA list and TPM commands are real ones, under emulation; the TEE is simulated. The tests are in
order: they share one machine, and what has run in it stays in its list until it is rebooted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from cosmian_vm.devkit.qemu import QemuVm, missing_programs

pytestmark = pytest.mark.vm

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD_SECONDS = 900  # with everything to be downloaded
COMMAND_SECONDS = 240
EXPECTED_WARNINGS = {"tpm.ak", "tls.certificate", "vm.owner"}  # the host's TPM, self-signed, nobody owns it


@pytest.fixture(scope="module")
def image() -> Path:
    """The image of this tree; with warm caches it takes half a minute."""
    missing = missing_programs() + [name for name in ("mmdebstrap", "mcopy", "debugfs") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (image/build and image/run install them)")
    if os.getuid() != 0:
        pytest.skip("image/build needs root")
    done = subprocess.run(
        [ROOT / "image" / "build", "--simulated-tee"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


class Machine:
    """The booted VM and its administrator."""

    def __init__(self, vm: QemuVm, image: Path) -> None:
        self.vm = vm
        self.trust_root = image.with_suffix(".trust_root.pem")
        self.reference = image.with_suffix(".reference.json")
        self.snapshot_file = vm.folder / "cosmian_vm.snapshot"

    def root(self, script: str, *, check: bool = True) -> str:
        """What a shell script prints that root runs in the VM."""
        done = subprocess.run(
            [*self.vm.ssh(ROOT / ".cache" / "image" / "ssh_key"), script],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def cli(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """cosmian_vm against this VM."""
        command: Sequence[str | Path] = [
            *(sys.executable, "-c", "from cosmian_vm.cli.main import main; main()"),
            *("--url", self.vm.url, "--allow-insecure-tls", *arguments, "--trust-root", self.trust_root),
        ]
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False
        )

    def snapshot(self) -> None:
        done = self.cli("snapshot", "--output", self.snapshot_file)
        assert done.returncode == 0, done.stdout + done.stderr

    def verify(self, *arguments: str) -> tuple[int, dict[str, dict[str, Any]]]:
        """Exit status, and the checks by id."""
        return self.verify_against("--snapshot", self.snapshot_file, *arguments)

    def verify_against(self, *arguments: str | Path) -> tuple[int, dict[str, dict[str, Any]]]:
        """As ``verify``; the arguments say what to compare with."""
        done = self.cli("verify", "--json", *arguments)
        assert done.returncode in (0, 1), done.stdout + done.stderr
        return done.returncode, {check["id"]: check for check in json.loads(done.stdout)["checks"]}


@pytest.fixture(scope="module")
def machine(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    vm = QemuVm(tmp_path_factory.mktemp("vm"))
    vm.create(image)
    with vm:
        vm.start()
        vm.wait()
        machine = Machine(vm, image)
        machine.snapshot()
        yield machine
    shutil.rmtree(vm.folder, ignore_errors=True)


def failed(checks: dict[str, dict[str, Any]]) -> set[str]:
    return {name for name, check in checks.items() if check["status"] == "fail"}


def unexpected_files(checks: dict[str, dict[str, Any]]) -> str:
    assert checks["ima.files"]["status"] == "fail"
    return "\n".join(checks["ima.files"]["details"])


def test_what_was_built_is_what_booted(machine: Machine, tmp_path: Path) -> None:
    """Every value was computed, none seen; and that it is compared shows in that another one fails."""
    status, checks = machine.verify_against("--reference", machine.reference)
    assert (status, failed(checks)) == (0, set())
    unpinned = {"tee.measurement", "tee.instance", "tpm.clock", "tpm.boot_pcrs"}
    assert {name for name, check in checks.items() if check["status"] != "ok"} == EXPECTED_WARNINGS | unpinned
    assert "PCR 4, 9, 11-13" in checks["tpm.boot_pcrs"]["line"]
    assert machine.verify_against("--reference", machine.reference, "--snapshot", machine.snapshot_file)[0] == 0

    built = json.loads(machine.reference.read_bytes())
    forged = tmp_path / "forged.reference.json"
    for pcr in built["pcrs"]:
        forged.write_text(json.dumps(built | {"pcrs": built["pcrs"] | {pcr: "11" * 32}}))
        status, checks = machine.verify_against("--reference", forged)
        assert (status, failed(checks)) == (1, {"tpm.boot_pcrs"})
        assert f"PCR {pcr} (" in checks["tpm.boot_pcrs"]["line"]
    systemd = "/usr/lib/systemd/systemd"
    files = [[path, "11" * 32 if path == systemd else digest] for path, digest in built["filehashes"]]
    forged.write_text(json.dumps(built | {"filehashes": files}))
    for more in ((), ("--snapshot", machine.snapshot_file)):
        status, checks = machine.verify_against("--reference", forged, *more)
        assert (status, failed(checks)) == (1, {"ima.files"})
        assert f"{systemd} sha256:" in unexpected_files(checks)
    assert "changed since the image was built" in unexpected_files(checks)


def test_a_booted_machine_is_trusted(machine: Machine) -> None:
    status, checks = machine.verify()
    assert status == 0
    assert {name for name, check in checks.items() if check["status"] != "ok"} == EXPECTED_WARNINGS


def test_the_simulated_tee_passes_with_its_root_only(machine: Machine) -> None:
    command = [sys.executable, "-c", "from cosmian_vm.cli.main import main; main()", "--url", machine.vm.url]
    command += ["--allow-insecure-tls", "verify", "--snapshot", str(machine.snapshot_file), "--offline", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    assert done.returncode == 1
    assert "tee.chain" in {check["id"] for check in json.loads(done.stdout)["checks"] if check["status"] == "fail"}
    assert "SIMULATED" in machine.root("cat /etc/motd; grep -h SIMULATED /var/log/cosmian_vm/agent.err.log")


def test_the_machine_is_as_the_image_promises(machine: Machine) -> None:
    assert machine.root("systemctl --failed --no-legend") == ""
    assert "[integrity]" in machine.root("cat /sys/kernel/security/lockdown")
    assert machine.root("sysctl -n kernel.kexec_load_disabled").strip() == "1"
    for place in ("/tmp", "/dev/shm", "/var/lib/cosmian_vm/tmp"):
        assert "noexec" in machine.root(f"findmnt -no FSTYPE,OPTIONS {place}").replace("tmpfs", "", 1), place
    for timer in ("apt-daily.timer", "apt-daily-upgrade.timer"):
        assert machine.root(f"systemctl is-enabled {timer}", check=False).strip() == "masked"
    assert machine.root("find / -xdev -name '*.pyc' -newer /etc/.updated") == ""
    owners = machine.root("stat -c '%G %a' /etc/cosmian_vm/agent.toml /etc/ima/ima-policy /usr/sbin/cosmian_vm_agent")
    assert owners.split() == ["measured", "644", "measured", "644", "measured", "755"]


def test_the_agents_own_python_is_measured(machine: Machine) -> None:
    listed = machine.root("cat /sys/kernel/security/ima/ascii_runtime_measurements")
    for path in (
        "/usr/lib/cosmian_vm/cosmian_vm/agent/__pycache__/main.cpython-311.pyc",
        "/usr/lib/python3.11/__pycache__/ssl.cpython-311.pyc",
        "/usr/sbin/cosmian_vm_agent",
        "/etc/cosmian_vm/agent.toml",
        "/etc/ima/ima-policy",
        "/usr/lib/systemd/systemd",
    ):
        assert f" {path} " in listed or f" {path}\n" in listed, path


def test_a_new_program_is_named(machine: Machine) -> None:
    machine.root("cp /bin/ls /usr/local/bin/miner && echo >>/usr/local/bin/miner && miner /")
    status, checks = machine.verify()
    assert (status, failed(checks)) == (1, {"ima.files"})
    assert "/usr/local/bin/miner sha256:" in unexpected_files(checks)


def test_a_program_in_memory_is_named(machine: Machine) -> None:
    machine.root("cp /bin/ls /run/in-memory && /run/in-memory /")
    machine.root(
        'python3 -c \'import os; f = os.memfd_create("hidden"); os.write(f, open("/bin/true", "rb").read()); '
        'os.system(f"/proc/{os.getpid()}/fd/{f}")\''
    )
    assert "Permission denied" in machine.root("cp /bin/ls /dev/shm/x; /dev/shm/x 2>&1", check=False)
    named = unexpected_files(machine.verify()[1])
    for path in ("/run/in-memory", "memfd:hidden"):
        assert f"{path} sha256:" in named, path


def test_a_changed_script_of_the_measured_group_is_named(machine: Machine) -> None:
    machine.root("cp -a /etc/profile /var/tmp/profile && echo '# changed' >>/etc/profile && sh /etc/profile")
    named = unexpected_files(machine.verify()[1])
    assert "/etc/profile sha256:" in named
    assert "(changed: the snapshot has" in named
    machine.root("cp -a /var/tmp/profile /etc/profile")


def test_a_foreign_module_is_named(machine: Machine) -> None:
    machine.root("cp /lib/modules/*/kernel/drivers/net/dummy.ko /var/tmp/foreign.ko && insmod /var/tmp/foreign.ko")
    assert "/var/tmp/foreign.ko sha256:" in unexpected_files(machine.verify()[1])


def test_a_warm_reboot_is_named_and_can_be_accepted(machine: Machine) -> None:
    machine.root("rm /usr/local/bin/miner; sync; systemctl reboot", check=False)
    machine.vm.wait_gone()
    machine.vm.wait()
    status, checks = machine.verify()
    assert (status, failed(checks)) == (1, {"tpm.clock"})
    assert "rebooted 1 time" in checks["tpm.clock"]["line"]
    assert "--allow-reboot or take a new snapshot" in checks["tpm.clock"]["line"]
    assert machine.verify("--allow-reboot")[0] == 0
    assert machine.verify_against("--reference", machine.reference)[0] == 0  # nothing that the first boot left behind


def test_a_cold_start_is_another_guest_and_a_new_snapshot_passes(machine: Machine) -> None:
    machine.vm.stop()
    machine.vm.start()
    machine.vm.wait()
    status, checks = machine.verify()
    assert status == 1
    assert failed(checks) == {"tpm.clock", "tee.instance"}
    machine.snapshot()
    assert machine.verify()[0] == 0


def test_a_changed_command_line_is_named_by_its_boot_event(machine: Machine, tmp_path: Path) -> None:
    machine.vm.stop()
    esp = f"{machine.vm.folder / 'disk.img'}@@1M"
    kernel, line = tmp_path / "linux.efi", tmp_path / "cmdline"
    subprocess.run(["mcopy", "-i", esp, "::EFI/BOOT/BOOTX64.EFI", kernel], check=True, timeout=60)
    subprocess.run(["objcopy", "--dump-section", f".cmdline={line}", kernel, tmp_path / "copy"], check=True, timeout=60)
    line.write_bytes(line.read_bytes().replace(b"lockdown=integrity", b"lockdown=none     "))
    subprocess.run(["objcopy", "--update-section", f".cmdline={line}", kernel], check=True, timeout=60)
    subprocess.run(["mcopy", "-o", "-i", esp, kernel, "::EFI/BOOT/BOOTX64.EFI"], check=True, timeout=60)
    machine.vm.start()
    machine.vm.wait()
    status, checks = machine.verify("--allow-reboot")
    assert status == 1
    assert "tpm.boot_pcrs" in failed(checks)
    told = checks["tpm.boot_pcrs"]["line"] + "\n".join(checks["tpm.boot_pcrs"]["details"])
    assert "PCR 4" in told


def test_another_tpm_is_not_ours(machine: Machine) -> None:
    machine.vm.stop(orderly=False)
    machine.vm.new_tpm()
    machine.vm.start()
    machine.vm.wait()
    status, checks = machine.verify("--allow-reboot")
    assert status == 1
    assert "tpm.ak" in failed(checks)
