"""The Intel SGX extension of a PCK certificate: which platform it is and which TCB it was certified at.

Source: Intel SGX PCK Certificate and CRL Profile Specification, section 1.3.5 "SGX Extensions": a SEQUENCE of
SEQUENCE { OID, value } under 1.2.840.113741.1.13.1; the TCB and the configuration are such sequences again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cosmian_vm.errors import EvidenceFormatError

__all__ = ["SGX_EXTENSION_OID", "PckExtension", "parse_sgx_extension"]

SGX_EXTENSION_OID = "1.2.840.113741.1.13.1"
COMPONENTS = 16
"""Security version numbers in a TCB."""

_WHAT = "PCK certificate, SGX extension"
_ARC = bytes.fromhex("2a864886f84d010d01")  # 1.2.840.113741.1.13.1
_BOOLEAN, _INTEGER, _OCTETS, _OID, _ENUMERATED, _SEQUENCE = 0x01, 0x02, 0x04, 0x06, 0x0A, 0x30
_PPID, _TCB, _PCE_ID, _FMSPC, _SGX_TYPE, _INSTANCE, _CONFIGURATION = 1, 2, 3, 4, 5, 6, 7
_PCE_SVN, _CPU_SVN = 17, 18
_FLAGS = {1: "dynamic_platform", 2: "cached_keys", 3: "smt_enabled"}

Element = tuple[int, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class PckExtension:
    """What Intel certified. ``ppid`` 16 bytes, ``pce_id`` 2, ``fmspc`` 6 (family, model, stepping, platform, SKU).

    ``components``: 16 SVNs, 0-255; ``cpu_svn``: 16 bytes as the processor writes them. ``sgx_type``: 0 standard,
    1 scalable, 2 scalable with integrity. ``platform_instance_id`` (16 bytes) and ``configuration`` (dynamic_platform,
    cached_keys, smt_enabled) only in certificates of the Platform CA.
    """

    ppid: bytes
    components: tuple[int, ...]
    pce_svn: int
    cpu_svn: bytes
    pce_id: bytes
    fmspc: bytes
    sgx_type: int
    platform_instance_id: bytes | None
    configuration: Mapping[str, bool]


def parse_sgx_extension(value: bytes) -> PckExtension:
    """Parse the value of the extension (DER).

    Raises EvidenceFormatError naming the field that is missing, there twice, or of another form.
    """
    fields = _fields(value, "value")
    tcb = _fields(_of(fields, _TCB, _SEQUENCE, "TCB"), "TCB", sequence=False)
    instance = None if _INSTANCE not in fields else _octets(fields, _INSTANCE, 16, "Platform Instance ID")
    return PckExtension(
        ppid=_octets(fields, _PPID, 16, "PPID"),
        components=tuple(_number(tcb, n, 0xFF, f"TCB component {n}") for n in range(1, COMPONENTS + 1)),
        pce_svn=_number(tcb, _PCE_SVN, 0xFFFF, "PCESVN"),
        cpu_svn=_octets(tcb, _CPU_SVN, 16, "CPUSVN"),
        pce_id=_octets(fields, _PCE_ID, 2, "PCE-ID"),
        fmspc=_octets(fields, _FMSPC, 6, "FMSPC"),
        sgx_type=_number(fields, _SGX_TYPE, 0xFF, "SGX Type", tag=_ENUMERATED),
        platform_instance_id=instance,
        configuration=_configuration(fields),
    )


def _configuration(fields: Mapping[int, Element]) -> Mapping[str, bool]:
    if _CONFIGURATION not in fields:
        return {}
    flags = _fields(_of(fields, _CONFIGURATION, _SEQUENCE, "Configuration"), "Configuration", sequence=False)
    return {name: any(_of(flags, n, _BOOLEAN, name)) for n, name in _FLAGS.items() if n in flags}


def _problem(field: str, problem: str) -> EvidenceFormatError:
    return EvidenceFormatError(_WHAT, problem, field=field)


def _elements(content: bytes, field: str) -> Iterator[Element]:
    """Tag and content of each DER element in ``content``; definite lengths of at most two bytes."""
    at = 0
    while at < len(content):
        if at + 2 > len(content):
            raise _problem(field, "is cut off")
        tag, size = content[at], content[at + 1]
        at += 2
        if size & 0x80:
            more = size & 0x7F
            if more not in (1, 2) or at + more > len(content):
                raise _problem(field, "has a length that makes no sense")
            size = int.from_bytes(content[at : at + more], "big")
            at += more
        if at + size > len(content):
            raise _problem(field, "is cut off")
        yield tag, content[at : at + size]
        at += size


def _fields(value: bytes, field: str, *, sequence: bool = True) -> dict[int, Element]:
    """Last number of the OID to (tag, content), from a SEQUENCE of SEQUENCE { OID, value }, or its content alone."""
    if sequence:
        outer = list(_elements(value, field))
        if len(outer) != 1 or outer[0][0] != _SEQUENCE:
            raise _problem(field, "is not one SEQUENCE")
        value = outer[0][1]
    found: dict[int, Element] = {}
    for tag, content in _elements(value, field):
        pair = list(_elements(content, field)) if tag == _SEQUENCE else []
        if len(pair) != 2 or pair[0][0] != _OID or not pair[0][1].startswith(_ARC):
            raise _problem(field, "holds something else than pairs of OID and value")
        number = pair[0][1][-1]
        if number in found:
            raise _problem(field, f"holds field {number} twice")
        found[number] = pair[1]
    return found


def _of(fields: Mapping[int, Element], number: int, tag: int, name: str) -> bytes:
    found = fields.get(number)
    if found is None:
        raise _problem(name, "is missing")
    if found[0] != tag:
        raise _problem(name, f"has the DER tag {found[0]:#04x} instead of {tag:#04x}")
    return found[1]


def _octets(fields: Mapping[int, Element], number: int, size: int, name: str) -> bytes:
    value = _of(fields, number, _OCTETS, name)
    if len(value) != size:
        raise _problem(name, f"is {len(value)} bytes long, not {size}")
    return value


def _number(fields: Mapping[int, Element], number: int, highest: int, name: str, *, tag: int = _INTEGER) -> int:
    content = _of(fields, number, tag, name)
    value = int.from_bytes(content, "big", signed=True) if 0 < len(content) <= 4 else -1
    if not 0 <= value <= highest:
        raise _problem(name, f"is not a number from 0 to {highest}")
    return value
