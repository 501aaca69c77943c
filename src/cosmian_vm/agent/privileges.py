"""The front's own system user: which one it is, and how a process that was started by root becomes it for good."""

from __future__ import annotations

import os
import pwd
import resource
import signal
from pathlib import Path
from typing import NamedTuple

from cosmian_vm.agent.log import LOGGER
from cosmian_vm.errors import AttesterError

__all__ = ["FRONT_USERS", "FrontUser", "become", "die_with", "find_front_user"]

FRONT_USERS = ("cosmian_vm_agent", "cosmian_vm")
"""The system user of the front: the first of these that there is."""

_RUNTIME = Path("/run/cosmian_vm_agent")
_RUNTIME_VARIABLE = "RUNTIME_DIRECTORY"  # systemd.exec(5)
_MAX_THREADS = 256
_MAX_FILES = 16384

# capabilities(7): what it takes to give the front its user and its socket
_NEEDED = {"CAP_CHOWN": 0, "CAP_SETGID": 6, "CAP_SETUID": 7}

# prctl(2)
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38


class FrontUser(NamedTuple):
    """Whom the front runs as. ``runtime``: the folder of its socket, made for it."""

    name: str
    uid: int
    gid: int
    runtime: Path = _RUNTIME


def find_front_user() -> FrontUser | None:
    """The front's user, where this process can give it one; None: front and collector are to be one process.

    Which of the two it is, and why, is one line of the log.
    """
    if os.geteuid() != 0:
        LOGGER.info("front and collector are one process: it was not started by root")
        return None
    for name in FRONT_USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid == 0:
            LOGGER.warning("front and collector are one process: the user %s is root", name)
            return None
        missing = _missing_capabilities()
        if missing:
            LOGGER.warning("front and collector are one process: root has no %s here", ", ".join(missing))
            return None
        LOGGER.info("front and collector are two processes: the front is user %s (%d)", name, entry.pw_uid)
        folder = os.environ.get(_RUNTIME_VARIABLE, "").partition(":")[0]
        return FrontUser(name, entry.pw_uid, entry.pw_gid, Path(folder) if folder else _RUNTIME)
    LOGGER.info("front and collector are one process: there is no system user %s", " or ".join(FRONT_USERS))
    return None


def become(user: FrontUser) -> None:
    """Be ``user`` from here on, with no way back: no groups, no capabilities, none to be had by a set-user-ID program,
    no core file, no debugger of the same user.

    Raises AttesterError where the kernel did not do all of it.
    """
    os.chdir("/")
    os.umask(0o077)
    for what, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_NPROC, _MAX_THREADS)):
        resource.setrlimit(what, (most, most))
    files = min(_MAX_FILES, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    try:
        os.setgroups([])
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)
    except OSError as exc:
        raise AttesterError(f"the front cannot become user {user.name}: {exc.strerror}") from exc
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)
    same = os.getresuid() == (user.uid,) * 3 and os.getresgid() == (user.gid,) * 3 and not os.getgroups()
    if not same or user.uid == 0 or _capabilities("CapPrm"):
        raise AttesterError(f"the front did not become user {user.name}")


def die_with(parent: int) -> None:
    """End when the process ``parent``, which started this one, ends. To be called again after ``become``, which undoes
    it (prctl(2)).
    """
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise AttesterError("the collector has ended")


def _missing_capabilities() -> list[str]:
    present = _capabilities("CapEff")
    return [name for name, bit in _NEEDED.items() if not present >> bit & 1]


def _capabilities(which: str) -> int:
    """A set of capabilities(7) of this process, as /proc shows it."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name == which:
            return int(value, 16)
    raise AttesterError(f"/proc/self/status has no {which}")


def _prctl(option: int, value: int) -> None:
    import ctypes  # for the front alone; Python has no prctl(2)

    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(ctypes.c_int(option), *(ctypes.c_ulong(word) for word in (value, 0, 0, 0))) != 0:
        raise AttesterError(f"prctl option {option} failed: {os.strerror(ctypes.get_errno())}")
