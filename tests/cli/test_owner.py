"""``cosmian_vm owner``: the key, its backup, and who owns a machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from cosmian_vm import wire
from cosmian_vm.client import owner_key
from cosmian_vm.owner_proof import PROOF_HEADER

Run = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "config" / "cosmian_vm"


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A passphrase can be asked for."""
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _self: True, raising=False)


def test_show(run: Run, agent: Any, folder: Path) -> None:
    assert "no owner's key yet" in run("owner", "show").out
    assert not folder.exists()
    ran = run("owner", "show", "--make")
    key = owner_key.load(folder)
    assert key is not None
    assert ran.out == f"{key.fingerprint}  {key.path}\n"
    assert run("owner", "show").out == ran.out
    ran = run("--url", agent.url, "--allow-insecure-tls", "owner", "show")
    assert "nobody yet" in ran.lines[-1]
    agent.machine.owners = (key.fingerprint,)
    ran = run("--url", agent.url, "--allow-insecure-tls", "owner", "show")
    assert ran.lines[-1] == f"{agent.url} is owned by {key.fingerprint}"


@pytest.mark.parametrize("verb", ["add", "remove"])
def test_add_and_remove(run: Run, agent: Any, root: Path, tmp_path: Path, verb: str) -> None:
    other = owner_key.create(tmp_path / "other").fingerprint
    path = {"add": wire.OWNER_ADD, "remove": wire.OWNER_REMOVE}[verb]
    agent.route("POST", path, 200, msgspec.json.encode(wire.OwnersAnswer(owners=[other], claimable=False)))
    call = ("--url", agent.url, "--allow-insecure-tls", "owner", verb)
    assert run(*call, "ed25519:abc").status == 2
    assert agent.connections == 0
    ran = run(*call, other, "--trust-root", root)
    assert ran.status == 0, ran
    assert msgspec.json.decode(agent.calls[-1].body) == {"owner": other}
    assert agent.calls[-1].path == path
    assert run(*call, other, "--offline").status == 1


def test_a_plain_backup_and_back(run: Run, folder: Path, tmp_path: Path) -> None:
    assert run("owner", "export", "backup", "--plain").status == 2
    key = owner_key.create(folder)
    ran = run("owner", "export", "backup", "--plain")
    assert ran.status == 0, ran
    assert (tmp_path / "backup").stat().st_mode & 0o777 == 0o600
    assert run("owner", "export", "backup", "--plain").status == 2  # not over another backup
    key.path.unlink()
    ran = run("owner", "import", "backup")
    assert ran.status == 0, ran
    assert key.fingerprint in ran.out
    assert run("owner", "import", "backup").status == 0
    again = owner_key.load(folder)
    assert again is not None
    assert again.fingerprint == key.fingerprint
    assert (folder / "owner.key").stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("terminal")
def test_a_backup_under_a_passphrase(run: Run, folder: Path, tmp_path: Path) -> None:
    key = owner_key.create(folder)
    ran = run("owner", "export", "backup", stdin=b"correct horse\ncorrect horse\n")
    assert ran.status == 0, ran
    assert "[]" not in ran.out + ran.err
    assert b"ENCRYPTED" in (tmp_path / "backup").read_bytes()
    key.path.unlink()
    ran = run("owner", "import", "backup", stdin=b"wrong\n")
    assert ran.status == 2
    assert "passphrase is wrong" in ran.err
    assert owner_key.load(folder) is None
    ran = run("owner", "import", "backup", stdin=b"correct horse\n")
    assert ran.status == 0, ran
    assert "correct horse" not in ran.out + ran.err
    assert run("owner", "export", "second", stdin=b"\n\n").status == 2  # an empty one protects nothing


def test_without_a_terminal_there_is_no_passphrase(run: Run, folder: Path, tmp_path: Path) -> None:
    owner_key.create(folder)
    ran = run("owner", "export", "backup", stdin=b"a\na\n")
    assert ran.status == 2
    assert "--plain" in ran.err
    assert not (tmp_path / "backup").exists()


def test_import_never_loses_a_key_in_silence(run: Run, folder: Path, tmp_path: Path) -> None:
    mine = owner_key.create(folder)
    other = owner_key.create(tmp_path / "other")
    ran = run("owner", "import", other.path)
    assert ran.status == 2
    assert mine.fingerprint in ran.err
    kept = owner_key.load(folder)
    assert kept is not None
    assert kept.fingerprint == mine.fingerprint
    assert run("owner", "import", other.path, "--replace").status == 0
    now = owner_key.load(folder)
    assert now is not None
    assert now.fingerprint == other.fingerprint


def test_import_does_not_replace_a_key_that_was_made_meanwhile(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an order in another window, which has claimed a machine with it."""
    other = owner_key.create(tmp_path / "other")
    store, made = owner_key.store, []

    def interrupted(*arguments: Any, **options: Any) -> None:
        monkeypatch.setattr(owner_key, "store", store)
        made.append(owner_key.create(folder))
        store(*arguments, **options)

    monkeypatch.setattr(owner_key, "store", interrupted)
    assert run("owner", "import", other.path).status == 2
    present = owner_key.load(folder)
    assert present is not None
    assert present.fingerprint == made[0].fingerprint


@pytest.mark.parametrize("content", [b"", b"-----BEGIN PRIVATE KEY-----\n", b"\xff" * 100])
def test_what_is_no_key(run: Run, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    ran = run("owner", "import", "file")
    assert ran.status == 2
    assert "no owner's key" in ran.err


@pytest.mark.parametrize("owner", ["ed25519:abc", "anyone", "", "ed25519:" + "A" * 43])
def test_verify_knows_what_an_owner_looks_like(run: Run, agent: Any, taken: Path, owner: str) -> None:
    ran = run("--url", agent.url, "verify", "-s", taken, "--owner", owner)
    assert ran.status == 2
    assert f"--owner {owner!r} is no owner's fingerprint: " in ran.err
    assert agent.connections == 0


def test_an_owner_verifies_a_busy_machine(run: Run, agent: Any, root: Path, taken: Path, folder: Path) -> None:
    honest = agent.routes["POST", wire.EVIDENCE]

    def busy(call: Any) -> Any:
        return honest(call) if PROOF_HEADER in call.headers else (503, b"devices: too many calls are waiting")

    agent.routes["POST", wire.EVIDENCE] = busy
    verify = ("--url", agent.url, "--allow-insecure-tls", "verify", "-s", taken, "--trust-root", root)
    assert run(*verify).status == 3
    key = owner_key.create(folder)
    ran = run(*verify)
    assert ran.status == 0, ran
    key.path.chmod(0o666)
    ran = run(*verify)
    assert ran.status == 3
    assert "503" in ran.err


def test_verify_shows_and_checks_the_owner(run: Run, agent: Any, root: Path, tmp_path: Path) -> None:
    call = ("--url", agent.url, "--allow-insecure-tls")
    assert run(*call, "snapshot", "--trust-root", root).status == 0
    (owner,) = agent.machine.owners
    verify = (*call, "verify", "-s", "cosmian_vm.snapshot", "--trust-root", root)
    ran = run(*verify, "--owner", owner)
    assert ran.status == 0, ran
    assert f"[ OK ] Verifying owner ({owner})" in ran.lines
    other = owner_key.create(tmp_path / "other").fingerprint
    assert run(*verify, "--owner", other).status == 1
    agent.machine.owners = (other,)
    ran = run(*verify)
    assert ran.status == 1
    assert owner in ran.out
    assert other in ran.out
