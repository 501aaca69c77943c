"""A whole simulated confidential VM: swtpm, a simulated AMD or Intel, software IMA over real files, and the real agent.

Everything lives in one folder, and processes are found again from there, so that one command can start the VM and
another stop it::

    vm.json            which guest this is                 vendor/       the chip maker's keys and certificates
    rootfs/            the VM's file system                trust_root.pem   its root, for --trust-root
    tpm/               swtpm's state                       agent/        the agent's data_storage
    *.bin              what the kernel would keep          url           where the agent answers
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.agent.config import AgentConfig, AppConfig, ServiceType
from cosmian_vm.agent.services import service_for
from cosmian_vm.attester.platform import FileScope, Platform, TeeDevice
from cosmian_vm.attester.tpm import EsapiTpm
from cosmian_vm.devkit._process import Daemon
from cosmian_vm.devkit._rootfs import INIT, make_rootfs
from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.boot_log import default_boot, extend_boot, serialise_boot
from cosmian_vm.devkit.ima import SoftwareIma
from cosmian_vm.devkit.intel import IntelVendor
from cosmian_vm.devkit.intel_store import load_vendor, save_vendor
from cosmian_vm.devkit.intel_tee import SimulatedEnclave, SimulatedTd
from cosmian_vm.devkit.pcrs import TpmPcrs
from cosmian_vm.devkit.swtpm import Swtpm
from cosmian_vm.devkit.tee import SimulatedTee
from cosmian_vm.devkit.vm_logs import FolderLogs, NoLogs, read
from cosmian_vm.errors import AttesterError, InputError
from cosmian_vm.evidence.bundle import TeeKind
from cosmian_vm.evidence.ima import serialise_binary

__all__ = ["SimulatedVm"]

_AGENT_SECONDS = 30.0
_RUN_SECONDS = 60.0


class SimulatedVm:
    """The VM in ``folder``; see the head of this module. As a context manager it is stopped at the end.

    ``keys``: of the simulated AMD, where it is new (making RSA-4096 keys takes seconds). ``tee``: what a new one is;
    an enclave has neither TPM nor IMA. ``certified_tpm``: a new one's TPM has EK certificates of a maker's.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keys: VendorKeys | None = None,
        tee: TeeKind = TeeKind.SNP,
        certified_tpm: bool = False,
    ) -> None:
        self.folder = folder.resolve()
        self._keys = keys
        self._new_tee = tee
        certified_tpm = certified_tpm or (self.folder / "tpm" / "ca").exists()
        self.tpm = Swtpm(self.folder / "tpm", ek_certificates=certified_tpm)
        self._agent = Daemon(self.folder / "agent.pid")
        self._agent_log = self.folder / "agent.log"

    def __enter__(self) -> SimulatedVm:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    # Where things are

    @property
    def rootfs(self) -> Path:
        """The VM's file system."""
        return self.folder / "rootfs"

    @property
    def trust_root(self) -> Path:
        """The simulated vendor's root, PEM: what ``--trust-root`` takes."""
        return self.folder / "trust_root.pem"

    @property
    def collateral(self) -> Path:
        """Intel's collateral of a TD or enclave: what ``--endorsements`` takes."""
        return self.folder / "collateral.json"

    @property
    def tee(self) -> TeeKind:
        """What kind of TEE it is."""
        return TeeKind(self._state().get("tee", TeeKind.SNP))

    @property
    def url(self) -> str:
        """Where the agent answers. Raises InputError where the VM does not run."""
        raw = read(self.folder / "url")
        if raw is None or not self._agent.running:
            raise InputError(
                f"{self.folder}: no simulated VM runs here; start it with: vm start --folder {self.folder}"
            )
        return raw.decode("ascii").strip()

    @property
    def running(self) -> bool:
        """Whether the agent is there."""
        return self._agent.running

    @property
    def agent_config(self) -> AgentConfig:
        """What agent.toml would say. The port is the last one used, so that a reboot does not move the URL."""
        storage = self.folder / "agent"
        return AgentConfig(
            data_storage=storage,
            port=int(read(self.folder / "port") or b"0"),
            ssl_certificate=storage / "data" / "cert.pem",
            ssl_private_key=storage / "data" / "key.pem",
            tpm_device=None if self.tee is TeeKind.SGX else "swtpm",
            app=AppConfig(
                service_type=ServiceType.STANDALONE,
                service_name=str(self.rootfs / "opt/app/server"),
                storage=storage / "data" / "app",
            ),
        )

    @property
    def _bare_mark(self) -> Path:
        return self.folder / "sends-no-endorsements"

    def send_no_endorsements(self) -> None:
        """From the next start of its agent on it sends its report alone, as on a host that has no certificates."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._bare_mark.touch()

    def platform(self) -> Platform:
        """The machine as its agent sees it."""
        if self.tee is TeeKind.SGX:
            enclave = SimulatedEnclave(vendor=load_vendor(self.folder / "vendor"))
            return Platform(tee=enclave, tpm=None, logs=NoLogs(), scope=FileScope(root=self.rootfs))
        return Platform(
            tee=self._device(),
            tpm=EsapiTpm(self.tpm.tcti, keep_open=False),
            logs=FolderLogs(self.folder),
            scope=FileScope(root=self.rootfs),
        )

    def _device(self) -> TeeDevice:
        if self.tee is TeeKind.TDX:
            return SimulatedTd(vendor=load_vendor(self.folder / "vendor"))
        tee = SimulatedTee.launch(AmdVendor.load(self.folder / "vendor"), instance=self._instance())
        if self._bare_mark.exists():
            tee.endorsements = ()
        return tee

    # Power

    def start(self, *, attack: str | None = None) -> str:
        """Power on and wait for the agent; the URL. ``attack``: a lie of ``hostile.ATTACKS`` for the agent to tell.

        Raises AttesterError.
        """
        if not self._agent.running:
            self._create()
            if self.tee is not TeeKind.SGX and not self.tpm.running:
                self.tpm.start()
                self._boot()
            self._start_agent(attack)
        return self.url

    def stop(self) -> None:
        """Power off: application, agent, TPM. Nothing of it runs afterwards."""
        self._stop_agent()
        if self.folder.is_dir():
            self.tpm.stop()

    def reboot(self, *, new_instance: bool = False) -> str:
        """A power cycle of guest and TPM; the URL. ``new_instance``: the host launches the guest anew."""
        self._stop_agent()
        if new_instance:
            self._write_state(os.urandom(16), self.tee)
        self.tpm.stop()
        return self.start()

    def restart_agent(self, *, attack: str | None = None) -> str:
        """The agent alone starts anew, honest or telling the lie ``attack``; the URL."""
        self._stop_agent()
        return self.start(attack=attack)

    # What happens in the VM

    def run(self, path: str, arguments: Sequence[str] = (), *, source: Path | None = None) -> bytes:
        """Execute a program of the VM for real, measured first as the kernel does; what it printed.

        ``path``: in the VM, absolute. ``source``: a program of this computer that is copied there before. Raises
        InputError where it cannot be run.
        """
        program = self._inside(path)
        if source is not None:
            try:
                program.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, program)
            except OSError as exc:
                raise InputError(f"{source} cannot be copied into the VM: {exc.strerror or exc}") from exc
        self.measure(path)
        try:
            done = subprocess.run(
                [str(program), *arguments],
                cwd=self.rootfs,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=_RUN_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise InputError(f"{path} cannot be run: {exc}") from exc
        return done.stdout

    def measure(self, path: str) -> None:
        """Measure a file of the VM into PCR 10 and the list."""
        program = self._inside(path)
        try:
            content = program.read_bytes()
        except OSError as exc:
            raise InputError(f"{path} in the VM cannot be read: {exc.strerror}") from exc
        with self._ima() as ima:
            ima.measure(path, content)

    def violate(self, path: str) -> None:
        """Record a violation: ``path`` was held open for writing while it was measured."""
        self._inside(path)
        with self._ima() as ima:
            ima.violate(path)

    def change(self, path: str) -> None:
        """Change a file of the VM by a few bytes at its end (an ELF program still runs). The kernel notices when it is
        next run.
        """
        program = self._inside(path)
        try:
            with program.open("ab") as file:
                file.write(b"\n# changed\n")
        except OSError as exc:
            raise InputError(f"{path} in the VM cannot be changed: {exc.strerror}") from exc

    # Inside

    def _inside(self, path: str) -> Path:
        """The file of this computer that stands for ``path``. Raises InputError for what leads out of the VM."""
        inner = PurePosixPath(path)
        if not inner.is_absolute() or ".." in inner.parts:
            raise InputError(f"{path}: expected is an absolute path in the VM, as /usr/bin/ls")
        return self.rootfs / inner.relative_to("/")

    def _create(self) -> None:
        """What a VM has before its first boot; each step only where it is missing."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.folder / "tpm").mkdir(exist_ok=True)
        if not (self.folder / "vm.json").exists():
            self._write_state(os.urandom(16), self._new_tee)
        if not self.trust_root.exists():
            self._create_vendor()
        if self.tee is not TeeKind.SNP:
            name = "SGX" if self.tee is TeeKind.SGX else "TDX"
            _write(self.collateral, load_vendor(self.folder / "vendor").collateral(name))
        if not self.rootfs.exists():
            make_rootfs(self.rootfs)

    def _create_vendor(self) -> None:
        """The maker of its processor; the root comes last, so that its file says that the rest is there."""
        if self.tee is TeeKind.SNP:
            amd = AmdVendor.create(keys=self._keys)
            amd.save(self.folder / "vendor")
            root = amd.root_pem
        else:
            intel = IntelVendor.create()
            save_vendor(intel, self.folder / "vendor")
            root = intel.root.public_bytes(Encoding.PEM)
        _write(self.trust_root, root)

    def _boot(self) -> None:
        """Firmware, boot loader and kernel: PCRs, event log, boot_aggregate, and the first programs."""
        pcrs, events = TpmPcrs(self.tpm.tcti), default_boot()
        extend_boot(events, pcrs)
        _write(self.folder / "boot.bin", serialise_boot(events))
        device = self._device()
        if isinstance(device, SimulatedTd):
            _write(self.folder / "ccel.bin", device.cc_event_log() or b"")
        ima = SoftwareIma(pcrs)
        ima.boot()
        _write(self.folder / "ima.bin", ima.binary())
        for path in INIT:
            self.measure(path)

    def _start_agent(self, attack: str | None) -> None:
        url = self.folder / "url"
        url.unlink(missing_ok=True)
        argv = [sys.executable, "-m", "cosmian_vm.devkit.agent", "--folder", str(self.folder)]
        if attack is not None:
            argv += ["--attack", attack]
        # The package may come from a source tree that is not installed: the child must find the same one.
        package = str(Path(__file__).resolve().parent.parent.parent)
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH", "")]))}
        self._agent.start(argv, log=self._agent_log, env=env)
        try:
            self._agent.wait_until(url.exists, seconds=_AGENT_SECONDS, log=self._agent_log)
        except AttesterError:
            self._agent.stop()
            raise

    def _stop_agent(self) -> None:
        config = self.agent_config
        if config.app is not None and config.tmp.is_dir():
            service_for(config.app, config.tmp).stop()
        self._agent.stop()
        (self.folder / "url").unlink(missing_ok=True)

    def _state(self) -> dict[str, str]:
        raw = read(self.folder / "vm.json")
        return {} if raw is None else json.loads(raw)

    def _instance(self) -> bytes:
        return bytes.fromhex(self._state()["instance"])

    def _write_state(self, instance: bytes, tee: TeeKind) -> None:
        _write(self.folder / "vm.json", json.dumps({"instance": instance.hex(), "tee": tee}).encode())

    @contextmanager
    def _ima(self) -> Iterator[SoftwareIma]:
        """The list of this boot, ours alone. Entries reach the file before the PCR, so that what is served never lags
        behind what is quoted.
        """
        if not self.tpm.running:
            raise InputError(f"{self.folder}: the simulated VM is off; start it first")
        target = self.folder / "ima.bin"
        with (self.folder / "ima.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            pcrs = _AfterTheFile(TpmPcrs(self.tpm.tcti))
            ima = SoftwareIma.from_list(target.read_bytes(), pcrs)
            yield ima
            _write(target, serialise_binary(ima.entries))
            pcrs.catch_up()


class _AfterTheFile:
    """PcrBanks that extend only when told to ``catch_up``."""

    def __init__(self, pcrs: TpmPcrs) -> None:
        self._pcrs = pcrs
        self._due: list[tuple[int, Mapping[str, bytes]]] = []

    def extend(self, pcr: int, digests: Mapping[str, bytes]) -> None:
        self._due.append((pcr, digests))

    def read_pcrs(self, pcrs: Sequence[int]) -> dict[int, bytes]:
        return self._pcrs.read_pcrs(pcrs)

    def catch_up(self) -> None:
        while self._due:
            self._pcrs.extend(*self._due.pop(0))


def _write(path: Path, content: bytes) -> None:
    """Readers see the old content or the new, never a part."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(content)
    temporary.replace(path)
