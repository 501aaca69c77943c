"""Write the programs of the image, as pyproject.toml names them: ``_launchers.py PYPROJECT FOLDER [--simulated]``.

They run with the Python that runs this, which is 3.11 or newer.
"""

import sys
import tomllib
from pathlib import Path

PROGRAMS = ("cosmian_vm_agent", "cosmian_certtool", "cosmian_fstool")
LAUNCHER = """\
#!{python} -IBS
import sys

sys.path.append("/usr/lib/cosmian_vm")
from {module} import {function}

sys.exit({function}())
"""


def main() -> None:
    """Each program that there is an entry point for; with ``--simulated`` the agent is that of the devkit."""
    pyproject, folder = Path(sys.argv[1]), Path(sys.argv[2])
    entries = dict(tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["scripts"])
    if sys.argv[3:] == ["--simulated"]:
        entries["cosmian_vm_agent"] = "cosmian_vm.devkit.guest:main"
    for name in PROGRAMS:
        if name in entries:
            module, _, function = entries[name].partition(":")
            path = folder / name
            path.write_text(LAUNCHER.format(python=sys.executable, module=module, function=function), encoding="utf-8")
            path.chmod(0o755)


main()
