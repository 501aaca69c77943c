"""Background processes that outlive the command that starts them: known by pid *and* start time, never by name."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cosmian_vm.errors import AttesterError

__all__ = ["Daemon"]


class Daemon:
    """One process, remembered in ``record`` (a small JSON file) with the pid and its start time.

    A pid that was given to another process in the meantime has another start time: it is never signalled. The object
    may be forgotten while the process lives on: another one over the same ``record`` finds it again.
    """

    def __init__(self, record: Path) -> None:
        self._record = record
        self._own: int | None = None  # a child of this very process, to be waited for

    def start(self, argv: Sequence[str], *, log: Path, env: Mapping[str, str] | None = None) -> None:
        """Start ``argv`` in a session of its own, its output appended to ``log``."""
        if self.running:
            raise AttesterError(f"{self._record.stem} already runs; stop it first")
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            # Not subprocess: its objects expect to see their process end.
            pid = os.posix_spawnp(
                argv[0],
                list(argv),
                os.environ if env is None else env,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,
            )
        except OSError as exc:
            raise AttesterError(f"{argv[0]} cannot be started: {exc.strerror}") from exc
        self._own = pid
        started = _start_time(pid)
        temporary = self._record.with_suffix(".new")
        temporary.write_text(json.dumps({"pid": pid, "started": started}), encoding="ascii")
        temporary.replace(self._record)

    @property
    def pid(self) -> int | None:
        """The pid while the process runs, else None."""
        try:
            known = json.loads(self._record.read_text(encoding="ascii"))
            pid, started = int(known["pid"]), known["started"]
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        return pid if started is not None and _start_time(pid) == started else None

    @property
    def running(self) -> bool:
        """Whether the process is there."""
        return self.pid is not None

    def wait_until(self, ready: Callable[[], bool], *, seconds: float, log: Path) -> None:
        """Wait for ``ready()``. Raises AttesterError with the log's last line if the process ends or time is up."""
        end = time.monotonic() + seconds
        while not ready():
            if not self.running or time.monotonic() > end:
                what = "did not become ready" if self.running else "ended at once"
                lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
                raise AttesterError(f"{self._record.stem} {what}: {lines[-1] if lines else 'it said nothing'}")
            time.sleep(0.02)

    def stop(self, *, seconds: float = 5.0, sig: signal.Signals = signal.SIGTERM) -> None:
        """End the process: ``sig``, then after ``seconds`` SIGKILL. Nothing happens where it does not run."""
        pid = self.pid
        if pid is not None:
            with suppress(ProcessLookupError):
                descriptor = os.pidfd_open(pid)
                try:
                    # The pid may have changed hands between the look and the open, hence the second look.
                    if self.pid == pid:
                        _end(descriptor, sig, seconds)
                finally:
                    os.close(descriptor)
        if self._own is not None:
            with suppress(ChildProcessError):
                os.waitpid(self._own, 0 if pid == self._own else os.WNOHANG)
            self._own = None
        self._record.unlink(missing_ok=True)


def _end(descriptor: int, sig: signal.Signals, seconds: float) -> None:
    for number, patience in ((sig, seconds), (signal.SIGKILL, 5.0)):
        signal.pidfd_send_signal(descriptor, number)
        readable, _, _ = select.select([descriptor], [], [], patience)
        if readable:
            return


def _start_time(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat, in clock ticks since boot; None where there is no such process or it is a zombie."""
    try:
        raw = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = raw[raw.rindex(b")") + 2 :].split()  # the name, in parentheses, may hold anything
    return None if fields[0] in {b"Z", b"X"} else int(fields[19])
