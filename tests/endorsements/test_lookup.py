"""One request for all who want the same thing, and a cache that nobody else can write."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cosmian_vm.endorsements import _lookup as _lookup_module
from cosmian_vm.endorsements._cache import Cache
from cosmian_vm.endorsements._fetch import Answer, Fetch, Limits, Request
from cosmian_vm.endorsements._lookup import Lookup, Wanted
from cosmian_vm.errors import EndorsementError, TransportError

NOW = datetime(2026, 6, 1, tzinfo=UTC)
URL = "https://kds.example.com/thing"


def _read(answer: Answer) -> datetime:
    """A thing is the time by which it has to be renewed."""
    try:
        return datetime.fromisoformat(answer.body.decode())
    except ValueError as exc:
        raise EndorsementError("garbage") from exc


WANTED = Wanted(what="the thing", request=Request(url=URL, most=100), read=_read, until=lambda value: value)
FRESH = Answer(body=(NOW + timedelta(days=1)).isoformat().encode(), header="kept")
STALE = Answer(body=(NOW - timedelta(days=1)).isoformat().encode())


def _lookup(cache: Cache, fetch: Fetch | None, limits: Limits | None = None) -> Lookup:
    return Lookup(cache, fetch, now=NOW, limits=limits or Limits(), notes=[], renew=False)


@pytest.mark.parametrize("cached", [False, True])
def test_threads_share_one_request(tmp_path: Path, cached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    waits: list[None] = []
    go = threading.Event()
    cache = Cache(tmp_path if cached else None)

    class Landed(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waits.append(None)
            return super().wait(timeout)

    flight = _lookup_module._Flight
    monkeypatch.setattr(_lookup_module, "_Flight", lambda: flight(landed=Landed()))

    def fetch(request: Request) -> Answer:
        asked.append(request.url)
        assert go.wait(30)
        return FRESH

    def ask() -> datetime | None:
        return _lookup(cache, fetch).get(WANTED)

    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(ask) for _ in range(8)]
        while len(waits) < 7:
            time.sleep(0.01)
        go.set()
        assert {task.result() for task in waiting} == {_read(FRESH)}
    assert len(asked) == 1


def test_threads_share_the_failure_too() -> None:
    go = threading.Event()

    def fetch(_: Request) -> Answer:
        assert go.wait(30)
        raise TransportError("nobody there")

    lookups = [_lookup(Cache(None), fetch) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(lookup.get, WANTED) for lookup in lookups]
        go.set()
        assert [task.result() for task in waiting] == [None] * 4
    assert all("nobody there" in note for lookup in lookups for note in lookup.notes)
    assert _lookup(Cache(None), lambda _: FRESH).get(WANTED) == _read(FRESH), "the next one asks anew"


def test_processes_wait_for_the_one_that_asks(tmp_path: Path) -> None:
    """Another process holds the lock and answers meanwhile: what it has written is used."""
    child = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path\n"
            "from cosmian_vm.endorsements._cache import Cache; from cosmian_vm.endorsements._fetch import Answer\n"
            f"cache = Cache(Path({str(tmp_path)!r}))\n"
            f"with cache.alone({URL!r}, 1):\n"
            "    print('locked', flush=True); sys.stdin.readline()\n"
            f"    cache.write({URL!r}, Answer(body={FRESH.body!r}))\n",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == "locked\n"
        asked: list[str] = []

        def fetch(request: Request) -> Answer:
            asked.append(request.url)
            return FRESH

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(_lookup(Cache(tmp_path), fetch).get, WANTED)
            threading.Event().wait(0.2)
            assert not waiting.done()
            child.stdin.write("\n")
            child.stdin.flush()
            assert waiting.result(timeout=30) == _read(FRESH)
        assert asked == []
    finally:
        child.kill()
        child.communicate()


def test_a_lock_that_is_never_given_back(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with cache.alone(URL, 0):
        other = _lookup(Cache(tmp_path), lambda _: FRESH, Limits(total=0.1))
        assert other.get(WANTED) == _read(FRESH)


def test_current_stale_and_none(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def down(_: Request) -> Answer:
        raise TransportError("nobody there")

    lookup = _lookup(cache, down)
    assert lookup.get(WANTED) is None
    (note,) = lookup.notes
    assert note.startswith(f"the thing could not be had from {URL}: nobody there; ")
    assert note.endswith("give --endorsements DIR")
    cache.write(URL, STALE)
    lookup = _lookup(cache, down)
    assert lookup.get(WANTED) == _read(STALE)
    assert "was to be renewed by 2026-05-31" in lookup.notes[0]
    lookup = _lookup(cache, lambda _: FRESH)
    assert lookup.get(WANTED) == _read(FRESH)
    assert lookup.notes == []
    lookup = _lookup(cache, down)
    assert lookup.get(WANTED) == _read(FRESH)
    assert lookup.notes == []


def test_a_service_that_has_only_an_old_one(tmp_path: Path) -> None:
    lookup = _lookup(Cache(tmp_path), lambda _: STALE)
    assert lookup.get(WANTED) == _read(STALE)
    assert "itself has only one that was to be renewed by 2026-05-31" in lookup.notes[0]


def test_all_together_has_a_limit() -> None:
    lookup = _lookup(Cache(None), lambda _: FRESH, Limits(together=0))
    assert lookup.get(WANTED) is None
    assert "taken too long already" in lookup.notes[0]


def test_folder_and_files_are_the_user_s_alone(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "cache"
    mask = os.umask(0)
    try:
        assert _lookup(Cache(folder), lambda _: FRESH).get(WANTED)
    finally:
        os.umask(mask)
    assert folder.stat().st_mode & 0o777 == 0o700
    files = list(folder.iterdir())
    assert sorted(file.suffix for file in files) == [".json", ".lock"]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    folder.chmod(0o755)
    Cache(folder).write(URL, FRESH)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_an_entry_comes_back_whole_and_a_damaged_one_not_at_all(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.write(URL, FRESH)
    assert cache.read(URL) == FRESH
    assert cache.read(URL + "x") is None
    (file,) = tmp_path.glob("*.json")
    raw = file.read_bytes()
    for size in range(len(raw)):
        file.write_bytes(raw[:size])
        assert cache.read(URL) is None
    file.write_bytes(raw.replace(b"thing", b"other"))
    assert cache.read(URL) is None
    file.write_bytes(b"\xff" * 100)
    assert cache.read(URL) is None
    asked: list[str] = []

    def fetch(request: Request) -> Answer:
        asked.append(request.url)
        return FRESH

    assert _lookup(cache, fetch).get(WANTED) == _read(FRESH)
    assert asked == [URL]
    assert cache.read(URL) == FRESH


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    lookup = _lookup(Cache(tmp_path / "file" / "cache"), lambda _: FRESH)
    assert lookup.get(WANTED) == _read(FRESH)
    assert lookup.notes == []
