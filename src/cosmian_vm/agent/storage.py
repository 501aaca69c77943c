"""Where the agent keeps what must survive: the folder ``data``, and whether it may be written to at all."""

from __future__ import annotations

import os
from pathlib import Path

from cosmian_vm.agent.config import AgentConfig, AppConfig
from cosmian_vm.agent.files import make_folder, user_ids, write_atomically
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

    @property
    def owners_file(self) -> Path:
        """Where the owners of this machine are kept."""
        return self._config.data / "owners.json"

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

    def on_container(self, folder: Path) -> bool:
        """Whether ``folder``, which need not be there yet, lies below ``data`` and that is the encrypted container."""
        data = os.path.realpath(self._config.data)
        inside = os.path.realpath(folder).startswith(data + os.sep)
        return inside and self._config.container is not None and self.locked() is None

    def has_app_configuration(self, app: AppConfig) -> bool:
        """Whether ``app.conf`` is there."""
        return (app.storage / APP_CONFIGURATION).is_file()

    def write_app_configuration(self, app: AppConfig, content: bytes) -> None:
        """Write ``app.conf``, readable by ``app.user`` (and root) alone, whole or not at all.

        Raises OrderError where the container is locked, AttesterError where the file cannot be written.
        """
        self.require_open()
        place = app.storage / APP_CONFIGURATION
        try:
            owner = user_ids(app.user)
            self._refuse_detour(app.storage)
            make_folder(app.storage)
            if owner is not None:
                self._let_through(app.storage)
            write_atomically(place, content, 0o400, owner)
        except OSError as exc:
            raise AttesterError(f"{place} cannot be written: {exc.strerror or exc}; the old one stays") from exc

    def let_through(self, app: AppConfig) -> None:
        """Keep the way to ``app.conf`` open for the application's user, where it is there already: whoever starts the
        agent may have closed the folder above. Raises OSError, AttesterError.
        """
        if self.has_app_configuration(app) and user_ids(app.user) is not None:
            self._let_through(app.storage)

    def _refuse_detour(self, folder: Path) -> None:
        """Of a folder below ``data_storage``, no part may be a link that leads elsewhere: what runs on this machine
        must not choose where secrets go. Raises AttesterError.
        """
        base = self._config.data_storage
        if not folder.is_relative_to(base):
            return
        found = os.path.realpath(folder)
        if found != os.fspath(Path(os.path.realpath(base)) / folder.relative_to(base)):
            raise AttesterError(f"{folder} leads to {found}: a link in it is not followed; the old configuration stays")

    def _let_through(self, folder: Path) -> None:
        """The application's user must reach its file: our own folders above it may be passed by all, listed by none."""
        base = self._config.data_storage
        while folder.is_relative_to(base):
            mode = folder.stat().st_mode & 0o7777
            if not mode & 0o001:
                folder.chmod(mode | 0o001)
            folder = folder.parent

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
