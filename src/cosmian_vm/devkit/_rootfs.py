"""The file system of a simulated VM: a few real executables of this computer, and files with awkward names."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from cosmian_vm.devkit.ima import IMA_POLICY_PATH
from cosmian_vm.errors import AttesterError

__all__ = ["INIT", "PROGRAMS", "make_rootfs"]

PROGRAMS = ("true", "ls", "cat", "echo", "id", "uname")
"""Programs that are copied from this computer into the VM's /usr/bin."""

INIT = ("/usr/lib/systemd/systemd", IMA_POLICY_PATH, "/usr/bin/true", "/usr/bin/ls", "/usr/bin/a program with spaces")
"""What every boot runs or measures, in this order."""

_APPLICATION = b"""#!/bin/sh
# The application of the simulated VM. It has nothing to do without its configuration.
[ -s app.conf ] || { echo "app.conf is missing" >&2; exit 1; }
exec sleep 86400
"""

_POLICY = b"""measure func=BPRM_CHECK mask=MAY_EXEC
measure func=FILE_MMAP mask=MAY_EXEC
measure func=POLICY_CHECK
"""


def make_rootfs(root: Path) -> None:
    """Fill ``root``, which does not exist yet; it appears whole or not at all. Raises AttesterError."""
    draft = root.with_name(root.name + ".new")
    shutil.rmtree(draft, ignore_errors=True)
    binaries = draft / "usr/bin"
    binaries.mkdir(parents=True)
    for name in PROGRAMS:
        source = shutil.which(name)
        if source is None:
            raise AttesterError(f"{name} is not on this computer; the simulated VM needs it as an example")
        shutil.copy(source, binaries / name)
    _write(draft, "/usr/lib/systemd/systemd", (binaries / "true").read_bytes() + b"\ninit\n", mode=0o755)
    _write(draft, "/usr/bin/a program with spaces", (binaries / "echo").read_bytes(), mode=0o755)
    _write(draft, "/opt/app/server", _APPLICATION, mode=0o755)
    _write(draft, IMA_POLICY_PATH, _POLICY)
    _write(draft, "/etc/hostname", b"simulated-vm\n")
    _write(draft, "/var/log/messages", b"left out of snapshots\n")
    latin1 = os.fsencode(draft) + b"/usr/share/doc/caf\xe9.txt"  # a name that is not UTF-8, as old archives have
    Path(os.fsdecode(latin1)).parent.mkdir(parents=True)
    Path(os.fsdecode(latin1)).write_bytes(b"coffee\n")
    draft.replace(root)


def _write(root: Path, path: str, content: bytes, *, mode: int = 0o644) -> None:
    target = root / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content)
    target.chmod(mode)
