from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha512
from pathlib import Path

import pytest

from cosmian_vm.attester._tsm import TsmFiles, provider
from cosmian_vm.attester.snp import SnpIoctl, SnpTsm
from cosmian_vm.certificates import leaf_der, self_signed
from cosmian_vm.errors import AttesterError

DATA = bytes(range(64))
DER = [leaf_der(self_signed(f"{n}", now=datetime(2026, 1, 1, tzinfo=UTC)).certificate_pem) for n in range(3)]
GUIDS = [
    "63da758de66445649ab5d4b8b0d53a1c",  # any: readers go by the certificate's content
    "4ab7b379bbac4fe4a02f05aef327c782",
    "c0b406a4a8034952974337b6014cd0ae",
]


def make_report(data: bytes) -> bytes:
    raw = bytearray(1184)
    raw[0] = 2
    raw[0x50:0x90] = data
    return bytes(raw)


def make_table(ders: list[bytes]) -> bytes:
    """GHCB certificate table: GUID, offset, length for each; then zeros."""
    at = 24 * (len(ders) + 1)
    head, body = b"", b""
    for guid, der in zip(GUIDS, ders, strict=True):
        head += bytes.fromhex(guid) + struct.pack("<II", at + len(body), len(der))
        body += der
    return head + bytes(24) + body


class FakeTsm:
    """configfs-tsm as Documentation/ABI/testing/configfs-tsm-report has it."""

    def __init__(self) -> None:
        self.entries: dict[str, dict[str, bytes]] = {}
        self.generation: dict[str, int] = {}
        self.provider = b"sev_guest\n"
        self.aux: bytes | None = make_table(DER)
        self.floor: bytes | None = b"0\n"
        self.report: Callable[[bytes], bytes] = make_report
        self.busy = 0
        self.intruder = 0
        self.made = 0
        self.mkdir_error: int | None = None
        self.manifest: bytes | None = None
        self.svsm_report: Callable[[bytes], bytes] = make_report

    def make(self, name: str) -> None:
        if self.mkdir_error is not None:
            raise OSError(self.mkdir_error, "mkdir")
        assert name not in self.entries
        self.made += 1
        self.entries[name] = {}
        self.generation[name] = 7

    def read(self, name: str, attribute: str) -> bytes:
        entry = self.entries[name]
        if attribute == "generation":
            return b"%d\n" % self.generation[name]
        if attribute == "provider":
            return self.provider
        if attribute == "privlevel_floor" and self.floor is not None:
            return self.floor
        if attribute == "auxblob" and self.aux is not None:
            return self.aux
        if attribute == "outblob":
            if self.busy:
                self.busy -= 1
                raise OSError(errno.EWOULDBLOCK, "would block")
            if self.intruder:
                self.intruder -= 1
                self.generation[name] += 1
            if entry.get("service_provider") == b"svsm":
                assert entry["service_guid"] == b"c476f1eb-0123-45a5-9641-b4e7dde5bfe3"
                assert entry["service_manifest_version"] == b"0"
                assert "privlevel" not in entry
                assert self.manifest is not None
                return self.svsm_report(sha512(entry["inblob"] + self.manifest).digest())
            return self.report(entry["inblob"])
        if attribute == "manifestblob" and self.manifest is not None:
            return self.manifest
        raise FileNotFoundError(attribute)

    def write(self, name: str, attribute: str, value: bytes) -> None:
        if attribute.startswith("service_") and self.manifest is None:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory")
        self.entries[name][attribute] = value
        self.generation[name] += 1

    def remove(self, name: str) -> None:
        del self.entries[name]


def quoting(tsm: FakeTsm) -> SnpTsm:
    return SnpTsm(tsm, pause=lambda _seconds: None)


def test_tsm_report_and_certificates() -> None:
    tsm = FakeTsm()
    quote = quoting(tsm).quote(DATA)
    assert quote.raw == make_report(DATA)
    assert list(quote.endorsements) == DER
    assert tsm.entries == {}


@pytest.mark.parametrize("aux", [None, b"", bytes(4096), b"\x05" * 100, make_table(DER)[:200]])
def test_tsm_report_stands_whatever_the_hosts_table_is(aux: bytes | None) -> None:
    tsm = FakeTsm()
    tsm.aux = aux
    quote = quoting(tsm).quote(DATA)
    assert quote.raw == make_report(DATA)
    assert quote.endorsements == ()


def test_tsm_asks_for_the_least_privilege_level_it_may() -> None:
    tsm = FakeTsm()
    tsm.floor = b"2\n"
    seen: list[bytes] = []
    write = tsm.write

    def watch(name: str, attribute: str, value: bytes) -> None:
        if attribute == "privlevel":
            seen.append(value)
        write(name, attribute, value)

    tsm.write = watch  # type: ignore[method-assign] # the fake is watched here alone
    quote = quoting(tsm).quote(DATA)
    assert quote.raw == make_report(DATA)
    assert quote.svsm is None  # this kernel has no service_provider
    assert seen == [b"2"]
    tsm.floor = None
    assert quoting(tsm).quote(DATA).raw == make_report(DATA)


def test_an_svsm_is_asked_about_its_vtpm() -> None:
    tsm = FakeTsm()
    tsm.floor, tsm.manifest = b"2\n", b"the EK's public area"
    svsm = quoting(tsm).quote(DATA).svsm
    assert svsm is not None
    assert svsm.manifest == tsm.manifest
    assert svsm.report[0x50:0x90] == sha512(DATA + tsm.manifest).digest()
    assert tsm.entries == {}
    tsm.floor = b"0\n"  # nothing runs below us
    assert quoting(tsm).quote(DATA).svsm is None


def test_an_svsm_that_does_not_answer_costs_one_line(caplog: pytest.LogCaptureFixture) -> None:
    tsm = FakeTsm()
    tsm.floor = b"2\n"
    device = quoting(tsm)
    for _ in range(3):
        assert device.quote(DATA).svsm is None
    assert caplog.text.count("vouches for no vTPM") == 1
    assert "No such file" in caplog.text
    tsm.manifest, tsm.svsm_report = b"manifest", lambda _data: make_report(DATA)
    caplog.clear()
    assert quoting(tsm).quote(DATA).svsm is None
    assert "other report_data" in caplog.text


def test_tsm_tries_again_when_another_process_wrote_or_the_kernel_is_busy() -> None:
    tsm = FakeTsm()
    tsm.intruder, tsm.busy = 2, 2
    assert quoting(tsm).quote(DATA).raw == make_report(DATA)
    assert tsm.made == 5
    tsm.intruder = 99
    with pytest.raises(AttesterError, match="written to by another process"):
        quoting(tsm).quote(DATA)
    tsm.intruder, tsm.busy = 0, 99
    with pytest.raises(AttesterError, match="would block"):
        quoting(tsm).quote(DATA)
    assert tsm.entries == {}


def test_tsm_refuses_what_was_not_asked_for() -> None:
    tsm = FakeTsm()
    tsm.report = lambda _data: make_report(bytes(64))
    with pytest.raises(AttesterError, match="other report_data"):
        quoting(tsm).quote(DATA)
    tsm.report = lambda data: make_report(data)[:-1]
    with pytest.raises(AttesterError, match="1183 bytes"):
        quoting(tsm).quote(DATA)
    assert tsm.entries == {}


def test_tsm_errors_are_one_line() -> None:
    tsm = FakeTsm()
    tsm.provider = b"tdx_guest\n"
    assert provider(tsm) == b"tdx_guest"
    with pytest.raises(AttesterError, match="tdx_guest"):
        quoting(tsm).quote(DATA)
    tsm.mkdir_error = errno.ENXIO
    with pytest.raises(AttesterError, match="configfs-tsm: mkdir"):
        quoting(tsm).quote(DATA)
    with pytest.raises(AttesterError, match="64 bytes, not 63"):
        quoting(tsm).quote(DATA[:-1])


def test_tsm_files(tmp_path: Path) -> None:
    files = TsmFiles(tmp_path)
    files.make("entry")
    with pytest.raises(FileExistsError):
        files.make("entry")
    with pytest.raises(FileNotFoundError):  # an attribute that this kernel does not have; nothing is made
        files.write("entry", "inblob", DATA)
    (tmp_path / "entry" / "inblob").touch()
    files.write("entry", "inblob", DATA)
    assert files.read("entry", "inblob") == DATA
    (tmp_path / "entry" / "inblob").write_bytes(bytes(129 * 1024))
    with pytest.raises(OSError, match="large"):
        files.read("entry", "inblob")
    (tmp_path / "entry" / "inblob").unlink()
    files.remove("entry")
    assert list(tmp_path.iterdir()) == []


class FakeGuest:
    """The driver behind /dev/sev-guest: reads and writes user memory at the addresses that it is given."""

    EXT, PLAIN = 0xC0205302, 0xC0205300

    def __init__(self) -> None:
        self.table = make_table(DER)
        self.status = 0
        self.size = 1184
        self.report: Callable[[bytes], bytes] = make_report
        self.fail: dict[int, list[tuple[int, int]]] = {}
        self.calls: list[int] = []
        self.vmpl: list[int] = []

    def ioctl(self, _descriptor: int, number: int, argument: bytearray) -> int:
        self.calls.append(number)
        assert len(argument) == 32
        version, asked, answer = struct.unpack_from("<B7xQQ", argument)
        assert version == 1
        if self.fail.get(number):
            code, host = self.fail[number].pop(0)
            struct.pack_into("<II", argument, 24, 0, host)
            raise OSError(code, "refused")
        data, vmpl = struct.unpack("<64sI", ctypes.string_at(asked, 68))
        assert ctypes.string_at(asked + 68, 28) == bytes(28)
        self.vmpl.append(vmpl)
        if number == self.EXT:
            address, length = struct.unpack("<QI", ctypes.string_at(asked + 96, 12))
            assert length % 4096 == 0
            assert len(self.table) <= length
            ctypes.memmove(address, self.table, len(self.table))
        response = struct.pack("<II24x", self.status, self.size) + self.report(data)
        ctypes.memmove(answer, response, len(response))
        return 0


@pytest.fixture
def guest() -> FakeGuest:
    return FakeGuest()


@pytest.fixture
def device(guest: FakeGuest, tmp_path: Path) -> SnpIoctl:
    path = tmp_path / "sev-guest"
    path.touch()
    return SnpIoctl(path, ioctl=guest.ioctl, pause=lambda _seconds: None)


def test_ioctl_report_and_certificates(guest: FakeGuest, device: SnpIoctl) -> None:
    quote = device.quote(DATA)
    assert quote.raw == make_report(DATA)
    assert list(quote.endorsements) == DER
    assert guest.calls == [FakeGuest.EXT]
    assert guest.vmpl == [0]


def test_ioctl_without_certificates(guest: FakeGuest, device: SnpIoctl) -> None:
    guest.table = b""
    assert device.quote(DATA).endorsements == ()


def test_ioctl_falls_back_to_the_plain_report(guest: FakeGuest, device: SnpIoctl) -> None:
    guest.fail[FakeGuest.EXT] = [(errno.EIO, 3)]
    quote = device.quote(DATA)
    assert quote.raw == make_report(DATA)
    assert quote.endorsements == ()
    assert guest.calls == [FakeGuest.EXT, FakeGuest.PLAIN]


def test_ioctl_waits_for_a_busy_host(guest: FakeGuest, device: SnpIoctl) -> None:
    guest.fail[FakeGuest.EXT] = [(errno.EIO, 2), (errno.EAGAIN, 0)]
    assert list(device.quote(DATA).endorsements) == DER
    assert guest.calls == [FakeGuest.EXT] * 3


def test_ioctl_gives_up_with_the_codes(guest: FakeGuest, device: SnpIoctl) -> None:
    guest.fail = {FakeGuest.EXT: [(errno.EIO, 3)], FakeGuest.PLAIN: [(errno.EIO, 2)] * 99}
    with pytest.raises(AttesterError, match=r"refused .firmware error 0x0, host error 0x2."):
        device.quote(DATA)


def test_ioctl_refuses_what_was_not_asked_for(guest: FakeGuest, device: SnpIoctl) -> None:
    guest.report = lambda _data: make_report(bytes(64))
    with pytest.raises(AttesterError, match="other report_data"):
        device.quote(DATA)
    guest.report, guest.status = make_report, 0x16
    with pytest.raises(AttesterError, match="status 0x16"):
        device.quote(DATA)
    guest.status, guest.size = 0, 4096
    with pytest.raises(AttesterError, match="4096 bytes"):
        device.quote(DATA)
    with pytest.raises(AttesterError, match="64 bytes, not 0"):
        device.quote(b"")


def test_ioctl_without_device(tmp_path: Path) -> None:
    with pytest.raises(AttesterError, match=r"sev-guest: No such file"):
        SnpIoctl(tmp_path / "sev-guest").quote(DATA)


def test_ioctl_on_a_file_that_is_no_such_device(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(AttesterError, match="Inappropriate ioctl"):
        SnpIoctl(tmp_path / "file", pause=lambda _seconds: None).quote(DATA)
