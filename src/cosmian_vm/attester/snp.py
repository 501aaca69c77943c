"""AMD SEV-SNP reports from the Linux guest driver: configfs-tsm (Linux 6.7), and the ioctl of /dev/sev-guest before it.

Both give the 1184-byte ATTESTATION_REPORT, and the certificate table that the host may have put beside it (GHCB
specification 2.03, section 4.1.8.1). The table is the host's word: whatever is wrong with it, the report stands.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import secrets
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cosmian_vm.attester.platform import TeeQuote
from cosmian_vm.errors import AttesterError, EvidenceFormatError
from cosmian_vm.evidence.bundle import TeeKind
from cosmian_vm.evidence.snp import REPORT_SIZE, parse_certificates

__all__ = ["SEV_GUEST", "TSM_REPORT", "SnpIoctl", "SnpTsm", "TsmEntries", "TsmFiles"]

TSM_REPORT = Path("/sys/kernel/config/tsm/report")
SEV_GUEST = Path("/dev/sev-guest")

_REPORT_DATA_SIZE = 64
_REPORT_DATA = slice(0x50, 0x90)  # AMD 56860, table "ATTESTATION_REPORT Structure"
_ATTEMPTS = 8
_FIRST_PAUSE = 0.05
_MAX_BLOB = 128 * 1024

_log = logging.getLogger(__name__)


class TsmEntries(Protocol):
    """Report entries of configfs-tsm; every method raises OSError as the file system does."""

    def make(self, name: str) -> None:
        """mkdir: the kernel fills the entry with its attributes."""
        ...

    def read(self, name: str, attribute: str) -> bytes:
        """The whole of an attribute."""
        ...

    def write(self, name: str, attribute: str, value: bytes) -> None:
        """Write an attribute in one piece."""
        ...

    def remove(self, name: str) -> None:
        """Remove the entry (rmdir)."""
        ...


class TsmFiles:
    """The real ones, under ``base``."""

    def __init__(self, base: Path = TSM_REPORT) -> None:
        self._base = base

    def make(self, name: str) -> None:
        """See TsmEntries."""
        (self._base / name).mkdir(mode=0o700)

    def read(self, name: str, attribute: str) -> bytes:
        """See TsmEntries."""
        with (self._base / name / attribute).open("rb", buffering=0) as file:
            parts = []
            while part := file.read(_MAX_BLOB):
                parts.append(part)
                if sum(map(len, parts)) > _MAX_BLOB:
                    raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return b"".join(parts)

    def write(self, name: str, attribute: str, value: bytes) -> None:
        """See TsmEntries."""
        with (self._base / name / attribute).open("wb", buffering=0) as file:
            file.write(value)

    def remove(self, name: str) -> None:
        """See TsmEntries."""
        (self._base / name).rmdir()


class SnpTsm:
    """A TeeDevice over configfs-tsm (Documentation/ABI/testing/configfs-tsm-report).

    Each quote has an entry of its own, and ``generation`` must have counted our own writes alone: another process that
    writes into our entry cannot have its report_data signed in the place of ours.
    """

    PROVIDER = b"sev_guest"

    def __init__(self, entries: TsmEntries | None = None, *, pause: Callable[[float], None] = time.sleep) -> None:
        self._entries = TsmFiles() if entries is None else entries
        self._pause = pause

    @property
    def kind(self) -> TeeKind:
        """SEV-SNP."""
        return TeeKind.SNP

    def provider(self) -> bytes:
        """Name of the driver behind configfs-tsm (``sev_guest``, ``tdx_guest``). Raises AttesterError."""
        name = self._make()
        try:
            return self._entries.read(name, "provider").strip()
        except OSError as exc:
            raise _failed("configfs-tsm", exc) from exc
        finally:
            self._remove(name)

    def quote(self, report_data: bytes) -> TeeQuote:
        """A report over exactly 64 bytes. Raises AttesterError."""
        _check_size(report_data)
        last: OSError | None = None
        for attempt in range(_ATTEMPTS):
            name = self._make()
            try:
                quote = self._quote(name, report_data)
            except OSError as exc:
                if exc.errno not in (errno.EAGAIN, errno.EBUSY, errno.EINTR):
                    raise _failed("configfs-tsm", exc) from exc
                quote, last = None, exc
            finally:
                self._remove(name)
            if quote is not None:
                return quote
            self._pause(_FIRST_PAUSE * 2**attempt)
        reason = "its entry was written to by another process" if last is None else last.strerror or str(last)
        raise AttesterError(f"SEV-SNP report: none in {_ATTEMPTS} attempts over configfs-tsm: {reason}")

    def _quote(self, name: str, report_data: bytes) -> TeeQuote | None:
        """One attempt; None where somebody else wrote into the entry."""
        entries = self._entries
        provider = entries.read(name, "provider").strip()
        if provider != self.PROVIDER:
            raise AttesterError(
                f"SEV-SNP report: configfs-tsm is served by {provider.decode('ascii', 'replace')!r}, not by sev_guest"
            )
        writes = 0
        before = int(entries.read(name, "generation"))
        floor = self._privilege_floor(name)
        if floor:
            entries.write(name, "privlevel", b"%d" % floor)
            writes += 1
        entries.write(name, "inblob", report_data)
        writes += 1
        raw = entries.read(name, "outblob")
        try:
            table = entries.read(name, "auxblob")
        except FileNotFoundError:
            table = b""
        if int(entries.read(name, "generation")) != before + writes:
            return None
        return _quote(raw, table, report_data)

    def _privilege_floor(self, name: str) -> int:
        """Least VMPL that we may ask for: above 0 where an SVSM runs below us."""
        try:
            return int(self._entries.read(name, "privlevel_floor"))
        except FileNotFoundError:
            return 0

    def _make(self) -> str:
        name = f"cosmian_vm-{secrets.token_hex(8)}"
        try:
            self._entries.make(name)
        except OSError as exc:
            raise _failed("configfs-tsm", exc) from exc
        return name

    def _remove(self, name: str) -> None:
        try:
            self._entries.remove(name)
        except OSError as exc:
            _log.warning("configfs-tsm: the entry %s stays behind: %s", name, exc.strerror)


# include/uapi/linux/sev-guest.h, _IOWR('S', number, struct snp_guest_request_ioctl)
_SNP_GET_REPORT = 0xC0205300
_SNP_GET_EXT_REPORT = 0xC0205302
_REQUEST = struct.Struct("<B7xQQII")  # msg_version, req_data, resp_data, fw_error, vmm_error: 32 bytes
_REPORT_REQUEST = struct.Struct("<64sI28x")  # user_data, vmpl: 96 bytes
_EXT_REPORT_REQUEST = struct.Struct("<64sI28xQI4x")  # the same, certs_address, certs_len: 112 bytes
_RESPONSE_SIZE = 4000  # struct snp_report_resp: MSG_REPORT_RSP, AMD 56860, table 25
_RESPONSE_HEAD = struct.Struct("<II24x")  # status, report_size; the report stands at 0x20
_CERTS_SIZE = 0x4000  # SEV_FW_BLOB_MAX_SIZE: the most that the kernel takes, a multiple of the page size
_VMM_BUSY = 2  # GHCB: SNP_GUEST_VMM_ERR_BUSY

Ioctl = Callable[[int, int, bytearray], int]


def _ioctl(descriptor: int, request: int, argument: bytearray) -> int:
    result: int = fcntl.ioctl(descriptor, request, argument, True)  # the kernel's answer comes back in argument
    return result


class SnpIoctl:
    """A TeeDevice over /dev/sev-guest (Documentation/virt/coco/sev-guest.rst), for kernels without configfs-tsm."""

    def __init__(
        self,
        device: Path = SEV_GUEST,
        *,
        ioctl: Ioctl = _ioctl,
        vmpl: int = 0,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._device = device
        self._ioctl = ioctl
        self._vmpl = vmpl
        self._pause = pause
        self._lock = threading.Lock()

    @property
    def kind(self) -> TeeKind:
        """SEV-SNP."""
        return TeeKind.SNP

    def quote(self, report_data: bytes) -> TeeQuote:
        """A report over exactly 64 bytes, with the host's certificates where it has any. Raises AttesterError."""
        _check_size(report_data)
        with self._lock:
            try:
                descriptor = os.open(self._device, os.O_RDWR | os.O_CLOEXEC)
            except OSError as exc:
                raise _failed(str(self._device), exc) from exc
            try:
                try:
                    return self._extended(descriptor, report_data)
                except OSError as exc:
                    # A host that does not know the extended request: the plain one gives the same report.
                    _log.info("%s: no extended report: %s", self._device, exc.strerror)
                return self._plain(descriptor, report_data)
            except OSError as exc:
                raise _failed(str(self._device), exc) from exc
            finally:
                os.close(descriptor)

    def _extended(self, descriptor: int, report_data: bytes) -> TeeQuote:
        certificates = ctypes.create_string_buffer(_CERTS_SIZE)
        request = _EXT_REPORT_REQUEST.pack(report_data, self._vmpl, ctypes.addressof(certificates), _CERTS_SIZE)
        raw = self._request(descriptor, _SNP_GET_EXT_REPORT, request)
        return _quote(raw, certificates.raw, report_data)

    def _plain(self, descriptor: int, report_data: bytes) -> TeeQuote:
        request = _REPORT_REQUEST.pack(report_data, self._vmpl)
        return _quote(self._request(descriptor, _SNP_GET_REPORT, request), b"", report_data)

    def _request(self, descriptor: int, number: int, request: bytes) -> bytes:
        """One request; again while host or firmware are busy. Raises OSError, AttesterError."""
        asked = ctypes.create_string_buffer(request, len(request))
        answer = ctypes.create_string_buffer(_RESPONSE_SIZE)
        for attempt in range(_ATTEMPTS):
            argument = bytearray(_REQUEST.pack(1, ctypes.addressof(asked), ctypes.addressof(answer), 0, 0))
            try:
                self._ioctl(descriptor, number, argument)
            except OSError as exc:
                *_, firmware, host = _REQUEST.unpack(argument)
                busy = host == _VMM_BUSY or exc.errno in (errno.EAGAIN, errno.EBUSY, errno.EINTR)
                if not busy or attempt == _ATTEMPTS - 1:
                    reason = f"{exc.strerror} (firmware error {firmware:#x}, host error {host:#x})"
                    raise OSError(exc.errno, reason) from exc
                self._pause(_FIRST_PAUSE * 2**attempt)
                continue
            status, size = _RESPONSE_HEAD.unpack_from(answer.raw)
            if status or size != REPORT_SIZE:
                raise AttesterError(f"SEV-SNP report: the firmware answers status {status:#x} and {size} bytes")
            return answer.raw[_RESPONSE_HEAD.size : _RESPONSE_HEAD.size + size]
        raise AssertionError("the last attempt returns or raises")


def _check_size(report_data: bytes) -> None:
    if len(report_data) != _REPORT_DATA_SIZE:
        raise AttesterError(f"SEV-SNP report: report_data must be {_REPORT_DATA_SIZE} bytes, not {len(report_data)}")


def _failed(where: str, exc: OSError) -> AttesterError:
    return AttesterError(f"SEV-SNP report: {where}: {exc.strerror or exc}")


def _quote(raw: bytes, table: bytes, report_data: bytes) -> TeeQuote:
    """Check that this is the report that was asked for, and take the certificates out of the host's table.

    Nothing else of the report is looked at: a version that this release does not know is the verifier's business.
    """
    raw = raw[:REPORT_SIZE]
    if len(raw) != REPORT_SIZE:
        raise AttesterError(f"SEV-SNP report: the firmware answers {len(raw)} bytes, not {REPORT_SIZE}")
    if raw[_REPORT_DATA] != report_data:
        raise AttesterError("SEV-SNP report: it carries other report_data than was asked for")
    try:
        found = parse_certificates(table) if any(table) else None
    except EvidenceFormatError as exc:
        _log.warning("the host's certificate table is left out: %s", exc)
        found = None
    return TeeQuote(raw=raw, endorsements=() if found is None else (*found.certificates, *found.crls))
