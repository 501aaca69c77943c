"""A second machine, unlike our own image in whatever may differ, before the same command line.

Debian 13, booted by shim, GRUB and an initramfs; root, /usr, /boot and /srv apart, on a virtio disk; the kernel's own
IMA policy (tcb), which measures all that root reads, and the template ima-ng; agent and application kept by systemd.
A container is made by hand.
The tests are in order: they share one machine, and what has run in it stays in its list until it is rebooted.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmian_vm.devkit.qemu import QemuVm

from .machine import ROOT, Machine, build_once, failed, unexpected_files

pytestmark = pytest.mark.vm

EXPECTED_WARNINGS = {"tpm.ak", "tls.certificate"}  # the host's TPM, a self-signed certificate
APP_CONF = b'greeting = "good morning"\n'
APP_CONF_PATH = "/var/lib/cosmian_vm/data/app/app.conf"


@pytest.fixture(scope="module")
def machine(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Simulated vendor and SSH key are those that the first image was built with."""
    if shutil.which("mkfs.btrfs") is None:
        pytest.skip("not installed: btrfs-progs (tests/vm/second/build installs it)")
    second = build_once(tmp_path_factory, "second.img", ROOT / "tests" / "vm" / "second" / "build")
    vm = QemuVm(tmp_path_factory.mktemp("second"), disk_bus="virtio-blk-pci", processors=1)
    vm.create(second)
    with vm:
        vm.start()
        vm.wait()
        machine = Machine(vm, second.with_suffix(".trust_root.pem"))
        machine.snapshot()
        yield machine
    shutil.rmtree(vm.folder, ignore_errors=True)


@pytest.fixture(scope="module")
def whitelist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The administrator knows what the application was configured with."""
    path = tmp_path_factory.mktemp("whitelist") / "whitelist"
    path.write_text(f"{APP_CONF_PATH} {hashlib.sha256(APP_CONF).hexdigest()}\n", encoding="ascii")
    return path


def test_it_is_another_machine(machine: Machine) -> None:
    assert machine.root("systemctl --failed --no-legend") == ""
    assert 'VERSION_ID="13"' in machine.root("cat /etc/os-release")
    templates = machine.root("cut -d' ' -f3 /sys/kernel/security/ima/ascii_runtime_measurements | sort -u")
    assert templates.split() == ["ima-ng"]
    assert machine.root("test -e /etc/ima || echo none") == "none\n"
    pcrs = machine.root("cd /sys/class/tpm/tpm0/pcr-sha256 && cat 8 9 14").split()
    assert all(pcr.strip("0") for pcr in pcrs), pcrs  # GRUB's commands, the files that it read, shim's keys
    mounts = dict(line.split() for line in machine.root("findmnt -rno TARGET,FSTYPE --real").splitlines())
    wanted = {"/": "ext4", "/usr": "ext4", "/boot": "ext4", "/boot/efi": "vfat", "/srv": "btrfs"}
    assert {path: mounts.get(path) for path in wanted} == wanted


def test_it_is_trusted(machine: Machine) -> None:
    status, checks = machine.verify()
    assert status == 0
    assert {name for name, check in checks.items() if check["status"] != "ok"} == EXPECTED_WARNINGS


def test_the_sandboxed_agent_has_read_every_file_system(machine: Machine) -> None:
    snapshot = json.loads(machine.snapshot_file.read_bytes())
    assert snapshot["unreadable"] == []
    files = {path for path, _ in snapshot["filehashes"]}
    for path in ("/usr/bin/true", "/boot/vmlinuz", "/boot/efi/EFI/BOOT/grubx64.efi", "/srv/app/serve", "/etc/fstab"):
        assert path in files, path
    assert "/root/.ssh/authorized_keys" in files  # ProtectHome=
    modules = machine.root("find /usr/lib/modules -type f").splitlines()  # ProtectKernelModules= would hide them
    assert modules
    assert files.issuperset(modules)


def test_the_agent_is_in_its_sandbox(machine: Machine) -> None:
    shown = machine.root(
        "systemctl show cosmian_vm_agent -p NoNewPrivileges -p ProtectSystem -p DevicePolicy -p MemoryDenyWriteExecute"
    )
    wanted = {"NoNewPrivileges=yes", "ProtectSystem=strict", "DevicePolicy=closed", "MemoryDenyWriteExecute=yes"}
    assert set(shown.split()) == wanted
    front, collector = (
        dict(line.split(":\t", 1) for line in machine.root(f"cat /proc/$({who})/status").splitlines())
        for who in ("pgrep -u cosmian_vm_agent", "systemctl show -p MainPID --value cosmian_vm_agent")
    )
    assert set(collector["Uid"].split()) == {"0"}
    assert "0" not in front["Uid"].split()
    for sets in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
        assert int(front[sets], 16) == 0, sets
    cap_sys_module, cap_sys_ptrace = 1 << 16, 1 << 19
    assert int(collector["CapBnd"], 16) & (cap_sys_module | cap_sys_ptrace) == 0
    for process in (front, collector):
        assert (process["NoNewPrivs"], process["Seccomp"]) == ("1", "2")


def test_what_a_stricter_sandbox_would_hide_is_found(machine: Machine) -> None:
    ask = (
        "import sys; sys.path.append('/usr/lib/cosmian_vm'); from pathlib import Path; "
        "from cosmian_vm.reference._mounts import hidden_paths; "
        "lists = [Path(f'/proc/{who}/mountinfo').read_bytes() for who in ('self', 1)]; "
        "print(hidden_paths(*lists, b'/', [b'/run', b'/var', b'/tmp']))"
    )
    strict = "-p ProtectHome=tmpfs -p PrivateTmp=yes -p ProtectKernelModules=yes -p ProtectSystem=strict"
    run = f'/usr/bin/python3 -I -B -c "{ask}"'
    found = machine.root(f"systemd-run --quiet --wait --pipe {strict} {run}")
    assert found == "[b'/home', b'/root', b'/usr/lib/modules']\n"
    found = machine.root(f"systemd-run --quiet --wait --pipe -p ProtectSystem=strict -p ProtectHome=read-only {run}")
    assert found == "[]\n"


def test_the_application_gets_its_configuration(machine: Machine, whitelist: Path, tmp_path: Path) -> None:
    conf = tmp_path / "conf.toml"
    conf.write_bytes(APP_CONF)
    assert machine.root("systemctl is-active second_app", check=False) == "inactive\n"
    done = machine.cli("app", "init", "--conf", conf, "--snapshot", machine.snapshot_file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert machine.root("systemctl is-active second_app") == "active\n"
    assert machine.root("journalctl -u second_app -o cat | grep greeting").encode() == APP_CONF
    status, checks = machine.verify()  # what root has read that was not there
    assert (status, failed(checks)) == (1, {"ima.files"})
    assert unexpected_files(checks).startswith(f"{APP_CONF_PATH} sha256:{hashlib.sha256(APP_CONF).hexdigest()} (new")
    assert machine.verify("--whitelist", whitelist)[0] == 0


def test_a_new_program_and_a_changed_file_are_named(machine: Machine, whitelist: Path) -> None:
    machine.root("cp /bin/ls /srv/miner && echo >>/srv/miner && /srv/miner /")
    machine.root("cp -a /etc/hosts /tmp/hosts && echo '127.0.0.1 changed' >>/etc/hosts && cat /etc/hosts")
    machine.root("cat /tmp/hosts >/etc/hosts; rm /srv/miner")
    status, checks = machine.verify("--whitelist", whitelist)
    assert (status, failed(checks)) == (1, {"ima.files"})
    new, changed = sorted(unexpected_files(checks).splitlines(), reverse=True)
    assert new.startswith("/srv/miner sha256:")
    assert "(new: the snapshot has no such file)" in new
    assert changed.startswith("/etc/hosts sha256:")
    assert "(changed: the snapshot has" in changed


BOX = "cosmian_fstool --location /var/lib/second/box --mount /var/lib/second/data"


def test_a_container_by_this_releases_cryptsetup_and_systemd(machine: Machine) -> None:
    """Systemd 257 writes another token than 252. What is done to a container to attack it, the first machine sees."""
    machine.root(f"mkdir -p /var/lib/second && {BOX} --size 40MB && echo kept >/var/lib/second/data/file")
    machine.root(f"{BOX} close && {BOX} open && {BOX} reseal")
    assert machine.root("cat /var/lib/second/data/file") == "kept\n"
    machine.root(f"{BOX} remove --yes")
    assert machine.root("ls /var/lib/second; ls /dev/mapper").split() == ["data", "control"]


def test_a_changed_command_line_is_named_by_grubs_event(machine: Machine) -> None:
    machine.root("sed -i 's/ loglevel=4/ loglevel=4 init=\\/bin\\/systemd/' /boot/grub/grub.cfg; sync")
    machine.root("systemctl reboot", check=False)
    machine.vm.wait_gone()
    machine.vm.wait()
    status, checks = machine.verify()
    assert status == 1
    # Under tcb a file that the boot itself changed may be named too, if root has read it meanwhile.
    assert failed(checks) - {"ima.files"} == {"tpm.clock", "tpm.boot_pcrs"}
    assert "rebooted 1 time" in checks["tpm.clock"]["line"]
    line, details = checks["tpm.boot_pcrs"]["line"], "\n".join(checks["tpm.boot_pcrs"]["details"])
    assert "PCR 8 (boot loader commands); PCR 9 (files read by the boot loader" in line
    assert line.count("PCR ") == 2  # all else is as it was: firmware, shim, GRUB, kernel, initramfs
    assert "init=/bin/systemd" in details


def test_an_old_client_s_orders_where_anyone_may_give_them(machine: Machine) -> None:
    """As the 1.3.x programs give them: a POST without body, content type or proof."""
    assert ordered(machine) == (401, True)
    edit = r"""sed -i 's/^\[agent\]$/[agent]\nowners = "anyone"/' /etc/cosmian_vm/agent.toml"""
    machine.root(f"{edit} && systemctl restart cosmian_vm_agent")
    machine.vm.wait()
    assert ordered(machine) == (200, False)
    assert 'owners = "anyone"' in machine.root("journalctl -u cosmian_vm_agent -o cat; cat /var/log/cosmian_vm/*")


def ordered(machine: Machine) -> tuple[int, bool]:
    """Status of a restart that is ordered without a proof, and whether the answer names the owner."""
    request = urllib.request.Request(f"{machine.vm.url}/app/restart", method="POST")
    unchecked = ssl.create_default_context()
    unchecked.check_hostname, unchecked.verify_mode = False, ssl.CERT_NONE
    try:
        with urllib.request.urlopen(request, context=unchecked, timeout=60) as answer:
            return answer.status, b"ed25519:" in answer.read()
    except urllib.error.HTTPError as exc:
        with exc:
            return exc.code, b"ed25519:" in exc.read()
