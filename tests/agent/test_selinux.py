"""The front's SELinux domain: asked for by the collector alone, and taken back."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from cosmian_vm.agent.selinux import executing_the_front

COLLECTOR = "system_u:system_r:cosmian_vm_agent_t:s0-s0:c0.c1023"


def attributes(folder: Path, current: str) -> Path:
    (folder / "current").write_bytes(current.encode())
    (folder / "exec").write_bytes(b"")
    return folder


def asked(folder: Path) -> str:
    return (folder / "exec").read_text()


@pytest.mark.parametrize("ending", ["", "\0", "\n"])
def test_the_collector_asks_and_takes_it_back(tmp_path: Path, ending: str) -> None:
    folder = attributes(tmp_path, COLLECTOR + ending)
    with executing_the_front(folder):
        assert asked(folder) == COLLECTOR.replace("agent", "front")
        (folder / "exec").write_bytes(b"")
    assert asked(folder) == "\n"


def test_it_is_taken_back_where_the_front_did_not_start(tmp_path: Path) -> None:
    folder = attributes(tmp_path, COLLECTOR)

    def start() -> None:
        with executing_the_front(folder):
            (folder / "exec").write_bytes(b"")
            raise OSError("no such program")

    with pytest.raises(OSError, match="no such program"):
        start()
    assert asked(folder) == "\n"


@pytest.mark.parametrize(
    "current",
    [
        "",
        "unconfined\n",  # AppArmor
        "unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023",
        "system_u:system_r:initrc_t:s0",
        "system_u:system_r:cosmian_vm_agent_t",  # no level: no such policy
        "cosmian_vm_agent_t",
    ],
)
def test_elsewhere_nothing_is_asked(tmp_path: Path, current: str) -> None:
    folder = attributes(tmp_path, current)
    with executing_the_front(folder):
        assert asked(folder) == ""
    assert asked(folder) == ""


def test_a_kernel_without_labels(tmp_path: Path) -> None:
    with executing_the_front(tmp_path / "nothing"):
        pass


def test_a_policy_that_does_not_know_the_front_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = attributes(tmp_path, COLLECTOR)
    (folder / "exec").unlink()
    (folder / "exec").mkdir()  # stands for a kernel that declines
    with caplog.at_level(logging.WARNING), executing_the_front(folder):
        pass
    assert "SELinux: the front does not get its own domain" in caplog.text
