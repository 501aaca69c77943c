"""The VM under QEMU, as far as no VM is needed: which files it takes for its disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from cosmian_vm.devkit import qemu
from cosmian_vm.devkit.qemu import QemuVm
from cosmian_vm.errors import InputError

PARTITION = bytes(4) + b"\xee" + bytes(11)  # as a GPT has it in its protective MBR
DISK = bytes(446) + PARTITION + bytes(48) + b"\x55\xaa"


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No program is run by these tests; which are there does not matter."""
    monkeypatch.setattr(qemu, "missing_programs", list)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no disk image"),
        (b"# a text\n" * 100, "no disk image"),
        (DISK[:511], "no disk image"),
        (DISK.replace(b"\x55\xaa", b"\xaa\x55"), "no disk image"),
        (bytes(510) + b"\x55\xaa" + bytes(512), "no disk image"),  # a boot sector without any partition
        (b"QFI\xfb" + bytes(1020), "a QCOW2 image"),
    ],
)
def test_what_is_no_disk_is_refused_before_anything_is_made(tmp_path: Path, content: bytes, says: str) -> None:
    image = tmp_path / "image"
    image.write_bytes(content)
    with pytest.raises(InputError, match=f"image: {says}.*; expected is a raw disk image"):
        QemuVm(tmp_path / "vm").create(image)
    assert not (tmp_path / "vm").exists()


def test_what_is_not_there_or_a_folder(tmp_path: Path) -> None:
    for image in (tmp_path / "none.img", tmp_path):
        with pytest.raises(InputError, match="make it with: image/build"):
            QemuVm(tmp_path / "vm").create(image)


def test_a_disk_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "image").write_bytes(DISK + bytes(4096))
    monkeypatch.setattr(qemu, "_VARIABLES", tmp_path / "image")
    monkeypatch.setattr(QemuVm, "new_tpm", lambda _: None)
    QemuVm(tmp_path / "vm").create(tmp_path / "image")
    assert (tmp_path / "vm" / "disk.img").read_bytes() == DISK + bytes(4096)
