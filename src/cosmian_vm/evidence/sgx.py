"""Intel SGX enclave report body (REPORTBODY): what a quoting enclave says about an enclave, and what it is itself.

Source: Intel 64 and IA-32 Architectures SDM, volume 3D, table "Layout of REPORT"; Intel SGX ECDSA Quote Library API,
appendix A.4 "ISV Enclave Report Body". 384 bytes, little-endian.
"""

from __future__ import annotations

from dataclasses import dataclass

from cosmian_vm._reader import Reader

__all__ = ["ENCLAVE_REPORT_SIZE", "EnclaveReport", "parse_enclave_report", "read_enclave_report"]

ENCLAVE_REPORT_SIZE = 384
"""Size of a report body, in bytes."""

_FLAG_INIT, _FLAG_DEBUG, _FLAG_PROVISION_KEY = 0x01, 0x02, 0x10


@dataclass(frozen=True, slots=True, kw_only=True)
class EnclaveReport:
    """An enclave's identity, as the processor wrote it. ``raw``: the 384 bytes that were signed or hashed.

    ``cpu_svn``: 16 bytes, opaque. ``misc_select``: 4 bytes. ``isv_ext_prod_id`` 16, ``config_id`` 64, ``isv_family_id``
    16 bytes: zero unless the enclave uses Key Separation and Sharing. ``attributes``: FLAGS (8 bytes) and XFRM (8).
    ``mr_enclave``, ``mr_signer``: 32 bytes. ``report_data``: the enclave's own 64 bytes.
    """

    cpu_svn: bytes
    misc_select: bytes
    isv_ext_prod_id: bytes
    attributes: bytes
    mr_enclave: bytes
    mr_signer: bytes
    config_id: bytes
    isv_prod_id: int
    isv_svn: int
    config_svn: int
    isv_family_id: bytes
    report_data: bytes
    raw: bytes

    @property
    def debug(self) -> bool:
        """ATTRIBUTES.DEBUG: the host can read and write the enclave's memory."""
        return bool(self.attributes[0] & _FLAG_DEBUG)

    @property
    def initialised(self) -> bool:
        """ATTRIBUTES.INIT: EINIT ran on it."""
        return bool(self.attributes[0] & _FLAG_INIT)

    @property
    def provision_key(self) -> bool:
        """ATTRIBUTES.PROVISIONKEY: it may derive the provisioning key (Intel's own enclaves only, by launch policy)."""
        return bool(self.attributes[0] & _FLAG_PROVISION_KEY)


def read_enclave_report(reader: Reader, *, strict: bool = False) -> EnclaveReport:
    """The next 384 bytes of ``reader`` as a report body.

    ``strict``: reserved bytes must be zero; otherwise they are kept in ``raw`` alone (a quote's signature covers them).

    Raises EvidenceFormatError where bytes are missing.
    """
    start = reader.offset
    raw = reader.take(ENCLAVE_REPORT_SIZE, "enclave report")
    part = Reader(raw, "SGX enclave report", base=start)

    def reserved(size: int, name: str) -> None:
        if strict:
            part.zeros(size, name)
        else:
            part.take(size, name)

    cpu_svn = part.take(16, "cpu_svn")  # 0
    misc_select = part.take(4, "misc_select")  # 16
    reserved(12, "reserved1")  # 20
    isv_ext_prod_id = part.take(16, "isv_ext_prod_id")  # 32
    attributes = part.take(16, "attributes")  # 48
    mr_enclave = part.take(32, "mr_enclave")  # 64
    reserved(32, "reserved2")  # 96
    mr_signer = part.take(32, "mr_signer")  # 128
    reserved(32, "reserved3")  # 160
    config_id = part.take(64, "config_id")  # 192
    isv_prod_id = part.u16("isv_prod_id")  # 256
    isv_svn = part.u16("isv_svn")  # 258
    config_svn = part.u16("config_svn")  # 260
    reserved(42, "reserved4")  # 262
    isv_family_id = part.take(16, "isv_family_id")  # 304
    report_data = part.take(64, "report_data")  # 320
    part.end()  # 384
    return EnclaveReport(
        cpu_svn=cpu_svn,
        misc_select=misc_select,
        isv_ext_prod_id=isv_ext_prod_id,
        attributes=attributes,
        mr_enclave=mr_enclave,
        mr_signer=mr_signer,
        config_id=config_id,
        isv_prod_id=isv_prod_id,
        isv_svn=isv_svn,
        config_svn=config_svn,
        isv_family_id=isv_family_id,
        report_data=report_data,
        raw=raw,
    )


def parse_enclave_report(raw: bytes) -> EnclaveReport:
    """Parse a report body of exactly 384 bytes, reserved bytes zero.

    Raises EvidenceFormatError on another size or set reserved bytes.
    """
    reader = Reader(raw, "SGX enclave report")
    report = read_enclave_report(reader, strict=True)
    reader.end()
    return report
