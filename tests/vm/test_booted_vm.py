"""What only a real kernel can show: the image is built, booted (SELinux enforcing), and verified by the command line.

Firmware, kernel, IMA list and TPM commands are real ones, under emulation; the TEE is simulated. The tests are in
order: they share one machine, and what has run in it stays in its list until it is rebooted.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmian_vm.devkit.qemu import QemuVm

from .machine import Machine, failed, unexpected_files

pytestmark = pytest.mark.vm

EXPECTED_WARNINGS = {"tpm.ak", "tls.certificate"}  # the host's TPM, a self-signed certificate
OURS = re.compile(r"[st]context=\S+:(cosmian_vm_\w+|lvm_t|fsadm_t|mount_t):")
SECRET = b"correct-horse-battery-staple-" + os.urandom(12).hex().encode()

_APPLICATION = """\
set -e
printf '%s\\n' '#!/bin/sh' 'cat app.conf >/run/helloworld-has && exec sleep 1000000' >/usr/local/bin/helloworld
chmod 755 /usr/local/bin/helloworld
chgrp measured /usr/local/bin/helloworld
cat >/etc/supervisor/conf.d/helloworld.conf <<END
[program:helloworld]
command=/usr/local/bin/helloworld
directory=/var/lib/cosmian_vm/data/app
autostart=true
startsecs=1
startretries=1
END
cat >>/etc/cosmian_vm/agent.toml <<END

[app]
service_type = "supervisor"
service_name = "helloworld"
app_storage = "data/app"
END
mkdir -p /var/lib/cosmian_vm/data/app
printf '%s\\n' reread update 'restart cosmian_vm_agent' | supervisorctl
"""


@pytest.fixture(scope="module")
def machine(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """As the image makes it, at its first boot."""
    vm = QemuVm(tmp_path_factory.mktemp("vm"))
    vm.create(image)
    with vm:
        vm.start()
        vm.wait()
        yield Machine(vm, image.with_suffix(".trust_root.pem"))
    shutil.rmtree(vm.folder, ignore_errors=True)


def test_what_was_built_is_what_booted(machine: Machine, tmp_path: Path) -> None:
    """Every value was computed, none seen; and that it is compared shows in that another one fails."""
    status, checks = machine.verify_against("--reference", machine.reference)
    assert (status, failed(checks)) == (0, set())
    unpinned = {"tee.measurement", "tee.instance", "tpm.clock", "tpm.boot_pcrs", "vm.owner"}
    assert {name for name, check in checks.items() if check["status"] != "ok"} == EXPECTED_WARNINGS | unpinned
    assert "PCR 4, 9, 11-13" in checks["tpm.boot_pcrs"]["line"]

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
    status, checks = machine.verify_against("--reference", forged)
    assert (status, failed(checks)) == (1, {"ima.files"})
    assert f"{systemd} sha256:" in unexpected_files(checks)


def test_an_application_is_set_up_and_the_snapshot_taken(machine: Machine) -> None:
    """The manual's way. What the build had in another form must be in the whitelist, whatever the snapshot says."""
    machine.root(_APPLICATION)
    machine.vm.wait()
    machine.snapshot()
    both = ("--reference", machine.reference, "--snapshot", machine.snapshot_file)
    status, checks = machine.verify_against(*both)
    assert (status, failed(checks)) == (1, {"ima.files"})
    assert "/etc/cosmian_vm/agent.toml sha256:" in unexpected_files(checks)
    assert "changed since the image was built" in unexpected_files(checks)
    ours = "/etc/cosmian_vm/agent.toml /usr/local/bin/helloworld"
    digests = [line.split() for line in machine.root(f"sha256sum {ours}").splitlines()]
    machine.whitelist.write_text("".join(f"{path} {digest}\n" for digest, path in digests))
    assert machine.verify_against(*both, "--whitelist", machine.whitelist)[0] == 0


def test_a_booted_machine_is_trusted(machine: Machine) -> None:
    status, checks = machine.verify()
    assert status == 0
    assert {name for name, check in checks.items() if check["status"] != "ok"} == EXPECTED_WARNINGS


def test_the_first_launch_made_container_keys_and_certificate(machine: Machine) -> None:
    assert "open, mounted at /var/lib/cosmian_vm/data (PCRs 4+7+8+9+12+14" in machine.root("cosmian_fstool status")
    kind, source = machine.root("findmnt -no FSTYPE,SOURCE /var/lib/cosmian_vm/data").split()
    assert kind == "ext4"
    table = machine.root(f"dmsetup table {source.rpartition('/')[2]}")
    assert "capi:authenc(hmac(sha256),xts(aes))" in table, table
    assert "aes" in table
    modes = machine.root(
        "cd /var/lib/cosmian_vm; stat -c '%a %U' . container container.header data/key.pem data/cert.pem"
    )
    assert modes.splitlines() == ["700 root", "600 root", "600 root", "600 root", "644 root"]
    assert machine.root("stat -c '%a %U' /var/lib/cosmian_vm/data/container.password") == "400 root\n"
    handles = machine.root("tpm2_getcap handles-persistent")
    for handle in ("0x81000050", "0x81000051"):
        assert handle in handles
    password = machine.root("cat /var/lib/cosmian_vm/data/container.password").strip()
    assert len(password) >= 43
    assert machine.root(f"grep -rlF {password} /var/log /run/log || true") == ""


def test_the_simulated_tee_passes_with_its_root_only(machine: Machine) -> None:
    done = machine.cli("verify", "--snapshot", machine.snapshot_file, "--offline", "--json", trust=False)
    assert done.returncode == 1
    assert "tee.chain" in {check["id"] for check in json.loads(done.stdout)["checks"] if check["status"] == "fail"}
    assert "SIMULATED" in machine.root("cat /etc/motd; grep -h SIMULATED /var/log/cosmian_vm/agent.err.log")


def test_the_side_that_speaks_https_has_no_rights(machine: Machine) -> None:
    told = machine.root(
        "grep -E '^(Uid|CapEff|CapPrm|CapInh|NoNewPrivs|Groups)' /proc/$(pgrep -of front_start.py)/status"
    )
    facts = dict(line.split(":", 1) for line in told.splitlines())
    uid = machine.root("id -u cosmian_vm_agent").strip()
    assert facts["Uid"].split() == [uid] * 4
    assert facts["NoNewPrivs"].split() == ["1"]
    assert {int(facts[name], 16) for name in ("CapEff", "CapPrm", "CapInh")} == {0}
    assert set(facts["Groups"].split()) <= {machine.root("id -g cosmian_vm_agent").strip()}
    for forbidden in ("cat /var/lib/cosmian_vm/data/key.pem", "cat /dev/tpmrm0", "ls /var/lib/cosmian_vm"):
        said = machine.root(f"setpriv --reuid={uid} --regid={uid} --clear-groups {forbidden} 2>&1", check=False)
        assert "Permission denied" in said, forbidden


def test_app_init_writes_into_the_container_and_starts_the_application(machine: Machine, tmp_path: Path) -> None:
    conf = tmp_path / "app.json"
    conf.write_bytes(SECRET)
    done = machine.cli("app", "init", "--conf", conf, "--snapshot", machine.snapshot_file)
    assert done.returncode == 0, done.stdout + done.stderr
    written = "/var/lib/cosmian_vm/data/app/app.conf"
    assert machine.root(f"cat {written}") == SECRET.decode()
    assert machine.root(f"stat -c '%a %U' {written}") == "400 root\n"
    machine.until("cat /run/helloworld-has", SECRET.decode())
    assert "RUNNING" in machine.root("supervisorctl status helloworld")
    assert machine.cli("app", "restart", "--allow-reboot").returncode == 0
    assert machine.verify()[0] == 0
    assert machine.root(f"grep -rlF {SECRET.decode()} /var/log /var/tmp /etc /root || true") == ""


def test_each_process_is_in_its_domain(machine: Machine) -> None:
    running = {
        user: context.split(":")[2]
        for user, context, *_ in map(str.split, machine.root("ps -eo user:32,context:64,args").splitlines())
        if "cosmian_vm_" in context
    }
    assert running == {"root": "cosmian_vm_agent_t", "cosmian_vm_agent": "cosmian_vm_front_t"}
    labels = machine.root(
        "stat -c '%n %C' /var/lib/cosmian_vm/container /var/lib/cosmian_vm/data/* /run/cosmian_vm_agent"
    )
    assert set(re.findall(r" \S+:(\w+_t):", labels)) == {
        *("cosmian_vm_container_t", "cosmian_vm_data_t", "cosmian_vm_runtime_t", "unlabeled_t")
    }
    assert re.search(r"lost\+found \S+:unlabeled_t:", labels)
    assert labels.count("unlabeled_t") == 1


def test_restarted_under_load_the_agent_answers_rightly_or_not_at_all(machine: Machine) -> None:
    told: list[tuple[int, str]] = []
    done = threading.Event()

    def ask() -> None:
        while not done.wait(0.3):
            verified = machine.cli("--timeout", "20", "verify", "--snapshot", machine.snapshot_file)
            told.append((verified.returncode, verified.stdout + verified.stderr))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        machine.root("for time in 1 2; do echo restart cosmian_vm_agent; done | supervisorctl")
    finally:
        done.set()
        for thread in threads:
            thread.join()
    machine.vm.wait()
    wrong = [text for status, text in told if status not in (0, 3)]
    assert not wrong, wrong[0]
    assert machine.verify()[0] == 0
    assert 3 in {status for status, _ in told}, "no request met the restart"


def test_the_machine_is_as_the_image_promises(machine: Machine) -> None:
    assert machine.root("systemctl --failed --no-legend") == ""
    assert "acme" in machine.root("cosmian_certtool --help")
    assert "[integrity]" in machine.root("cat /sys/kernel/security/lockdown")
    assert machine.root("sysctl -n kernel.kexec_load_disabled").strip() == "1"
    for place in ("/tmp", "/dev/shm", "/var/lib/cosmian_vm/tmp"):
        assert "noexec" in machine.root(f"findmnt -no FSTYPE,OPTIONS {place}").replace("tmpfs", "", 1), place
    for timer in ("apt-daily.timer", "apt-daily-upgrade.timer"):
        assert machine.root(f"systemctl is-enabled {timer}", check=False).strip() == "masked"
    assert machine.root("find / -xdev -name '*.pyc' -newer /etc/.updated") == ""
    unread = "/usr/share/man /usr/share/locale /usr/share/lintian /usr/share/zoneinfo/right /boot/initrd.img*"
    assert machine.root(f"find {unread} -type f 2>/dev/null", check=False) == ""
    assert machine.root("grep -xE 'Package: perl(-base)?' /var/lib/dpkg/status") == "Package: perl-base\n"
    assert int(machine.root("ls /usr/share/doc/*/copyright | wc -l")) > 100
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


def denied(machine: Machine) -> list[str]:
    return [line for line in machine.root("dmesg").splitlines() if "avc:" in line and OURS.search(line)]


def test_nothing_was_denied_to_the_agent(machine: Machine) -> None:
    """First launch, evidence, snapshot, app init, restarts; and the container by hand."""
    assert machine.root("getenforce").strip() == "Enforcing"
    machine.root("set -e; supervisorctl stop all; cosmian_fstool close; cosmian_fstool open; cosmian_fstool reseal")
    machine.root("supervisorctl start all")
    machine.vm.wait()
    assert denied(machine) == []


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
    machine.root("cp /lib/modules/*/kernel/drivers/net/dummy.ko /var/tmp/foreign.ko")
    machine.root("chcon -t modules_object_t /var/tmp/foreign.ko && insmod /var/tmp/foreign.ko")
    assert "/var/tmp/foreign.ko sha256:" in unexpected_files(machine.verify()[1])


_ATTEMPTS = """\
import socket
for attempt in (
    lambda: open("/etc/shadow", "rb").read(),  # it is hashed for the snapshot
    lambda: open("/etc/shadow", "ab"),
    lambda: open("/etc/cosmian_vm/agent.toml", "ab"),
    lambda: open("/dev/nvme0n1", "rb"),
    lambda: open("/usr/local/bin/new", "wb"),
    lambda: open("/proc/sys/kernel/core_pattern", "wb"),
    lambda: socket.create_connection(("127.0.0.1", 22)),
):
    try:
        attempt()
        print("done")
    except PermissionError:
        print("denied")
"""


def test_what_the_agent_has_no_business_with_is_denied(machine: Machine) -> None:
    """As root, with every capability: outside of the agent's domain, which the script's label gives, all is done."""
    machine.root("cat >/var/tmp/try && chmod 755 /var/tmp/try", stdin=f"#!/usr/bin/python3 -IBS\n{_ATTEMPTS}".encode())
    assert machine.root("/var/tmp/try").split() == ["done"] * 7
    assert machine.root("chcon -t cosmian_vm_agent_exec_t /var/tmp/try && /var/tmp/try").split() == [
        *("done", "denied", "denied", "denied", "denied", "denied", "denied")
    ]


def test_enforcing_cannot_be_turned_off(machine: Machine) -> None:
    for command in ("setenforce 0", "setsebool secure_mode_policyload 0", "load_policy"):
        assert "Permission denied" in machine.root(f"{command} 2>&1", check=False), command
    assert machine.root("getenforce").strip() == "Enforcing"


def test_a_warm_reboot_is_named_and_can_be_accepted(machine: Machine) -> None:
    machine.root("rm /usr/local/bin/miner; sync; systemctl reboot", check=False)
    machine.vm.wait_gone()
    machine.vm.wait()
    status, checks = machine.verify()
    assert (status, failed(checks)) == (1, {"tpm.clock"})
    assert "rebooted 1 time" in checks["tpm.clock"]["line"]
    assert "--allow-reboot or take a new snapshot" in checks["tpm.clock"]["line"]
    assert machine.verify("--allow-reboot")[0] == 0
    # Nothing that the first boot left behind:
    assert machine.verify_against("--reference", machine.reference, "--whitelist", machine.whitelist)[0] == 0
    the_container_is_open_and_the_application_runs(machine)
    assert denied(machine) == []


def the_container_is_open_and_the_application_runs(machine: Machine) -> None:
    assert "open, mounted at" in machine.root("cosmian_fstool status")
    machine.until("cat /run/helloworld-has", SECRET.decode())


def test_a_cold_start_is_another_guest_and_a_new_snapshot_passes(machine: Machine) -> None:
    machine.vm.stop()
    disk = machine.vm.folder / "disk.img"
    assert holds(disk, b"/usr/local/bin/helloworld"), "what is not encrypted is seen"
    assert not holds(disk, SECRET)
    machine.vm.start()
    machine.vm.wait()
    the_container_is_open_and_the_application_runs(machine)
    status, checks = machine.verify()
    assert status == 1
    assert failed(checks) == {"tpm.clock", "tee.instance"}
    machine.snapshot("--allow-reboot")
    assert machine.verify()[0] == 0


def holds(disk: Path, needle: bytes) -> bool:
    with disk.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(needle) >= 0


def test_a_changed_command_line_is_named_and_the_container_stays_locked(machine: Machine, tmp_path: Path) -> None:
    password = machine.root("cat /var/lib/cosmian_vm/data/container.password")
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
    locked(machine, "this boot is not the one that it was sealed for: PCR 4, 9 changed")
    machine.root("cosmian_fstool reseal --password -", stdin=password.encode())
    machine.root("cosmian_fstool open")
    machine.until("tail -n 3 /var/log/cosmian_vm/agent.err.log", "listening on")
    machine.vm.wait()
    assert machine.cli("app", "restart", "--allow-reboot").returncode == 0  # the agent noticed by itself
    the_container_is_open_and_the_application_runs(machine)


def locked(machine: Machine, why: str) -> None:
    """Nothing is mounted or written, orders are told why, and evidence is served all the same."""
    assert why in machine.root("cosmian_fstool status", check=False)
    assert machine.root("findmnt /var/lib/cosmian_vm/data", check=False) == ""
    assert machine.root("ls -A /var/lib/cosmian_vm/data") == ""
    ordered = machine.cli("app", "restart", "--allow-reboot")
    assert ordered.returncode == 3
    assert "container locked: " in ordered.stderr
    assert why in ordered.stderr


def test_another_tpm_is_not_ours(machine: Machine) -> None:
    machine.vm.stop(orderly=False)
    machine.vm.new_tpm()
    machine.vm.start()
    machine.vm.wait()
    status, checks = machine.verify("--allow-reboot")
    assert status == 1
    assert "tpm.ak" in failed(checks)
    refused = machine.cli("app", "restart", "--allow-reboot")
    assert refused.returncode == 1
    assert "not the machine that is remembered" in refused.stderr
    assert machine.cli("known", "remove", machine.vm.url, trust=False).returncode == 0
    locked(machine, "the TPM has no record of this container")


def test_a_first_launch_killed_at_any_moment_is_finished_at_the_next_start(machine: Machine) -> None:
    machine.root("supervisorctl stop all; systemctl stop cosmian_vm_container; cosmian_fstool remove --yes")
    machine.root("tpm2_evictcontrol -C o -c 0x81000051")  # a new machine: no container, and no attestation key
    for moment in (3, 5):
        machine.root(f"timeout --signal=KILL {moment} cosmian_vm_agent --first-launch", check=False)
    machine.root("systemctl reset-failed; systemctl start cosmian_vm_container; supervisorctl start cosmian_vm_agent")
    machine.vm.wait()
    assert "open, mounted at" in machine.root("cosmian_fstool status")
    assert machine.root("ls -A /var/lib/cosmian_vm") == "container\ncontainer.header\ndata\ntmp\n"
    # It still boots with the changed command line, so it is not trusted; the new attestation key quotes.
    status, checks = machine.verify_against("--reference", machine.reference)
    assert (status, checks["tpm.signature"]["status"]) == (1, "ok")
    assert "tpm.boot_pcrs" in failed(checks)
