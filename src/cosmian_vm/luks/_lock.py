"""One process at a time, and whatever it has started."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cosmian_vm.errors import AttesterError

__all__ = ["locked"]

_SECONDS = 120.0


@contextmanager
def locked(path: Path) -> Iterator[int]:
    """Hold the lock that the file ``path`` stands for; gives its descriptor.

    A child that has the descriptor too holds the lock as well: where its parent is killed, the next one waits until the
    child has ended (flock(2)). Raises AttesterError when it is not free after two minutes.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        until = time.monotonic() + _SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as exc:
                if time.monotonic() > until:
                    raise AttesterError(f"{path}: another process is at work on the container") from exc
                time.sleep(0.2)
        yield descriptor
    finally:
        os.close(descriptor)
