"""The parts of a snapshot file that the published 1.3.x programs define, with their exact JSON types.

Byte strings are lower-case hex of an exact length. Their keys are always present and may be null, counters may also be
absent: that is how the 1.3.x reader takes them. A value of another form raises ValueError, naming the field (msgspec
turns it into its ValidationError while it decodes).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

if TYPE_CHECKING:
    from cosmian_vm.evidence.snp import SnpReport

__all__ = [
    "U16",
    "U32",
    "U64",
    "SevPolicy",
    "SgxBody",
    "SgxHeader",
    "SgxPolicy",
    "TdxBody",
    "TdxPolicy",
    "TeePolicy",
    "TpmPolicy",
    "check_hex",
]

# msgspec holds bounds as signed 64-bit integers: the upper bound of U64 is checked in Fixed.
U16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
U32 = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
U64 = Annotated[int, Meta(ge=0)]

_HEX = "0123456789abcdef"
_U64_MAX = 0xFFFFFFFFFFFFFFFF


def check_hex(name: str, value: str, size: int | None = None) -> bytes:
    """The bytes that ``value`` spells: lower-case hex, ``size`` bytes where given; ValueError names ``name``."""
    if value.strip(_HEX) or len(value) % 2 or (size is not None and len(value) != 2 * size):
        length = "an even number of" if size is None else str(2 * size)
        raise ValueError(f"{name} must be {length} lower-case hex digits")
    return bytes.fromhex(value)


class Fixed(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A group of values of which some are hex of a fixed size in bytes (``sizes``), some 64-bit counters."""

    sizes: ClassVar[dict[str, int]] = {}
    counters: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for name, size in self.sizes.items():
            value = getattr(self, name)
            if value is not None:
                check_hex(name, value, size)
        for name in self.counters:
            count = getattr(self, name)
            if count is not None and count > _U64_MAX:
                raise ValueError(f"{name} must fit 64 bits")

    def bytes_of(self, name: str) -> bytes | None:
        """The bytes of the hex field ``name``, None where the snapshot has no value for it."""
        if name not in self.sizes:
            raise KeyError(name)
        value: str | None = getattr(self, name)
        return None if value is None else bytes.fromhex(value)


class SevPolicy(Fixed, frozen=True, kw_only=True):
    """AMD SEV-SNP: fields of the ATTESTATION_REPORT (AMD 56860, table "ATTESTATION_REPORT Structure").

    ``report_data`` is written for 1.3.x only and never compared.
    """

    sizes: ClassVar[dict[str, int]] = {
        "measurement": 48,
        "report_data": 64,
        "family_id": 16,
        "image_id": 16,
        "id_key_digest": 48,
        "author_key_digest": 48,
        "report_id": 32,
        "report_id_ma": 32,
    }
    counters: ClassVar[tuple[str, ...]] = ("policy",)

    measurement: str | None
    report_data: str | None
    family_id: str | None
    image_id: str | None
    guest_svn: U32 | None = None
    id_key_digest: str | None
    author_key_digest: str | None
    policy: U64 | None = None
    report_id: str | None
    report_id_ma: str | None

    @classmethod
    def of_report(cls, report: SnpReport, *, cloud: str | None = None) -> SevPolicy:
        """The values of one report.

        report_data is zeros, it differs in every report; not so on Azure, where it is fixed and 1.3.x compares it.
        """
        values: dict[str, str] = {name: getattr(report, name).hex() for name in cls.sizes}
        if cloud != "Azure":
            values["report_data"] = bytes(cls.sizes["report_data"]).hex()
        return cls(guest_svn=report.guest_svn, policy=report.policy, **values)


class QuoteHeader(Fixed, frozen=True, kw_only=True):
    """Intel DCAP quote header: lowest acceptable versions of the quoting enclave and the PCE."""

    sizes: ClassVar[dict[str, int]] = {"qe_vendor_id": 16}

    minimum_qe_svn: U16 | None = None
    minimum_pce_svn: U16 | None = None
    qe_vendor_id: str | None


class TdxHeader(QuoteHeader, frozen=True, kw_only=True):
    """Header part of a TDX policy."""


class TdxBody(Fixed, frozen=True, kw_only=True):
    """Intel TDX: fields of the TD report body (Intel DCAP Quote Generation Library, A.3.2)."""

    sizes: ClassVar[dict[str, int]] = {
        "minimum_tee_tcb_svn": 16,
        "mr_seam": 48,
        "td_attributes": 8,
        "mr_td": 48,
        "mr_config_id": 48,
        "mr_owner": 48,
        "mr_owner_config": 48,
        "report_data": 64,
    }
    counters: ClassVar[tuple[str, ...]] = ("xfam",)

    minimum_tee_tcb_svn: str | None
    mr_seam: str | None
    td_attributes: str | None
    xfam: U64 | None = None
    mr_td: str | None
    mr_config_id: str | None
    mr_owner: str | None
    mr_owner_config: str | None
    report_data: str | None


class TdxPolicy(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Reference values of an Intel TDX machine."""

    header: TdxHeader
    body: TdxBody


class SgxHeader(QuoteHeader, frozen=True, kw_only=True):
    """Header part of an SGX policy."""


class SgxBody(Fixed, frozen=True, kw_only=True):
    """Intel SGX: fields of the enclave report body that 1.3.x compares."""

    sizes: ClassVar[dict[str, int]] = {"mr_enclave": 32, "mr_signer": 32, "report_data": 64}

    mr_enclave: str | None
    mr_signer: str | None
    report_data: str | None


class SgxPolicy(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Reference values of an Intel SGX enclave."""

    header: SgxHeader
    body: SgxBody


class TeePolicy(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Exactly one of the three, under its name: ``{"Sev": {...}}``."""

    sev: SevPolicy | UnsetType = msgspec.field(default=UNSET, name="Sev")
    tdx: TdxPolicy | UnsetType = msgspec.field(default=UNSET, name="Tdx")
    sgx: SgxPolicy | UnsetType = msgspec.field(default=UNSET, name="Sgx")

    def __post_init__(self) -> None:
        if sum(part is not UNSET for part in (self.sev, self.tdx, self.sgx)) != 1:
            raise ValueError("tee_policy must have exactly one of the keys Sev, Tdx and Sgx")

    @property
    def absent(self) -> tuple[str, ...]:
        """Names of the values that are not there, but for report_data, which differs from report to report."""
        parts: list[msgspec.Struct] = [self.sev] if self.sev is not UNSET else []
        for policy in (self.tdx, self.sgx):
            parts += [] if policy is UNSET else [policy.header, policy.body]
        values = [item for part in parts for item in msgspec.structs.asdict(part).items()]
        return tuple(name for name, value in values if value is None and name != "report_data")


class TpmPolicy(msgspec.Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """TPMS_CLOCK_INFO counters at the time of the snapshot (TPM 2.0 Library, part 2, 10.11.1)."""

    reset_count: U32 | None = None
    restart_count: U32 | None = None
