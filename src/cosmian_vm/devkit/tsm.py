"""configfs-tsm as the kernel has it, in memory: entries, their attributes, and simulated hardware behind them.

Written after Documentation/ABI/testing/configfs-tsm-report and drivers/virt/coco/tsm.c (Linux 6.7 to 6.10): a write
raises ``generation`` by one, ``outblob`` is made anew when it is first read after a write, EINVAL without ``inblob``.
``devkit.tsm_fs`` serves it as files.
"""

from __future__ import annotations

import errno
import os
import threading
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha384, sha512
from typing import NoReturn, Protocol

from cosmian_vm.devkit.amd import AmdVendor
from cosmian_vm.devkit.intel import IntelVendor, td_body

__all__ = ["WRITABLE", "SnpDriver", "TdxDriver", "TsmDriver", "TsmModel", "TsmOutput", "TsmRequest"]

WRITABLE = frozenset({"inblob", "privlevel", "service_provider", "service_guid", "service_manifest_version"})
"""Attributes that are written and never read; all others are read and never written."""

VTPM_SERVICE = uuid.UUID("c476f1eb-0123-45a5-9641-b4e7dde5bfe3")
_NO_SERVICE = uuid.UUID(int=0)
_MAX_INBLOB = 64
_MAX_PRIVLEVEL = 3
_MAX_NAME = 255
_COMMON = ("generation", "provider", "inblob", "outblob")
_GUIDS = tuple(
    uuid.UUID(text).bytes_le
    for text in (  # GHCB 2.03, table 9: VCEK, ASK, ARK
        "63da758d-e664-4564-adc5-f4b93be8accd",
        "4ab7b379-bbac-4fe4-a02f-05aef327c782",
        "c0b406a4-a803-4952-9743-3fb6014cd0ae",
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TsmRequest:
    """What was written into an entry."""

    inblob: bytes = b""
    privlevel: int = 0
    service_provider: str = ""
    service_guid: uuid.UUID = _NO_SERVICE
    service_manifest_version: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TsmOutput:
    """What the driver makes of it."""

    out: bytes
    aux: bytes = b""
    manifest: bytes = b""


class TsmDriver(Protocol):
    """The hardware's driver."""

    @property
    def name(self) -> str:
        """What ``provider`` tells."""
        ...

    @property
    def floor(self) -> int:
        """What ``privlevel_floor`` tells."""
        ...

    @property
    def attributes(self) -> tuple[str, ...]:
        """Those that its entries have beside the ones that all have."""
        ...

    def report(self, request: TsmRequest) -> TsmOutput:
        """A report. Raises OSError."""
        ...


@dataclass(kw_only=True)
class SnpDriver:
    """sev_guest. ``fields``: of the report, that differ from the vendor's. ``manifest``: the vTPM's, where an SVSM runs
    below the guest, which is at VMPL 2 then.
    """

    vendor: AmdVendor
    fields: Mapping[str, int | bytes] = field(default_factory=dict)
    manifest: bytes | None = None

    @property
    def name(self) -> str:
        """sev_guest."""
        return "sev_guest"

    @property
    def floor(self) -> int:
        """0, or 2 above an SVSM."""
        return 0 if self.manifest is None else 2

    @property
    def attributes(self) -> tuple[str, ...]:
        """Those of an SVSM are there where there is one."""
        own = ("auxblob", "privlevel", "privlevel_floor")
        svsm = ("service_provider", "service_guid", "service_manifest_version", "manifestblob")
        return own if self.manifest is None else own + svsm

    def report(self, request: TsmRequest) -> TsmOutput:
        """The guest's own report, or the SVSM's of VMPL 0 with the manifest."""
        if len(request.inblob) != _MAX_INBLOB:
            _fail(errno.EINVAL)
        if not request.service_provider:
            out = self.vendor.sign_report(**{**self.fields, "report_data": request.inblob, "vmpl": request.privlevel})
            return TsmOutput(out=out, aux=self.table())
        if (
            self.manifest is None
            or request.service_provider != "svsm"
            or request.service_guid != VTPM_SERVICE
            or request.service_manifest_version
        ):
            _fail(errno.EINVAL)
        bound = sha512(request.inblob + self.manifest).digest()
        out = self.vendor.sign_report(**{**self.fields, "report_data": bound, "vmpl": 0})
        return TsmOutput(out=out, aux=self.table(), manifest=self.manifest)

    def table(self) -> bytes:
        """The host's certificate table (GHCB 2.03, 4.1.8.1): GUID, offset, length for each; an entry of zeros; DER."""
        at = 24 * (len(_GUIDS) + 1)
        head, body = b"", b""
        for guid, der in zip(_GUIDS, self.vendor.certificates, strict=True):
            head += guid + (at + len(body)).to_bytes(4, "little") + len(der).to_bytes(4, "little")
            body += der
        return head + bytes(24) + body


@dataclass(kw_only=True)
class TdxDriver:
    """tdx_guest. ``fields``: of the TD's body. ``td_1_5``: version 5 quotes. ``trailing``: behind the quote."""

    vendor: IntelVendor
    fields: Mapping[str, bytes] = field(default_factory=lambda: {"mr_td": sha384(b"simulated firmware").digest()})
    td_1_5: bool = False
    trailing: bytes = b""

    @property
    def name(self) -> str:
        """tdx_guest."""
        return "tdx_guest"

    @property
    def floor(self) -> int:
        """0."""
        return 0

    @property
    def attributes(self) -> tuple[str, ...]:
        """None: a TD has no privilege levels."""
        return ()

    def report(self, request: TsmRequest) -> TsmOutput:
        """A quote."""
        if len(request.inblob) != _MAX_INBLOB:
            _fail(errno.EINVAL)
        body = td_body({**self.fields, "report_data": request.inblob}, td_1_5=self.td_1_5)
        return TsmOutput(out=self.vendor.quote(body) + self.trailing)


@dataclass
class _Entry:
    request: TsmRequest = field(default_factory=TsmRequest)
    writes: int = 0
    output: TsmOutput | None = None


class TsmModel:
    """The folder ``report``: an ``attester._tsm.TsmEntries``. Thread-safe; every method raises OSError as files do."""

    def __init__(self, driver: TsmDriver | None) -> None:
        self.driver = driver
        self._entries: dict[str, _Entry] = {}
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """The entries that there are."""
        with self._lock:
            return list(self._entries)

    def attributes(self, name: str) -> tuple[str, ...]:
        """Of an entry."""
        with self._lock:
            self._entry(name)
            return _COMMON + self._driver().attributes

    def make(self, name: str) -> None:
        """Make an entry (mkdir)."""
        with self._lock:
            if name in self._entries:
                _fail(errno.EEXIST)
            if not name or len(name) > _MAX_NAME:
                _fail(errno.EINVAL)
            self._driver()
            self._entries[name] = _Entry()

    def remove(self, name: str) -> None:
        """Remove an entry (rmdir)."""
        with self._lock:
            self._entry(name)
            del self._entries[name]

    def read(self, name: str, attribute: str) -> bytes:
        """The whole of an attribute."""
        with self._lock:
            entry, driver = self._entry(name), self._driver()
            if attribute not in _COMMON + driver.attributes:
                _fail(errno.ENOENT)
            if attribute in WRITABLE:
                _fail(errno.EACCES)
            numbers = {"generation": entry.writes, "privlevel_floor": driver.floor}
            if attribute in numbers:
                return b"%d\n" % numbers[attribute]
            if attribute == "provider":
                return driver.name.encode() + b"\n"
            if not entry.request.inblob:
                _fail(errno.EINVAL)
            if entry.output is None:
                entry.output = driver.report(entry.request)
            return {"outblob": entry.output.out, "auxblob": entry.output.aux, "manifestblob": entry.output.manifest}[
                attribute
            ]

    def write(self, name: str, attribute: str, value: bytes) -> None:
        """Write an attribute in one piece."""
        with self._lock:
            entry, driver = self._entry(name), self._driver()
            if attribute not in _COMMON + driver.attributes:
                _fail(errno.ENOENT)
            if attribute not in WRITABLE:
                _fail(errno.EACCES)
            counted = attribute.startswith("service_")  # the kernel counts these before it looks at them
            entry.writes += counted
            entry.output = None if counted else entry.output
            entry.request = _changed(entry.request, attribute, value, driver.floor)
            entry.writes += not counted
            entry.output = None

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            _fail(errno.ENOENT)
        return self._entries[name]

    def _driver(self) -> TsmDriver:
        if self.driver is None:
            _fail(errno.ENXIO)
        return self.driver


def _changed(request: TsmRequest, attribute: str, value: bytes, floor: int) -> TsmRequest:
    try:
        if attribute == "inblob":
            if len(value) > _MAX_INBLOB:
                _fail(errno.EFBIG)
            return replace(request, inblob=value)
        text = value.decode("ascii").strip()
        if attribute == "privlevel":
            if not floor <= int(text) <= _MAX_PRIVLEVEL:
                _fail(errno.EINVAL)
            return replace(request, privlevel=int(text))
        if attribute == "service_provider":
            return replace(request, service_provider=text)
        if attribute == "service_guid":
            return replace(request, service_guid=uuid.UUID(text))
        return replace(request, service_manifest_version=int(text))
    except ValueError:
        _fail(errno.EINVAL)


def _fail(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))
