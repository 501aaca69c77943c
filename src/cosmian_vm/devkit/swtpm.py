"""A software TPM (swtpm) as a process of its own, with power cycles and rolled-back state.

The state folder is the TPM's memory. A *power cycle* is an orderly shutdown and a new process over the same state:
resetCount rises by one, PCRs start at zero. A *roll-back* is what a dishonest host does: an older copy of the state.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

from cosmian_vm.devkit._process import Daemon
from cosmian_vm.errors import AttesterError, NotAvailableError

__all__ = ["Swtpm"]

_MAX_SOCKET_PATH = 100
"""sun_path holds 108 bytes; the control socket's suffix and the final zero need some of them."""
_START_SECONDS = 10.0


class Swtpm:
    """swtpm over the state in ``folder/state``, listening on a Unix socket.

    ``ek_certificates``: manufacture it with EKs (RSA 2048, persistent at 0x81010001, and ECC P-384) and their
    certificates in NV, signed by a CA of its own in ``folder/ca`` (swtpm_localca).
    """

    def __init__(self, folder: Path, *, ek_certificates: bool = False) -> None:
        self._folder = folder
        self._ca = folder / "ca" if ek_certificates else None
        self._state = folder / "state"
        self._log = folder / "swtpm.log"
        self._daemon = Daemon(folder / "swtpm.pid")
        self._socket_note = folder / "socket"

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self._daemon.running

    @property
    def pid(self) -> int | None:
        """The process, while it runs."""
        return self._daemon.pid

    @property
    def tcti(self) -> str:
        """What the TSS is to open. Raises AttesterError where the TPM does not run."""
        return f"swtpm:path={self._socket()}"

    def start(self) -> None:
        """Manufacture the TPM if it is new, and power it on. Raises NotAvailableError without swtpm."""
        if shutil.which("swtpm") is None or shutil.which("swtpm_setup") is None:
            raise NotAvailableError("swtpm is not installed (Debian packages swtpm and swtpm-tools)")
        if self.running:
            return
        self._state.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not (self._state / "tpm2-00.permall").exists():
            self._manufacture()
        path = self._new_socket()
        self._daemon.start(
            [
                "swtpm",
                "socket",
                "--tpm2",
                "--tpmstate",
                f"dir={self._state}",
                "--server",
                f"type=unixio,path={path},mode=0600",
                "--ctrl",
                f"type=unixio,path={path}.ctrl,mode=0600",
                "--flags",
                "not-need-init,startup-clear",
            ],
            log=self._log,
        )
        try:
            self._daemon.wait_until(
                lambda: _listens(path) and _listens(Path(f"{path}.ctrl")), seconds=_START_SECONDS, log=self._log
            )
        except AttesterError:
            self._daemon.stop()
            raise

    def stop(self, *, orderly: bool = True) -> None:
        """Power off. ``orderly``: with TPM2_Shutdown(CLEAR) as an operating system does, else the plug is pulled."""
        try:
            if self.running and orderly:
                self._shutdown_clear()
        finally:
            self._daemon.stop()
            self._forget_socket()

    def reboot(self, *, orderly: bool = True) -> None:
        """A power cycle over the same state."""
        self.stop(orderly=orderly)
        self.start()

    def save_state(self, copy: Path) -> None:
        """Copy the state as it is on disk now, for a later ``roll_back``."""
        shutil.copytree(self._state, copy, ignore=shutil.ignore_patterns(".lock"))

    def roll_back(self, copy: Path) -> None:
        """Power off, put an older state in place, power on: the clock and the counters run backwards."""
        self.stop(orderly=False)
        shutil.rmtree(self._state)
        shutil.copytree(copy, self._state)
        self.start()

    @property
    def ca_certificates(self) -> tuple[bytes, ...]:
        """PEM: the issuer of its EK certificates, then that one's root."""
        if self._ca is None:
            return ()
        return tuple((self._ca / name).read_bytes() for name in ("issuercert.pem", "swtpm-localca-rootca-cert.pem"))

    def _manufacture(self) -> None:
        options = [] if self._ca is None else ["--create-ek-cert", "--config", str(_ca_configuration(self._ca))]
        done = subprocess.run(
            ["swtpm_setup", "--tpm2", "--tpmstate", str(self._state), "--pcr-banks", "sha1,sha256", *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=60,
        )
        if done.returncode:
            last = (done.stdout + done.stderr).decode("utf-8", "replace").strip().splitlines()
            raise AttesterError(f"swtpm_setup failed: {last[-1] if last else done.returncode}")

    def _shutdown_clear(self) -> None:
        from tpm2_pytss import ESAPI, TSS2_Exception
        from tpm2_pytss.constants import TPM2_SU

        try:
            with ESAPI(self.tcti) as esys:
                esys.shutdown(TPM2_SU.CLEAR)
        except TSS2_Exception as exc:
            raise AttesterError(f"swtpm did not shut down: {exc}") from exc

    def _new_socket(self) -> Path:
        self._forget_socket()
        path = self._folder / "tpm"
        if len(str(path)) > _MAX_SOCKET_PATH:
            path = Path(tempfile.mkdtemp(prefix="swtpm-")) / "tpm"
        self._socket_note.write_text(str(path), encoding="utf-8")
        return path

    def _socket(self) -> Path:
        try:
            return Path(self._socket_note.read_text(encoding="utf-8"))
        except FileNotFoundError as exc:
            raise AttesterError(f"the software TPM in {self._folder} is not running") from exc

    def _forget_socket(self) -> None:
        if not self._socket_note.exists():
            return
        path = self._socket()
        path.unlink(missing_ok=True)
        Path(f"{path}.ctrl").unlink(missing_ok=True)
        if path.parent != self._folder:
            shutil.rmtree(path.parent, ignore_errors=True)
        self._socket_note.unlink()


def _ca_configuration(folder: Path) -> Path:
    """What swtpm_setup needs for a CA in ``folder``, which swtpm_localca makes (swtpm_setup.conf(5))."""
    folder.mkdir(mode=0o700)
    (folder / "localca.options").write_text("--platform-manufacturer Devkit\n", encoding="utf-8")
    (folder / "localca.conf").write_text(
        f"statedir = {folder}\nsigningkey = {folder}/signkey.pem\nissuercert = {folder}/issuercert.pem\n"
        f"certserial = {folder}/certserial\n",
        encoding="utf-8",
    )
    path = folder / "setup.conf"
    path.write_text(
        f"create_certs_tool = {shutil.which('swtpm_localca')}\ncreate_certs_tool_config = {folder}/localca.conf\n"
        f"create_certs_tool_options = {folder}/localca.options\n",
        encoding="utf-8",
    )
    return path


def _listens(path: Path) -> bool:
    """Whether somebody takes connections there: a socket file alone is not yet a server."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
