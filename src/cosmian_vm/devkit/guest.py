"""The agent in a booted machine without TEE: the real agent, kernel lists and TPM, and a simulated SNP beside them.

``image/build --simulated-tee`` installs this module as the image's ``cosmian_vm_agent``, with the simulated vendor's
keys in the folder ``VENDOR``. Nothing that it signs passes a verification without ``--trust-root``.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

from cosmian_vm.agent.config import CONFIG_VARIABLE, DEFAULT_CONFIG, PREINIT_VARIABLE, load
from cosmian_vm.agent.log import LOGGER, configure
from cosmian_vm.agent.main import run
from cosmian_vm.agent.privileges import find_front_user
from cosmian_vm.attester.platform import detect
from cosmian_vm.devkit.amd import AmdVendor
from cosmian_vm.devkit.tee import SimulatedTee
from cosmian_vm.errors import CosmianVmError

__all__ = ["main"]

VENDOR = Path("/usr/lib/cosmian_vm_simulated_vendor")
_INSTANCE = Path("/sys/class/dmi/id/product_uuid")


def main() -> int:
    """Serve until SIGTERM. The guest's report_id comes from the UUID that the hypervisor gave it at its launch."""
    configure()
    os.umask(0o077)
    LOGGER.warning("the TEE is SIMULATED: its memory is not encrypted, and a made-up vendor signs its reports")
    try:
        config = load(Path(os.environ.get(CONFIG_VARIABLE) or DEFAULT_CONFIG))
        tee = SimulatedTee.launch(AmdVendor.load(VENDOR), instance=_INSTANCE.read_bytes())
        platform = replace(detect(config.tpm_device), tee=tee)
        preinit = os.environ.get(PREINIT_VARIABLE) != "0"
        run(config, platform, preinit=preinit, front=find_front_user())
    except CosmianVmError as exc:
        print(f"cosmian_vm_agent (simulated TEE): {exc}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
