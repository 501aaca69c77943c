"""A machine that really boots: an image of ``image/build`` under QEMU, with UEFI firmware and a software TPM.

Everything lives in one folder, and processes are found again from there, so that one command can start the VM and
another stop it::

    vm.json     ports, image         disk.img    its disk, a copy of the image    tpm/         swtpm's state
    vars.fd     UEFI variables       serial.log  what it says at its console      known_hosts  its SSH host key

Ports are on loopback only, and the guest reaches nothing outside. Emulated (TCG) unless a guest is seen to run under
KVM: that /dev/kvm is there does not say that it works.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal
from uuid import uuid4

import msgspec

from cosmian_vm.devkit._process import Daemon
from cosmian_vm.errors import AttesterError, InputError, NotAvailableError

__all__ = ["QemuVm", "accelerator", "missing_programs"]

_PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "swtpm": "swtpm",
    "swtpm_setup": "swtpm-tools",
    "ssh": "openssh-client",
}
_FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
_AGENT_PORT, _SSH_PORT = 5355, 22
_BOOT_SECONDS = 400.0
_POWER_OFF_SECONDS = 60.0
_QMP_SECONDS = 10.0
_PROBE_SECONDS = 5
_MACHINE = ("-machine", "q35", "-m", "1024")
_ACCELERATORS = {
    "kvm": ("-accel", "kvm", "-cpu", "host"),
    # Without vector extensions: emulated, they make a guest that hashes a third slower than its plain code does. And
    # not "max" with features taken away (max,-svm): so QEMU 7.2 boots a guest in which mounts fail.
    "tcg": ("-accel", "tcg,thread=multi,tb-size=256", "-cpu", "qemu64"),
}
_PROBE_STATUS = 0x21
# A boot sector: mov al, 0x21; out 0xf4, al (QEMU's exit device); hlt.
_PROBE = b"\xb0\x21\xe6\xf4\xf4".ljust(510, b"\0") + b"\x55\xaa"


def missing_programs() -> list[str]:
    """Debian packages that a VM needs and that are not installed."""
    missing = [package for program, package in _PROGRAMS.items() if shutil.which(program) is None]
    return missing + ["ovmf"] * (not _FIRMWARE.exists())


def accelerator() -> str:
    """``kvm`` where a small guest has just run under it, else ``tcg`` (emulation)."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg"
    with tempfile.NamedTemporaryFile(prefix="kvm-probe-") as sector:
        sector.write(_PROBE)
        sector.flush()
        command = ["qemu-system-x86_64", "-nodefaults", "-display", "none", *_MACHINE, *_ACCELERATORS["kvm"]]
        command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=0x01", "-no-reboot"]
        command += ["-drive", f"if=ide,format=raw,readonly=off,snapshot=on,file={sector.name}"]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_PROBE_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired):
            return "tcg"
    return "kvm" if done.returncode == _PROBE_STATUS << 1 | 1 else "tcg"


def _check_disk(image: Path) -> None:
    """A raw disk has a partition table: the MBR's signature at 510 (a GPT has it too: UEFI 2.10, 5.2.3), and a
    partition in one of its four entries of 16 bytes, type at 4. Raises InputError, OSError.
    """
    with image.open("rb") as file:
        sector = file.read(512)
    types = sector[446 + 4 : 510 : 16]
    if sector[510:] != b"\x55\xaa" or not any(types):
        what = "a QCOW2 image" if sector.startswith(b"QFI\xfb") else "no disk image, it has no partition table"
        raise InputError(f"{image}: {what}; expected is a raw disk image, as image/build --simulated-tee makes it")


class _State(msgspec.Struct, kw_only=True):
    """``vm.json``. ``image``: path, size and modification time of what the disk was copied from."""

    image: tuple[str, int, int]
    agent_port: int
    ssh_port: int
    sockets: str = ""


class QemuVm:
    """The VM in ``folder``; see the head of this module. As a context manager it is switched off at the end.

    ``disk_bus``: what its disk is, a device of QEMU. ``processors``: with one, an emulated VM is a third slower. Linux
    6.12 wants no more there: code that it patches while another processor runs it may trap (Oops: int3 at the boot).
    """

    def __init__(
        self, folder: Path, *, disk_bus: Literal["nvme", "virtio-blk-pci"] = "nvme", processors: int = 2
    ) -> None:
        self.folder = folder.resolve()
        self._disk_bus = disk_bus
        self._processors = processors
        self.serial_log = self.folder / "serial.log"
        self._qemu = Daemon(self.folder / "qemu.json")
        self._swtpm = Daemon(self.folder / "swtpm.json")

    def __enter__(self) -> QemuVm:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop(orderly=False)

    @property
    def running(self) -> bool:
        """Whether QEMU is there."""
        return self._qemu.running

    @property
    def url(self) -> str:
        """Where its agent answers."""
        return f"https://127.0.0.1:{self._state().agent_port}"

    def ssh(self, key: Path, *, kept: bool = False) -> list[str]:
        """The command that logs in as root. ``kept``: many commands share one login, which under emulation takes a
        second or more.
        """
        state = self._state()
        options = ["BatchMode=yes", "LogLevel=ERROR", "StrictHostKeyChecking=accept-new", "ConnectTimeout=20"]
        options += ["IdentitiesOnly=yes", f"UserKnownHostsFile={self.folder / 'known_hosts'}"]
        if kept and state.sockets:
            options += ["ControlMaster=auto", "ControlPersist=600", f"ControlPath={state.sockets}/ssh"]
            options += ["ServerAliveInterval=5", "ServerAliveCountMax=6"]
        command = ["ssh", "-i", str(key), "-p", str(state.ssh_port)]
        for option in options:
            command += ["-o", option]
        return [*command, "root@127.0.0.1"]

    # Power

    def create(self, image: Path, *, agent_port: int | None = None, ssh_port: int | None = None) -> None:
        """Make the folder's disk, TPM and firmware variables where they are absent.

        Raises InputError where ``image`` is no raw disk image or the folder's disk that of another image,
        NotAvailableError where a program is not installed.
        """
        if missing := missing_programs():
            raise NotAvailableError(f"not installed: {', '.join(missing)} (Debian packages)")
        try:
            status = image.stat()
            _check_disk(image)
        except OSError as exc:
            raise InputError(f"{image}: {exc.strerror}; make it with: image/build --simulated-tee") from exc
        origin = (str(image.resolve()), status.st_size, status.st_mtime_ns)
        if (self.folder / "vm.json").exists():
            if self._state().image != origin:
                raise InputError(f"{self.folder}: the VM here has another image's disk; to start over: --fresh")
            return
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _run(["cp", "--sparse=always", "--reflink=auto", str(image), str(self.folder / "disk.img")])
        shutil.copy(_VARIABLES, self.folder / "vars.fd")
        self.new_tpm()
        self._keep(_State(image=origin, agent_port=agent_port or _free_port(), ssh_port=ssh_port or _free_port()))

    def new_tpm(self) -> None:
        """Another TPM, as new. The VM must be off."""
        shutil.rmtree(self.folder / "tpm", ignore_errors=True)
        (self.folder / "tpm").mkdir(mode=0o700)
        state = str(self.folder / "tpm")
        _run(["swtpm_setup", "--tpm2", "--tpmstate", state, "--pcr-banks", "sha256", "--createek", "--ecc"])

    def start(self, *, accel: str = "tcg") -> None:
        """Power on. Another guest instance each time: its UUID, and the simulated TEE's report_id, are new."""
        if self.running:
            return
        self.stop(orderly=False)
        state = self._state()
        # A Unix socket's path holds a hundred bytes or so, and a folder's can be longer.
        state.sockets = tempfile.mkdtemp(prefix="cosmian-vm-")
        self._keep(state)
        log = self.folder / "processes.log"
        tpm = f"{state.sockets}/tpm"
        self._swtpm.start(
            [
                *("swtpm", "socket", "--tpm2", "--terminate", "--tpmstate", f"dir={self.folder / 'tpm'}"),
                *("--ctrl", f"type=unixio,path={tpm},mode=0600"),
            ],
            log=log,
        )
        try:
            self._swtpm.wait_until(lambda: Path(tpm).is_socket(), seconds=10, log=log)
            self._qemu.start(self._command(state, accel), log=log)
            self._qemu.wait_until(lambda: Path(state.sockets, "qmp").is_socket(), seconds=20, log=log)
        except BaseException:
            self.stop(orderly=False)
            raise

    def _command(self, state: _State, accel: str) -> list[str]:
        def escaped(path: Path) -> str:
            return str(path).replace(",", ",,")

        forward = f"hostfwd=tcp:127.0.0.1:{state.agent_port}-:{_AGENT_PORT}"
        forward += f",hostfwd=tcp:127.0.0.1:{state.ssh_port}-:{_SSH_PORT}"
        command = ["qemu-system-x86_64", "-name", "cosmian_vm", "-nodefaults", "-display", "none"]
        command += [*_MACHINE, "-smp", str(self._processors), *_ACCELERATORS[accel], "-uuid", str(uuid4())]
        command += ["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={_FIRMWARE}"]
        command += ["-drive", f"if=pflash,format=raw,unit=1,file={escaped(self.folder / 'vars.fd')}"]
        command += ["-chardev", f"socket,id=tpm,path={state.sockets}/tpm", "-tpmdev", "emulator,id=tpm0,chardev=tpm"]
        command += ["-device", "tpm-crb,tpmdev=tpm0"]
        command += ["-drive", f"if=none,id=disk,format=raw,file={escaped(self.folder / 'disk.img')}"]
        command += ["-device", f"{self._disk_bus},drive=disk,serial=cosmian,bootindex=1"]
        command += ["-netdev", f"user,id=net,restrict=on,{forward}", "-device", "virtio-net-pci,netdev=net,romfile="]
        command += ["-device", "virtio-rng-pci", "-serial", f"file:{self.serial_log}"]
        return [*command, "-qmp", f"unix:{state.sockets}/qmp,server=on,wait=off"]

    def wait(self, seconds: float = _BOOT_SECONDS) -> float:
        """Wait until the agent answers; how long it took. Raises AttesterError where the VM ends or time is up."""
        began = time.monotonic()
        port = self._state().agent_port
        while not _answers(port):
            took = time.monotonic() - began
            if not self.running or took > seconds:
                what = f"does not answer after {took:.0f} s" if self.running else "ended"
                raise AttesterError(f"the VM {what}; what it said: {self.serial_log}, {self.folder / 'processes.log'}")
            time.sleep(0.5)
        return time.monotonic() - began

    def wait_gone(self, seconds: float = _BOOT_SECONDS) -> None:
        """Wait until the agent no longer answers: the guest goes down. Raises AttesterError."""
        port, end = self._state().agent_port, time.monotonic() + seconds
        while _answers(port):
            if time.monotonic() > end:
                raise AttesterError(f"the VM did not go down within {seconds:.0f} s")
            time.sleep(0.5)

    def reset(self) -> None:
        """The reset button: a warm reboot, without asking the guest."""
        with self._qmp() as command:
            command("system_reset")

    def stop(self, *, orderly: bool = True) -> None:
        """Power off. ``orderly``: the power button first, and time to shut down; else the plug is pulled."""
        if self.running and orderly:
            with suppress(OSError, ValueError, AttesterError), self._qmp() as command:
                command("system_powerdown")
            end = time.monotonic() + _POWER_OFF_SECONDS
            while self.running and time.monotonic() < end:
                time.sleep(0.2)
        self._qemu.stop()
        self._swtpm.stop()
        if (self.folder / "vm.json").exists():
            state = self._state()
            if state.sockets:
                shutil.rmtree(state.sockets, ignore_errors=True)
                state.sockets = ""
                self._keep(state)

    def remove(self) -> None:
        """Off, and nothing of it is left."""
        self.stop(orderly=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    # What is kept

    def _state(self) -> _State:
        try:
            return msgspec.json.decode((self.folder / "vm.json").read_bytes(), type=_State)
        except FileNotFoundError as exc:
            raise InputError(f"{self.folder}: there is no VM here; start one with image/run") from exc
        except msgspec.MsgspecError as exc:
            raise InputError(f"{self.folder / 'vm.json'}: {exc}") from exc

    def _keep(self, state: _State) -> None:
        draft = self.folder / "vm.new"
        draft.write_bytes(msgspec.json.encode(state))
        draft.replace(self.folder / "vm.json")

    @contextmanager
    def _qmp(self) -> Iterator[_Qmp]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
            link.settimeout(_QMP_SECONDS)
            link.connect(f"{self._state().sockets}/qmp")
            yield _Qmp(link)


class _Qmp:
    """QEMU's machine protocol: lines of JSON."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._lines = link.makefile("rb")
        self._lines.readline()  # its greeting
        self("qmp_capabilities")

    def __call__(self, name: str) -> None:
        """Give an order. Raises AttesterError."""
        self._link.sendall(json.dumps({"execute": name}).encode() + b"\n")
        while line := self._lines.readline():
            answer = json.loads(line)
            if "return" in answer:
                return
            if "error" in answer:
                raise AttesterError(f"QEMU declined {name}: {answer['error'].get('desc')}")
        raise AttesterError(f"QEMU ended while it was asked for {name}")


def _answers(port: int) -> bool:
    """Whether an agent answers there. QEMU takes the connection in any case."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # only whether somebody is there
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=context)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=120)
    if done.returncode:
        said = (done.stdout + done.stderr).decode("utf-8", "replace").strip().splitlines()
        raise AttesterError(f"{command[0]} failed: {said[-1] if said else done.returncode}")
