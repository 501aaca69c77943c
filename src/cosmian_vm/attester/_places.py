"""Where the kernel, or Gramine, shows the hardware: apart from what reads it, which is imported where it is there."""

from __future__ import annotations

from pathlib import Path

__all__ = ["ATTESTATION", "SEV_GUEST", "SNP_DRIVER", "TDX_DRIVER", "TDX_GUEST", "TSM_REPORT"]

ATTESTATION = Path("/dev/attestation")
SEV_GUEST = Path("/dev/sev-guest")
TDX_GUEST = Path("/dev/tdx_guest")
TSM_REPORT = Path("/sys/kernel/config/tsm/report")

# what configfs-tsm calls them (``provider``)
SNP_DRIVER = b"sev_guest"
TDX_DRIVER = b"tdx_guest"
