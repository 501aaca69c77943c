"""Azure's HCL report: a hardware report and the runtime data that it vouches for, as the vTPM keeps it (NV 0x01400001).

Source: Microsoft, "Azure Confidential VM guest attestation", and the OpenHCL paravisor's igvm_attest structures.
Little-endian::

    0x000  header, 32 bytes: "HCLA" | u32 version | u32 report size | u32 request type | u32 status | u32 reserved[3]
    0x020  hardware report, 1184 bytes: SNP ATTESTATION_REPORT, or TDREPORT (1024) and zeros
    0x4C0  u32 data size | u32 data version | u32 report type | u32 hash type | u32 n | n bytes of JSON
    then   zeros up to the size of the NV index

``report size`` counts from 0x000 to the end of the JSON, ``data size`` from 0x4C0. The report_data of the hardware
report is the hash of exactly those n bytes, filled up with zeros to 64. The JSON holds the vTPM's attestation key as a
JWK named HCLAkPub.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cosmian_vm._reader import Reader
from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.tdx import TDREPORT_SIZE

__all__ = ["HCL_MAGIC", "HclReport", "RsaPublic", "RuntimeData", "parse_hcl_report", "runtime_data", "serialise_hcl"]

HCL_MAGIC = b"HCLA"
REPORT_TYPES = {2: "SNP", 4: "TDX"}
HASH_TYPES = {1: "sha256", 2: "sha384", 3: "sha512"}
MAX_HCL_REPORT = 64 * 1024
"""A larger file is refused; the NV index holds about 2600 bytes."""

_WHAT = "HCL report"
_HARDWARE_REPORT = 1184
_SNP_REPORT_DATA = 0x50
_TDREPORT_DATA = 128
_DATA_HEADER = 20
_MIN_RSA, _MAX_RSA = 1024, 8192


@dataclass(frozen=True, slots=True)
class RsaPublic:
    """An RSA public key."""

    modulus: int
    exponent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeData:
    """What the runtime JSON says. ``key_ids``: of all its keys, in order. ``ak``: the key named HCLAkPub.

    ``user_data``: 64 bytes that the guest chose, None where it has none. ``claims``: the whole JSON.
    """

    key_ids: tuple[str, ...]
    ak: RsaPublic
    user_data: bytes | None
    claims: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class HclReport:
    """One HCL report, its JSON not looked at yet (see runtime_data).

    ``hardware_report``: 1184 bytes. ``var_data``: exactly the bytes that are hashed. ``trailing``: zeros.
    """

    version: int
    report_size: int
    request_type: int
    status: int
    reserved: bytes
    hardware_report: bytes = field(repr=False)
    data_size: int
    data_version: int
    report_type: str
    hash_type: str
    var_data: bytes = field(repr=False)
    trailing: bytes = field(repr=False)

    @property
    def tee_report(self) -> bytes:
        """The hardware report alone: 1184 bytes of SNP, 1024 bytes of TDREPORT."""
        return self.hardware_report[:TDREPORT_SIZE] if self.report_type == "TDX" else self.hardware_report

    @property
    def report_data(self) -> bytes:
        """The 64 bytes that the hardware report vouches for."""
        at = _TDREPORT_DATA if self.report_type == "TDX" else _SNP_REPORT_DATA
        return self.hardware_report[at : at + 64]

    @property
    def var_data_hash(self) -> bytes:
        """Hash of the runtime data by the algorithm that the report names."""
        return hashlib.new(self.hash_type, self.var_data).digest()

    @property
    def binds(self) -> bool:
        """Whether report_data is the hash of exactly the runtime data, then zeros."""
        return self.report_data == self.var_data_hash.ljust(64, b"\x00")


def parse_hcl_report(raw: bytes) -> HclReport:
    """Parse an HCL report.

    Raises EvidenceFormatError on a wrong magic, unknown report or hash types, sizes that contradict each other, or
    bytes other than zeros behind the runtime data.
    """
    reader = Reader(raw, _WHAT)
    if len(raw) > MAX_HCL_REPORT:
        raise reader.error(f"{len(raw)} bytes, more than {MAX_HCL_REPORT}", "size")
    if reader.take(4, "magic") != HCL_MAGIC:
        reader.position = 0
        raise reader.error("does not begin with HCLA", "magic")
    version = reader.u32("version")
    report_size = reader.u32("report_size")
    request_type = reader.u32("request_type")
    status = reader.u32("status")
    reserved = reader.take(12, "reserved")
    hardware_report = reader.take(_HARDWARE_REPORT, "hardware_report")
    data_at = reader.position
    data_size = reader.u32("data_size")
    data_version = reader.u32("data_version")
    report_type = _named(reader, REPORT_TYPES, "report_type")
    hash_type = _named(reader, HASH_TYPES, "hash_type")
    length = reader.u32("var_data_size")
    if data_size != _DATA_HEADER + length or report_size != data_at + data_size:
        reader.position = data_at
        raise reader.error(
            f"report size {report_size}, data size {data_size} and {length} bytes of runtime data do not fit together",
            "data_size",
        )
    var_data = reader.take(length, "var_data")
    # Anything else here would be bytes that no hash covers, next to the ones that count.
    trailing_size = reader.remaining
    reader.zeros(trailing_size, "padding")
    return HclReport(
        version=version,
        report_size=report_size,
        request_type=request_type,
        status=status,
        reserved=reserved,
        hardware_report=hardware_report,
        data_size=data_size,
        data_version=data_version,
        report_type=report_type,
        hash_type=hash_type,
        var_data=var_data,
        trailing=bytes(trailing_size),
    )


def _named(reader: Reader, names: Mapping[int, str], field_name: str) -> str:
    value = reader.u32(field_name)
    if value not in names:
        reader.position -= 4
        known = ", ".join(f"{number} ({name})" for number, name in names.items())
        raise reader.error(f"{value} is not one of {known}", field_name)
    return names[value]


def serialise_hcl(report: HclReport) -> bytes:
    """The bytes that parse_hcl_report read."""
    report_type = next(number for number, name in REPORT_TYPES.items() if name == report.report_type)
    hash_type = next(number for number, name in HASH_TYPES.items() if name == report.hash_type)
    header = (report.version, report.report_size, report.request_type, report.status)
    data = (report.data_size, report.data_version, report_type, hash_type, len(report.var_data))
    out = HCL_MAGIC + b"".join(value.to_bytes(4, "little") for value in header) + report.reserved
    out += report.hardware_report + b"".join(value.to_bytes(4, "little") for value in data)
    return out + report.var_data + report.trailing


def runtime_data(report: HclReport) -> RuntimeData:
    """What the runtime JSON of ``report`` says.

    Raises EvidenceFormatError where it is no JSON object, repeats a name, or does not hold exactly one RSA key named
    HCLAkPub: which key is the AK must not depend on who reads it.
    """
    claims = _claims(report.var_data)
    keys = claims.get("keys")
    if not isinstance(keys, list) or not all(isinstance(key, dict) and isinstance(key.get("kid"), str) for key in keys):
        raise _problem("keys", "is not a list of named keys")
    aks = [key for key in keys if key["kid"] == "HCLAkPub"]
    if len(aks) != 1:
        raise _problem(
            "keys", f"{len(aks)} keys are named HCLAkPub instead of one: no AK public key in the runtime data"
        )
    user_data = claims.get("user-data")
    return RuntimeData(
        key_ids=tuple(key["kid"] for key in keys),
        ak=_rsa(aks[0]),
        user_data=None if user_data is None else _hex(user_data),
        claims=claims,
    )


def _problem(field_name: str, problem: str) -> EvidenceFormatError:
    return EvidenceFormatError("HCL runtime data", problem, field=field_name)


def _claims(var_data: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a name stands there twice")
        return found

    try:
        claims = json.loads(var_data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as exc:
        raise _problem("JSON", f"cannot be read: {exc}") from exc
    if not isinstance(claims, dict):
        raise _problem("JSON", "is not an object")
    return claims


def _rsa(key: Mapping[str, Any]) -> RsaPublic:
    if key.get("kty") != "RSA":
        raise _problem("HCLAkPub", "is not an RSA key")
    modulus, exponent = (int.from_bytes(_base64url(key.get(name), name), "big") for name in ("n", "e"))
    if not _MIN_RSA <= modulus.bit_length() <= _MAX_RSA or exponent < 3 or exponent.bit_length() > 32:
        raise _problem("HCLAkPub", f"modulus of {modulus.bit_length()} bits, exponent of {exponent.bit_length()} bits")
    return RsaPublic(modulus, exponent)


def _base64url(value: object, name: str) -> bytes:
    if not isinstance(value, str) or not value.isascii() or set(value) & set("+/= \r\n\t"):
        raise _problem(f"HCLAkPub.{name}", "is not base64url without padding")
    try:
        return base64.b64decode(value + "=" * (-len(value) % 4), altchars=b"-_", validate=True)
    except binascii.Error as exc:
        raise _problem(f"HCLAkPub.{name}", "is not base64url without padding") from exc


def _hex(value: object) -> bytes:
    if not isinstance(value, str):
        raise _problem("user-data", "is not a string")
    try:
        return bytes.fromhex(value)
    except ValueError as exc:
        raise _problem("user-data", "is not hex") from exc
