"""Keys that the processor derives for this TEE and for no other: AMD SEV-SNP by ioctl, Intel SGX by Gramine.

SEV-SNP: the firmware mixes the chip's key (VCEK), which changes with the host's firmware level, with the guest's launch
policy and launch measurement. The measurement covers the virtual firmware alone: whoever starts a guest of the same
firmware and policy on the same chip derives the same key. SGX: the sealing key of this very enclave (MRENCLAVE).

Sources: include/uapi/linux/sev-guest.h; AMD 56860, "MSG_KEY_REQ", "MSG_KEY_RSP"; Gramine, "Attestation and Secret
Provisioning", /dev/attestation/keys.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cosmian_vm.errors import AttesterError, NotAvailableError

__all__ = ["GRAMINE_KEYS", "TeeKey", "gramine_key", "snp_key", "tee_key"]

GRAMINE_KEYS = Path("dev/attestation/keys")
_SEV_GUEST = Path("dev/sev-guest")

_GRAMINE_KEY_SIZE = 16
_SNP_KEY_SIZE = 32

# struct snp_derived_key_req: root_key_select u32, rsvd u32, guest_field_select u64, vmpl u32, guest_svn u32,
# tcb_version u64; little-endian, 32 bytes
_KEY_REQUEST = struct.Struct("<IIQIIQ")
_ROOT_VCEK = 0
_MIX_POLICY, _MIX_MEASUREMENT = 1 << 0, 1 << 3
# struct snp_derived_key_resp: 64 bytes; of MSG_KEY_RSP: status u32, 28 reserved, the key at 0x20
_KEY_RESPONSE_SIZE = 64
_KEY_RESPONSE = struct.Struct("<I28x32s")
_SNP_GET_DERIVED_KEY = 0xC0205301  # _IOWR('S', 0x1, struct snp_guest_request_ioctl)
_REQUEST = struct.Struct("<B7xQQII")  # msg_version, req_data, resp_data, fw_error, vmm_error: 32 bytes
_VMM_BUSY = 2  # GHCB: SNP_GUEST_VMM_ERR_BUSY
_ATTEMPTS = 8
_FIRST_PAUSE = 0.05

_Ioctl = Callable[[int, int, bytearray], int]


class TeeKey(NamedTuple):
    """``raw``: the key, secret. ``platform``: whose it is, "sev-snp" or "sgx"."""

    raw: bytes
    platform: str

    def __repr__(self) -> str:
        """Without the key."""
        return f"TeeKey({self.platform})"


def tee_key(root: Path = Path("/")) -> TeeKey:
    """The key of the TEE that this process runs in. ``root`` stands for ``/`` in tests.

    Raises NotAvailableError where the platform has none, AttesterError where it cannot be had.
    """
    if (root / GRAMINE_KEYS).is_dir():
        return gramine_key(root / GRAMINE_KEYS)
    if (root / _SEV_GUEST).exists():
        return snp_key(root / _SEV_GUEST)
    raise NotAvailableError(
        "this machine derives no key: AMD SEV-SNP (/dev/sev-guest) and Intel SGX under Gramine do, Intel TDX and "
        "confidential VMs of Azure do not"
    )


def gramine_key(folder: Path = Path("/") / GRAMINE_KEYS, name: str = "_sgx_mrenclave") -> TeeKey:
    """A sealing key of the enclave, 16 bytes: ``_sgx_mrenclave`` of this very enclave, ``_sgx_mrsigner`` of all that
    the same key has signed. Raises AttesterError.
    """
    path = folder / name
    try:
        with path.open("rb", buffering=0) as file:
            raw = file.read(_GRAMINE_KEY_SIZE + 1)
    except OSError as exc:
        raise AttesterError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    if len(raw) != _GRAMINE_KEY_SIZE or not any(raw):
        raise AttesterError(
            f"{path}: holds no sealing key; expected are {_GRAMINE_KEY_SIZE} bytes (is this an enclave?)"
        )
    return TeeKey(raw, "sgx")


def _ioctl(descriptor: int, request: int, argument: bytearray) -> int:
    result: int = fcntl.ioctl(descriptor, request, argument, True)  # the kernel's answer comes back in argument
    return result


def snp_key(
    device: Path = Path("/") / _SEV_GUEST,
    *,
    ioctl: _Ioctl = _ioctl,
    pause: Callable[[float], None] = time.sleep,
) -> TeeKey:
    """MSG_KEY_REQ with the VCEK as root, launch policy and measurement mixed in, VMPL 0: 32 bytes.

    Raises AttesterError.
    """
    asked = ctypes.create_string_buffer(_KEY_REQUEST.pack(_ROOT_VCEK, 0, _MIX_POLICY | _MIX_MEASUREMENT, 0, 0, 0))
    answer = ctypes.create_string_buffer(_KEY_RESPONSE_SIZE)
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as exc:
        hint = " (run this as root)" if exc.errno in (errno.EACCES, errno.EPERM) else ""
        raise AttesterError(f"{device}: cannot be opened: {exc.strerror or exc}{hint}") from exc
    try:
        _request(descriptor, asked, answer, ioctl, pause)
        status, raw = _KEY_RESPONSE.unpack(answer.raw)
    except OSError as exc:
        raise AttesterError(f"SEV-SNP derived key: {device}: {exc.strerror or exc}") from exc
    finally:
        ctypes.memset(answer, 0, _KEY_RESPONSE_SIZE)
        os.close(descriptor)
    if status or not any(raw):
        raise AttesterError(f"SEV-SNP derived key: the firmware answers status {status:#x} and no key")
    return TeeKey(raw, "sev-snp")


def _request(
    descriptor: int,
    asked: ctypes.Array[ctypes.c_char],
    answer: ctypes.Array[ctypes.c_char],
    ioctl: _Ioctl,
    pause: Callable[[float], None],
) -> None:
    """One request; again while host or firmware are busy. Raises OSError."""
    for attempt in range(_ATTEMPTS):
        argument = bytearray(_REQUEST.pack(1, ctypes.addressof(asked), ctypes.addressof(answer), 0, 0))
        try:
            ioctl(descriptor, _SNP_GET_DERIVED_KEY, argument)
        except OSError as exc:
            *_, firmware, host = _REQUEST.unpack(argument)
            busy = host == _VMM_BUSY or exc.errno in (errno.EAGAIN, errno.EBUSY, errno.EINTR)
            if not busy or attempt == _ATTEMPTS - 1:
                reason = f"{exc.strerror} (firmware error {firmware:#x}, host error {host:#x})"
                raise OSError(exc.errno, reason) from exc
            pause(_FIRST_PAUSE * 2**attempt)
        else:
            return
