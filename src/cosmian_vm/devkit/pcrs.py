"""PCRs as the software that measures sees them: two banks, extended together, over a real or a pretended TPM."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from hashlib import new as new_hash
from typing import ClassVar, Protocol

os.environ.setdefault("TSS2_LOG", "all+none")

from tpm2_pytss import ESAPI, ESYS_TR, TPM2_ALG, TPML_DIGEST_VALUES, TSS2_Exception
from tpm2_pytss.types import TPMT_HA, TPMU_HA

from cosmian_vm.errors import AttesterError

__all__ = ["BANKS", "PcrBanks", "TpmPcrs", "extend_data"]

BANKS = {"sha1": 20, "sha256": 32}
"""The banks that the simulated TPMs have, and their digests' sizes in bytes."""


class PcrBanks(Protocol):
    """Who can extend PCRs and read them back."""

    def extend(self, pcr: int, digests: Mapping[str, bytes]) -> None:
        """Extend ``pcr`` in each bank named by that bank's digest."""
        ...

    def read_pcrs(self, pcrs: Sequence[int]) -> dict[int, bytes]:
        """Values of the sha256 bank."""
        ...


def extend_data(pcrs: PcrBanks, pcr: int, data: bytes) -> None:
    """Extend ``pcr`` in every bank with the bank's own hash of ``data``."""
    pcrs.extend(pcr, {bank: new_hash(bank, data).digest() for bank in BANKS})


class TpmPcrs:
    """The PCRs of a running TPM; a context of its own for each use, since swtpm serves one client at a time."""

    _ALGORITHMS: ClassVar = {"sha1": TPM2_ALG.SHA1, "sha256": TPM2_ALG.SHA256}

    def __init__(self, tcti: str) -> None:
        self._tcti = tcti

    def extend(self, pcr: int, digests: Mapping[str, bytes]) -> None:
        """Extend ``pcr`` in each bank named. Raises AttesterError."""
        values = [
            TPMT_HA(hashAlg=self._ALGORITHMS[bank], digest=TPMU_HA(**{bank: digest}))
            for bank, digest in digests.items()
        ]
        try:
            with ESAPI(self._tcti) as esys:
                esys.pcr_extend(ESYS_TR.PCR0 + pcr, TPML_DIGEST_VALUES(values))
        except TSS2_Exception as exc:
            raise AttesterError(f"PCR {pcr} cannot be extended: {exc}") from exc

    def read_pcrs(self, pcrs: Sequence[int]) -> dict[int, bytes]:
        """Values of the sha256 bank. Raises AttesterError."""
        from cosmian_vm.attester.tpm import EsapiTpm

        return EsapiTpm(self._tcti, keep_open=False).read_pcrs(pcrs)
