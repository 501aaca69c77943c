"""Whether the front gets a user of its own, and what the log says about it."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from pathlib import Path

import pytest

from cosmian_vm.agent import privileges
from cosmian_vm.agent.privileges import FrontUser, find_front_user
from cosmian_vm.agent.socket_server import listen_for_orders
from cosmian_vm.errors import ConfigError

Prepare = Callable[..., None]


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Prepare:
    """A system with these users (name to uid), seen by a process with this effective uid and these capabilities."""

    def prepare(users: dict[str, int], *, euid: int = 0, capabilities: int = 0xFF) -> None:
        def getpwnam(name: str) -> pwd.struct_passwd:
            uid = users[name]
            return pwd.struct_passwd((name, "x", uid, uid + 1, "", "/nonexistent", "/usr/sbin/nologin"))

        monkeypatch.setattr(os, "geteuid", lambda: euid)
        monkeypatch.setattr(pwd, "getpwnam", getpwnam)
        monkeypatch.setattr(privileges, "_capabilities", lambda _which: capabilities)
        caplog.set_level("INFO")

    return prepare


def test_the_first_user_that_there_is(
    system: Prepare, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    system({"cosmian_vm": 7})
    assert find_front_user() == FrontUser("cosmian_vm", 7, 8, Path("/run/cosmian_vm_agent"))
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/one:/run/two")
    system({"cosmian_vm": 7, "cosmian_vm_agent": 9})
    assert find_front_user() == FrontUser("cosmian_vm_agent", 9, 10, Path("/run/one"))
    assert caplog.messages[-1] == "front and collector are two processes: the front is user cosmian_vm_agent (9)"


@pytest.mark.parametrize(
    ("users", "euid", "capabilities", "why"),
    [
        ({"cosmian_vm_agent": 9}, 1000, 0xFF, "not started by root"),
        ({}, 0, 0xFF, "no system user cosmian_vm_agent or cosmian_vm"),
        ({"cosmian_vm_agent": 0}, 0, 0xFF, "is root"),
        ({"cosmian_vm_agent": 9}, 0, 0x3F, "no CAP_SETGID, CAP_SETUID here"),
    ],
)
def test_one_process_and_why(
    system: Prepare,
    caplog: pytest.LogCaptureFixture,
    users: dict[str, int],
    euid: int,
    capabilities: int,
    why: str,
) -> None:
    system(users, euid=euid, capabilities=capabilities)
    assert find_front_user() is None
    (line,) = caplog.messages
    assert line.startswith("front and collector are one process: ")
    assert why in line


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user, which takes root")
def test_a_runtime_folder_of_somebody_else_is_not_taken(tmp_path: Path) -> None:
    user = FrontUser("nobody", 65534, 65534, tmp_path / "run")
    (tmp_path / "elsewhere").mkdir()
    user.runtime.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="no folder of root's"):
        listen_for_orders(user, "s")
    user.runtime.unlink()
    user.runtime.mkdir()
    os.chown(user.runtime, 65533, 65533)
    with pytest.raises(ConfigError, match="no folder of root's"):
        listen_for_orders(user, "s")
    user.runtime.rmdir()
    user.runtime.write_text("a file")
    with pytest.raises(ConfigError, match="cannot be made"):
        listen_for_orders(user, "s")
