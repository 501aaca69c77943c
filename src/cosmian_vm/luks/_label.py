"""SELinux labels of folders. A new file system has none, and what has none is out of reach for whoever is confined."""

from __future__ import annotations

import os
from pathlib import Path

from cosmian_vm.errors import AttesterError

__all__ = ["give_label", "label_of"]

_ATTRIBUTE = "security.selinux"


def label_of(folder: Path) -> bytes | None:
    """The folder's label; None where nobody has given it one."""
    try:
        return os.getxattr(folder, _ATTRIBUTE)
    except OSError:  # it has none, or this file system or kernel knows no labels
        return None


def give_label(folder: Path, label: bytes) -> None:
    """Raises AttesterError."""
    try:
        os.setxattr(folder, _ATTRIBUTE, label)
    except OSError as exc:
        raise AttesterError(f"{folder}: cannot be given its SELinux label: {exc.strerror or exc}") from exc
