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
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha512
from pathlib import Path

from cosmian_vm.attester._places import SEV_GUEST, SNP_DRIVER
from cosmian_vm.attester._tsm import Tsm, TsmEntries
from cosmian_vm.attester.platform import TeeQuote
from cosmian_vm.errors import AttesterError, EvidenceFormatError
from cosmian_vm.evidence.bundle import SvsmReport, TeeKind
from cosmian_vm.evidence.snp import REPORT_SIZE, parse_certificates

__all__ = ["SnpIoctl", "SnpTsm"]

_WHAT = "SEV-SNP report"
_VTPM_SERVICE = (
    ("service_provider", b"svsm"),
    ("service_guid", b"c476f1eb-0123-45a5-9641-b4e7dde5bfe3"),  # AMD 58019, section 8: the vTPM service
    ("service_manifest_version", b"0"),
)

_REPORT_DATA_SIZE = 64
_REPORT_DATA = slice(0x50, 0x90)  # AMD 56860, table "ATTESTATION_REPORT Structure"
_ATTEMPTS = 8
_FIRST_PAUSE = 0.05

_log = logging.getLogger(__name__)


class SnpTsm:
    """A TeeDevice over configfs-tsm. Where an SVSM runs below us, it is asked about its vTPM too.

    ``entries``: the real ones where None.
    """

    def __init__(self, entries: TsmEntries | None = None, *, pause: Callable[[float], None] = time.sleep) -> None:
        self._tsm = Tsm(SNP_DRIVER, _WHAT, entries, pause=pause)
        self._svsm_is_silent = False

    @property
    def kind(self) -> TeeKind:
        """SEV-SNP."""
        return TeeKind.SNP

    def quote(self, report_data: bytes) -> TeeQuote:
        """A report over exactly 64 bytes. Raises AttesterError."""
        _check_size(report_data)
        blobs = self._tsm.report(report_data)
        quote = _quote(blobs.out, blobs.aux, report_data)
        return replace(quote, svsm=self._svsm(report_data)) if blobs.floor else quote

    def _svsm(self, report_data: bytes) -> SvsmReport | None:
        """What the SVSM says of its vTPM; None, and one line in the log, where it or the kernel (before 6.10) does not.

        AMD 58019 "Secure VM Service Module", section 7, SVSM_ATTEST_SINGLE_SERVICE: the report is that of VMPL 0, so no
        privilege level is asked for.
        """
        try:
            blobs = self._tsm.report(report_data, options=_VTPM_SERVICE, aux="manifestblob", at_floor=False)
            raw = _whole(blobs.out)
            if raw[_REPORT_DATA] != sha512(report_data + blobs.aux).digest():
                raise AttesterError(f"{_WHAT}: the SVSM's carries other report_data than was asked for")
        except AttesterError as exc:
            if not self._svsm_is_silent:
                _log.warning("the SVSM below this guest vouches for no vTPM: %s", exc)
            self._svsm_is_silent = True
            return None
        return SvsmReport(report=raw, manifest=blobs.aux)


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
                raise AttesterError(f"{_WHAT}: the firmware answers status {status:#x} and {size} bytes")
            return answer.raw[_RESPONSE_HEAD.size : _RESPONSE_HEAD.size + size]
        raise AssertionError("the last attempt returns or raises")


def _check_size(report_data: bytes) -> None:
    if len(report_data) != _REPORT_DATA_SIZE:
        raise AttesterError(f"{_WHAT}: report_data must be {_REPORT_DATA_SIZE} bytes, not {len(report_data)}")


def _failed(where: str, exc: OSError) -> AttesterError:
    return AttesterError(f"{_WHAT}: {where}: {exc.strerror or exc}")


def _quote(raw: bytes, table: bytes, report_data: bytes) -> TeeQuote:
    """Check that this is the report that was asked for, and take the certificates out of the host's table.

    Nothing else of the report is looked at: a version that this release does not know is the verifier's business.
    """
    raw = _whole(raw)
    if raw[_REPORT_DATA] != report_data:
        raise AttesterError(f"{_WHAT}: it carries other report_data than was asked for")
    try:
        found = parse_certificates(table) if any(table) else None
    except EvidenceFormatError as exc:
        _log.warning("the host's certificate table is left out: %s", exc)
        found = None
    return TeeQuote(raw=raw, endorsements=() if found is None else (*found.certificates, *found.crls))


def _whole(raw: bytes) -> bytes:
    raw = raw[:REPORT_SIZE]
    if len(raw) != REPORT_SIZE:
        raise AttesterError(f"{_WHAT}: the firmware answers {len(raw)} bytes, not {REPORT_SIZE}")
    return raw
