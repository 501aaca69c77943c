"""TDX quotes over configfs-tsm and over the older device with the host's quote generation service."""

from __future__ import annotations

import errno
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.attester._intel import check_quote
from cosmian_vm.attester.tdx import TdxIoctl, TdxTsm, _quote_of
from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.intel import IntelVendor, Lies, enclave_report, td_body
from cosmian_vm.devkit.tsm import SnpDriver, TdxDriver, TsmModel
from cosmian_vm.errors import AttesterError
from cosmian_vm.evidence.bundle import TeeKind
from cosmian_vm.evidence.intel_quote import MAX_TRAILING, parse_quote

DATA = bytes(range(64))
KEYS = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"


@pytest.fixture(scope="module")
def vendor() -> IntelVendor:
    return IntelVendor.create()


def quoting(model: TsmModel) -> TdxTsm:
    return TdxTsm(model, pause=lambda _seconds: None)


@pytest.mark.parametrize("td_1_5", [False, True])
@pytest.mark.parametrize("trailing", [b"", bytes(3000), bytes(MAX_TRAILING)])
def test_tsm_quote(vendor: IntelVendor, td_1_5: bool, trailing: bytes) -> None:
    model = TsmModel(TdxDriver(vendor=vendor, td_1_5=td_1_5, trailing=trailing))
    device = quoting(model)
    quote = device.quote(DATA)
    parsed = parse_quote(quote.raw)
    assert device.kind is TeeKind.TDX
    assert parsed.header.version == (5 if td_1_5 else 4)
    assert parsed.body.report_data == DATA
    assert parsed.trailing == trailing
    assert (quote.endorsements, quote.svsm, quote.hcl_report) == ((), None, None)
    assert model.names == []


@dataclass
class Answering:
    """A driver that answers something else."""

    answer: Callable[[bytes], bytes]
    name: str = "tdx_guest"
    floor: int = 0
    attributes: tuple[str, ...] = field(default=())

    def report(self, request: object) -> object:
        from cosmian_vm.devkit.tsm import TsmOutput

        return TsmOutput(out=self.answer(request.inblob))  # type: ignore[attr-defined] # a TsmRequest


def test_tsm_refuses_what_was_not_asked_for(vendor: IntelVendor) -> None:
    def lie(answer: Callable[[bytes], bytes], match: str) -> None:
        with pytest.raises(AttesterError, match=match):
            quoting(TsmModel(Answering(answer))).quote(DATA)  # type: ignore[arg-type] # it is one by its shape

    def quote(data: bytes, **more: object) -> bytes:
        return vendor.quote(td_body(report_data=data), **more)  # type: ignore[arg-type]  # lies alone

    lie(lambda _data: quote(bytes(64)), "other report_data")
    lie(lambda data: vendor.quote(enclave_report(report_data=data)), "are no quote")
    lie(lambda data: quote(data, lies=Lies(trailing=bytes(MAX_TRAILING + 1))), "more than")
    lie(lambda _data: b"", "0 bytes")
    for size in (48, 630, 636, 1000):
        short = quote(DATA)[:size]
        lie(lambda _data, short=short: short, "other report_data|do not hold")  # type: ignore[misc] # bound now
    lie(lambda data: b"\x05" + quote(data)[1:], "is none of a TD")
    with pytest.raises(AttesterError, match="64 bytes, not 63"):
        quoting(TsmModel(TdxDriver(vendor=vendor))).quote(DATA[:-1])


def test_tsm_of_another_driver_is_refused() -> None:
    amd = AmdVendor.create(keys=VendorKeys.load(KEYS))
    with pytest.raises(AttesterError, match="served by 'sev_guest', not by tdx_guest"):
        quoting(TsmModel(SnpDriver(vendor=amd))).quote(DATA)


class Host:
    """/dev/tdx_guest, and the host's service on one end of a pair of sockets."""

    def __init__(self, vendor: IntelVendor) -> None:
        self.vendor = vendor
        self.answer: Callable[[bytes], bytes] | None = None
        self.report_data: bytes | None = None
        self.refusal: int | None = None
        self.asked: list[bytes] = []

    def ioctl(self, _descriptor: int, number: int, argument: bytearray) -> int:
        assert number == 0xC4405401
        assert len(argument) == 64 + 1024
        if self.refusal is not None:
            raise OSError(self.refusal, "refused")
        report = bytearray(1024)
        report[0] = 0x81
        report[128:192] = argument[:64] if self.report_data is None else self.report_data
        argument[64:] = report
        return 0

    def connect(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        threading.Thread(target=self.serve, args=(theirs,), daemon=True).start()
        return ours

    def serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream:
            (length,) = struct.unpack(">I", stream.read(4))
            request = stream.read(length)
            self.asked.append(request)
            with suppress(OSError):  # who asked may have gone
                connection.sendall((self.answer or self.honest)(request))

    def honest(self, request: bytes) -> bytes:
        major, minor, kind, size, error, report, ids = struct.unpack_from("<HHIIIII", request)
        assert (major, minor, kind, size, error, report, ids) == (1, 0, 0, len(request), 0, 1024, 0)
        return self.message(self.vendor.quote(td_body(report_data=request[24 + 128 : 24 + 192])))

    @staticmethod
    def message(made: bytes, *, chosen: bytes = b"", **other: int) -> bytes:
        size = 24 + len(chosen) + len(made)
        fields = {"major": 1, "minor": 1, "type": 1, "size": size, "error": 0, "id": len(chosen), "quote": len(made)}
        body = struct.pack("<HHIIIII", *(fields | other).values()) + chosen + made
        return struct.pack(">I", len(body)) + body


@pytest.fixture
def host(vendor: IntelVendor) -> Host:
    return Host(vendor)


@pytest.fixture
def device(host: Host, tmp_path: Path) -> TdxIoctl:
    (tmp_path / "tdx_guest").touch()
    return TdxIoctl(tmp_path / "tdx_guest", ioctl=host.ioctl, connect=host.connect)


def test_ioctl_quote_by_the_hosts_service(host: Host, device: TdxIoctl) -> None:
    assert device.kind is TeeKind.TDX
    assert parse_quote(device.quote(DATA).raw).body.report_data == DATA
    host.answer = lambda request: Host.message(host.honest(request)[28:], chosen=bytes(16))
    assert parse_quote(device.quote(DATA).raw).body.report_data == DATA
    assert len(host.asked) == 2


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (b"", "closed the connection"),
        (b"\0\0", "closed the connection"),
        (b"\0\0\0\x30" + bytes(8), "closed the connection"),
        (struct.pack(">I", 23) + bytes(23), "a message of 23 bytes"),
        (struct.pack(">I", 2**32 - 1), "a message of 4294967295 bytes"),
        (Host.message(b"quote", error=0x12001), "error 0x12001"),
        (Host.message(b"quote", major=2), "version 2"),
        (Host.message(b"quote", type=0), "type 0"),
        (Host.message(b"quote", size=99), "99 bytes in a message of 29"),
        (Host.message(b"quote", quote=2**32 - 1), "a quote of 4294967295 bytes"),
        (Host.message(b"quote", id=3), "an id of 3"),
        (Host.message(b"quote"), "are no quote"),
    ],
)
def test_ioctl_refuses_bad_answers(host: Host, device: TdxIoctl, answer: bytes, match: str) -> None:
    host.answer = lambda _request: answer
    with pytest.raises(AttesterError, match=match) as caught:
        device.quote(DATA)
    assert "\n" not in str(caught.value)


def test_ioctl_refuses_other_report_data(host: Host, device: TdxIoctl) -> None:
    host.report_data = bytes(64)
    with pytest.raises(AttesterError, match="TDREPORT carries other report_data"):
        device.quote(DATA)
    host.report_data = None
    host.answer = lambda _request: Host.message(host.vendor.quote(td_body()))
    with pytest.raises(AttesterError, match="other report_data"):
        device.quote(DATA)


def test_ioctl_that_fails(host: Host, device: TdxIoctl, tmp_path: Path) -> None:
    host.refusal = errno.EIO
    with pytest.raises(AttesterError, match="tdx_guest: refused"):
        device.quote(DATA)
    with pytest.raises(AttesterError, match="nothing: No such file"):
        TdxIoctl(tmp_path / "nothing").quote(DATA)
    with pytest.raises(AttesterError, match="64 bytes, not 65"):
        device.quote(DATA + b"\0")


def test_ioctl_without_a_service(host: Host, tmp_path: Path) -> None:
    def refuse() -> socket.socket:
        raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")

    (tmp_path / "tdx_guest").touch()
    with pytest.raises(AttesterError, match=r"quote generation service .vsock port 4050.: Connection reset"):
        TdxIoctl(tmp_path / "tdx_guest", ioctl=host.ioctl, connect=refuse).quote(DATA)


def test_ioctl_with_a_service_that_never_answers(host: Host, device: TdxIoctl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cosmian_vm.attester.tdx._QGS_SECONDS", 0.1)
    over = threading.Event()
    host.answer = lambda _request: bytes(over.wait(10))
    try:
        with pytest.raises(AttesterError, match="no answer"):
            device.quote(DATA)
    finally:
        over.set()


@pytest.fixture(scope="module")
def good_answer(vendor: IntelVendor) -> bytes:
    return Host.message(vendor.quote(td_body(report_data=DATA)), chosen=bytes(16))[4:]


def test_every_truncation_of_an_answer_is_refused(good_answer: bytes) -> None:
    for size in range(24, len(good_answer)):
        with pytest.raises(AttesterError):
            _quote_of(good_answer[:size])
    assert parse_quote(_quote_of(good_answer)).body.report_data == DATA


@given(st.binary(min_size=24, max_size=200))
def test_an_answer_of_any_bytes_is_a_quote_or_refused(raw: bytes) -> None:
    with suppress(AttesterError):
        assert raw.endswith(_quote_of(raw))


@given(st.binary(max_size=1500), st.sampled_from([TeeKind.SGX, TeeKind.TDX]))
def test_any_bytes_are_no_quote_or_carry_what_was_asked_for(raw: bytes, kind: TeeKind) -> None:
    for head in (b"", b"\x03\0\x02\0\0\0\0\0", b"\x04\0\x02\0\x81\0\0\0", b"\x05\0\x02\0\x81\0\0\0"):
        with suppress(AttesterError):
            check_quote(head + raw, kind, DATA, "quote")
            assert DATA in head + raw


def test_every_truncation_of_a_quote_is_refused(vendor: IntelVendor) -> None:
    for td_1_5 in (False, True):
        quote = vendor.quote(td_body(report_data=DATA, td_1_5=td_1_5))
        check_quote(quote, TeeKind.TDX, DATA, "quote")
        for size in range(len(quote)):
            with pytest.raises(AttesterError):
                check_quote(quote[:size], TeeKind.TDX, DATA, "quote")
