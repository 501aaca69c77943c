"""The real agent over a simulated machine: ``python -m cosmian_vm.devkit.agent --folder F [--attack NAME]``."""

from __future__ import annotations

import argparse
import socket
import sys
from dataclasses import replace
from pathlib import Path

from cosmian_vm.agent.log import configure
from cosmian_vm.agent.main import set_limits
from cosmian_vm.agent.serving import run
from cosmian_vm.devkit.hostile import ATTACKS, hostile
from cosmian_vm.devkit.vm import SimulatedVm
from cosmian_vm.errors import CosmianVmError

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """Serve the VM in ``--folder`` until SIGTERM. Its address is in the file ``url`` once connections are taken."""
    parser = argparse.ArgumentParser(prog="python -m cosmian_vm.devkit.agent", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--attack", choices=list(ATTACKS), metavar="NAME")
    options = parser.parse_args(argv)
    configure()
    set_limits()
    vm = SimulatedVm(options.folder)

    def ready(host: str, port: int) -> None:
        (vm.folder / "port").write_text(str(port), encoding="ascii")
        draft = vm.folder / "url.new"
        draft.write_text(f"https://{host}:{port}\n", encoding="ascii")
        draft.replace(vm.folder / "url")

    try:
        config, platform = vm.agent_config, vm.platform()
        if platform.tpm is not None:
            platform.tpm.provision()  # a lie may begin with what the true TPM says
        if options.attack is not None:
            platform = hostile(platform, options.attack)
        if not _is_free(config.host, config.port):
            config = replace(config, port=0)
        run(config, platform, on_ready=ready)
    except CosmianVmError as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


def _is_free(host: str, port: int) -> bool:
    """Whether the port of the last run can be had again."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


if __name__ == "__main__":
    sys.exit(main())
