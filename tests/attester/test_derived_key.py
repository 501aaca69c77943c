"""Keys derived by the processor: the ioctl of /dev/sev-guest as the kernel would see it, and Gramine's files."""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from cosmian_vm.attester.derived_key import TeeKey, gramine_key, snp_key, tee_key
from cosmian_vm.errors import AttesterError, NotAvailableError

KEY = bytes(range(100, 132))


class Firmware:
    """Answers SNP_GET_DERIVED_KEY. ``busy``: how often it is, before it answers."""

    def __init__(self, *, status: int = 0, key: bytes = KEY, busy: int = 0, error: int = 0) -> None:
        self.status, self.key, self.busy, self.error = status, key, busy, error
        self.requests: list[bytes] = []

    def ioctl(self, _descriptor: int, request: int, argument: bytearray) -> int:
        assert request == 3 << 30 | 32 << 16 | ord("S") << 8 | 1  # _IOWR('S', 0x1, 32 bytes)
        version, asked, answer, firmware, host = struct.unpack("<B7xQQII", argument)
        assert (version, firmware, host) == (1, 0, 0)
        self.requests.append(ctypes.string_at(asked, 32))
        if self.busy:
            self.busy -= 1
            struct.pack_into("<II", argument, 24, 0, 2)
            raise OSError(errno.EIO, "I/O error")
        if self.error:
            struct.pack_into("<II", argument, 24, 0x16, 0)
            raise OSError(self.error, "I/O error")
        response = struct.pack("<I28x32s", self.status, self.key)
        ctypes.memmove(answer, response, len(response))
        return 0


@pytest.fixture
def device(tmp_path: Path) -> Path:
    (tmp_path / "dev").mkdir()
    path = tmp_path / "dev" / "sev-guest"
    path.write_bytes(b"")
    return path


def ask(device: Path, firmware: Firmware, pause: Callable[[float], None] = lambda _: None) -> TeeKey:
    return snp_key(device, ioctl=firmware.ioctl, pause=pause)


def test_the_request_is_the_kernels(device: Path) -> None:
    firmware = Firmware()
    assert ask(device, firmware) == TeeKey(KEY, "sev-snp")
    # root_key_select 0 (VCEK), rsvd, guest_field_select policy and measurement, vmpl 0, guest_svn 0, tcb_version 0
    assert firmware.requests == [bytes(8) + bytes([0b1001]) + bytes(7 + 4 + 4 + 8)]


def test_busy_is_waited_for(device: Path) -> None:
    pauses: list[float] = []
    firmware = Firmware(busy=3)
    assert ask(device, firmware, pauses.append).raw == KEY
    assert (len(firmware.requests), len(pauses)) == (4, 3)
    with pytest.raises(AttesterError, match="host error 0x2"):
        ask(device, Firmware(busy=100))


@pytest.mark.parametrize("firmware", [Firmware(status=0x16), Firmware(key=bytes(32)), Firmware(error=errno.EIO)])
def test_refusals(device: Path, firmware: Firmware) -> None:
    with pytest.raises(AttesterError, match="derived key"):
        ask(device, firmware)


def test_no_device(tmp_path: Path) -> None:
    with pytest.raises(AttesterError, match="cannot be opened"):
        snp_key(tmp_path / "absent")


def test_gramine(tmp_path: Path) -> None:
    folder = tmp_path / "dev" / "attestation" / "keys"
    folder.mkdir(parents=True)
    (folder / "_sgx_mrenclave").write_bytes(b"\1" * 16)
    (folder / "_sgx_mrsigner").write_bytes(b"\2" * 16)
    assert tee_key(tmp_path) == TeeKey(b"\1" * 16, "sgx")
    assert gramine_key(folder, "_sgx_mrsigner") == TeeKey(b"\2" * 16, "sgx")


@pytest.mark.parametrize("content", [b"", b"\1" * 15, b"\1" * 17, bytes(16)])
def test_gramine_key_of_another_size(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "_sgx_mrenclave").write_bytes(content)
    with pytest.raises(AttesterError, match="16 bytes"):
        gramine_key(tmp_path)
    with pytest.raises(AttesterError, match="cannot be read"):
        gramine_key(tmp_path, "_sgx_mrsigner")


def test_no_such_platform(tmp_path: Path) -> None:
    with pytest.raises(NotAvailableError, match="TDX"):
        tee_key(tmp_path)


def test_the_secret_is_in_no_repr() -> None:
    assert KEY.hex() not in repr(TeeKey(KEY, "sgx"))
    assert repr(KEY) not in repr(TeeKey(KEY, "sgx"))
