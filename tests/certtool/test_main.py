"""Usage, help and the promise that nothing ends in a traceback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
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


def test_on_a_machine_without_a_tee() -> None:
    """The real devices of this machine, which has none: one line, none of the agent's log."""
    code = "import sys; from cosmian_vm.certtool.main import run; sys.exit(run(sys.argv[1:]))"
    for arguments in (["key"], ["ratls", "generate"]):
        ran = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        if ran.returncode == 0:
            pytest.skip("this machine has a TEE")
        assert (ran.returncode, ran.stdout, ran.stderr.count("\n")) == (1, "", 1)
