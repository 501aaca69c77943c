"""The verifier's choices: one frozen object, read once, passed down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["Policy"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What is accepted beyond the reference values. The defaults are the strict choice.

    ``allow_reboot``: a reboot is a warning where AK, boot PCRs and all of ``ima.*`` hold. ``strict``: every IMA
    violation fails. ``without_tpm``: no TPM and no IMA are expected (kept in the snapshot). ``api``: the version of
    the agent's API that the user asked for; 1 only when told. ``owner``: fingerprint that must own the machine.
    ``vmpl``: expected SNP VMPL, None: the snapshot's, or 0 where there is none. ``minimum_tcb``: per AMD product
    (``"Milan"``), component name (``bl``, ``tee``, ``snp``, ``ucode``, ``fmc``) to least acceptable SVN.
    """

    allow_reboot: bool = False
    strict: bool = False
    without_tpm: bool = False
    api: int = 2
    owner: str | None = None
    vmpl: int | None = None
    minimum_tcb: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
