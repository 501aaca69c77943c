"""The helper's parts in process: the walk, and what a worker does with a file."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cosmian_vm.reference import _hasher
from cosmian_vm.reference._hasher import BUFFER_SIZE, CHANGED, NOT_REGULAR, Helper, Reader, Walk


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def reader() -> Reader:
    return Reader("sha256", os.getppid())


def status_of(path: bytes) -> int:
    return reader().answer([path])[0]


def test_digests_at_every_boundary_of_the_buffer(tree: Path) -> None:
    read = reader()
    for size in (0, 1, BUFFER_SIZE - 1, BUFFER_SIZE, BUFFER_SIZE + 1, 2 * BUFFER_SIZE, 3 * BUFFER_SIZE + 7):
        content = os.urandom(size)
        (tree / "file").write_bytes(content)
        assert read.digest(b"./file") == hashlib.sha256(content).digest(), size


def test_only_regular_files_are_read(tree: Path) -> None:
    (tree / "file").write_bytes(b"x")
    (tree / "link").symlink_to("file")
    (tree / "folder").mkdir()
    os.mkfifo(tree / "fifo")  # nobody writes: opening it must not wait
    assert status_of(b"/file") == 0
    assert status_of(b"/link") == errno.ELOOP
    assert status_of(b"/folder") == NOT_REGULAR
    assert status_of(b"/fifo") == NOT_REGULAR
    assert status_of(b"/none") == errno.ENOENT


def test_an_answer_has_a_status_for_each_path_and_the_digests_there_are(tree: Path) -> None:
    (tree / "a").write_bytes(b"a")
    (tree / "c").write_bytes(b"c")
    answer = reader().answer([b"/a", b"/b", b"/c"])
    assert answer == bytes([0, errno.ENOENT, 0]) + hashlib.sha256(b"a").digest() + hashlib.sha256(b"c").digest()


def _after_each_read(monkeypatch: pytest.MonkeyPatch, change: Callable[[], None], times: int) -> None:
    real = os.readv
    left = [times]

    def readv(fd: int, buffers: list[bytearray]) -> int:
        size = real(fd, buffers)
        if left[0]:
            left[0] -= 1
            change()
        return size

    monkeypatch.setattr(os, "readv", readv)


@pytest.mark.parametrize("size", [10, BUFFER_SIZE, 3 * BUFFER_SIZE])
def test_a_file_that_keeps_growing_is_told_as_changed(tree: Path, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    file = tree / "log"
    file.write_bytes(bytes(size))

    def grow() -> None:
        with file.open("ab") as out:
            out.write(bytes(size))

    if size == 10:  # within one read: it must have changed before, between fstat and readv
        real = os.fstat

        def fstat(fd: int) -> os.stat_result:
            found = real(fd)
            grow()
            return found

        monkeypatch.setattr(os, "fstat", fstat)
    else:
        _after_each_read(monkeypatch, grow, -1)
    assert status_of(b"/log") == CHANGED


def test_a_file_cut_short_is_told_as_changed_even_if_its_time_is_set_back(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tree / "file"
    file.write_bytes(bytes(3 * BUFFER_SIZE))
    before = file.stat()
    real = os.readv

    def readv(fd: int, buffers: list[bytearray]) -> int:
        size = real(fd, buffers)
        os.truncate(file, 2 * BUFFER_SIZE)
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        return size

    monkeypatch.setattr(os, "readv", readv)
    with pytest.raises(OSError, match=f"Errno {CHANGED}"):
        reader().digest(b"./file")


def test_a_file_that_changed_once_is_read_again(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tree / "file"
    file.write_bytes(bytes(3 * BUFFER_SIZE))
    new = b"\1" * 3 * BUFFER_SIZE

    def rewrite() -> None:
        file.write_bytes(new)
        os.utime(file, ns=(1, 1))

    _after_each_read(monkeypatch, rewrite, 1)
    assert reader().answer([b"/file"]) == b"\0" + hashlib.sha256(new).digest()


def test_a_file_rewritten_with_the_same_size_is_told_as_changed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tree / "file"
    file.write_bytes(bytes(3 * BUFFER_SIZE))
    clock = iter(range(1, 100))
    _after_each_read(monkeypatch, lambda: os.utime(file, ns=(0, next(clock))), -1)
    assert status_of(b"/file") == CHANGED


def test_without_the_right_to_leave_the_access_time_alone_it_is_read_all_the_same(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tree / "file").write_bytes(b"x")
    real = os.open

    def refusing(path: bytes, flags: int) -> int:
        if flags & os.O_NOATIME:
            raise PermissionError(errno.EPERM, "")
        return real(path, flags)

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "open", refusing)
    assert status_of(b"/file") == 0


@pytest.mark.parametrize(("code", "status"), [(errno.EIO, errno.EIO), (524, errno.EIO), (None, errno.EIO)])
def test_any_error_of_the_kernel_has_a_status(
    tree: Path, monkeypatch: pytest.MonkeyPatch, code: int | None, status: int
) -> None:
    (tree / "file").write_bytes(b"x")

    def failing(fd: int, buffers: list[bytearray]) -> int:
        exc = OSError()
        exc.errno = code
        raise exc

    monkeypatch.setattr(os, "readv", failing)
    assert status_of(b"/file") == status


# --- walk -------------------------------------------------------------------------------------------------------------


def walked(excluded: list[bytes] | None = None, mounts: list[bytes] | None = None) -> tuple[list[bytes], list[bytes]]:
    unreadable: list[bytes] = []
    batches = list(Walk(excluded or [], mounts or [], lambda path, _: unreadable.append(path)).batches())
    paths = [path for batch, _ in batches for path in batch.split(b"\0")]
    assert len(paths) == sum(count for _, count in batches)
    assert all(count <= _hasher.BATCH_FILES for _, count in batches)
    return paths, unreadable


def test_batches_are_bounded_in_files_and_bytes(tree: Path) -> None:
    for number in range(200):
        (tree / f"{number:04d}{'x' * 200}").touch()
    batches = list(Walk([], [], lambda *_: None).batches())
    assert len(batches) > 200 // _hasher.BATCH_FILES
    assert all(len(paths) <= _hasher.BATCH_BYTES + 4096 for paths, _ in batches)
    assert walked()[0] == sorted(walked()[0])


def test_a_directory_of_many_names_is_taken_in_pieces(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_hasher, "SORTED_NAMES", 3)
    for number in range(10):
        (tree / str(number)).touch()
    assert sorted(walked()[0]) == [b"/%d" % number for number in range(10)]


def test_a_link_that_takes_a_directorys_place_is_not_followed(tree: Path) -> None:
    (tree / "a").mkdir()
    (tree / "a" / "in").touch()
    (tree / "b").mkdir()
    (tree / "b" / "other").touch()
    unreadable: list[tuple[bytes, int]] = []
    names = Walk([], [], lambda path, code: unreadable.append((path, code)))._names()
    assert next(names) == (b"/a/", [b"in"])
    (tree / "b" / "other").unlink()
    (tree / "b").rmdir()
    (tree / "b").symlink_to("a")
    assert list(names) == []
    assert unreadable in ([(b"/b", errno.ELOOP)], [(b"/b", errno.ENOTDIR)])


def test_excluded_are_directories_and_mounts_may_be_files(tree: Path) -> None:
    for name in ("var", "usr", "usr/var", "net"):
        (tree / name).mkdir()
        (tree / name / "x").touch()
    (tree / "tmp").touch()
    (tree / "bound").touch()
    paths, unreadable = walked([b"/var", b"/tmp"], [b"/net", b"/bound"])
    assert sorted(paths) == [b"/tmp", b"/usr/var/x", b"/usr/x"]
    assert unreadable == []


# --- workers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cpu", "wall", "blocks", "grows"),
    [(1, 9, 5, True), (8, 9, 5, False), (1, 9, 0, False)],
    ids=["waits for the disk", "busy", "waits for something else"],
)
def test_workers_are_added_where_the_disk_keeps_them_waiting(
    monkeypatch: pytest.MonkeyPatch, cpu: int, wall: int, blocks: int, grows: bool
) -> None:
    helper = object.__new__(Helper)
    helper._workers, helper._most = [], 2
    helper._window = helper._cpu = helper._wall = helper._blocks = 0
    monkeypatch.setattr(Helper, "_add", lambda self: self._workers.append(None))
    now = [1.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    head = bytes(8) + b"".join(number.to_bytes(4, "little") for number in (cpu, wall, blocks))
    for _ in range(5):
        now[0] += 1
        helper._adapt(head)
    assert len(helper._workers) == (2 if grows else 0)
