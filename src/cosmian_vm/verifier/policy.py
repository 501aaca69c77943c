"""The verifier's choices: one frozen object, read once, passed down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cosmian_vm.evidence.bundle import TeeKind
from cosmian_vm.reference.snapshot import Anchor

__all__ = ["ALL_ANCHORS", "PLATFORM_INFO_BITS", "Policy", "SnpRules"]

ALL_ANCHORS: frozenset[Anchor] = frozenset({"tee", "svsm", "certificate", "operator"})

PLATFORM_INFO_BITS: Mapping[str, int] = {
    "smt_en": 0,
    "tsme_en": 1,
    "ecc_en": 2,
    "rapl_dis": 3,
    "ciphertext_hiding_dram_en": 4,
    "alias_check_complete": 5,
    "tio_en": 7,
}
"""PLATFORM_INFO of an SNP report: name to bit (AMD 56860, table "PLATFORM_INFO Field"); bit 6 is reserved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SnpRules:
    """What an SNP guest and its host must be, beyond the snapshot; None and empty: anything.

    ``minimum_abi``: least firmware ABI (major, minor) that the guest policy may demand. ``smt``: False refuses a guest
    policy that allows simultaneous multithreading. ``single_socket``: True demands it. ``host_data``: 32 bytes.
    ``id_key_digests``, ``author_key_digests``: 48 bytes each, one of which it must be. ``platform_set``,
    ``platform_clear``: names of PLATFORM_INFO_BITS.
    """

    minimum_abi: tuple[int, int] | None = None
    smt: bool | None = None
    single_socket: bool = False
    host_data: bytes | None = None
    id_key_digests: frozenset[bytes] = frozenset()
    author_key_digests: frozenset[bytes] = frozenset()
    platform_set: frozenset[str] = frozenset()
    platform_clear: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is accepted beyond the reference values. The defaults are the strict choice.

    ``allow_reboot``: a reboot is a warning where AK, boot PCRs and all of ``ima.*`` hold. ``strict``: every IMA
    violation fails. ``without_tpm``: no TPM and no IMA are expected (kept in the snapshot). ``api``: the version of
    the agent's API that the user asked for; 1 only when told. ``owner``: fingerprint that must own the machine.

    ``kinds``: TEEs that may pass. ``anchors``: who may vouch for the AK. ``required``: check ids beyond those of DESIGN
    that must have an answer. ``no_warning``: check ids that fail where they would warn.

    ``vmpl``: expected SNP VMPL, None: the snapshot's, or 0 where there is none. ``minimum_tcb``: per AMD product
    (``"Milan"``), component name (``bl``, ``tee``, ``snp``, ``ucode``, ``fmc``) to least acceptable SVN. ``snp``: rules
    for SNP guests.

    ``tcb_statuses``: Intel TCB statuses that pass, with a warning, beyond those that do anyway; ``Revoked`` never does.
    ``advisories``: ids that may be open on the platform; None: any.
    """

    allow_reboot: bool = False
    strict: bool = False
    without_tpm: bool = False
    api: int = 2
    owner: str | None = None
    kinds: frozenset[TeeKind] = frozenset(TeeKind)
    anchors: frozenset[Anchor] = ALL_ANCHORS
    required: frozenset[str] = frozenset()
    no_warning: frozenset[str] = frozenset()
    vmpl: int | None = None
    minimum_tcb: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    snp: SnpRules = SnpRules()
    tcb_statuses: frozenset[str] = frozenset()
    advisories: frozenset[str] | None = None
