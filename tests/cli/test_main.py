"""Usage, help and the promise that nothing ends in a traceback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click
import pytest

from cosmian_vm import __version__
from cosmian_vm.cli import main
from cosmian_vm.errors import InputError, PeerChangedError, RefusedError, TransportError

Run = Callable[..., Any]


def _commands(group: click.Group, path: list[str]) -> Iterator[list[str]]:
    yield path
    context = click.Context(group)
    for name in group.list_commands(context):
        inner = group.get_command(context, name)
        if isinstance(inner, click.Group):
            yield from _commands(inner, [*path, name])
        else:
            yield [*path, name]


COMMANDS = list(_commands(main.cosmian_vm, []))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help(run: Run, command: list[str], option: str) -> None:
    ran = run(*command, option)
    assert ran.status == 0
    assert ran.out.startswith("Usage: cosmian_vm")
    assert "Example:" in ran.out or "Examples:" in ran.out
    assert "    cosmian_vm " in ran.out
    assert max(map(len, ran.lines)) <= 100


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(run: Run, option: str) -> None:
    assert run(option).out == f"cosmian_vm {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--nonsense"],
        ["nonsense"],
        ["verify"],
        ["--url"],
        ["--timeout", "x", "verify"],
        ["inspect"],
        ["app", "nonsense"],
        ["app", "init"],
        ["verify", "--url", "https://vm"],
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
        (TransportError("x: gone"), 3),
        (RefusedError("x: no", status=403), 3),
        (PeerChangedError("x: other"), 1),
        (KeyboardInterrupt(), 130),
        (MemoryError(), 2),
        (ValueError("a\nbug \x1b[2J"), 2),
        (RecursionError("too deep"), 2),
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
    line = ran.err.removeprefix("\n").removesuffix("\n")  # click ends the line that ^C stands in
    assert line.isprintable()
    assert line.startswith("cosmian_vm: ")


def test_help_loads_no_command() -> None:
    """What it costs to start is what is imported; script/bench has the times."""
    code = (
        "import sys; from cosmian_vm.cli.main import run; run(['--help']); "
        "heavy = {'cryptography', 'msgspec', 'rich', 'jinja2', 'ssl', 'http.client', 'asyncio', 'pathlib', 'json'}; "
        "sys.stderr.write(' '.join(sorted(heavy & set(sys.modules))))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stderr == ""


def test_reader_that_goes_away() -> None:
    """``cosmian_vm inspect ... | head -1`` is no error worth a traceback."""
    code = "from cosmian_vm.cli.main import main; main()"
    program = subprocess.Popen(
        [sys.executable, "-c", code, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )
    assert program.stdout is not None
    program.stdout.close()
    _, err = program.communicate()
    assert b"Traceback" not in err
    assert b"Exception" not in err
