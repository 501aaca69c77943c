"""Walking and hashing with the real helper process."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from cosmian_vm.attester.platform import FileScope
from cosmian_vm.errors import AttesterError
from cosmian_vm.reference import _hasher, filesystem
from cosmian_vm.reference.filesystem import WalkResult, walk_and_hash

HUGE = 1 << 40  # a sparse file that no worker is done with in the time of a test


@dataclass(frozen=True)
class Scope:
    root: Path
    excluded: tuple[str, ...] = ()


def contents(tree: Path) -> dict[bytes, bytes]:
    """The oracle: every regular file, by the slow and simple way."""
    found = {}
    for folder, _, names in os.walk(os.fsencode(tree)):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path):
                found[path.removeprefix(os.fsencode(tree))] = hashlib.sha256(
                    Path(os.fsdecode(path)).read_bytes()
                ).digest()
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for folder in ("usr/bin", "usr/lib/deep/er", "empty", "with space", "tmp/x"):
        (root / folder).mkdir(parents=True)
    for number in range(150):
        (root / "usr/lib" / f"lib{number}.so").write_bytes(os.urandom(number * 40))
    (root / "usr/bin/big").write_bytes(os.urandom(1 << 20))
    (root / "usr/bin/nothing").touch()
    (root / "with space" / "a\nb\tc").write_bytes(b"1")
    Path(os.fsdecode(os.fsencode(root / "usr/lib/deep/er") + b"/caf\xe9\xff")).write_bytes(b"2")
    (root / "tmp/x/hidden").write_bytes(b"3")
    (root / "usr/bin/link").symlink_to("big")
    (root / "usr/linked").symlink_to("lib")
    (root / "loop").symlink_to(".")
    (root / "dangling").symlink_to("nowhere")
    os.link(root / "usr/bin/big", root / "usr/bin/hard")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        here = Path.cwd()
        os.chdir(root)  # a socket's name is short
        try:
            unix.bind("socket")
        finally:
            os.chdir(here)
    return root


@pytest.mark.parametrize("workers", [None, 1, 3])
def test_every_regular_file_and_nothing_else(tree: Path, workers: int | None) -> None:
    result = walk_and_hash(Scope(tree), "sha256", workers=workers)
    expected = contents(tree)
    assert dict(result.files) == expected
    assert len(result.files) == len(expected)
    assert result.unreadable == []
    assert result.left_out == []
    assert result.bytes_read == sum(path.lstat().st_size for path in tree.rglob("*") if _regular(path))
    assert result == walk_and_hash(Scope(tree), "sha256", workers=2)  # the order too


def _regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def test_the_platforms_scope_leaves_tmp_out(tree: Path) -> None:
    paths = {path for path, _ in walk_and_hash(FileScope(root=tree)).files}
    assert paths == {path for path in contents(tree) if not path.startswith(b"/tmp/")}
    (tree / "usr/tmp").mkdir()
    (tree / "usr/tmp/seen").touch()
    assert b"/usr/tmp/seen" in {path for path, _ in walk_and_hash(FileScope(root=tree)).files}
    assert walk_and_hash(Scope(tree, ("/tmp/", "usr", "/with space", "/empty"))).files == []


@pytest.mark.parametrize("algorithm", ["sha1", "sha384", "sha512", "sha3-256", "md5"])
def test_with_the_kernels_names_of_algorithms(tmp_path: Path, algorithm: str) -> None:
    (tmp_path / "file").write_bytes(b"content")
    result = walk_and_hash(Scope(tmp_path), algorithm)
    assert result.files == [(b"/file", hashlib.new(algorithm.replace("-", "_"), b"content").digest())]


@pytest.mark.parametrize("algorithm", ["tgr192", "", "nonsense", "shake_128"])
def test_an_unknown_algorithm_is_an_error(tmp_path: Path, algorithm: str) -> None:
    with pytest.raises(AttesterError, match="algorithm"):
        walk_and_hash(Scope(tmp_path), algorithm)


def test_an_empty_tree(tmp_path: Path) -> None:
    assert walk_and_hash(Scope(tmp_path)) == WalkResult(files=[], unreadable=[], left_out=[], bytes_read=0)


def test_a_root_that_cannot_be_entered(tmp_path: Path) -> None:
    with pytest.raises(AttesterError, match="none: No such file or directory"):
        walk_and_hash(Scope(tmp_path / "none"))
    (tmp_path / "file").touch()
    with pytest.raises(AttesterError, match="file: Not a directory"):
        walk_and_hash(Scope(tmp_path / "file"))


def test_what_cannot_be_read_is_listed(tmp_path: Path) -> None:
    (tmp_path / "ok").touch()
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(20):  # deeper than a path may be long: not even root opens these
        os.mkdir("d" * 250, dir_fd=folder)
        inner = os.open("d" * 250, os.O_RDONLY, dir_fd=folder)
        os.close(os.open("f" * 100, os.O_WRONLY | os.O_CREAT, dir_fd=inner))
        os.close(folder)
        folder = inner
    os.close(folder)
    try:
        result = walk_and_hash(Scope(tmp_path))
    finally:
        subprocess.run(["rm", "-rf", "--", str(tmp_path)], check=True)  # shutil gives up on such paths
    reached = [path for path, _ in result.files]
    assert b"/ok" in reached
    lost = [path for path, reason in result.unreadable if reason == "File name too long"]
    assert len(lost) == len(result.unreadable)
    assert lost
    assert max(len(path) for path in reached) < 4096


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_permissions_that_are_missing_are_listed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir(mode=0)
    (tmp_path / "file").touch(mode=0)
    result = walk_and_hash(Scope(tmp_path))
    assert result.unreadable == [(b"/file", "Permission denied"), (b"/folder", "Permission denied")]


def test_mounts_that_are_not_local_are_listed_and_not_entered(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [f"3 2 0:9 / {tree}/usr/lib rw - nfs4 server:/ rw", f"4 2 0:9 / {tree}/usr/bin/big rw - 9p host rw"]
    lines.append("2 1 254:0 / / rw - ext4 /dev/vda rw")
    for name in ("_mountinfo", "_system_mountinfo"):
        monkeypatch.setattr(filesystem, name, lambda: "\n".join(lines).encode())
    result = walk_and_hash(Scope(tree))
    assert result.unreadable == []
    assert result.left_out == [(b"/usr/bin/big", "9p"), (b"/usr/lib", "nfs4")]
    paths = {path for path, _ in result.files}
    assert paths == {p for p in contents(tree) if not p.startswith(b"/usr/lib/") and p != b"/usr/bin/big"}


ROOT_MOUNT = "2 1 254:0 / / rw - ext4 /dev/vda rw\n"


def test_what_only_the_system_sees_is_listed_and_what_is_in_its_place_not_hashed(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox = f"3 2 0:9 / {tree}/usr/lib rw - tmpfs tmpfs rw\n4 2 0:10 / {tree}/tmp rw - tmpfs tmpfs rw\n"
    monkeypatch.setattr(filesystem, "_mountinfo", (ROOT_MOUNT + sandbox).encode)
    monkeypatch.setattr(filesystem, "_system_mountinfo", ROOT_MOUNT.encode)
    result = walk_and_hash(Scope(tree, excluded=("/tmp",)))
    assert [path for path, _ in result.unreadable] == [b"/usr/lib"]
    assert "hidden from the agent" in result.unreadable[0][1]
    paths = {path for path, _ in result.files}
    assert paths == {path for path in contents(tree) if not path.startswith((b"/usr/lib/", b"/tmp/"))}


def test_another_root_or_none_to_compare_with_is_listed(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filesystem, "_mountinfo", ROOT_MOUNT.encode)
    monkeypatch.setattr(filesystem, "_system_mountinfo", ROOT_MOUNT.replace("254:0", "254:1").encode)
    result = walk_and_hash(Scope(tree))
    assert [path for path, _ in result.unreadable] == [b"/"]
    assert dict(result.files) == contents(tree)

    def refused() -> bytes:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(filesystem, "_system_mountinfo", refused)
    result = walk_and_hash(Scope(tree))
    assert [path for path, _ in result.unreadable] == [b"/"]
    assert "/proc/1/mountinfo: Operation not permitted" in result.unreadable[0][1]


def test_progress_grows_and_ends_at_the_total(tree: Path) -> None:
    seen: list[tuple[int, int, int | None]] = []
    result = walk_and_hash(Scope(tree), progress=lambda *told: seen.append(told))
    assert [files for files, _, _ in seen] == sorted(files for files, _, _ in seen)
    assert seen[-1] == (len(result.files), result.bytes_read, len(result.files))


# --- ends that are no answers -----------------------------------------------------------------------------------------


def _children(pid: int) -> list[int]:
    try:
        return [
            int(word)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for word in (task / "children").read_text().split()
        ]
    except FileNotFoundError:
        return []


def _helper_and_workers() -> tuple[int, list[int]]:
    (helper,) = [pid for pid in _children(os.getpid()) if "_hasher" in Path(f"/proc/{pid}/cmdline").read_text()]
    return helper, _children(helper)


def _gone(pids: list[int]) -> bool:
    end = time.monotonic() + 60
    while any(_runs(pid) for pid in pids):
        if time.monotonic() > end:
            for pid in filter(_runs, pids):  # ours: they would read for hours
                os.kill(pid, signal.SIGKILL)
            return False
        time.sleep(0.01)
    return True


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.fixture
def endless(tmp_path: Path) -> Scope:
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(HUGE)
    (tmp_path / "small").touch()
    return Scope(tmp_path)


class Stopper:
    """Called with the progress: notes the processes, then does something once."""

    def __init__(self, act: Callable[[int, list[int]], None]) -> None:
        self.pids: list[int] = []
        self._act = act

    def __call__(self, *_: object) -> None:
        if not self.pids:
            helper, workers = _helper_and_workers()
            self.pids = [helper, *workers]
            self._act(helper, workers)


def test_a_killed_worker_is_an_error_that_names_the_files(endless: Scope) -> None:
    def kill(_: int, workers: list[int]) -> None:
        for pid in workers:
            os.kill(pid, signal.SIGKILL)

    stopper = Stopper(kill)
    with pytest.raises(AttesterError, match="signal 9, between /huge and /small"):
        walk_and_hash(endless, progress=stopper, workers=1)
    assert len(stopper.pids) > 1
    assert _gone(stopper.pids)


def test_a_killed_helper_is_an_error_and_its_workers_end(endless: Scope) -> None:
    stopper = Stopper(lambda helper, _: os.kill(helper, signal.SIGKILL))
    with pytest.raises(AttesterError, match="ended early"):
        walk_and_hash(endless, progress=stopper)
    assert _gone(stopper.pids)


def test_cancelling_ends_all_processes(endless: Scope) -> None:
    stopper = Stopper(lambda *_: None)
    with pytest.raises(AttesterError, match="cancelled"):
        walk_and_hash(endless, progress=stopper, cancelled=lambda: bool(stopper.pids))
    assert _gone(stopper.pids)


def test_an_error_of_the_progress_callback_comes_out_and_ends_all(endless: Scope) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    stopper = Stopper(fail)
    with pytest.raises(ZeroDivisionError):
        walk_and_hash(endless, progress=stopper)
    assert _gone(stopper.pids)


def test_the_helpers_end_with_a_caller_that_was_killed(endless: Scope) -> None:
    code = (
        "import sys, pathlib, types; from cosmian_vm.reference.filesystem import walk_and_hash;"
        "scope = types.SimpleNamespace(root=pathlib.Path(sys.argv[1]), excluded=());"
        "walk_and_hash(scope, progress=lambda *_: print('on the way', flush=True))"
    )
    command = [sys.executable, "-c", code, str(endless.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": _source()}) as caller:
        assert caller.stdout is not None
        assert caller.stdout.readline() == b"on the way\n"
        (helper,) = _children(caller.pid)
        workers = _children(helper)
        caller.kill()
    assert workers
    assert _gone([helper, *workers])


def _source() -> str:
    return str(Path(filesystem.__file__).parent.parent.parent)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("", "ended early"),
        ("raise SystemError('out of order')", "SystemError: out of order"),
        ("emit(b'E', b'one line')", "one line"),
        ("emit(b'D', bytes(4))", "ended early"),
        ("emit(b'T', bytes(8)); emit(b'D', b'\\1\\0\\0\\0')", "ended early"),
        ("emit(b'T', b'\\1' + bytes(7)); emit(b'D', bytes(4))", "ended early"),
        ("emit(b'R', bytes(12) + b'\\2\\0\\0\\0/a' + b'\\0' + bytes(31))", "wrong size"),
        ("emit(b'R', bytes(12) + b'\\2\\0\\0\\0/a')", "wrong size"),
        ("os.write(1, b'R\\xff')", "ended early"),
    ],
)
def test_a_helper_that_says_less_than_all_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    fake = tmp_path / "fake.py"
    emit = "import os\ndef emit(kind, payload): os.write(1, kind + len(payload).to_bytes(4, 'little') + payload)\n"
    fake.write_text(emit + script)
    monkeypatch.setattr(_hasher, "__file__", str(fake))
    with pytest.raises(AttesterError, match="hashing the files failed") as info:
        walk_and_hash(Scope(tmp_path))
    assert said in str(info.value)
    assert "\n" not in str(info.value)


def test_a_missing_interpreter_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(AttesterError, match="cannot be started"):
        walk_and_hash(Scope(tmp_path))


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    walk_and_hash(Scope(tmp_path))
    with pytest.raises(AttesterError):
        walk_and_hash(Scope(tmp_path / "none"))
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("size", [256 << 20, pytest.param(5 << 30, marks=pytest.mark.slow)])
def test_a_large_file_costs_no_memory(tmp_path: Path, size: int) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(size)
    code = (
        "import sys, pathlib, types, resource; from cosmian_vm.reference.filesystem import walk_and_hash;"
        "scope = types.SimpleNamespace(root=pathlib.Path(sys.argv[1]), excluded=());"
        "assert walk_and_hash(scope).bytes_read == int(sys.argv[2]);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(size)],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": _source()},
    )
    assert int(done.stdout) < 32 * 1024  # KiB, the interpreter included
