"""A second machine, unlike our own image in whatever may differ, before the same command line.

Debian 13, booted by shim, GRUB and an initramfs; root, /usr, /boot and /srv apart, on a virtio disk; the kernel's own
IMA policy (tcb), which measures all that root reads, and the template ima-ng; agent and application kept by systemd,
no container of the agent's: one is made, and attacked, by hand.
The tests are in order: they share one machine, and what has run in it stays in its list until it is rebooted.
"""

from __future__ import annotations

import hashlib
import json
import re
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
PASSWORD = b"a password of my own\n"


def test_a_container_with_a_password_of_ones_own(machine: Machine) -> None:
    """By systemd 257, which writes another token than the 252 of the first machine."""
    machine.root("mkdir -p /var/lib/second")
    machine.root(f"{BOX} --size 32MB --password -", stdin=PASSWORD)
    machine.root("echo kept >/var/lib/second/data/file; sync")
    machine.root(f"{BOX} close")
    assert "closed; this TPM opens it" in machine.root(f"{BOX} status", check=False)
    machine.root(f"{BOX} open")
    assert machine.root("cat /var/lib/second/data/file") == "kept\n"
    machine.root(f"{BOX} close")
    assert "is there already and is never overwritten" in machine.root(f"{BOX} --size 32MB", check=False)


def test_a_container_larger_than_the_disk(machine: Machine) -> None:
    said = machine.root("cosmian_fstool --location /root/big --mount /mnt --size 900GB; echo $?", check=False)
    assert "900 GB are needed" in said
    assert said.endswith("2\n")
    assert machine.root("ls /root") == ""


def refused(machine: Machine, says: str) -> None:
    """The container is not opened, one line says why, and nothing is left open."""
    said = machine.root(f"{BOX} open; echo status $?", check=False)
    assert says in said
    assert said.endswith("status 1\n")
    assert len(said.splitlines()) == 2
    assert "/var/lib/second/data" not in machine.root("cat /proc/mounts")
    assert machine.root("ls /dev/mapper | wc -l") == "1\n"  # control


def test_a_tampered_header_is_refused(machine: Machine) -> None:
    machine.root("cd /var/lib/second; cp box.header good; printf x | dd of=box.header bs=1 seek=100000 conv=notrunc")
    refused(machine, "is not the header that the TPM knows")
    machine.root("cd /var/lib/second; rm box.header")
    refused(machine, "is gone, and the TPM knows of a container here")
    machine.root("cd /var/lib/second; cp good box.header")


def test_a_swapped_cipher_is_refused(machine: Machine) -> None:
    """A header with right checksums that says cipher_null (CVE-2025-59054): the TPM does not know it; and he who has
    the password is not talked into it either.
    """
    told = re.search(r"TPM record (0x[0-9a-f]+)", machine.root(f"{BOX} status", check=False))
    assert told is not None
    machine.root(f"cat >/root/swap.py <<'END'\n{SWAP}\nEND\npython3 -I /root/swap.py; rm /root/swap.py")
    refused(machine, "is not the header that the TPM knows")
    machine.root("cd /var/lib/second; mv box.header forged; cp good box.header")
    machine.root(f"tpm2_nvundefine {told.group(1)}; cd /var/lib/second; cp forged box.header")
    said = machine.root(f"{BOX} reseal --password - 2>&1", check=False, stdin=PASSWORD)
    assert "refused" in said
    assert "cipher_null" in said
    machine.root("cd /var/lib/second; cp good box.header")
    refused(machine, "the TPM has no record of this container")
    machine.root(f"{BOX} reseal --password -", stdin=PASSWORD)  # and it opens, as the next test shows


SWAP = """
import sys
sys.path.append("/usr/lib/cosmian_vm")
import json
from pathlib import Path
from cosmian_vm.devkit.luks import header_file
path = Path("/var/lib/second/box.header")
raw = path.read_bytes()
size = int.from_bytes(raw[8:16], "big")
document = json.loads(raw[4096:size].split(bytes(1))[0])
for segment in document["segments"].values():
    segment["encryption"] = "cipher_null-ecb"
path.write_bytes(header_file(document)[: 2 * size] + raw[2 * size:])
"""


def test_a_tampered_container_gives_an_error_and_no_data(machine: Machine) -> None:
    machine.root(f"{BOX} open && yes kept | head -c 8000000 >/var/lib/second/data/file && {BOX} close")
    spots = "range(2_000_000, 30_000_000, 400_000)"
    machine.root(f"""python3 -Ic 'import os; box = os.open("/var/lib/second/box", os.O_WRONLY)
for spot in {spots}: os.pwrite(box, b"tampered", spot + 4242)'""")
    machine.root(f"{BOX} open", check=False)
    said = machine.root("sort -u /var/lib/second/data/file", check=False)
    assert "Input/output error" in said
    assert "tampered" not in said
    assert "INTEGRITY AEAD ERROR" in machine.root("dmesg")
    machine.root(f"{BOX} remove --yes")
    assert machine.root("ls /var/lib/second").split() == ["data", "forged", "good"]


def test_killed_while_it_is_made_and_made_again(machine: Machine) -> None:
    for moment in (0.5, 3):
        machine.root(f"timeout --signal=KILL {moment} {BOX} --size 100MB", check=False)
    machine.root(f"{BOX} --size 32MB && {BOX} reseal && {BOX} remove --yes")
    assert machine.root("ls /var/lib/second; ls /dev/mapper | wc -l").split() == ["data", "forged", "good", "1"]


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
