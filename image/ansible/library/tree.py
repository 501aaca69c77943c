#!/usr/bin/python
"""The module ``tree``: writes the files of an archive where they differ in content or mode. See action_plugins/tree.py.

Runs with the Python that the machine has for Ansible, 3.9 on RHEL 9. New files belong to root; the group of a file that
is there already is kept, since the role ima gives files to the group `measured`.
"""

import os
import stat
import tarfile
import tempfile

from ansible.module_utils.basic import AnsibleModule


def make_folder(module, path, mode):
    """Make a folder with a mode, or give a folder that is there that mode; whether anything was to be done."""
    if os.path.isdir(path) and (mode is None or stat.S_IMODE(os.stat(path).st_mode) == mode):
        return False
    if not module.check_mode:
        os.makedirs(path, exist_ok=True)
        os.chmod(path, 0o755 if mode is None else mode)
    return True


def write(module, path, content, mode):
    """Write a file, by a rename, unless it is there in this form; whether anything was to be done."""
    try:
        with open(path, "rb") as file:
            if file.read() == content and stat.S_IMODE(os.stat(path).st_mode) == mode:
                return False
    except OSError:
        pass
    if not module.check_mode:
        descriptor, new = tempfile.mkstemp(dir=module.tmpdir)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        module.atomic_move(new, path)
        os.chmod(path, mode)
    return True


def main():
    """Folders first, then what is in them."""
    module = AnsibleModule(
        argument_spec={
            "archive": {"type": "path", "required": True},
            "dest": {"type": "path", "default": "/"},
            "folders": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    changed = []
    with tarfile.open(module.params["archive"]) as archive:
        for member in archive:
            path = os.path.normpath(os.path.join(module.params["dest"], member.name))
            if member.isdir():
                done = make_folder(module, path, None)
            elif member.isfile():
                done = make_folder(module, os.path.dirname(path), None)
                done = write(module, path, archive.extractfile(member).read(), member.mode) or done
            else:
                module.fail_json(msg=f"{member.name}: neither a file nor a folder, which is all that a role may bring")
            if done:
                changed.append(path)
    for path, mode in sorted(module.params["folders"].items()):
        if make_folder(module, path, int(mode, 8)):
            changed.append(path)
    module.exit_json(changed=bool(changed), files=changed)


main()
