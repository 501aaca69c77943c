from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cosmian_vm.devkit._process import Daemon
from cosmian_vm.devkit.swtpm import Swtpm
from cosmian_vm.errors import AttesterError


def counters(tpm: Swtpm) -> tuple[int, int, int, int]:
    """clock, resetCount, restartCount, safe."""
    from cosmian_vm.attester.tpm import EsapiTpm

    device = EsapiTpm(tpm.tcti, keep_open=False)
    device.provision()
    # The end: clock 8, resetCount 4, restartCount 4, safe 1, firmware 8, count 4, alg 2, size 1, bits 3, 2 + 32
    info = device.quote(b"", [10]).quote[-69:-52]
    return (
        int.from_bytes(info[:8]),
        int.from_bytes(info[8:12]),
        int.from_bytes(info[12:16]),
        info[16],
    )


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[Swtpm]:
    if shutil.which("swtpm") is None:
        pytest.skip("swtpm is not installed")
    tpm = Swtpm(tmp_path)
    tpm.start()
    try:
        yield tpm
    finally:
        tpm.stop(orderly=False)


@pytest.mark.swtpm
def test_power_cycle_counts_and_roll_back_goes_backwards(tpm: Swtpm, tmp_path: Path) -> None:
    clock, resets, restarts, safe = counters(tpm)
    assert (restarts, safe) == (0, 1)
    tpm.reboot()
    after = counters(tpm)
    assert after[0] >= clock
    assert after[1:] == (resets + 1, 0, 1)
    tpm.stop()
    tpm.save_state(tmp_path / "copy")
    tpm.start()
    tpm.reboot()
    assert counters(tpm)[1] == resets + 3
    tpm.roll_back(tmp_path / "copy")
    assert counters(tpm)[1] == resets + 2


@pytest.mark.swtpm
def test_stop_leaves_nothing(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 90)  # too long for a Unix socket: it moves to a temporary folder
    deep.mkdir()
    tpm = Swtpm(deep)
    tpm.start()
    pid = tpm.pid
    assert pid is not None
    socket = Path(tpm.tcti.removeprefix("swtpm:path="))
    assert socket.is_socket()
    assert not socket.is_relative_to(deep)
    tpm.start()  # a second start is nothing
    assert tpm.pid == pid
    tpm.stop()
    assert not Path(f"/proc/{pid}").exists()
    assert not socket.parent.exists()
    tpm.stop()
    with pytest.raises(AttesterError, match="not running"):
        _ = tpm.tcti


@pytest.mark.swtpm
def test_another_object_over_the_same_folder_can_stop_it(tmp_path: Path) -> None:
    tpm = Swtpm(tmp_path)
    tpm.start()
    try:
        other = Swtpm(tmp_path)
        assert other.pid == tpm.pid
        other.stop()
        assert not tpm.running
    finally:
        tpm.stop(orderly=False)


def test_daemon_never_touches_a_pid_that_changed_hands(tmp_path: Path) -> None:
    record = tmp_path / "thing.pid"
    record.write_text(json.dumps({"pid": os.getpid(), "started": 1}))
    daemon = Daemon(record)
    assert not daemon.running
    daemon.stop()
    assert not record.exists()


def test_daemon_that_ends_at_once_shows_its_last_line(tmp_path: Path) -> None:
    daemon, log = Daemon(tmp_path / "thing.pid"), tmp_path / "log"
    daemon.start([sys.executable, "-c", "import sys; sys.exit('port in use')"], log=log)
    with pytest.raises(AttesterError, match="thing ended at once: port in use"):
        daemon.wait_until(lambda: False, seconds=60, log=log)
    daemon.stop()


def test_daemon_that_ignores_the_signal_is_killed(tmp_path: Path) -> None:
    daemon, log = Daemon(tmp_path / "thing.pid"), tmp_path / "log"
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"
    daemon.start([sys.executable, "-c", code], log=log)
    daemon.wait_until(lambda: b"up" in log.read_bytes(), seconds=60, log=log)
    pid = daemon.pid
    daemon.stop(seconds=0.2)
    assert pid is not None
    assert not Path(f"/proc/{pid}").exists()
