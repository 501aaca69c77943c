"""Where the agent keeps what must survive: the folder ``data``, and whether it may be written to at all."""

from __future__ import annotations

import os
from pathlib import Path

from cosmian_vm.agent.config import AgentConfig, AppConfig
from cosmian_vm.agent.files import make_folder, write_atomically
from cosmian_vm.errors import AttesterError, InputError, OrderError
from cosmian_vm.luks.place import Place

__all__ = ["APP_CONFIGURATION", "Storage"]

APP_CONFIGURATION = "app.conf"
"""Name of the application's configuration file below ``app_storage``."""

_LUKS = "CRYPT-LUKS2-"
_ESCAPES = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\"))


class Storage:
    """``why``: what the start said of a container that it could not open. ``mountinfo`` and ``block_devices`` are the
    kernel's; tests give their own.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        why: str | None = None,
        mountinfo: Path = Path("/proc/self/mountinfo"),
        block_devices: Path = Path("/sys/dev/block"),
    ) -> None:
        self._config = config
        self.why = why
        self._mountinfo = mountinfo
        self._block_devices = block_devices

    def locked(self) -> str | None:
        """Why nothing may be written below ``data``; None where it may.

        It is looked at anew each time: a container that is lost while the agent runs would leave a plain folder.
        """
        if self._config.container is None:
            return None
        data = os.path.realpath(self._config.data)
        device = self._device_mounted_at(data)
        if device is None:
            return self.why or (
                f"no encrypted container is mounted at {data} (a machine that is to have none says "
                'container = "none" in its agent.toml)'
            )
        try:
            uuid = (self._block_devices / device / "dm" / "uuid").read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            uuid = ""
        if not uuid.startswith(_LUKS):
            return f"what is mounted at {data} is no encrypted container (LUKS2)"
        try:
            ours = Place.at(self._config.container, self._config.data).name
        except InputError as exc:
            return str(exc)
        if not uuid.endswith(f"-{ours}"):
            return f"what is mounted at {data} is not {self._config.container}, which agent.toml names"
        return None

    def require_open(self) -> None:
        """Raises OrderError (503) where the container is locked."""
        reason = self.locked()
        if reason is not None:
            raise OrderError(f"container locked: {reason}", status=503)

    def write_app_configuration(self, app: AppConfig, content: bytes) -> None:
        """Write ``app.conf``, readable by root alone, whole or not at all.

        Raises OrderError where the container is locked, AttesterError where the file cannot be written.
        """
        self.require_open()
        try:
            make_folder(app.storage)
            write_atomically(app.storage / APP_CONFIGURATION, content, 0o400)
        except OSError as exc:
            place = app.storage / APP_CONFIGURATION
            raise AttesterError(f"{place} cannot be written: {exc.strerror or exc}; the old one stays") from exc

    def _device_mounted_at(self, point: str) -> str | None:
        """``major:minor`` of the file system seen at ``point``: the last one mounted there (proc_pid_mountinfo(5))."""
        try:
            lines = self._mountinfo.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
        except OSError:
            return None
        device = None
        for line in lines:
            fields = line.split(" ")
            if len(fields) < 5:
                continue
            mounted = fields[4]
            for code, character in _ESCAPES:
                mounted = mounted.replace(code, character)
            if mounted == point:
                device = fields[2]
        return device
