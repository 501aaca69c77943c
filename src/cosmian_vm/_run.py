"""Run another program and wait for it: with a time limit, a bounded memory of its output, and nothing left behind."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from cosmian_vm.errors import AttesterError

__all__ = ["SYSTEM_PATH", "Completed", "find_program", "run"]

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are looked for, whatever the environment says."""

_KEPT_OUTPUT = 64 * 1024
_READ_SIZE = 64 * 1024


class Completed(NamedTuple):
    """``status``: exit status, negative for a signal. ``output``: the end of what it wrote (64 KiB at most)."""

    status: int
    output: bytes

    @property
    def last_line(self) -> str:
        """The last line that is not empty, printable."""
        lines = [line for line in self.output.decode(errors="replace").splitlines() if line.strip()]
        return "".join(c if c.isprintable() else " " for c in lines[-1])[:300].strip() if lines else ""


def find_program(name: str, path: str = SYSTEM_PATH) -> str:
    """Absolute path of the program ``name``. Raises AttesterError where there is none."""
    found = shutil.which(name, path=path)
    if found is None:
        raise AttesterError(f"the program {name} is not installed")
    return found


def run(argv: Sequence[str], *, seconds: float, descriptors: Sequence[int] = ()) -> Completed:
    """Run ``argv`` (an absolute path and its arguments) without input, output and errors together.

    ``descriptors``: of ours, which it has too, by the same numbers (a secret goes that way, never in ``argv``).
    After ``seconds`` it is killed with all that it started. Raises AttesterError for that, and where it cannot start.
    """
    try:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
            start_new_session=True,
            cwd="/",
            pass_fds=tuple(descriptors),
        )
    except OSError as exc:
        raise AttesterError(f"{argv[0]} cannot be started: {exc.strerror or exc}") from exc
    deadline = time.monotonic() + seconds
    try:
        output = _read_until_closed(process, deadline)
        status = process.wait(timeout=max(0.0, deadline - time.monotonic()))
    except (TimeoutError, subprocess.TimeoutExpired) as exc:
        raise AttesterError(f"{argv[0]} was not done within {seconds:g} s and was ended") from exc
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # the leader is not reaped: the group is still its own
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
    return Completed(status=status, output=output)


def _read_until_closed(process: subprocess.Popen[bytes], deadline: float) -> bytes:
    """The end of its output; done when all that hold the pipe have closed it, or when the process itself has ended."""
    assert process.stdout is not None  # noqa: S101 - Popen was told to make a pipe
    descriptor = process.stdout.fileno()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    kept = bytearray()
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        if not poll.poll(min(left, 0.2) * 1000):
            if process.poll() is not None:  # a daemon that it started may hold the pipe for ever
                return bytes(kept)
            continue
        data = os.read(descriptor, _READ_SIZE)
        if not data:
            return bytes(kept)
        kept += data
        del kept[:-_KEPT_OUTPUT]
