"""Intel SGX quotes of this very enclave, through Gramine's files in /dev/attestation.

Source: Gramine, "Attestation and Secret Provisioning": ``attestation_type`` reads ``dcap``; 64 bytes are written to
``user_report_data``, after which reading ``quote`` gives a quote over them. The files are one state for the whole
process, so that writing and reading must not be interleaved.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

from cosmian_vm.attester._intel import check_quote, check_size
from cosmian_vm.attester._places import ATTESTATION
from cosmian_vm.attester.platform import TeeQuote
from cosmian_vm.errors import AttesterError
from cosmian_vm.evidence.bundle import TeeKind

__all__ = ["SgxGramine"]

_WHAT = "SGX quote"
_TYPE = b"dcap"
_MAX_QUOTE = 128 * 1024


class SgxGramine:
    """A TeeDevice over the files in ``base``."""

    def __init__(self, base: Path = ATTESTATION) -> None:
        self._base = base
        self._lock = threading.Lock()

    @property
    def kind(self) -> TeeKind:
        """SGX."""
        return TeeKind.SGX

    def quote(self, report_data: bytes) -> TeeQuote:
        """A quote over exactly 64 bytes. Raises AttesterError."""
        check_size(report_data, _WHAT)
        with self._lock:
            try:
                told = _read(self._base / "attestation_type", 64).strip()
                if told != _TYPE:
                    raise AttesterError(
                        f"{_WHAT}: Gramine's attestation_type is {told.decode('ascii', 'replace')!r}; the manifest "
                        'needs sgx.remote_attestation = "dcap"'
                    )
                _write(self._base / "user_report_data", report_data)
                raw = _read(self._base / "quote", _MAX_QUOTE)
            except OSError as exc:
                raise AttesterError(f"{_WHAT}: {exc.filename or self._base}: {exc.strerror or exc}") from exc
        check_quote(raw, TeeKind.SGX, report_data, _WHAT)
        return TeeQuote(raw=raw)


def _read(path: Path, limit: int) -> bytes:
    """The whole file, at most ``limit`` bytes. Raises OSError, AttesterError."""
    parts: list[bytes] = []
    with path.open("rb", buffering=0) as file:
        while part := file.read(limit + 1):
            parts.append(part)
            if sum(map(len, parts)) > limit:
                raise AttesterError(f"{_WHAT}: {path}: more than {limit} bytes")
    return b"".join(parts)


def _write(path: Path, value: bytes) -> None:
    """In one piece, into a file that is there. Raises OSError, AttesterError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        written = os.write(descriptor, value)
    finally:
        os.close(descriptor)
    if written != len(value):
        raise AttesterError(f"{_WHAT}: {path} took {written} of {len(value)} bytes")
