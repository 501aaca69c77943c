"""Intel's collateral: which TCB levels there are for a platform, which quoting enclave is Intel's, what is revoked.

Source: Intel SGX and TDX Provisioning Certification Service API, version 4: "Get TCB Info" (version 3 of the model),
"Get QE Identity" (version 2), CRLs. One JSON object holds all of it, as the quote verification libraries name it
(QuoteCollateralV3): texts as strings, binary values in hex. TCB info and QE identity are signed as the text they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Annotated, TypeVar

import msgspec
from cryptography import x509
from msgspec import Meta

from cosmian_vm.endorsements.intel import crl_of, parse_chain
from cosmian_vm.errors import EvidenceFormatError

__all__ = [
    "IntelCollateral",
    "QeIdentity",
    "TcbInfo",
    "TcbLevel",
    "TdxModuleIdentity",
    "parse_collateral",
    "parse_collateral_cached",
    "serialise_collateral",
]

MAX_COLLATERAL = 4 * 1024 * 1024
"""A larger file is refused; real ones have 20 KiB, most of it CRL and TCB levels."""

_T = TypeVar("_T")
_WHAT = "Intel collateral"
_COMPONENTS = 16
_U8 = Annotated[int, Meta(ge=0, le=0xFF)]
_U16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
_U32 = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
_Moment = Annotated[datetime, Meta(tz=True)]
_TEXTS = ("pck_crl_issuer_chain", "tcb_info_issuer_chain", "tcb_info", "qe_identity_issuer_chain", "qe_identity")
_BINARIES = ("root_ca_crl", "pck_crl", "tcb_info_signature", "qe_identity_signature")


class _Model(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A JSON object of Intel's; further members are Intel's to add."""


class TcbComponent(_Model, frozen=True, kw_only=True):
    """One security version number, 0-255; what it belongs to, Intel says in words."""

    svn: _U8
    category: str = ""
    type: str = ""


class Tcb(_Model, frozen=True, kw_only=True, rename="lower"):
    """What a platform must have at least: 16 SVNs, the PCE's SVN, and on TDX 16 SVNs of the TDX module and loader."""

    sgxtcbcomponents: tuple[TcbComponent, ...]
    pcesvn: _U16
    tdxtcbcomponents: tuple[TcbComponent, ...] = ()

    def __post_init__(self) -> None:
        if len(self.sgxtcbcomponents) != _COMPONENTS or len(self.tdxtcbcomponents) not in (0, _COMPONENTS):
            raise ValueError(f"a TCB has {_COMPONENTS} components")

    @property
    def sgx(self) -> tuple[int, ...]:
        """The SGX component SVNs."""
        return tuple(component.svn for component in self.sgxtcbcomponents)

    @property
    def tdx(self) -> tuple[int, ...]:
        """The TDX component SVNs, empty for SGX."""
        return tuple(component.svn for component in self.tdxtcbcomponents)


class TcbLevel(_Model, frozen=True, kw_only=True):
    """A TCB and what Intel thinks of it. ``status``: UpToDate, SWHardeningNeeded, ... as Intel writes it."""

    tcb: Tcb
    tcb_date: str = ""
    status: str = msgspec.field(name="tcbStatus")
    advisory_ids: tuple[str, ...] = msgspec.field(name="advisoryIDs", default=())


class IsvSvn(_Model, frozen=True, kw_only=True, rename="lower"):
    """ISVSVN of an enclave or of a TDX module."""

    isvsvn: _U16


class ModuleLevel(_Model, frozen=True, kw_only=True):
    """An ISVSVN and what Intel thinks of it."""

    tcb: IsvSvn
    tcb_date: str = ""
    status: str = msgspec.field(name="tcbStatus")
    advisory_ids: tuple[str, ...] = msgspec.field(name="advisoryIDs", default=())


class _Hexed(_Model, frozen=True, kw_only=True):
    """Members in hex (either case) of a fixed size in bytes; ``value`` gives their bytes."""

    def value(self, name: str) -> bytes:
        """The bytes of a hex member."""
        return bytes.fromhex(getattr(self, name))


def _check(model: _Model, sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        text: str = getattr(model, name)
        if len(text) != 2 * size or not set(text) <= set("0123456789abcdefABCDEF"):
            raise ValueError(f"{name} is not {2 * size} hex digits")


class TdxModule(_Hexed, frozen=True, kw_only=True):
    """Who must have signed the TDX module (48 bytes), and its attributes (8 bytes) under a mask."""

    mrsigner: str
    attributes: str
    attributes_mask: str

    def __post_init__(self) -> None:
        _check(self, {"mrsigner": 48, "attributes": 8, "attributes_mask": 8})


class TdxModuleIdentity(TdxModule, frozen=True, kw_only=True):
    """The same for one generation of the module (``TDX_01``), with its levels."""

    id: str
    tcb_levels: tuple[ModuleLevel, ...]


class TcbInfo(_Hexed, frozen=True, kw_only=True):
    """TCB info, version 3. ``id``: SGX or TDX. ``fmspc`` 6 and ``pce_id`` 2 bytes in hex: the platforms it is for."""

    id: str
    version: Annotated[int, Meta(ge=3, le=3)]
    issue_date: _Moment
    next_update: _Moment
    fmspc: str
    pce_id: str
    tcb_type: _U32
    tcb_evaluation_data_number: _U32
    tcb_levels: tuple[TcbLevel, ...]
    tdx_module: TdxModule | None = None
    tdx_module_identities: tuple[TdxModuleIdentity, ...] = ()

    def __post_init__(self) -> None:
        _check(self, {"fmspc": 6, "pce_id": 2})


class QeIdentity(_Hexed, frozen=True, kw_only=True):
    """Identity of Intel's quoting enclave. ``id``: QE or TD_QE. Values and masks in hex: 4, 16 and 32 bytes."""

    id: str
    version: Annotated[int, Meta(ge=2, le=3)]
    issue_date: _Moment
    next_update: _Moment
    tcb_evaluation_data_number: _U32
    miscselect: str
    miscselect_mask: str
    attributes: str
    attributes_mask: str
    mrsigner: str
    isvprodid: _U16 = msgspec.field(name="isvprodid")
    tcb_levels: tuple[ModuleLevel, ...]

    def __post_init__(self) -> None:
        _check(self, {"miscselect": 4, "miscselect_mask": 4, "attributes": 16, "attributes_mask": 16, "mrsigner": 32})


@dataclass(frozen=True, slots=True, kw_only=True)
class IntelCollateral:
    """All of it, nothing verified yet. ``tcb_info_text``, ``qe_identity_text``: the bytes that were signed (r and s,
    64 bytes, big-endian). ``raw``: the JSON members as they came.
    """

    tcb_info: TcbInfo
    tcb_info_text: bytes = field(repr=False)
    tcb_info_signature: bytes = field(repr=False)
    tcb_info_chain: tuple[x509.Certificate, ...]
    qe_identity: QeIdentity
    qe_identity_text: bytes = field(repr=False)
    qe_identity_signature: bytes = field(repr=False)
    qe_identity_chain: tuple[x509.Certificate, ...]
    root_crl: x509.CertificateRevocationList
    pck_crl: x509.CertificateRevocationList
    pck_crl_chain: tuple[x509.Certificate, ...]
    raw: Mapping[str, str] = field(repr=False)

    @property
    def window(self) -> tuple[datetime, datetime] | None:
        """The time in which TCB info, QE identity and both CRLs are all current; None if there is none."""
        documents = (self.tcb_info, self.qe_identity)
        ends = [document.next_update for document in documents]
        starts = [document.issue_date for document in documents]
        for crl in (self.root_crl, self.pck_crl):
            starts.append(crl.last_update_utc)
            if crl.next_update_utc is not None:
                ends.append(crl.next_update_utc)
        start, end = max(starts), min(ends)
        return (start, end) if start <= end else None


def parse_collateral(raw: bytes) -> IntelCollateral:
    """Parse a QuoteCollateralV3 JSON object and everything in it.

    Raises EvidenceFormatError naming the member that is missing or cannot be read.
    """
    if len(raw) > MAX_COLLATERAL:
        raise EvidenceFormatError(_WHAT, f"{len(raw)} bytes, more than {MAX_COLLATERAL}")
    members: dict[str, str | None] = _decoded(raw, dict[str, str | None], "JSON object")
    texts = {name: value for name, value in members.items() if value is not None}
    for name in (*_TEXTS, *_BINARIES):
        if name not in texts:
            raise EvidenceFormatError(_WHAT, "is missing", field=name)
    binary = {name: _hex(texts[name], name) for name in _BINARIES}
    text = {name: texts[name].encode() for name in _TEXTS}
    return IntelCollateral(
        tcb_info=_decoded(text["tcb_info"], TcbInfo, "tcb_info"),
        tcb_info_text=text["tcb_info"],
        tcb_info_signature=_signature(binary, "tcb_info_signature"),
        tcb_info_chain=parse_chain(text["tcb_info_issuer_chain"], f"{_WHAT}, tcb_info_issuer_chain"),
        qe_identity=_decoded(text["qe_identity"], QeIdentity, "qe_identity"),
        qe_identity_text=text["qe_identity"],
        qe_identity_signature=_signature(binary, "qe_identity_signature"),
        qe_identity_chain=parse_chain(text["qe_identity_issuer_chain"], f"{_WHAT}, qe_identity_issuer_chain"),
        root_crl=crl_of(binary["root_ca_crl"], f"{_WHAT}, root_ca_crl"),
        pck_crl=crl_of(binary["pck_crl"], f"{_WHAT}, pck_crl"),
        pck_crl_chain=parse_chain(text["pck_crl_issuer_chain"], f"{_WHAT}, pck_crl_issuer_chain"),
        raw=texts,
    )


@lru_cache(maxsize=16)
def parse_collateral_cached(raw: bytes) -> IntelCollateral:
    """The same, remembered: one verifier meets the same collateral with many quotes."""
    return parse_collateral(raw)


def serialise_collateral(collateral: IntelCollateral) -> bytes:
    """The JSON object again, with the very texts that were signed."""
    return msgspec.json.encode(collateral.raw)


def _decoded(raw: bytes, model: type[_T], name: str) -> _T:
    try:
        return msgspec.json.decode(raw, type=model)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise EvidenceFormatError(_WHAT, f"cannot be read: {' '.join(str(exc).split())}", field=name) from exc


def _hex(text: str, name: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError as exc:
        raise EvidenceFormatError(_WHAT, "is not hex", field=name) from exc


def _signature(binary: Mapping[str, bytes], name: str) -> bytes:
    if len(binary[name]) != 64:
        raise EvidenceFormatError(_WHAT, f"is {len(binary[name])} bytes long, not 64", field=name)
    return binary[name]
