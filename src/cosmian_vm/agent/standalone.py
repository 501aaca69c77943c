"""An application that the agent starts itself, where there is no service manager (SGX, development)."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from cosmian_vm._run import SYSTEM_PATH, find_program
from cosmian_vm.agent.files import make_folder, user_ids, write_atomically
from cosmian_vm.agent.service_log import ServiceState, last_lines, tail
from cosmian_vm.errors import AttesterError

__all__ = ["Standalone"]

_START_SECONDS = 1.0
_STOP_SECONDS = 10.0
_KILL_SECONDS = 5.0


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The pid file: a pid alone may be anybody's, with start time (clock ticks since boot) and boot it is not."""

    pid: int
    start: int
    boot: str


class Standalone:
    """The program ``name`` (an absolute path, or a name in ``path``), run in ``folder``, where ``app.conf`` lies.

    ``user``: whom it runs as. ``state``: folder of the pid file and of the program's output. A process is known by pid
    *and* start time, signalled through a descriptor of its own, and never looked for by its name.
    """

    def __init__(self, name: str, *, folder: Path, state: Path, user: str = "root", path: str = SYSTEM_PATH) -> None:
        bare = name.rpartition("/")[2]
        self._name = name
        self._folder = folder
        self._user = user
        self._pid_file = state / f"{bare}.pid"
        self._log = state / f"{bare}.log"
        self._path = path
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """The pid where the program runs, else None."""
        record = self._record()
        return record.pid if record is not None and _is(record) else None

    def restart(self) -> None:
        """Stop it where it runs, start it, see it stay up for a second. Raises AttesterError."""
        self.stop()
        program = self._name if self._name.startswith("/") else find_program(self._name, self._path)
        identity = self._identity()
        try:
            make_folder(self._pid_file.parent)
            make_folder(self._folder)
            log = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise AttesterError(f"{self._name} cannot be started: {exc.filename}: {exc.strerror}") from exc
        try:
            child = subprocess.Popen(
                [program],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                start_new_session=True,
                umask=0o022,
                **identity,
            )
        except OSError as exc:
            raise AttesterError(f"{program} cannot be started: {exc.strerror or exc}") from exc
        finally:
            os.close(log)
        self._child = child
        self._remember(child)
        self._see_it_up(child)

    def _identity(self) -> dict[str, Any]:
        """Whom the program is to be, for Popen: nothing where it stays who we are. Raises AttesterError."""
        ids = user_ids(self._user)
        if ids is None:
            return {}
        uid, gid = ids
        return {"user": uid, "group": gid, "extra_groups": os.getgrouplist(self._user, gid)}

    def stop(self) -> None:
        """End it and its process group: politely, then not. Raises AttesterError where it outlives even that."""
        record = self._record()
        if record is not None:
            with _descriptor(record) as process:
                if process is not None:
                    self._end(record.pid, process)
        if self._child is not None:
            if self._child.returncode is None and record is not None and record.pid == self._child.pid:
                # Not reaped: the number of its process group cannot be anybody else's. Whoever is left in it, ends.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(record.pid, signal.SIGKILL)
            self._child.poll()
            self._child = None
        with suppress(FileNotFoundError):
            self._pid_file.unlink()

    def state(self) -> ServiceState:
        """Whether the process of the pid file runs."""
        pid = self.pid
        return ServiceState(False, "stopped") if pid is None else ServiceState(True, f"running, pid {pid}")

    def log(self, lines: int) -> list[str]:
        """The end of what it has written since it was started."""
        try:
            return last_lines(tail(self._log), lines)
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise AttesterError(f"{self._log} cannot be read: {exc.strerror or exc}") from exc

    def _end(self, pid: int, process: int) -> None:
        for what, seconds in ((signal.SIGTERM, _STOP_SECONDS), (signal.SIGKILL, _KILL_SECONDS)):
            if _ended(process, 0):
                return
            # It lives, or is our own unreaped child: pid and process group cannot be anybody else's.
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, what)
            if _ended(process, seconds):
                return
        raise AttesterError(f"{self._name} (pid {pid}) does not end")

    def _see_it_up(self, child: subprocess.Popen[bytes]) -> None:
        try:
            status = child.wait(timeout=_START_SECONDS)
        except subprocess.TimeoutExpired:
            return
        self.stop()
        # Its own words stay where root alone reads them: they may quote its configuration, and this goes to a client.
        raise AttesterError(f"{self._name} ended at once with status {status}; what it said is in {self._log}")

    def _remember(self, child: subprocess.Popen[bytes]) -> None:
        start = _start_time(child.pid)
        if start is None:
            return
        record = _Record(pid=child.pid, start=start, boot=_boot_id())
        try:
            write_atomically(self._pid_file, msgspec.json.encode(record), 0o600)
        except OSError as exc:
            child.kill()
            child.wait()
            raise AttesterError(f"{self._pid_file} cannot be written: {exc.strerror or exc}") from exc

    def _record(self) -> _Record | None:
        try:
            return msgspec.json.decode(self._pid_file.read_bytes(), type=_Record)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError):
            return None


def _is(record: _Record) -> bool:
    return record.pid > 1 and record.boot == _boot_id() and _start_time(record.pid) == record.start


@contextmanager
def _descriptor(record: _Record) -> Iterator[int | None]:
    """A pidfd of the very process of the record, None where it is gone: who it is, is asked again once it is held."""
    descriptor = None
    if _is(record):
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(record.pid)
    try:
        yield descriptor if descriptor is not None and _is(record) else None
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _ended(process: int, seconds: float) -> bool:
    """Whether the process of this pidfd ends within the time."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def _start_time(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat; the name in field 2 may hold anything, so fields are counted from its last ``)``."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
