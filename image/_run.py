"""Boot an image of ``image/build --simulated-tee`` under QEMU, wait for its agent, and say what to try."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from cosmian_vm.devkit.qemu import QemuVm, accelerator
from cosmian_vm.errors import CosmianVmError

ROOT = Path(__file__).resolve().parent.parent
SSH_KEY = ROOT / ".cache" / "image" / "ssh_key"

TO_TRY = """
The VM is up at {url}, and stays until image/run --stop. {tee}

  . {activate}
  cosmian_vm --url {url} --allow-insecure-tls {first}
  {ssh}
  ...  'cp /bin/ls /usr/local/bin/miner; echo >>/usr/local/bin/miner; miner /'     # then verify: it is named
  ...  reboot                                                                     # then verify: tpm.clock
"""
_SIMULATED = "Its TEE is SIMULATED; kernel and IMA are real."
_SNAPSHOT = """snapshot --trust-root {root}
  cosmian_vm --url {url} --allow-insecure-tls verify --snapshot cosmian_vm.snapshot --trust-root {root}
"""
_NO_TEE = "It has no TEE, so a verification fails (tee.*); image/build --simulated-tee makes one that passes."
_REFERENCE = "verify --reference {reference}\n"


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="image/run", description=__doc__)
    image = ROOT / "build" / "image" / "cosmian_vm-simulated.img"
    parser.add_argument("--image", type=Path, default=image, help="default: build/image/cosmian_vm-simulated.img")
    parser.add_argument("--folder", type=Path, default=ROOT / ".cache" / "vm", help="where the VM is kept")
    parser.add_argument("--port", type=int, help="of the agent, on 127.0.0.1 (default: any free one)")
    parser.add_argument("--ssh-port", type=int, help="of SSH, on 127.0.0.1 (default: any free one)")
    parser.add_argument("--fresh", action="store_true", help="forget the VM in the folder: new disk, new TPM")
    parser.add_argument("--stop", action="store_true", help="switch it off; its disk and TPM are kept")
    return parser.parse_args()


def main() -> int:
    """0: it is up (or, with --stop, off)."""
    chosen = options()
    vm = QemuVm(chosen.folder)
    try:
        if chosen.stop:
            vm.stop()
            return 0
        if chosen.fresh:
            vm.remove()
        vm.create(chosen.image, agent_port=chosen.port, ssh_port=chosen.ssh_port)
        if not vm.running:
            accel = accelerator()
            print(f"booting {chosen.image.name} ({'KVM' if accel == 'kvm' else 'emulated, half a minute or more'})")
            vm.start(accel=accel)
        took = vm.wait()
    except CosmianVmError as exc:
        print(f"image/run: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        vm.stop(orderly=False)
        return 130
    print(f"the agent answers ({took:.0f} s)")
    root, reference = (chosen.image.with_suffix(end) for end in (".trust_root.pem", ".reference.json"))
    simulated = root.exists()
    first = _SNAPSHOT if simulated else _REFERENCE
    text = TO_TRY.format(
        url=vm.url,
        tee=_SIMULATED if simulated else _NO_TEE,
        activate=shlex.quote(str(ROOT / ".venv" / "bin" / "activate")),
        first=first.format(url=vm.url, root=shlex.quote(str(root)), reference=shlex.quote(str(reference))),
        ssh=shlex.join(vm.ssh(SSH_KEY)),
    )
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
