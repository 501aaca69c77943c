"""AMD SEV-SNP attestation reports: what they say, byte by byte, and the certificates that travel behind them.

Source: AMD 56860, "SEV Secure Nested Paging Firmware ABI Specification" (1.55 to 1.58), tables "ATTESTATION_REPORT
Structure", "TCB_VERSION", "Guest Policy Structure", "Structure of the Signature". All integers are little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from enum import IntEnum
from typing import NamedTuple

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence._snp_certificates import (
    MAX_OBJECTS,
    CertificateLayout,
    CertificateTable,
    parse_certificates,
    serialise_typed,
    split_objects,
    subject_common_name,
)
from cosmian_vm.evidence._snp_tcb import Product, TcbLayout, TcbVersion, decode_tcb, encode_tcb

__all__ = [
    "MAX_OBJECTS",
    "REPORT_SIZE",
    "SIGNATURE_ALGO_ECDSA_P384_SHA384",
    "SIGNED_SIZE",
    "VERSIONS",
    "CertificateLayout",
    "CertificateTable",
    "Product",
    "SigningKey",
    "SnpEvidence",
    "SnpReport",
    "TcbLayout",
    "TcbVersion",
    "decode_tcb",
    "encode_tcb",
    "parse_certificates",
    "parse_evidence",
    "parse_report",
    "serialise_report",
    "serialise_v1",
    "split_objects",
    "subject_common_name",
]

REPORT_SIZE = 1184
"""Size of a report, in bytes."""
SIGNED_SIZE = 0x2A0
"""The signature covers bytes 0 to 0x29F."""
VERSIONS = (2, 3, 4, 5)
"""Report versions that are understood. 3 adds the CPUID fields, 5 the mitigation vectors; 4, which some
firmware writes, has the fields of 3."""
SIGNATURE_ALGO_ECDSA_P384_SHA384 = 1

_WHAT = "SNP report"


class SigningKey(IntEnum):
    """SIGNING_KEY, bits 2 to 4 of the flags: which key signed the report."""

    VCEK = 0
    VLEK = 1
    NONE = 7


_SIGNING_KEYS = {int(key): key for key in SigningKey}


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpReport:
    """One ATTESTATION_REPORT, fields in the order and under the names of the specification.

    TCBs are kept as their 8 bytes: what they mean depends on the product (``decode_tcb``). ``cpuid_*`` are 0 before
    version 3, ``*_mit_vector`` before version 5. ``raw``: the 1184 bytes that were parsed.
    """

    version: int
    guest_svn: int = 0
    policy: int
    family_id: bytes = bytes(16)
    image_id: bytes = bytes(16)
    vmpl: int = 0
    signature_algo: int = SIGNATURE_ALGO_ECDSA_P384_SHA384
    current_tcb: bytes
    platform_info: int = 0
    flags: int = 0
    report_data: bytes
    measurement: bytes
    host_data: bytes = bytes(32)
    id_key_digest: bytes = bytes(48)
    author_key_digest: bytes = bytes(48)
    report_id: bytes
    report_id_ma: bytes = b"\xff" * 32
    reported_tcb: bytes
    cpuid_fam_id: int = 0
    cpuid_mod_id: int = 0
    cpuid_step: int = 0
    chip_id: bytes
    committed_tcb: bytes
    current_build: int = 0
    current_minor: int = 0
    current_major: int = 0
    committed_build: int = 0
    committed_minor: int = 0
    committed_major: int = 0
    launch_tcb: bytes
    launch_mit_vector: int = 0
    current_mit_vector: int = 0
    signature_r: bytes = bytes(72)
    signature_s: bytes = bytes(72)
    raw: bytes = field(default=b"", repr=False, compare=False)

    @property
    def signed(self) -> bytes:
        """The bytes that the signature covers, as they came."""
        return self.raw[:SIGNED_SIZE]

    @property
    def r(self) -> int:
        """R of the ECDSA signature (72 bytes, little-endian)."""
        return int.from_bytes(self.signature_r, "little")

    @property
    def s(self) -> int:
        """S of the ECDSA signature (72 bytes, little-endian)."""
        return int.from_bytes(self.signature_s, "little")

    @property
    def product(self) -> Product | None:
        """The processor family by the CPUID fields; None in version 2, which has none, and for unknown processors."""
        return Product.from_cpuid(self.cpuid_fam_id, self.cpuid_mod_id) if self.version >= 3 else None

    @property
    def signing_key(self) -> SigningKey | None:
        """Which key signed; None for a value that the specification reserves."""
        return _SIGNING_KEYS.get(self.flags >> 2 & 7)

    @property
    def author_key_en(self) -> bool:
        """Flags bit 0: author_key_digest is that of a key that signed the ID block."""
        return bool(self.flags & 1)

    @property
    def mask_chip_key(self) -> bool:
        """Flags bit 1: the host forbids signing with the chip's key."""
        return bool(self.flags & 2)

    @property
    def policy_abi(self) -> str:
        """Policy bits 8-15 and 0-7: least firmware ABI version, ``major.minor``."""
        return f"{self.policy >> 8 & 0xFF}.{self.policy & 0xFF}"

    @property
    def policy_smt(self) -> bool:
        """Policy bit 16: simultaneous multithreading is allowed."""
        return bool(self.policy >> 16 & 1)

    @property
    def policy_migrate_ma(self) -> bool:
        """Policy bit 18: a migration agent may be bound to the guest."""
        return bool(self.policy >> 18 & 1)

    @property
    def policy_debug(self) -> bool:
        """Policy bit 19: the host may read and write the guest's memory."""
        return bool(self.policy >> 19 & 1)

    @property
    def policy_single_socket(self) -> bool:
        """Policy bit 20: the guest runs on one socket only."""
        return bool(self.policy >> 20 & 1)

    @property
    def current_version(self) -> str:
        """Firmware that runs, ``major.minor.build``."""
        return f"{self.current_major}.{self.current_minor}.{self.current_build}"

    @property
    def committed_version(self) -> str:
        """Firmware that the host can no longer go below, ``major.minor.build``."""
        return f"{self.committed_major}.{self.committed_minor}.{self.committed_build}"


class SnpEvidence(NamedTuple):
    """A report and what came behind it: certificates and CRLs (DER), trusted for nothing until they chain to a root.

    ``layout``: how they were laid out. ``trailing``: how many bytes at the end belong to nothing.
    """

    report: SnpReport
    certificates: tuple[bytes, ...] = ()
    crls: tuple[bytes, ...] = ()
    layout: CertificateLayout = CertificateLayout.NONE
    trailing: int = 0


# ATTESTATION_REPORT: field, struct code; the offset is the specification's. "_": reserved, must be zero.
_TABLE: tuple[tuple[str, str, int], ...] = (
    ("version", "I", 0x000),
    ("guest_svn", "I", 0x004),
    ("policy", "Q", 0x008),
    ("family_id", "16s", 0x010),
    ("image_id", "16s", 0x020),
    ("vmpl", "I", 0x030),
    ("signature_algo", "I", 0x034),
    ("current_tcb", "8s", 0x038),
    ("platform_info", "Q", 0x040),
    ("flags", "I", 0x048),  # AUTHOR_KEY_EN 0, MASK_CHIP_KEY 1, SIGNING_KEY 4:2
    ("_", "4s", 0x04C),
    ("report_data", "64s", 0x050),
    ("measurement", "48s", 0x090),
    ("host_data", "32s", 0x0C0),
    ("id_key_digest", "48s", 0x0E0),
    ("author_key_digest", "48s", 0x110),
    ("report_id", "32s", 0x140),
    ("report_id_ma", "32s", 0x160),
    ("reported_tcb", "8s", 0x180),
    ("cpuid_fam_id", "B", 0x188),  # version 3
    ("cpuid_mod_id", "B", 0x189),
    ("cpuid_step", "B", 0x18A),
    ("_", "21s", 0x18B),
    ("chip_id", "64s", 0x1A0),
    ("committed_tcb", "8s", 0x1E0),
    ("current_build", "B", 0x1E8),
    ("current_minor", "B", 0x1E9),
    ("current_major", "B", 0x1EA),
    ("_", "1s", 0x1EB),
    ("committed_build", "B", 0x1EC),
    ("committed_minor", "B", 0x1ED),
    ("committed_major", "B", 0x1EE),
    ("_", "1s", 0x1EF),
    ("launch_tcb", "8s", 0x1F0),
    ("launch_mit_vector", "Q", 0x1F8),  # version 5
    ("current_mit_vector", "Q", 0x200),
    ("_", "152s", 0x208),
    ("signature_r", "72s", 0x2A0),
    ("signature_s", "72s", 0x2E8),
    ("_", "368s", 0x330),
)
_STRUCT = struct.Struct("<" + "".join(code for _, code, _ in _TABLE))
_NAMES = tuple(name for name, _, _ in _TABLE)
_OFFSETS = {name: offset for name, _, offset in _TABLE if name != "_"}
_RESERVED = tuple(
    (index, offset, bytes(int(code[:-1]))) for index, (name, code, offset) in enumerate(_TABLE) if name == "_"
)
_VALUES = tuple((index, name) for index, name in enumerate(_NAMES) if name != "_")
_SINCE = (
    ("cpuid_fam_id", 3),
    ("cpuid_mod_id", 3),
    ("cpuid_step", 3),
    ("launch_mit_vector", 5),
    ("current_mit_vector", 5),
)

_POLICY_ALWAYS_ONE = 1 << 17
_POLICY_DEFINED = (1 << 26) - 1
_FLAGS_DEFINED = (1 << 5) - 1


def parse_report(raw: bytes) -> SnpReport:
    """Parse an ATTESTATION_REPORT: exactly 1184 bytes, version 2 to 5.

    Raises EvidenceFormatError on a wrong size, an unknown version or a set reserved bit. (Of PLATFORM_INFO every bit is
    taken: real Turin reports set one that the specification reserves, and nothing hangs on them.)
    """
    if len(raw) != REPORT_SIZE:
        raise EvidenceFormatError(_WHAT, f"must be {REPORT_SIZE} bytes, not {len(raw)}")
    values = _STRUCT.unpack(raw)
    version = values[0]
    if version not in VERSIONS:
        raise _error("version", f"{version} is not one of {', '.join(map(str, VERSIONS))}")
    for index, offset, zeros in _RESERVED:
        if values[index] != zeros:
            raise EvidenceFormatError(_WHAT, "reserved bytes are not zero", offset=offset, field="reserved")
    named = {name: values[index] for index, name in _VALUES}
    for name, since in _SINCE:
        if version < since and named[name]:
            raise _error(name, f"is reserved in version {version} and not zero")
    policy = named["policy"]
    if not policy & _POLICY_ALWAYS_ONE:
        raise _error("policy", f"bit 17 of {policy:#x} is not set; it always is")
    if policy & ~_POLICY_DEFINED:
        raise _error("policy", f"reserved bits of {policy:#x} are set")
    if named["flags"] & ~_FLAGS_DEFINED:
        raise _error("flags", f"reserved bits of {named['flags']:#x} are set")
    return SnpReport(**named, raw=raw)


def _error(name: str, problem: str) -> EvidenceFormatError:
    return EvidenceFormatError(_WHAT, problem, offset=_OFFSETS[name], field=name)


_FIELD_NAMES = frozenset(f.name for f in fields(SnpReport))
assert frozenset(_NAMES) - {"_"} == _FIELD_NAMES - {"raw"}  # noqa: S101 - the table and the class are one thing


def serialise_report(report: SnpReport) -> bytes:
    """The 1184 bytes of a report, from its fields (``raw`` is not looked at). Inverse of :func:`parse_report`.

    Raises ValueError where a field does not have its size: a programming error.
    """
    values: list[object] = []
    for name, code, _ in _TABLE:
        value = b"" if name == "_" else getattr(report, name)
        if isinstance(value, bytes) and name != "_" and len(value) != int(code[:-1]):
            raise ValueError(f"{name} must be {code[:-1]} bytes, not {len(value)}")
        values.append(value)
    try:
        return _STRUCT.pack(*values)
    except struct.error as exc:
        raise ValueError(f"a number of the report does not fit its field: {exc}") from exc


def parse_evidence(raw: bytes) -> SnpEvidence:
    """Parse a report and whatever certificates follow it, in any layout of ``_snp_certificates``.

    Bytes behind it that follow no known layout are counted (``trailing``) and otherwise ignored. Raises
    EvidenceFormatError for a broken report or a broken table.
    """
    if len(raw) < REPORT_SIZE:
        raise EvidenceFormatError(_WHAT, f"must be {REPORT_SIZE} bytes, not {len(raw)}", offset=len(raw))
    report = parse_report(raw[:REPORT_SIZE])
    table = parse_certificates(raw[REPORT_SIZE:], base=REPORT_SIZE)
    return SnpEvidence(
        report=report,
        certificates=table.certificates,
        crls=table.crls,
        layout=table.layout,
        trailing=table.trailing,
    )


_TYPE_ARK, _TYPE_ASK, _TYPE_VCEK, _TYPE_VLEK = 1, 2, 3, 4


def serialise_v1(report_raw: bytes, certificates: Iterable[bytes]) -> bytes:
    """What ``GET /quote/tee`` of the 1.3.x API answers: the report and a ``typed`` table.

    1.3.x reads three tables only: a VLEK alone; ARK, ASK and VCEK; nothing. ``certificates`` (DER) are told apart by
    their common names; where they make up neither of the first two, the table is empty.
    """
    roles: dict[int, bytes] = {}
    for der in certificates:
        role = _role(subject_common_name(der) or "")
        if role is not None:
            roles.setdefault(role, der)
    if _TYPE_VLEK in roles:
        chosen: tuple[int, ...] = (_TYPE_VLEK,)
    elif {_TYPE_ARK, _TYPE_ASK, _TYPE_VCEK} <= roles.keys():
        chosen = (_TYPE_ARK, _TYPE_ASK, _TYPE_VCEK)
    else:
        chosen = ()
    return report_raw + serialise_typed(tuple((role, roles[role]) for role in chosen))


def _role(common_name: str) -> int | None:
    """1.3.x type number by the common names that AMD gives: ARK-Milan, SEV-Milan, SEV-VCEK, SEV-VLEK."""
    if common_name == "SEV-VCEK":
        return _TYPE_VCEK
    if common_name == "SEV-VLEK":
        return _TYPE_VLEK
    if common_name.startswith("ARK-"):
        return _TYPE_ARK
    if common_name in {f"SEV-{product}" for product in Product}:
        return _TYPE_ASK
    return None
