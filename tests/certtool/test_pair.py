"""Certificate and key change together: whatever is interrupted, wherever, no key is left that does not fit."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cosmian_vm.certificates import self_signed
from cosmian_vm.certtool import _pair
from cosmian_vm.certtool._pair import Pair, PairFolder, fits
from cosmian_vm.errors import InputError

NOW = datetime.now(UTC)


def pair(directory: str = "https://ca/dir") -> Pair:
    made = self_signed("vm.example.test", now=NOW)
    return Pair(made.certificate_pem, made.key_pem, directory)


OLD, NEW = pair(), pair("https://ca/new")


def shown(folder: Path) -> tuple[bytes | None, bytes | None]:
    """What a program finds under the two names."""
    return tuple(path.read_bytes() if path.exists() else None for path in (folder / "cert.pem", folder / "key.pem"))  # type: ignore[return-value]  # two


def plain(folder: Path) -> None:
    """As the agent's first launch leaves it."""
    (folder / "cert.pem").write_bytes(OLD.chain)
    (folder / "key.pem").write_bytes(OLD.key)


def nothing(_folder: Path) -> None:
    """An empty folder."""


def installed(folder: Path) -> None:
    PairFolder(folder).install(OLD)


def foreign(folder: Path) -> None:
    """Somebody has put files of their own in the place of one of the links, and they do not fit."""
    installed(folder)
    (folder / "cert.pem").unlink()
    (folder / "cert.pem").write_bytes(pair().chain)


BEFORE = {"nothing": nothing, "plain files": plain, "a pair of ours": installed}


class Killed(BaseException):
    """The process is gone."""


def count_down(monkeypatch: pytest.MonkeyPatch, left: int) -> Callable[[], bool]:
    """The process dies at its ``left``-th change of the file system; whether it did."""
    state = {"left": left}

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            state["left"] -= 1
            if state["left"] < 0:
                raise Killed
            return real(*arguments, **options)

        return call

    for owner, name in ((Path, "replace"), (Path, "symlink_to"), (Path, "unlink"), (Path, "mkdir"), (os, "fsync")):
        monkeypatch.setattr(owner, name, dying(getattr(owner, name)))
    return lambda: state["left"] < 0


@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
@pytest.mark.parametrize("linked", [True, False], ids=["links", "no links"])
def test_killed_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: Callable[[Path], None], linked: bool
) -> None:
    monkeypatch.setattr(_pair, "_links_work", lambda _folder: linked)
    for step in range(200):
        folder = tmp_path / str(step)
        folder.mkdir()
        before(folder)
        with monkeypatch.context() as patch:
            died = count_down(patch, step)
            with suppress(Killed):
                PairFolder(folder).install(NEW)
            dead = died()
        chain, key = shown(folder)
        if linked:
            assert (chain, key) in ((OLD.chain, OLD.key), (NEW.chain, NEW.key)) or None in (chain, key), step
            if before is not nothing:
                assert None not in (chain, key), step
        present = PairFolder(folder).present()  # the next run sets right what may be left
        if before is not nothing:
            assert present is not None, step
        if present is not None:
            assert shown(folder) in ((OLD.chain, OLD.key), (NEW.chain, NEW.key)), step
        PairFolder(folder).install(NEW)
        assert shown(folder) == (NEW.chain, NEW.key)
        if not dead:
            assert step > 8, "the kill was never tried"
            return
    raise AssertionError("it never came to an end")


@pytest.mark.parametrize("linked", [True, False], ids=["links", "no links"])
def test_modes_names_and_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool) -> None:
    monkeypatch.setattr(_pair, "_links_work", lambda _folder: linked)
    for each in (OLD, NEW, OLD):
        PairFolder(tmp_path).install(each)
        present = PairFolder(tmp_path).present()
        assert present == each
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "cert.pem").stat().st_mode) == 0o644
    assert sorted(path.name for path in tmp_path.iterdir()) == [".pairs", "cert.pem", "key.pem"]
    keys = [path for path in (tmp_path / ".pairs").rglob("key.pem") if not path.parent.is_symlink()]
    assert len(keys) == 1, "old keys are removed"
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in keys)


def test_a_pair_that_was_moved_along_still_works(tmp_path: Path) -> None:
    PairFolder(tmp_path / "a").install(NEW)
    (tmp_path / "a").rename(tmp_path / "b")
    assert PairFolder(tmp_path / "b").present() == NEW


def test_files_of_somebody_else_are_replaced(tmp_path: Path) -> None:
    foreign(tmp_path)
    PairFolder(tmp_path).install(NEW)
    assert shown(tmp_path) == (NEW.chain, NEW.key)


def test_what_was_not_issued_here_has_no_directory(tmp_path: Path) -> None:
    plain(tmp_path)
    present = PairFolder(tmp_path).present()
    assert present is not None
    assert present.directory == ""


def test_a_key_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    PairFolder(tmp_path).install(OLD)
    with pytest.raises(InputError):
        PairFolder(tmp_path).install(Pair(NEW.chain, OLD.key))
    assert shown(tmp_path) == (OLD.chain, OLD.key)


def test_fits() -> None:
    assert fits(OLD.chain, OLD.key)
    assert not fits(OLD.chain, NEW.key)
    assert not fits(b"", b"")
    assert not fits(OLD.chain, b"nonsense")


def test_a_damaged_record_is_no_pair(tmp_path: Path) -> None:
    PairFolder(tmp_path).install(NEW)
    for record in (tmp_path / ".pairs").rglob("issued.json"):
        record.write_bytes(b"[]")
    present = PairFolder(tmp_path).present()
    assert present is not None
    assert present.directory == "", "it is ordered anew"


def test_a_file_system_without_links_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    PairFolder(tmp_path).install(NEW)
    assert not (tmp_path / "key.pem").is_symlink()
    assert shown(tmp_path) == (NEW.chain, NEW.key)


def test_the_secret_is_in_no_repr() -> None:
    assert "PRIVATE" not in repr(OLD)
