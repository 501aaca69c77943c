"""The container on a played machine with a real TPM: made whole or not at all, opened only as the TPM knows it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from cosmian_vm._run import Completed
from cosmian_vm.devkit.luks import header_file
from cosmian_vm.errors import AttesterError, InputError
from cosmian_vm.luks._undo import EndedBySignal
from cosmian_vm.luks.container import check_password
from cosmian_vm.luks.first import provide
from cosmian_vm.luks.nv_index import FIRST_INDEX, TpmRecords
from cosmian_vm.luks.place import Place

Bench = Any  # the fixture's class, of conftest.py

pytestmark = pytest.mark.swtpm

SIZE = 32_000_000 // 4096 * 4096 + 4096
PASSWORD = "correct horse battery"


def made(bench: Bench, password: str | None = PASSWORD) -> None:
    bench.container().create(SIZE, password)
    bench.container().close()


def locked(bench: Bench, says: str) -> None:
    """Refused, in one line that says why, and nothing was opened."""
    opened = len(bench.played.opened)
    with pytest.raises(AttesterError, match=says) as caught:
        bench.container().open()
    assert "\n" not in str(caught.value)
    assert len(bench.played.opened) == opened
    status = bench.container().status()
    assert not status.open
    assert str(caught.value).split(":")[1] in status.line or "no record" in status.line


def test_made_closed_and_opened_again(bench: Bench) -> None:
    container = bench.container()
    container.create(SIZE)
    assert container.status().open
    assert [name for name in bench.left() if not name.startswith("record")] == [
        *("box", "box.header", bench.place.name, str(bench.place.mount))
    ]
    assert bench.place.location.stat().st_size == SIZE
    assert bench.place.location.stat().st_mode & 0o777 == 0o600
    assert bench.place.header.stat().st_mode & 0o777 == 0o600
    generated = bench.place.password.read_bytes()
    assert len(generated) >= 43
    assert bench.place.password.stat().st_mode & 0o777 == 0o400
    container.open()  # nothing happens
    container.close()
    container.close()
    assert not container.status().open
    assert "this TPM opens it" in container.status().line
    container.open()
    assert bench.played.opened[-1] == bench.place.header.read_bytes()
    assert bench.place.password.read_bytes() == generated


def test_the_new_file_system_has_the_label_of_the_folder_that_it_covers(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = {bench.place.mount: b"system_u:object_r:cosmian_vm_data_t:s0\0"}
    given: list[tuple[str, bytes]] = []

    def getxattr(path: Path, name: str) -> bytes:
        if path not in labels or mounted():
            raise OSError(errno.ENODATA, "No data available")
        assert name == "security.selinux"
        return labels[path]

    def setxattr(path: Path, name: str, value: bytes) -> None:
        assert (path, mounted()) == (bench.place.mount, True)
        given.append((name, value))

    def mounted() -> bool:
        return f" {bench.place.mount} " in bench.played.mountinfo.read_text()

    monkeypatch.setattr(os, "getxattr", getxattr)
    monkeypatch.setattr(os, "setxattr", setxattr)
    made(bench)
    assert given == [("security.selinux", labels[bench.place.mount])]
    bench.container().open()
    assert len(given) == 1, "it stays in the file system"


def test_where_folders_have_no_label_none_is_given(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def declined(*_arguments: object) -> bytes:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "getxattr", declined)
    monkeypatch.setattr(os, "setxattr", declined)
    made(bench)


def test_a_label_that_cannot_be_given_leaves_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def declined(*_arguments: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "getxattr", lambda *_: b"label")
    monkeypatch.setattr(os, "setxattr", declined)
    with pytest.raises(AttesterError, match="cannot be given its SELinux label: Permission denied"):
        made(bench)
    assert bench.left() == []


def test_secrets_are_in_no_argument(bench: Bench) -> None:
    made(bench)
    bench.container().reseal(PASSWORD)
    assert PASSWORD.encode() in bench.played.secrets
    assert not any(PASSWORD in argument for call in bench.played.calls for argument in call)
    assert all(PASSWORD not in value for value in os.environ.values())


def test_nothing_is_ever_overwritten(bench: Bench) -> None:
    made(bench)
    before = bench.place.location.stat().st_ino, bench.place.header.read_bytes()
    with pytest.raises(InputError, match="never overwritten"):
        bench.container().create(SIZE, PASSWORD)
    bench.place.location.rename(bench.folder / "elsewhere")
    bench.place.header.rename(bench.folder / "header")
    with pytest.raises(InputError, match="the TPM knows of a container"):
        bench.container().create(SIZE, PASSWORD)
    (bench.folder / "elsewhere").rename(bench.place.location)
    (bench.folder / "header").rename(bench.place.header)
    assert (bench.place.location.stat().st_ino, bench.place.header.read_bytes()) == before
    bench.container().open()


def test_a_link_is_no_room_for_a_container(bench: Bench) -> None:
    bench.place.location.symlink_to(bench.folder / "nowhere")
    with pytest.raises(InputError, match="is there already"):
        bench.container().create(SIZE, PASSWORD)


def test_no_room(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = SIZE

    monkeypatch.setattr("shutil.disk_usage", lambda _folder: Usage)
    with pytest.raises(InputError, match=r"32 MB are free, 48\.\d* MB are needed"):
        bench.container().create(SIZE, PASSWORD)
    assert bench.left() == []
    with pytest.raises(InputError, match="its folder is not there"):
        Place.at(bench.folder / "no" / "box", bench.folder / "data")


STEPS = ("luksFormat", "cryptenroll", "test-passphrase", "open", "mkfs", "mount")


def at_step(step: int, action: Callable[[], Completed | None]) -> Callable[[str], Completed | None]:
    count = iter(range(100))
    return lambda _name: action() if next(count) == step else None


@pytest.mark.parametrize("step", range(len(STEPS)), ids=STEPS)
@pytest.mark.parametrize("how", ["fails", "raises", "SIGTERM", "SIGINT"])
def test_a_failure_half_way_leaves_nothing(bench: Bench, step: int, how: str) -> None:
    def action() -> Completed | None:
        if how == "raises":
            raise AttesterError("was not done within 1 s")
        if how == "fails":
            return Completed(status=1, output=b"it broke\n")
        os.kill(os.getpid(), getattr(signal, how))
        return None

    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    # the TPM is tried again when the PCRs were busy: only a lasting failure is one
    bench.played.before = at_step(step, action)
    if how == "fails" and STEPS[step] == "test-passphrase":
        bench.played.before = lambda name: action() if name == "cryptsetup open" else None
    with pytest.raises((AttesterError, EndedBySignal)):
        bench.container().create(SIZE)
    assert bench.left() == []
    assert not bench.place.mount.exists()
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == before
    bench.played.before = lambda _name: None
    made(bench)


def test_what_a_killed_cryptsetup_left_is_taken_away(bench: Bench) -> None:
    mapper = bench.folder / "mapper"
    (mapper / "temporary-cryptsetup-0-of-somebody").touch()

    def killed() -> None:
        for name in ("temporary-cryptsetup-1_dif", "temporary-cryptsetup-1"):
            (mapper / name).touch()
        os.kill(os.getpid(), signal.SIGTERM)

    bench.played.before = at_step(0, killed)
    with pytest.raises(EndedBySignal):
        bench.container().create(SIZE)
    assert bench.left() == ["temporary-cryptsetup-0-of-somebody"]


def test_what_a_cryptsetup_left_that_is_no_more_is_taken_away_before_the_next_container(bench: Bench) -> None:
    mapper = bench.folder / "mapper"
    gone = subprocess.Popen(["/bin/true"])
    gone.wait()
    for name in (f"temporary-cryptsetup-{gone.pid}_dif", f"temporary-cryptsetup-{gone.pid}"):
        (mapper / name).touch()
    (mapper / f"temporary-cryptsetup-{os.getpid()}").touch()  # of one that is at work
    made(bench)
    assert [name for name in bench.left() if "temporary" in name] == [f"temporary-cryptsetup-{os.getpid()}"]


def test_killed_between_the_first_mount_and_the_record(bench: Bench) -> None:
    """Mounted, and yet it never existed: the next one is made all the same, in the same boot."""
    bench.container().create(SIZE)
    bench.records.remove(bench.place.digest)
    bench.place.location.rename(bench.place.unfinished)
    bench.place.header.rename(bench.place.next_header)
    first = bench.place.password.read_bytes()
    bench.container().create(SIZE)
    assert bench.container().status().open
    assert bench.place.password.read_bytes() != first
    assert not bench.place.unfinished.exists()


def test_a_program_whose_starter_was_killed_is_waited_for(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each program has the lock's descriptor: whoever comes next waits until it has ended."""
    bench.folder.joinpath("work").mkdir(exist_ok=True)
    held: list[subprocess.Popen[bytes]] = []

    def orphaned(_name: str) -> Completed | None:
        if not held:
            held.append(subprocess.Popen(["/bin/sleep", "60"], pass_fds=bench.played.descriptors[-1:]))
            raise KeyboardInterrupt
        return None

    bench.played.before = orphaned
    with pytest.raises(KeyboardInterrupt):
        bench.container().create(SIZE)
    monkeypatch.setattr("cosmian_vm.luks._lock._SECONDS", 0.3)
    try:
        with pytest.raises(AttesterError, match="another process is at work on the container"):
            bench.container().create(SIZE)
    finally:
        held[0].kill()
        held[0].wait()
    made(bench)


@pytest.mark.parametrize("where", ["write", "after"])
def test_the_record_is_the_moment_from_which_it_exists(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    real = TpmRecords.write

    def write(self: TpmRecords, *arguments: Any) -> int:
        if where == "write":
            raise AttesterError("TPM: no room for another NV index")
        real(self, *arguments)
        raise SystemExit  # the power is cut

    monkeypatch.setattr(TpmRecords, "write", write)
    if where == "write":
        with pytest.raises(AttesterError, match="no room"):
            bench.container().create(SIZE)
        assert bench.left() == []
        return
    monkeypatch.setattr("cosmian_vm.luks._undo.Undo.run", lambda _self: None)
    with pytest.raises(SystemExit):
        bench.container().create(SIZE, PASSWORD)
    assert not bench.place.location.exists()
    monkeypatch.undo()
    bench.played._umount(["", str(bench.place.mount)], {}, b"")
    bench.container().open()
    assert [name for name in bench.left() if ".part" in name] == []


def test_a_signal_in_the_last_steps_comes_too_late(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    real = TpmRecords.write

    def write(self: TpmRecords, *arguments: Any) -> int:
        index = real(self, *arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        return index

    monkeypatch.setattr(TpmRecords, "write", write)
    bench.container().create(SIZE, PASSWORD)
    assert bench.container().status().open
    bench.container().reseal(PASSWORD)
    assert bench.container().status().open


def test_what_a_power_cut_left_is_no_container(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cosmian_vm.luks._undo.Undo.run", lambda _self: None)

    def cut() -> None:
        raise SystemExit

    bench.played.before = at_step(4, cut)
    with pytest.raises(SystemExit):
        bench.container().create(SIZE, PASSWORD)
    monkeypatch.undo()
    assert "box.part" in bench.left()
    assert not bench.container().exists()
    bench.played.before = lambda _name: None
    made(bench)
    bench.container().open()


def test_a_changed_header_is_refused(bench: Bench) -> None:
    made(bench)
    good = bench.place.header.read_bytes()
    for at in (4200, 20000, len(good) - 1):
        raw = bytearray(good)
        raw[at] ^= 1
        bench.place.header.write_bytes(raw)
        locked(bench, "is not the header that the TPM knows")
    forged = dict(bench.played.document)
    forged["segments"] = {"0": {**forged["segments"]["0"], "encryption": "cipher_null-ecb"}}
    bench.place.header.write_bytes(header_file(forged))
    locked(bench, "is not the header that the TPM knows")
    bench.place.header.write_bytes(good)
    bench.container().open()


def test_a_header_out_of_shape_is_refused_even_if_the_tpm_knows_it(bench: Bench) -> None:
    """Should the record fail one day, the allowlist still stands."""
    made(bench)
    bench.records.remove(bench.place.digest)
    forged = dict(bench.played.document)
    forged["segments"] = {"0": {**forged["segments"]["0"], "encryption": "cipher_null-ecb"}}
    raw = header_file(forged)
    bench.place.header.write_bytes(raw)
    bench.records.write(bench.place.digest, sha256(raw).digest(), (4, 7, 8, 9, 12, 14))
    locked(bench, "refused: LUKS2 header.*cipher_null")
    with pytest.raises(AttesterError, match="cipher_null"):
        bench.container().reseal(PASSWORD)


def test_header_container_or_record_gone(bench: Bench) -> None:
    made(bench)
    header = bench.place.header.read_bytes()
    bench.place.header.unlink()
    locked(bench, "header: is gone, and the TPM knows")
    bench.place.header.symlink_to("/dev/zero")
    locked(bench, "cannot be read")
    bench.place.header.unlink()
    os.mkfifo(bench.place.header)
    locked(bench, "is no header")
    bench.place.header.unlink()
    bench.place.header.write_bytes(header)
    bench.place.location.rename(bench.folder / "away")
    locked(bench, "is gone .or no file., and the TPM knows")
    (bench.folder / "away").rename(bench.place.location)
    bench.records.remove(bench.place.digest)
    locked(bench, "the TPM has no record of this container")
    bench.container().reseal(PASSWORD)
    bench.container().open()


def test_another_boot_names_the_pcr_and_reseal_needs_the_password(bench: Bench) -> None:
    made(bench)
    bench.extend(8)
    locked(bench, "not the one that it was sealed for: PCR 8 changed")
    with pytest.raises(InputError, match="the password is needed"):
        bench.container().reseal()
    header = bench.place.header.read_bytes()
    with pytest.raises(AttesterError, match=r"cryptenroll failed: .*wrong key"):
        bench.container().reseal("a wrong password")
    assert bench.place.header.read_bytes() == header
    locked(bench, "PCR 8 changed")
    bench.container().reseal(PASSWORD)
    assert len(bench.records.find(bench.place.digest)) == 1
    bench.container().open()


def test_reseal_of_an_open_container_takes_the_generated_password(bench: Bench) -> None:
    bench.container().create(SIZE)
    bench.container().reseal()
    bench.container().close()
    bench.container().open()
    made_with_own = bench.place.password
    made_with_own.unlink()
    with pytest.raises(InputError, match="the password is needed"):
        bench.container().reseal()


@pytest.mark.parametrize("when", ["before the record", "after the record", "after the renaming"])
def test_a_reseal_cut_off_is_finished_or_as_before(bench: Bench, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    made(bench)
    old = bench.place.header.read_bytes()
    bench.extend(9)
    monkeypatch.setattr("cosmian_vm.luks._undo.Undo.run", lambda _self: None)
    real = TpmRecords.write

    def write(self: TpmRecords, *arguments: Any) -> int:
        if when == "before the record":
            raise SystemExit
        return real(self, *arguments)

    def remove(self: TpmRecords, _location: bytes, *, keep: int | None = None) -> None:
        if when == "after the renaming":
            bench.place.next_header.rename(bench.place.header)
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(TpmRecords, "write", write)
        patch.setattr(TpmRecords, "remove", remove)
        with pytest.raises(SystemExit):
            bench.container().reseal(PASSWORD)
    if when == "before the record":
        locked(bench, "PCR 9 changed")
        assert bench.place.header.read_bytes() == old
        bench.container().reseal(PASSWORD)
    bench.container().open()
    assert bench.place.header.read_bytes() != old
    assert [name for name in bench.left() if ".part" in name] == []


def test_pcrs_of_ones_own_are_said_each_time(bench: Bench) -> None:
    container = bench.container((4, 7))
    container.create(SIZE, PASSWORD)
    container.close()
    locked(bench, r"sealed to the PCRs 4\+7, expected are 4\+7\+8\+9\+12\+14")
    bench.extend(9)
    bench.container((7, 4)).open()


def test_pcrs_that_seal_nothing_are_refused(bench: Bench) -> None:
    for pcrs in ((), (16,), (4, 23), (-1,), (24,)):
        with pytest.raises(InputError, match="expected are some of 0 to 15"):
            bench.container(pcrs)
    with pytest.raises(InputError, match="IMA extends it"):
        bench.container((4, 10))
    with pytest.raises(AttesterError, match=r"nothing was measured into the PCRs 13\+15"):
        bench.container((13, 15)).create(SIZE, PASSWORD)
    assert bench.left() == []


def test_the_tpm_is_asked_again(bench: Bench) -> None:
    made(bench)
    failures = iter([Completed(status=1, output=b"TPM_RC_PCR_CHANGED\n")] * 5)
    bench.played.before = lambda name: next(failures, None) if name == "cryptsetup open" else None
    bench.container().open()
    bench.container().close()
    bench.played.before = lambda name: Completed(status=1, output=b"one\ntwo\n") if name == "cryptsetup open" else None
    with pytest.raises(AttesterError, match="open by the TPM failed: one; two"):
        bench.container().open()
    assert bench.place.name not in bench.left()


def test_headers_are_opened_from_memory_only(bench: Bench) -> None:
    bench.played.mountinfo.write_text("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n")
    with pytest.raises(AttesterError, match=r"is not in memory .*: mount -t tmpfs -o mode=0700,.* tmpfs /"):
        bench.container().create(SIZE, PASSWORD)


def test_a_folder_with_something_in_it_is_not_hidden(bench: Bench) -> None:
    bench.place.mount.mkdir()
    (bench.place.mount / "precious").touch()
    with pytest.raises(InputError, match="is not empty"):
        bench.container().create(SIZE, PASSWORD)
    assert (bench.place.mount / "precious").exists()


def test_a_container_in_use_is_not_closed(bench: Bench) -> None:
    bench.container().create(SIZE, PASSWORD)
    bench.played.before = lambda name: Completed(status=32, output=b"target is busy.\n") if name == "umount" else None
    with pytest.raises(AttesterError, match="umount failed: target is busy"):
        bench.container().close()
    bench.played.before = lambda _name: None


def test_removed_is_removed(bench: Bench) -> None:
    bench.container().create(SIZE, PASSWORD)
    bench.container().remove()
    assert bench.left() == []
    with pytest.raises(InputError, match="there is no container"):
        bench.container().remove()
    with pytest.raises(InputError, match="there is no container"):
        bench.container().open()
    made(bench)


def test_two_containers_have_a_record_each(bench: Bench) -> None:
    made(bench)
    other = Place.at(bench.place.location.with_name("other"), bench.folder / "data2")
    assert bench.records.find(other.digest) == []
    index = bench.records.write(other.digest, bytes(32), (4,))
    try:
        assert {index, bench.records.find(bench.place.digest)[0].index} == {FIRST_INDEX, FIRST_INDEX + 1}
        bench.container().open()
    finally:
        bench.records.remove(other.digest)


def test_first_launch_makes_it_once(bench: Bench) -> None:
    def step(*, new_machine: bool) -> bool:
        return provide(bench.place, bench.tcti, new_machine=new_machine, size=SIZE, machine=bench.played.machine)

    with pytest.raises(AttesterError, match="has been set up before: none is made anew"):
        step(new_machine=False)
    assert step(new_machine=True)
    assert not step(new_machine=False)
    bench.container().close()
    assert not step(new_machine=True)
    assert bench.container().status().open
    bench.container().close()
    bench.place.header.unlink()
    bench.place.location.unlink()
    with pytest.raises(AttesterError, match="nothing is made anew"):
        step(new_machine=True)


@pytest.mark.parametrize("password", ["", "short", "x" * 513, "with a\nnew line", "with a\0zero byte"])
def test_passwords_that_are_none(password: str) -> None:
    with pytest.raises(InputError, match="password: expected"):
        check_password(password)
