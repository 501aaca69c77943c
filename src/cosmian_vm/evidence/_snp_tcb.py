"""AMD processor families that have SEV-SNP, and how each lays out a TCB_VERSION.

Source: AMD 56860, "SEV Secure Nested Paging Firmware ABI Specification", table "TCB_VERSION"; AMD 57230, "VCEK
Certificate and KDS Interface Specification", for the families' names.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, StrEnum
from typing import NamedTuple

__all__ = ["Product", "TcbLayout", "TcbVersion", "decode_tcb", "encode_tcb"]


class TcbLayout(Enum):
    """How a TCB_VERSION's 8 bytes are used: pairs of component and byte position, in the order of printing."""

    MILAN = (("bl", 0), ("tee", 1), ("snp", 6), ("ucode", 7))  # Milan, Genoa
    TURIN = (("fmc", 0), ("bl", 1), ("tee", 2), ("snp", 3), ("ucode", 7))


class Product(StrEnum):
    """The processor families that have SEV-SNP, by the names of AMD's key service. Each has a root of its own.

    Genoa stands for Bergamo and Siena too.
    """

    MILAN = "Milan"
    GENOA = "Genoa"
    TURIN = "Turin"

    @property
    def tcb_layout(self) -> TcbLayout:
        """How this family lays out a TCB_VERSION."""
        return TcbLayout.TURIN if self is Product.TURIN else TcbLayout.MILAN

    @classmethod
    def from_cpuid(cls, family: int, model: int) -> Product | None:
        """The family of a processor by combined CPUID family and model; None for one that we do not know."""
        if family == 0x19:
            if model <= 0x0F:
                return cls.MILAN
            if 0x10 <= model <= 0x1F or 0xA0 <= model <= 0xAF:
                return cls.GENOA
        if family == 0x1A and model <= 0x1F:
            return cls.TURIN
        return None


class TcbVersion(NamedTuple):
    """Security version numbers of one TCB. ``components``: name to SVN, as the product lays them out."""

    raw: bytes
    components: Mapping[str, int]

    def __str__(self) -> str:
        return " ".join(f"{name} {svn}" for name, svn in self.components.items())


def decode_tcb(raw: bytes, layout: TcbLayout) -> TcbVersion:
    """Read the 8 bytes of a TCB_VERSION. Bytes that the layout leaves reserved are not looked at."""
    return TcbVersion(raw, {name: raw[position] for name, position in layout.value})


def encode_tcb(components: Mapping[str, int], layout: TcbLayout) -> bytes:
    """The 8 bytes of a TCB_VERSION; components not given are 0. Inverse of :func:`decode_tcb`."""
    raw = bytearray(8)
    for name, position in layout.value:
        raw[position] = components.get(name, 0)
    return bytes(raw)
