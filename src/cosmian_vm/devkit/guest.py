"""The agent in a booted machine without TEE: the real agent, kernel lists and TPM, and a simulated SNP beside them.

``image/build --simulated-tee`` installs this module as the image's ``cosmian_vm_agent``, with the simulated vendor's
keys in the folder ``VENDOR``. Nothing that it signs passes a verification without ``--trust-root``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cosmian_vm.agent import main as agent
from cosmian_vm.agent.config import AgentConfig
from cosmian_vm.agent.log import LOGGER
from cosmian_vm.attester.platform import Platform, detect
from cosmian_vm.devkit.amd import AmdVendor
from cosmian_vm.devkit.tee import SimulatedTee

__all__ = ["main"]

VENDOR = Path("/usr/lib/cosmian_vm_simulated_vendor")
_INSTANCE = Path("/sys/class/dmi/id/product_uuid")


def main() -> None:
    """As cosmian_vm_agent. The guest's report_id comes from the UUID that the hypervisor gave it at its launch."""
    agent.main(_platform)


def _platform(config: AgentConfig) -> Platform:
    LOGGER.warning("the TEE is SIMULATED: its memory is not encrypted, and a made-up vendor signs its reports")
    tee = SimulatedTee.launch(AmdVendor.load(VENDOR), instance=_INSTANCE.read_bytes())
    return replace(detect(config.tpm_device), tee=tee)


if __name__ == "__main__":
    main()
