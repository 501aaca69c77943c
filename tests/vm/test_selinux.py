"""The image of ``image/build --selinux``: nothing is denied to the agent, and what it has no business with is."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator

import pytest

from cosmian_vm.devkit.qemu import QemuVm

from .machine import ROOT, Machine, build, skip_without_tools

pytestmark = pytest.mark.vm

BOOT_SECONDS = 600.0  # the first launch writes the whole container
OURS = re.compile(r"[st]context=\S+:(cosmian_vm_\w+|lvm_t|fsadm_t|mount_t):")

_APPLICATION = """\
set -e
printf '%s\\n' '[program:helloworld]' 'command=/usr/bin/sleep 1000000' 'autostart=false' 'startsecs=1' \
    >/etc/supervisor/conf.d/helloworld.conf
printf '%s\\n' '[app]' 'service_type = "supervisor"' 'service_name = "helloworld"' 'app_storage = "data/app"' \
    >>/etc/cosmian_vm/agent.toml
supervisorctl update
supervisorctl restart cosmian_vm_agent
"""


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    skip_without_tools()
    image = build(ROOT / "image" / "build", "--simulated-tee", "--selinux")
    vm = QemuVm(tmp_path_factory.mktemp("selinux"))
    vm.create(image)
    with vm:
        vm.start()
        vm.wait(BOOT_SECONDS)
        machine = Machine(vm, image.with_suffix(".trust_root.pem"))
        machine.root(_APPLICATION)
        vm.wait(BOOT_SECONDS)
        yield machine
    shutil.rmtree(vm.folder, ignore_errors=True)


def denied(machine: Machine) -> list[str]:
    return [line for line in machine.root("dmesg").splitlines() if "avc:" in line and OURS.search(line)]


def test_the_agent_works_and_nothing_is_denied_to_it(machine: Machine) -> None:
    """Boot and first launch have happened. Snapshot, evidence, an application, the container by hand: in this order."""
    assert machine.root("getenforce").strip() == "Enforcing"
    machine.snapshot()
    status, checks = machine.verify()
    assert (status, {name for name, check in checks.items() if check["status"] == "fail"}) == (0, set())
    (machine.vm.folder / "app.conf").write_text("greeting = 1\n")
    done = machine.cli("app", "init", "--conf", machine.vm.folder / "app.conf", "--snapshot", machine.snapshot_file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RUNNING" in machine.root("supervisorctl status helloworld")
    machine.root("set -e; supervisorctl stop all; cosmian_fstool close; cosmian_fstool open; cosmian_fstool reseal")
    assert machine.root("cat /var/lib/cosmian_vm/data/app/app.conf") == "greeting = 1\n"
    machine.root("supervisorctl start all")
    machine.vm.wait()
    assert denied(machine) == []
    assert machine.root("systemctl --failed --no-legend") == ""


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
