"""Intel TDX: the TD report body inside a quote, and TDREPORT_STRUCT, which never leaves its machine meaningfully.

Sources: Intel TDX DCAP Quote Generation Library and Quote Verification Library API, appendix A.3 (TD Quote Body for
TDX 1.0, 1.5 and 1.5 with the service TD extension); Intel TDX Module ABI Specification (348551), tables
"TDREPORT_STRUCT", "REPORTMACSTRUCT", "TEE_TCB_INFO", "TDINFO_STRUCT", "TD Attributes". Little-endian.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha384

from cosmian_vm._reader import Reader

__all__ = [
    "RTMR_COUNT",
    "TDREPORT_SIZE",
    "TDX_BODY_SIZES",
    "TdReport",
    "TdReportBody",
    "TdServiceExtension",
    "parse_td_body",
    "parse_tdreport",
    "td_attribute_names",
]

TDX_BODY_SIZES = {2: 584, 3: 648, 4: 885}
"""Body type of a version 5 quote to the size of its TD report body: TDX 1.0, TDX 1.5, TDX 1.5 extended."""

TDREPORT_SIZE = 1024
"""Size of TDREPORT_STRUCT, in bytes."""

RTMR_COUNT = 4
"""Run-time measurement registers of a TD, 48 bytes each."""

_TDX_TYPE = 0x81  # REPORTTYPE.TYPE (TDX Module ABI, table "REPORTTYPE")

# TD Attributes (TDX Module ABI, table "TD Attributes"): bit to name
_ATTRIBUTES = {
    0: "DEBUG",
    4: "HGS_PLUS_PROF",
    5: "PERF_PROF",
    6: "PMT_PROF",
    16: "ICSSD",
    17: "SERVTD_EXT",
    27: "LASS",
    28: "SEPT_VE_DISABLE",
    29: "MIGRATABLE",
    30: "PKS",
    31: "KL",
    62: "TPA",
    63: "PERFMON",
}


def td_attribute_names(attributes: bytes) -> tuple[str, ...]:
    """Names of the bits set in ATTRIBUTES (8 bytes), lowest first; a bit without a name is ``bit N``."""
    value = int.from_bytes(attributes, "little")
    return tuple(_ATTRIBUTES.get(bit, f"bit {bit}") for bit in range(64) if value >> bit & 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TdServiceExtension:
    """What body type 4 adds: this TD's identity and its service TDs (TDX 1.5 with SERVTD_EXT).

    ``vmid`` 0-3; ``td_id`` 32, ``dev_info`` 48, hashes 48, attributes 8, ``init_tee_fmspc`` 12 bytes.
    """

    vmid: int
    td_id: bytes
    dev_info: bytes
    init_service_td_hash: bytes
    init_service_td_attributes: bytes
    init_cpu_svn: bytes
    init_tee_tcb_svn: bytes
    init_tee_fmspc: bytes
    cur_service_td_hash: bytes
    cur_service_td_attributes: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TdReportBody:
    """What the TDX module says about a TD. ``raw``: the bytes that the quote's signature covers.

    Measurements and identifiers (``mr_*``, ``rtmrs``) are SHA-384 values, 48 bytes; ``tee_tcb_svn`` 16 bytes, one SVN
    a byte; ``seam_attributes``, ``td_attributes``, ``xfam`` 8 bytes, bit masks; ``report_data`` the TD's own 64 bytes.
    ``tee_tcb_svn2`` (the TCB now, after an update without relaunch) and ``mr_service_td`` are None before TDX 1.5.
    """

    tee_tcb_svn: bytes
    mr_seam: bytes
    mr_signer_seam: bytes
    seam_attributes: bytes
    td_attributes: bytes
    xfam: bytes
    mr_td: bytes
    mr_config_id: bytes
    mr_owner: bytes
    mr_owner_config: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    report_data: bytes
    tee_tcb_svn2: bytes | None = None
    mr_service_td: bytes | None = None
    extension: TdServiceExtension | None = None
    raw: bytes = field(repr=False, default=b"")

    @property
    def debug(self) -> bool:
        """ATTRIBUTES.DEBUG: the host can read and write the TD's memory."""
        return bool(self.td_attributes[0] & 0x01)

    @property
    def sept_ve_disable(self) -> bool:
        """ATTRIBUTES.SEPT_VE_DISABLE: a page that the host took away ends the TD instead of interrupting it."""
        return bool(self.td_attributes[3] & 0x10)


def parse_td_body(raw: bytes, *, base: int = 0) -> TdReportBody:
    """Parse a TD report body of exactly 584 (TDX 1.0), 648 (1.5) or 885 bytes (1.5 extended).

    ``base``: its offset in the quote, for messages.

    Raises EvidenceFormatError on another size.
    """
    reader = Reader(raw, "TD report body", base=base)
    if len(raw) not in TDX_BODY_SIZES.values():
        raise reader.error(f"is {len(raw)} bytes long, not 584, 648 or 885", "size")
    tee_tcb_svn = reader.take(16, "tee_tcb_svn")  # 0
    mr_seam = reader.take(48, "mr_seam")  # 16
    mr_signer_seam = reader.take(48, "mr_signer_seam")  # 64
    seam_attributes = reader.take(8, "seam_attributes")  # 112
    td_attributes = reader.take(8, "td_attributes")  # 120
    xfam = reader.take(8, "xfam")  # 128
    mr_td = reader.take(48, "mr_td")  # 136
    mr_config_id = reader.take(48, "mr_config_id")  # 184
    mr_owner = reader.take(48, "mr_owner")  # 232
    mr_owner_config = reader.take(48, "mr_owner_config")  # 280
    rtmrs = _rtmrs(reader)  # 328
    report_data = reader.take(64, "report_data")  # 520
    later = reader.remaining > 0
    tee_tcb_svn2 = reader.take(16, "tee_tcb_svn2") if later else None  # 584
    mr_service_td = reader.take(48, "mr_service_td") if later else None  # 600
    extension = _extension(reader) if reader.remaining else None  # 648
    reader.end()
    return TdReportBody(
        tee_tcb_svn=tee_tcb_svn,
        mr_seam=mr_seam,
        mr_signer_seam=mr_signer_seam,
        seam_attributes=seam_attributes,
        td_attributes=td_attributes,
        xfam=xfam,
        mr_td=mr_td,
        mr_config_id=mr_config_id,
        mr_owner=mr_owner,
        mr_owner_config=mr_owner_config,
        rtmrs=rtmrs,
        report_data=report_data,
        tee_tcb_svn2=tee_tcb_svn2,
        mr_service_td=mr_service_td,
        extension=extension,
        raw=raw,
    )


def _rtmrs(reader: Reader) -> tuple[bytes, bytes, bytes, bytes]:
    first, second, third, fourth = (reader.take(48, f"rtmr{index}") for index in range(RTMR_COUNT))
    return first, second, third, fourth


def _extension(reader: Reader) -> TdServiceExtension:
    """Offsets 648 to 885: sgx_report2_body_v1_5_ex_t of Intel's sgx_quote_5.h."""
    return TdServiceExtension(
        vmid=reader.u8("vmid"),
        td_id=reader.take(32, "td_id"),
        dev_info=reader.take(48, "dev_info"),
        init_service_td_hash=reader.take(48, "init_service_td_hash"),
        init_service_td_attributes=reader.take(8, "init_service_td_attributes"),
        init_cpu_svn=reader.take(16, "init_cpu_svn"),
        init_tee_tcb_svn=reader.take(16, "init_tee_tcb_svn"),
        init_tee_fmspc=reader.take(12, "init_tee_fmspc"),
        cur_service_td_hash=reader.take(48, "cur_service_td_hash"),
        cur_service_td_attributes=reader.take(8, "cur_service_td_attributes"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TdReport:
    """TDREPORT_STRUCT: authenticated by a MAC whose key never leaves the processor, so nobody else can check it.

    ``report_type``: TYPE, SUBTYPE, VERSION, reserved. ``valid``: which fields of TEE_TCB_INFO are. ``body``: the same
    facts as a quote's TD report body. ``tee_tcb_info`` (239 bytes) and ``td_info`` (512): what the two hashes are of.
    """

    report_type: bytes
    cpu_svn: bytes
    tee_tcb_info_hash: bytes
    tee_info_hash: bytes
    mac: bytes
    valid: bytes
    body: TdReportBody
    tee_tcb_info: bytes = field(repr=False)
    td_info: bytes = field(repr=False)
    raw: bytes = field(repr=False)

    @property
    def consistent(self) -> bool:
        """Whether both SHA-384 hashes in the MACed part are those of the rest: no proof of anything, but a must."""
        return (
            sha384(self.tee_tcb_info).digest() == self.tee_tcb_info_hash
            and sha384(self.td_info).digest() == self.tee_info_hash
        )


def parse_tdreport(raw: bytes, *, base: int = 0) -> TdReport:
    """Parse a TDREPORT_STRUCT of exactly 1024 bytes.

    Raises EvidenceFormatError on another size or where REPORTTYPE is not that of a TD (0x81).
    """
    reader = Reader(raw, "TDREPORT", base=base)
    if len(raw) != TDREPORT_SIZE:
        raise reader.error(f"is {len(raw)} bytes long, not {TDREPORT_SIZE}", "size")
    if raw[0] != _TDX_TYPE:
        raise reader.error(f"report type {raw[0]:#04x} is not that of a TD (0x81)", "report_type")
    report_type = reader.take(4, "report_type")  # REPORTMACSTRUCT, 256 bytes
    reader.take(12, "reserved")  # 4
    cpu_svn = reader.take(16, "cpu_svn")  # 16
    tee_tcb_info_hash = reader.take(48, "tee_tcb_info_hash")  # 32
    tee_info_hash = reader.take(48, "tee_info_hash")  # 80
    report_data = reader.take(64, "report_data")  # 128
    reader.take(32, "reserved")  # 192
    mac = reader.take(32, "mac")  # 224
    tee_tcb_info = reader.take(239, "tee_tcb_info")  # 256
    reader.take(17, "reserved")  # 495
    td_info = reader.take(512, "td_info")  # 512
    reader.end()
    return TdReport(
        report_type=report_type,
        cpu_svn=cpu_svn,
        tee_tcb_info_hash=tee_tcb_info_hash,
        tee_info_hash=tee_info_hash,
        mac=mac,
        valid=tee_tcb_info[:8],
        body=_tdreport_body(tee_tcb_info, td_info, report_data),
        tee_tcb_info=tee_tcb_info,
        td_info=td_info,
        raw=raw,
    )


def _tdreport_body(tee_tcb_info: bytes, td_info: bytes, report_data: bytes) -> TdReportBody:
    tcb = Reader(tee_tcb_info, "TEE_TCB_INFO")
    tcb.take(8, "valid")
    info = Reader(td_info, "TDINFO_STRUCT")
    return TdReportBody(
        tee_tcb_svn=tcb.take(16, "tee_tcb_svn"),
        mr_seam=tcb.take(48, "mr_seam"),
        mr_signer_seam=tcb.take(48, "mr_signer_seam"),
        seam_attributes=tcb.take(8, "seam_attributes"),
        tee_tcb_svn2=tcb.take(16, "tee_tcb_svn2"),
        td_attributes=info.take(8, "td_attributes"),
        xfam=info.take(8, "xfam"),
        mr_td=info.take(48, "mr_td"),
        mr_config_id=info.take(48, "mr_config_id"),
        mr_owner=info.take(48, "mr_owner"),
        mr_owner_config=info.take(48, "mr_owner_config"),
        rtmrs=_rtmrs(info),
        mr_service_td=info.take(48, "mr_service_td"),
        report_data=report_data,
    )
