"""cosmian_fstool from outside: what it says, how it ends, where passwords come from."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cosmian_vm import fstool
from cosmian_vm.errors import AttesterError, InputError
from cosmian_vm.luks import container as module
from cosmian_vm.luks.container import Status
from cosmian_vm.luks.place import Place


class Played:
    """Stands in for Container; remembers what was asked of it."""

    calls: list[tuple[Any, ...]] = []  # noqa: RUF012 - emptied by the fixture
    fails: Exception | None = None
    state = Status(open=True, line="/box: open")

    def __init__(self, place: Place, tpm: str, *, pcrs: tuple[int, ...]) -> None:
        self.calls.append(("at", place.location, place.mount, tpm, pcrs))

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> None:
            if self.fails:
                raise self.fails
            self.calls.append((name, *arguments))

        return call

    def status(self) -> Status:
        return self.state


@pytest.fixture(autouse=True)
def played(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    monkeypatch.setattr(module, "Container", Played)
    monkeypatch.setattr(Played, "calls", [])
    monkeypatch.setattr(Played, "fails", None)
    monkeypatch.delenv("COSMIAN_VM_AGENT_CONF", raising=False)
    return Played.calls


def line(capsys: pytest.CaptureFixture[str]) -> str:
    """What was said on standard error: one line."""
    said = capsys.readouterr().err.strip()
    assert len(said.splitlines()) == 1, said
    return said


def test_make(played: list[tuple[Any, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fstool.run(["--size", "500MB", "--location", str(tmp_path / "box"), "--mount", str(tmp_path / "data")]) == 0
    assert played == [
        ("at", tmp_path / "box", tmp_path / "data", "/dev/tpmrm0", (4, 7, 8, 9, 12, 14)),
        ("create", 500_002_816, None),
    ]
    said = capsys.readouterr()
    assert "A container of 500 MB was made" in said.out
    assert "container.password" in said.out
    assert said.err == ""


@pytest.mark.parametrize("command", ["open", "close", "status", "reseal", "remove"])
def test_commands(played: list[tuple[Any, ...]], tmp_path: Path, command: str) -> None:
    place = ["--location", str(tmp_path / "box"), "--tpm2-pcrs", "7+4"]
    extra = ["--yes"] if command == "remove" else []
    assert fstool.run([command, *place, *extra]) == 0
    assert fstool.run([*place, command, *extra]) == 0
    made = [call for call in played if call[0] == "at"]
    assert made[0] == made[1]
    assert made[0][1] == tmp_path / "box"
    assert made[0][4] == (4, 7)


def test_agent_toml_says_where(
    played: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = tmp_path / "agent.toml"
    conf.write_text(
        f'[agent]\ndata_storage = "{tmp_path}"\nssl_certificate = "c"\nssl_private_key = "k"\n'
        f'container = "inner"\ncontainer_pcrs = "4+7"\ntpm_device = "/dev/tpm7"\n'
    )
    monkeypatch.setenv("COSMIAN_VM_AGENT_CONF", str(conf))
    assert fstool.run(["open"]) == 0
    assert played[0][1:] == (tmp_path / "inner", tmp_path / "data", "/dev/tpm7", (4, 7))
    conf.write_text("[agent]\nnonsense = 1\n")
    assert fstool.run(["open"]) == 2
    assert str(conf) in line(capsys)


def test_status_is_an_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Played.state = Status(open=False, line="/box: closed")
    try:
        assert fstool.run(["status", "--location", str(tmp_path / "box")]) == 1
        assert capsys.readouterr().out == "/box: closed\n"
    finally:
        Played.state = Status(open=True, line="/box: open")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--size 500MB makes a container"),
        (["--size", "500"], "number with a unit"),
        (["--size", "1kB"], "at least"),
        (["--tpm2-pcrs", "seven", "open"], "PCRs 'seven'"),
        (["--tpm2-pcrs", "7+10", "open"], "PCR 10: IMA extends it"),
        (["--tpm2-pcrs", "", "open"], "PCRs '': expected are numbers"),
        (["--size", "500MB", "--tpm2-pcrs", ""], "PCRs '': expected are numbers"),
        (["--location", "", "open"], "--location is empty"),
        (["--mount", "", "open"], "--mount is empty"),
        (["--tpm2-device", "", "open"], "--tpm2-device is empty"),
        (["--size", "500MB", "open"], "before open"),
        (["--password", "-", "open"], "before open"),
        (["--size", "500MB", "--password", "-", "--password-fd", "0"], "not both"),
        (["--size", "500MB", "--password"], "no terminal"),
        (["--size", "500MB", "--password-fd", "999"], "descriptor 999"),
        (["remove"], "--yes"),
        (["open", "--location", "/no/such/folder/box"], "its folder is not there"),
        (["nonsense"], "No such command"),
    ],
)
def test_wrong_usage(arguments: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if "--location" not in arguments:
        arguments = ["--location", str(tmp_path / "box"), *arguments]
    assert fstool.run(arguments) == 2
    assert says in capsys.readouterr().err
    assert [call for call in Played.calls if call[0] != "at"] == []


@pytest.mark.parametrize(("error", "status"), [(InputError("no room"), 2), (AttesterError("locked\nbecause"), 1)])
def test_errors_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    monkeypatch.setattr(Played, "fails", error)
    assert fstool.run(["open", "--location", str(tmp_path / "box")]) == status
    assert line(capsys).startswith("cosmian_fstool: ")


def test_interrupted(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Played, "fails", KeyboardInterrupt())
    assert fstool.run(["open", "--location", str(tmp_path / "box")]) == 130
    assert "undone" in line(capsys)


@pytest.mark.parametrize(
    "content", [b"correct horse battery\nmore\n", b"correct horse battery\r\n", b"correct horse battery"]
)
def test_password_by_descriptor_and_stdin(
    played: list[tuple[Any, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    for how in ("fd", "stdin"):
        file = tmp_path / "password"
        file.write_bytes(content)
        with file.open() as stream:
            if how == "fd":
                chosen = ["--password-fd", str(stream.fileno())]
            else:
                monkeypatch.setattr(sys, "stdin", stream)
                chosen = ["--password", "-"]
            assert fstool.run(["--size", "500MB", "--location", str(tmp_path / "box"), *chosen]) == 0
        assert played[-1] == ("create", 500_002_816, "correct horse battery")


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe\n"])
def test_no_password(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    (tmp_path / "password").write_bytes(content)
    with (tmp_path / "password").open() as stream:
        assert fstool.run(["reseal", "--location", str(tmp_path / "box"), "--password-fd", str(stream.fileno())]) == 2
    assert "password" in line(capsys)


def test_a_password_in_the_arguments_is_warned_of_and_not_shown(
    played: list[tuple[Any, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--size", "500MB", "--location", str(tmp_path / "box"), "--password", "correct horse battery"]
    assert fstool.run(arguments) == 0
    assert played[-1][-1] == "correct horse battery"
    said = capsys.readouterr()
    assert "can be read by every process" in said.err
    assert "horse" not in said.err + said.out


def test_help_teaches_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from cosmian_vm.fstool import run; status = run(['--help']);"
        "assert not [m for m in sys.modules if 'luks' in m or 'tpm2' in m or 'cryptography' in m], 'heavy';"
        "sys.exit(status)"
    )
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    for word in ("--size 500MB", "--location", "--tpm2-pcrs", "reseal", "--password -", "Exit status", "open", "close"):
        assert word in done.stdout
    assert not re.search(r".{101}", done.stdout)
