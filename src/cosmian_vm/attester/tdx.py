"""Intel TDX quotes: configfs-tsm (Linux 6.7), and /dev/tdx_guest with the host's quote generation service before it.

The older way: the driver gives a TDREPORT (include/uapi/linux/tdx-guest.h), which only the processor that made it can
check; a quoting enclave on the host turns it into a quote. The messages to it are those of Intel's qgs_msg_lib.h
(SGXDataCenterAttestationPrimitives, QuoteGeneration/quote_wrapper/qgs_msg_lib), little-endian, over vsock::

    u32 big-endian   length of the message that follows
    u16 major version (1)   u16 minor version   u32 type   u32 size of the message   u32 error code
    GET_QUOTE_REQ  (0): u32 report size, u32 id list size, report, id list
    GET_QUOTE_RESP (1): u32 selected id size, u32 quote size, selected id, quote
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

from cosmian_vm.attester._intel import REPORT_DATA_SIZE, check_quote, check_size
from cosmian_vm.attester._places import TDX_DRIVER, TDX_GUEST
from cosmian_vm.attester._tsm import Tsm, TsmEntries
from cosmian_vm.attester.platform import TeeQuote
from cosmian_vm.errors import AttesterError
from cosmian_vm.evidence.bundle import TeeKind
from cosmian_vm.evidence.tdx import TDREPORT_SIZE

__all__ = ["TdxIoctl", "TdxTsm", "host_service"]

_WHAT = "TDX quote"
_GET_REPORT0 = 0xC4405401  # _IOWR('T', 1, struct tdx_report_req): u8 reportdata[64], u8 tdreport[1024]
_TDREPORT_DATA = slice(128, 192)  # REPORTMACSTRUCT.REPORTDATA

_HOST_CID, _QGS_PORT = 2, 4050  # VMADDR_CID_HOST; the port of Intel's qgs.conf
_QGS_SECONDS = 10.0
_LENGTH = struct.Struct(">I")
_MESSAGE = struct.Struct("<HHIIIII")  # header (16 bytes), and the two sizes that both messages begin with
_MAJOR_VERSION, _MINOR_VERSION = 1, 0
_GET_QUOTE_REQ, _GET_QUOTE_RESP = 0, 1
_MAX_MESSAGE = 128 * 1024

Ioctl = Callable[[int, int, bytearray], int]
Connector = Callable[[], socket.socket]


class TdxTsm:
    """A TeeDevice over configfs-tsm. ``entries``: the real ones where None."""

    def __init__(self, entries: TsmEntries | None = None, *, pause: Callable[[float], None] = time.sleep) -> None:
        self._tsm = Tsm(TDX_DRIVER, _WHAT, entries, pause=pause)

    @property
    def kind(self) -> TeeKind:
        """TDX."""
        return TeeKind.TDX

    def quote(self, report_data: bytes) -> TeeQuote:
        """A quote over exactly 64 bytes. Raises AttesterError."""
        check_size(report_data, _WHAT)
        raw = self._tsm.report(report_data).out
        check_quote(raw, TeeKind.TDX, report_data, _WHAT)
        return TeeQuote(raw=raw)


def host_service() -> socket.socket:
    """A connection to the host's quote generation service. Raises OSError."""
    connection = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    try:
        connection.settimeout(_QGS_SECONDS)
        connection.connect((_HOST_CID, _QGS_PORT))
    except BaseException:
        connection.close()
        raise
    return connection


def _ioctl(descriptor: int, request: int, argument: bytearray) -> int:
    result: int = fcntl.ioctl(descriptor, request, argument, True)  # the kernel's answer comes back in argument
    return result


class TdxIoctl:
    """A TeeDevice over /dev/tdx_guest, for kernels without configfs-tsm. ``connect``: to the quote generation service,
    once for each quote.
    """

    def __init__(self, device: Path = TDX_GUEST, *, ioctl: Ioctl = _ioctl, connect: Connector = host_service) -> None:
        self._device = device
        self._ioctl = ioctl
        self._connect = connect
        self._lock = threading.Lock()

    @property
    def kind(self) -> TeeKind:
        """TDX."""
        return TeeKind.TDX

    def quote(self, report_data: bytes) -> TeeQuote:
        """A quote over exactly 64 bytes. Raises AttesterError."""
        check_size(report_data, _WHAT)
        with self._lock:
            raw = self._quoted(self._report(report_data))
        check_quote(raw, TeeKind.TDX, report_data, _WHAT)
        return TeeQuote(raw=raw)

    def _report(self, report_data: bytes) -> bytes:
        """TDREPORT_STRUCT, 1024 bytes."""
        argument = bytearray(report_data + bytes(TDREPORT_SIZE))
        try:
            descriptor = os.open(self._device, os.O_RDWR | os.O_CLOEXEC)
            try:
                self._ioctl(descriptor, _GET_REPORT0, argument)
            finally:
                os.close(descriptor)
        except OSError as exc:
            raise AttesterError(f"{_WHAT}: {self._device}: {exc.strerror or exc}") from exc
        report = bytes(argument[REPORT_DATA_SIZE:])
        if report[_TDREPORT_DATA] != report_data:
            raise AttesterError(f"{_WHAT}: the TDREPORT carries other report_data than was asked for")
        return report

    def _quoted(self, report: bytes) -> bytes:
        """The quote that the host's service makes of a TDREPORT."""
        size = _MESSAGE.size + len(report)
        request = _MESSAGE.pack(_MAJOR_VERSION, _MINOR_VERSION, _GET_QUOTE_REQ, size, 0, len(report), 0) + report
        deadline = time.monotonic() + _QGS_SECONDS
        try:
            with self._connect() as connection:
                connection.settimeout(_QGS_SECONDS)
                connection.sendall(_LENGTH.pack(size) + request)
                (length,) = _LENGTH.unpack(_receive(connection, _LENGTH.size, deadline))
                if not _MESSAGE.size <= length <= _MAX_MESSAGE:
                    raise _answer(f"a message of {length} bytes")
                answer = _receive(connection, length, deadline)
        except OSError as exc:
            reason = "no answer" if isinstance(exc, TimeoutError) else exc.strerror or str(exc)
            raise AttesterError(
                f"{_WHAT}: the host's quote generation service (vsock port {_QGS_PORT}): {reason}"
            ) from exc
        return _quote_of(answer)


def _quote_of(answer: bytes) -> bytes:
    """The quote in a GET_QUOTE_RESP, which nobody vouches for. Raises AttesterError."""
    major, _minor, kind, size, error, id_size, quote_size = _MESSAGE.unpack_from(answer)
    if major != _MAJOR_VERSION or kind != _GET_QUOTE_RESP or size != len(answer):
        raise _answer(f"version {major}, type {kind}, {size} bytes in a message of {len(answer)}")
    if error:
        raise _answer(f"error {error:#x}")
    if _MESSAGE.size + id_size + quote_size != len(answer):
        raise _answer(f"an id of {id_size} and a quote of {quote_size} bytes in a message of {len(answer)}")
    return answer[_MESSAGE.size + id_size :]


def _receive(connection: socket.socket, size: int, deadline: float) -> bytes:
    """Exactly ``size`` bytes. Raises OSError."""
    parts: list[bytes] = []
    while size:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        part = connection.recv(size)
        if not part:
            raise ConnectionResetError("it closed the connection")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _answer(problem: str) -> AttesterError:
    return AttesterError(f"{_WHAT}: the host's quote generation service answers {problem}")
