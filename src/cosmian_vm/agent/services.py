"""The user's application: started, stopped, restarted by whoever keeps it. Everything here blocks."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

from cosmian_vm._run import SYSTEM_PATH, Completed, find_program, run
from cosmian_vm.agent.config import AppConfig, ServiceType
from cosmian_vm.agent.service_log import ServiceState, last_lines
from cosmian_vm.agent.standalone import Standalone
from cosmian_vm.errors import AttesterError

__all__ = ["COMMAND_SECONDS", "Service", "service_for"]

COMMAND_SECONDS = 45.0
"""How long a service manager may take for one order."""
_SETTLE_SECONDS = 10.0
_POLL_SECONDS = 0.25
_STAYS_UP = 5
"""How often, after its start, a unit of systemd must be active: about a second."""
_TAIL_BYTES = 32 * 1024
_SUPERVISOR_STATES = frozenset(["STOPPED", "STARTING", "RUNNING", "BACKOFF", "STOPPING", "EXITED", "FATAL", "UNKNOWN"])


class Service(Protocol):
    """One application."""

    def restart(self) -> None:
        """Start it, or stop and start it where it runs; it runs when this returns. Raises AttesterError."""
        ...

    def stop(self) -> None:
        """Stop it; nothing happens where it does not run. Raises AttesterError."""
        ...

    def state(self) -> ServiceState:
        """Whether it runs. Raises AttesterError."""
        ...

    def log(self, lines: int) -> list[str]:
        """The last lines that it wrote, printable, oldest first. They may quote its configuration: for its owner's eyes
        alone. Raises AttesterError.
        """
        ...


def service_for(app: AppConfig, tmp: Path, *, path: str = SYSTEM_PATH) -> Service:
    """The service of ``[app]``. ``tmp``: where a standalone one is remembered. ``path``: where programs are."""
    if app.service_type is ServiceType.SYSTEMD:
        return Systemd(app.service_name, path=path)
    if app.service_type is ServiceType.SUPERVISOR:
        return Supervisor(app.service_name, path=path)
    return Standalone(app.service_name, folder=app.storage, state=tmp, user=app.user, path=path)


class Systemd:
    """A unit of systemd."""

    def __init__(self, name: str, *, path: str = SYSTEM_PATH) -> None:
        self._name = name
        self._path = path

    def restart(self) -> None:
        """``systemctl restart`` waits for the unit; whether it stays up is asked afterwards."""
        done = self._systemctl("restart")
        if done.status != 0:
            raise AttesterError(f"systemd did not start {self._name}: {done.last_line or f'status {done.status}'}")
        for _ in range(_STAYS_UP):
            time.sleep(_POLL_SECONDS)
            state = self._systemctl("is-active")
            if state.status != 0:
                raise AttesterError(f"{self._name} did not stay up: systemd says {state.last_line or 'nothing'}")

    def stop(self) -> None:
        """``systemctl stop``."""
        done = self._systemctl("stop")
        if done.status != 0:
            raise AttesterError(f"systemd did not stop {self._name}: {done.last_line or f'status {done.status}'}")

    def state(self) -> ServiceState:
        """``systemctl is-active``."""
        told = self._systemctl("is-active")
        return ServiceState(told.status == 0, told.last_line or f"status {told.status}")

    def log(self, lines: int) -> list[str]:
        """The unit's part of the journal."""
        program = find_program("journalctl", self._path)
        options = ["--quiet", "--no-pager", "--output=cat", f"--lines={lines}", f"--unit={self._name}"]
        done = run([program, *options], seconds=COMMAND_SECONDS)
        if done.status != 0:
            raise AttesterError(f"journalctl has no log of {self._name}: {done.last_line or f'status {done.status}'}")
        return last_lines(done.output, lines)

    def _systemctl(self, verb: str) -> Completed:
        program = find_program("systemctl", self._path)
        return run([program, "--no-ask-password", "--", verb, self._name], seconds=COMMAND_SECONDS)


class Supervisor:
    """A program of supervisor. ``supervisorctl`` tells more in its words than in its exit status."""

    def __init__(self, name: str, *, path: str = SYSTEM_PATH) -> None:
        self._name = name
        self._path = path

    def restart(self) -> None:
        """``supervisorctl restart`` returns when the program has run for its ``startsecs``, or has failed."""
        self._refuse_unknown(self._state())
        self._supervisorctl("restart")
        state = self._settled()
        if state != "RUNNING":
            raise AttesterError(f"supervisor did not start {self._name}: it is {state}")

    def stop(self) -> None:
        """``supervisorctl stop``."""
        self._refuse_unknown(self._state())
        self._supervisorctl("stop")
        state = self._settled()
        if state == "RUNNING":
            raise AttesterError(f"supervisor did not stop {self._name}")

    def state(self) -> ServiceState:
        """``supervisorctl status``."""
        state = self._state()
        self._refuse_unknown(state)
        return ServiceState(state == "RUNNING", state)

    def log(self, lines: int) -> list[str]:
        """What supervisor keeps of its output, and of its errors after it (they may be one file)."""
        self._refuse_unknown(self._state())
        found: list[str] = []
        for channel in ("stdout", "stderr"):
            told = self._supervisorctl(f"tail -{_TAIL_BYTES}", channel)
            if told.status == 0 and not told.last_line.startswith(f"{self._name}: ERROR ("):
                found += last_lines(told.output, lines)
        return found[-lines:]

    def _settled(self) -> str:
        deadline = time.monotonic() + _SETTLE_SECONDS
        while (state := self._state()) in {"STARTING", "STOPPING", "BACKOFF"} and time.monotonic() < deadline:
            time.sleep(_POLL_SECONDS)
        return state

    def _state(self) -> str:
        """Second word of ``supervisorctl status NAME``, as in ``app  RUNNING  pid 1, uptime 0:00:01``."""
        told = self._supervisorctl("status")
        words = told.last_line.split()
        if len(words) < 2 or words[1] not in _SUPERVISOR_STATES:
            return f"unknown ({told.last_line or f'status {told.status}'})"
        return words[1]

    def _refuse_unknown(self, state: str) -> None:
        if state.startswith("unknown"):
            raise AttesterError(f"supervisor knows no program {self._name}: {state}; is its configuration loaded?")

    def _supervisorctl(self, verb: str, *more: str) -> Completed:
        argv = [find_program("supervisorctl", self._path), *verb.split(), self._name, *more]
        return run(argv, seconds=COMMAND_SECONDS)
