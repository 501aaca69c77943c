"""The action ``tree``: copies a folder to the machine in one go, where `copy` would take half a second for each file.

``src`` is a folder of this computer, ``dest`` one of the machine (default: ``/``), ``only`` names what of ``src`` is
wanted (default: everything), ``folders`` are made too: path to mode. The module of the same name writes what differs.
"""

import tarfile
import tempfile
from pathlib import Path

from ansible.plugins.action import ActionBase

LEFT_OUT = ("__pycache__", ".egg-info", ".pyc")


def _wanted(info):
    """The archive tells nothing of this computer: no owners, no times; of modes "executable", "private"."""
    if info.name.endswith(LEFT_OUT):
        return None
    info.uid = info.gid = info.mtime = 0
    info.uname = info.gname = ""
    private = 0o077 if info.isfile() and not info.mode & 0o077 else 0
    info.mode = (0o755 if info.isdir() or info.mode & 0o111 else 0o644) & ~private
    return info


class ActionModule(ActionBase):
    """Pack, send, unpack by the module."""

    TRANSFERS_FILES = True

    def run(self, tmp=None, task_vars=None):  # noqa: D102
        result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        source, only = Path(arguments.pop("src")), arguments.pop("only", ["."])
        folder = self._make_tmp_path()
        try:
            with tempfile.NamedTemporaryFile(suffix=".tar") as packed:
                with tarfile.open(fileobj=packed, mode="w") as archive:
                    for name in only:
                        archive.add(source / name, arcname=name, filter=_wanted)
                packed.flush()
                remote = self._transfer_file(packed.name, self._connection._shell.join_path(folder, "tree.tar"))
            self._fixup_perms2((folder, remote))
            arguments["archive"] = remote
            result.update(self._execute_module(module_name="tree", module_args=arguments, task_vars=task_vars))
        finally:
            self._remove_tmp_path(folder)
        return result
