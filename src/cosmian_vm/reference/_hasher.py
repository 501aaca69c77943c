"""The helper process behind ``filesystem``: walks one tree and hashes its regular files in workers that it forks.

It is started as a script by ``python -I -S`` (a small process, there in milliseconds) and so imports the standard
library alone, and of that little. Command line: algorithm (hashlib's name), number of workers (0: as many as there are
cores, more where the disk keeps them waiting), root, the paths of directories that are not entered, an empty argument,
the paths of mounts that are left out. Standard input stays open as long as the answers are wanted. Answers go to
standard output as frames, integers little-endian::

    frame    kind (1 byte) | u32 size | payload
    R        u32 batch | u64 bytes read | u32 size of the paths | paths, 0 between them | a status byte for each
             path | the digests of those with status 0, in order
    U        status byte | path              a directory that could not be read
    T        u64 number of files             the walk is over, hashing may go on
    D        u32 number of batches           all is said
    E        text                            it failed

A status is 0, an errno, or one of CHANGED and NOT_REGULAR. Paths are those of the tree: ``/`` is the root given.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EIO
from hashlib import new as new_hash
from resource import RUSAGE_SELF, getrusage
from select import POLLIN, poll

__all__ = ["CHANGED", "NOT_REGULAR", "Reader", "Walk", "main"]

BUFFER_SIZE = 256 * 1024
"""Bytes of a file that a worker holds at once."""
BATCH_FILES = 60
"""Files in a batch: with the longest digests the answer still fits the smallest pipe (4096 bytes). So a worker can
always answer and take its next batch, while the helper hands out that one: neither waits for the other for ever."""
BATCH_BYTES = 16 * 1024
QUEUE_PER_WORKER = 2
MAX_PENDING = 64 * 1024
"""Files that the walk may be ahead of the hashing."""
SORTED_NAMES = 64 * 1024
"""Names of one directory that are held, and put in order, at once."""
MAX_WORKERS_PER_CORE = 4
WINDOW = 0.25  # seconds between two looks at what the workers wait for
NICE = 10
CHANGED = 254
NOT_REGULAR = 255

_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class HelperError(Exception):
    """The one line that the caller is told."""


class Walk:
    """Yields the regular files below the current directory as batches of paths, 0 between them, and their number.

    ``excluded``: paths of directories not to be entered. ``mounts``: paths of directories and files that are left out.
    ``unreadable``: told each directory that cannot be read, and the errno.
    """

    def __init__(self, excluded: list[bytes], mounts: list[bytes], unreadable: Callable[[bytes, int], None]) -> None:
        self._closed = frozenset(excluded + mounts)
        self._mounts = frozenset(mounts)
        self._with_mounts = frozenset(path[: path.rindex(b"/") + 1] for path in mounts)
        self._unreadable = unreadable

    def batches(self) -> Iterator[tuple[bytes, int]]:
        """All batches, directories in the order of their names."""
        paths: list[bytes] = []
        size = 0
        for prefix, names in self._names():
            for name in names:
                path = prefix + name
                paths.append(path)
                size += len(path) + 1
                if size >= BATCH_BYTES or len(paths) == BATCH_FILES:
                    yield b"\0".join(paths), len(paths)
                    paths.clear()
                    size = 0
        if paths:
            yield b"\0".join(paths), len(paths)

    def _names(self) -> Iterator[tuple[bytes, list[bytes]]]:
        todo = [b"/"]
        while todo:
            prefix = todo.pop()  # ends with a slash
            mounts = prefix in self._with_mounts
            names: list[bytes] = []
            folders: list[bytes] = []
            try:
                with _entries(b"." + prefix[:-1]) as entries:
                    for entry in entries:
                        if mounts and prefix + entry.name in self._mounts:
                            continue
                        if entry.is_file(follow_symlinks=False):
                            names.append(entry.name)
                            if len(names) == SORTED_NAMES:
                                yield prefix, sorted(names)
                                names.clear()
                        elif entry.is_dir(follow_symlinks=False) and prefix + entry.name not in self._closed:
                            folders.append(prefix + entry.name + b"/")
            except OSError as exc:
                self._unreadable(prefix[:-1] or prefix, exc.errno or 0)
            folders.sort(reverse=True)
            todo += folders
            if names:
                names.sort()
                yield prefix, names


@contextmanager
def _entries(path: bytes) -> Iterator[Iterator[os.DirEntry[bytes]]]:
    """A directory's entries, unless a symbolic link has taken its place since it was listed."""
    fd = os.open(path, _OPEN | os.O_DIRECTORY)
    try:
        with os.scandir(b"/proc/self/fd/%d" % fd) as entries:  # by number, scandir would give text
            yield entries
    finally:
        os.close(fd)


class Reader:
    """What a worker does with one file after the other, always in the same memory."""

    def __init__(self, algorithm: str, parent: int) -> None:
        self._buffer = bytearray(BUFFER_SIZE)
        self._view = memoryview(self._buffer)
        self._algorithm = algorithm
        self._parent = parent
        self._flags = _OPEN | (os.O_NOATIME if os.geteuid() == 0 else 0)
        self.bytes_read = 0

    def digest(self, path: bytes) -> bytes:
        """The digest of a regular file's content. Raises OSError, with CHANGED or NOT_REGULAR as errno too."""
        try:
            fd = os.open(path, self._flags)
        except PermissionError:
            if not self._flags & os.O_NOATIME:
                raise
            fd = os.open(path, _OPEN)  # O_NOATIME is for the owner, and root is not always allowed to act as one
        try:
            return self._digest(fd)
        finally:
            os.close(fd)

    def _digest(self, fd: int) -> bytes:
        before = os.fstat(fd)
        if before.st_mode & 0o170000 != 0o100000:
            raise OSError(NOT_REGULAR, "")
        size = os.readv(fd, [self._buffer])
        hasher = new_hash(self._algorithm, self._view[:size], usedforsecurity=False)
        if size == before.st_size < BUFFER_SIZE:
            self.bytes_read += size
            return hasher.digest()
        total = size
        while size:
            if os.getppid() != self._parent:
                os._exit(1)  # nobody waits for the answer any more, and this file may be huge
            size = os.readv(fd, [self._buffer])
            hasher.update(self._view[:size])
            total += size
            if total > before.st_size:
                break  # it grows, perhaps for ever
        self.bytes_read += total
        after = os.fstat(fd)
        if total != before.st_size or after.st_size != total or after.st_mtime_ns != before.st_mtime_ns:
            raise OSError(CHANGED, "")
        return hasher.digest()

    def answer(self, paths: list[bytes]) -> bytes:
        """A status for each path, then the digests."""
        statuses = bytearray()
        digests = []
        for path in paths:
            try:
                try:
                    digests.append(self.digest(b"." + path))
                except OSError as exc:
                    if exc.errno != CHANGED:
                        raise
                    digests.append(self.digest(b"." + path))
                statuses.append(0)
            except OSError as exc:
                statuses.append(_status(exc))
        return bytes(statuses) + b"".join(digests)


def _status(exc: OSError) -> int:
    return exc.errno if exc.errno and exc.errno < 256 else EIO


def _read(fd: int, size: int) -> bytes:
    """Exactly ``size`` bytes of a pipe, fewer only at its end."""
    data = os.read(fd, size)
    while len(data) < size:
        more = os.read(fd, size - len(data))
        if not more:
            break
        data += more
    return data


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def work(orders: int, answers: int, reader: Reader) -> None:
    """A worker: batches in (u32 size, paths), answers out: u32 size, u64 bytes read, u32 microseconds of CPU, u32
    microseconds in all, u32 blocks from disk, then what Reader.answer says.
    """
    usage = getrusage(RUSAGE_SELF)
    while head := _read(orders, 4):
        paths = _read(orders, int.from_bytes(head, "little")).split(b"\0")
        start, before, read_before = time.monotonic(), usage, reader.bytes_read
        body = reader.answer(paths)
        usage = getrusage(RUSAGE_SELF)
        cpu = usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime
        blocks = min(usage.ru_inblock - before.ru_inblock, 0xFFFFFFFF)
        _write(
            answers,
            len(body).to_bytes(4, "little")
            + (reader.bytes_read - read_before).to_bytes(8, "little")
            + b"".join(_micros(seconds) for seconds in (cpu, time.monotonic() - start))
            + blocks.to_bytes(4, "little")
            + body,
        )


def _micros(seconds: float) -> bytes:
    return min(int(seconds * 1e6), 0xFFFFFFFF).to_bytes(4, "little")


class Worker:
    """One forked process and the batches that it has in hand."""

    def __init__(self, algorithm: str, others: list["Worker"]) -> None:
        theirs, self.orders = os.pipe()
        self.answers, ours = os.pipe()
        self.batches: deque[tuple[int, bytes]] = deque()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                # Only the helper may hold the other ends, or nobody would see it end.
                for other in others:
                    os.close(other.orders)
                    os.close(other.answers)
                for fd in (self.orders, self.answers, 0, 1):
                    os.close(fd)
                work(theirs, ours, Reader(algorithm, parent))
                code = 0
            except (BrokenPipeError, ConnectionError):
                pass
            except BaseException as exc:  # the process ends here, and stderr is where its parent looks
                os.write(2, f"worker: {type(exc).__name__}: {exc}\n".encode(errors="replace"))
            finally:
                os._exit(code)
        os.close(theirs)
        os.close(ours)

    def give(self, number: int, batch: bytes) -> None:
        """Hand out one batch."""
        self.batches.append((number, batch))
        try:
            _write(self.orders, len(batch).to_bytes(4, "little") + batch)
        except BrokenPipeError:
            raise self.failure() from None

    def take(self) -> tuple[int, bytes, bytes, bytes]:
        """The answer to the oldest batch: its number, its paths, the answer's head (20 bytes) and body."""
        head = _read(self.answers, 24)
        size = int.from_bytes(head[:4], "little")
        body = _read(self.answers, size) if len(head) == 24 else b""
        if len(head) < 24 or len(body) < size:
            raise self.failure()
        number, batch = self.batches.popleft()
        return number, batch, head[4:], body

    def failure(self) -> HelperError:
        """What became of a worker that no longer answers."""
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        how = f"signal {-code}" if code < 0 else f"status {code}"
        if not self.batches:
            return HelperError(f"a hashing process ended with {how} while it waited for work")
        paths = self.batches[0][1].decode(errors="backslashreplace").split("\0")
        return HelperError(f"a hashing process ended with {how}, between {paths[0]} and {paths[-1]}")

    def end(self) -> None:
        """No more batches: it ends by itself."""
        os.close(self.orders)
        os.close(self.answers)
        os.waitpid(self.pid, 0)


class Helper:
    """The walk and the workers, in one loop."""

    def __init__(self, algorithm: str, workers: int) -> None:
        self._algorithm = algorithm
        cores = len(os.sched_getaffinity(0))
        self._most = workers or cores * MAX_WORKERS_PER_CORE
        self._workers: list[Worker] = []
        self._poll = poll()
        self._poll.register(0, POLLIN)
        self._window = time.monotonic()
        self._cpu = self._wall = self._blocks = 0
        for _ in range(workers or cores):
            self._add()

    def _add(self) -> None:
        worker = Worker(self._algorithm, self._workers)
        self._workers.append(worker)
        self._poll.register(worker.answers, POLLIN)

    def run(self, batches: Iterator[tuple[bytes, int]]) -> None:
        """All batches to all workers; frames R, T and D."""
        walking = True
        pending: deque[tuple[bytes, int]] = deque()
        waiting = files = number = 0
        while True:
            if walking and waiting < MAX_PENDING:
                batch = next(batches, None)
                if batch is None:
                    walking = False
                    emit(b"T", files.to_bytes(8, "little"))
                else:
                    pending.append(batch)
                    files += batch[1]
                    waiting += batch[1]
            for worker in sorted(self._workers, key=lambda worker: len(worker.batches)):
                while pending and len(worker.batches) < QUEUE_PER_WORKER:
                    paths, count = pending.popleft()
                    waiting -= count
                    worker.give(number, paths)
                    number += 1
            if not walking and not any(worker.batches for worker in self._workers):
                break
            self._collect(0 if walking and waiting < MAX_PENDING else None)
        for worker in self._workers:
            worker.end()
        emit(b"D", number.to_bytes(4, "little"))

    def _collect(self, timeout: int | None) -> None:
        ready = dict(self._poll.poll(timeout))
        if 0 in ready and not os.read(0, 1):
            raise BrokenPipeError  # whoever started us has gone
        for worker in list(self._workers):
            if worker.answers in ready:
                number, batch, head, body = worker.take()
                sizes = number.to_bytes(4, "little") + head[:8] + len(batch).to_bytes(4, "little")
                emit(b"R", sizes + batch + body)
                self._adapt(head)

    def _adapt(self, head: bytes) -> None:
        """One worker more where the present ones mostly wait for the disk."""
        self._cpu += int.from_bytes(head[8:12], "little")
        self._wall += int.from_bytes(head[12:16], "little")
        self._blocks += int.from_bytes(head[16:20], "little")
        now = time.monotonic()
        if now - self._window > WINDOW:
            if self._blocks and 2 * self._cpu < self._wall and len(self._workers) < self._most:
                self._add()
            self._window = now
            self._cpu = self._wall = self._blocks = 0


def emit(kind: bytes, payload: bytes) -> None:
    """One frame to standard output."""
    _write(1, kind + len(payload).to_bytes(4, "little") + payload)


def main(arguments: list[bytes]) -> None:
    """Walk and hash as the command line says."""
    algorithm, workers, root, *closed = arguments
    excluded, mounts = closed[: closed.index(b"")], closed[closed.index(b"") + 1 :]
    try:
        os.nice(NICE)
        try:
            os.chdir(root)
        except OSError as exc:
            raise HelperError(f"{os.fsdecode(root)}: {exc.strerror}") from exc
        walk = Walk(excluded, mounts, lambda path, code: emit(b"U", bytes([code & 0xFF]) + path))
        Helper(algorithm.decode(), int(workers)).run(walk.batches())
    except HelperError as exc:
        emit(b"E", str(exc).encode(errors="replace"))
        sys.exit(1)
    except BrokenPipeError:
        os._exit(1)


if __name__ == "__main__":
    main([os.fsencode(argument) for argument in sys.argv[1:]])
