"""Usage, help and the promise that nothing ends in a traceback."""

from __future__ import annotations

import importlib
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from cosmian_vm import __version__
from cosmian_vm.certtool import main
from cosmian_vm.errors import (
    AttesterError,
    EndorsementError,
    InputError,
    IssuanceError,
    NotAvailableError,
    RefusedError,
    TransportError,
)

Run = Callable[..., Any]
COMMANDS = [[], ["acme"], ["ratls"], ["ratls", "generate"], ["ratls", "fetch"], ["ratls", "verify"], ["key"]]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help(run: Run, command: list[str], option: str) -> None:
    ran = run(*command, option)
    assert ran.status == 0
    assert ran.out.startswith("Usage: cosmian_certtool")
    assert "Examples:" in ran.out
    assert "  cosmian_certtool " in ran.out
    assert max(map(len, ran.out.splitlines())) <= 100


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(run: Run, option: str) -> None:
    assert run(option).out == f"cosmian_certtool {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nonsense"],
        ["nonsense"],
        ["ratls", "nonsense"],
        ["acme"],
        ["ratls", "verify"],
        ["ratls", "fetch"],
        ["key", "x"],
    ],
)
def test_wrong_usage(run: Run, arguments: list[str]) -> None:
    ran = run(*arguments)
    assert ran.status == 2
    assert "Error: " in ran.err


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (InputError("x: broken"), 2),
        (EndorsementError("x: broken"), 2),
        (TransportError("x: gone"), 3),
        (RefusedError("x: no", status=403), 3),
        (IssuanceError("x: no"), 1),
        (AttesterError("x: no"), 1),
        (NotAvailableError("x: none"), 1),
        (KeyboardInterrupt(), 130),
        (MemoryError(), 2),
        (ValueError("a\nbug \x1b[2J"), 2),
    ],
)
def test_whatever_happens_is_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, raised: BaseException, status: int
) -> None:
    @click.command()
    def boom() -> None:
        raise raised

    monkeypatch.setattr(main._Commands, "get_command", lambda *_: boom)
    ran = run("boom")
    assert ran.status == status
    line = ran.err.removeprefix("\n").removesuffix("\n")
    assert line.isprintable()
    assert line.startswith("cosmian_certtool: ")


def test_help_loads_no_command() -> None:
    code = (
        "import sys; from cosmian_vm.certtool.main import run; run(['--help']); "
        "heavy = {'cryptography', 'acme', 'requests', 'msgspec', 'ssl', 'asyncio', 'pathlib', 'json', 'socket'}; "
        "sys.stderr.write(' '.join(sorted(heavy & set(sys.modules))))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr == ""


def test_it_is_a_program_of_the_package() -> None:
    pyproject = Path(__file__).resolve().parents[2] / "pyproject.toml"
    module, _, name = tomllib.loads(pyproject.read_text())["project"]["scripts"]["cosmian_certtool"].partition(":")
    assert getattr(importlib.import_module(module), name) is main.main


def test_acme_says_what_is_not_installed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "cosmian_vm.certtool._order", raising=False)
    monkeypatch.setitem(sys.modules, "josepy", None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    ran = run(
        "acme", "--domain", "a.test", "--email", "a@b.test", "--workspace", "w", "--output", "o", "--http-port", port,
        "--http-address", "127.0.0.1", "--directory", "https://127.0.0.1:1/dir",
    )  # fmt: skip
    assert (ran.status, ran.err.count("\n")) == (2, 1)
    assert "pip install '.[certtool]' in the source folder" in ran.err


def test_on_a_machine_without_a_tee() -> None:
    """The real devices of this machine, which has none: one line, none of the agent's log."""
    code = "import sys; from cosmian_vm.certtool.main import run; sys.exit(run(sys.argv[1:]))"
    for arguments in (["key"], ["ratls", "generate"]):
        ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        if ran.returncode == 0:
            pytest.skip("this machine has a TEE")
        assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (1, "", 1)
