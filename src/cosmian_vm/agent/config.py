"""The agent's configuration: one TOML file, read once at start, one frozen object."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, NoReturn

from cosmian_vm.errors import ConfigError, EvidenceFormatError, InputError
from cosmian_vm.luks.pcrs import DEFAULT_PCRS, parse_pcrs
from cosmian_vm.luks.sizes import FIRST_SIZE, parse_size
from cosmian_vm.owner_proof import MAX_OWNERS, parse_fingerprint

__all__ = [
    "CONFIG_VARIABLE",
    "DEFAULT_CONFIG",
    "PREINIT_VARIABLE",
    "AgentConfig",
    "AppConfig",
    "ServiceType",
    "load",
    "parse",
]

CONFIG_VARIABLE = "COSMIAN_VM_AGENT_CONF"
"""Environment variable that names another configuration file."""

PREINIT_VARIABLE = "COSMIAN_VM_PREINIT"
"""Environment variable; ``0`` skips the steps of the first launch."""

DEFAULT_CONFIG = Path("/etc/cosmian_vm/agent.toml")

_MAX_SIZE = 1 << 20
_SECTIONS = ("agent", "app")
_AGENT_KEYS = (
    *("data_storage", "host", "port", "ssl_certificate", "ssl_private_key", "tpm_device"),
    *("container", "container_size", "container_pcrs", "owners"),
)
_APP_KEYS = ("service_type", "service_name", "app_storage", "user")
_USER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,63}")
_SERVICE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@\-]*")


class ServiceType(StrEnum):
    """Who starts and stops the application."""

    SUPERVISOR = "supervisor"
    SYSTEMD = "systemd"
    STANDALONE = "standalone"


@dataclass(frozen=True, slots=True, kw_only=True)
class AppConfig:
    """Section ``[app]``. ``storage``: absolute path of the folder that ``app.conf`` is written to.

    ``service_name``: the unit's or program's name for supervisor and systemd; for standalone the program itself.
    ``user``: whose ``app.conf`` is, who alone can read it beside root, and whom a standalone program runs as.
    """

    service_type: ServiceType
    service_name: str
    storage: Path
    user: str = "root"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """The whole configuration; every path is absolute.

    ``port`` 0 stands for any free port (only from code, never from a file). ``tpm_device`` None: no TPM.
    ``container``: the encrypted container's file, None where the machine explicitly has none; ``container_size``: in
    bytes, where it is made at the first launch; ``container_pcrs``: what it is sealed to. ``owners``: who gives orders,
    as fingerprints, and then nobody can claim the machine; "anyone" takes orders without a proof of who gives them, as
    1.3.x does; None: whoever claims the machine first.
    """

    data_storage: Path
    host: str = "127.0.0.1"
    port: int = 5355
    ssl_certificate: Path
    ssl_private_key: Path
    tpm_device: str | None = None
    container: Path | None = None
    container_size: int = FIRST_SIZE
    container_pcrs: tuple[int, ...] = DEFAULT_PCRS
    owners: Literal["anyone"] | tuple[str, ...] | None = None
    app: AppConfig | None = None

    @property
    def data(self) -> Path:
        """The folder that survives reboots, on the encrypted container where there is one."""
        return self.data_storage / "data"

    @property
    def tmp(self) -> Path:
        """The folder that does not survive a reboot (a tmpfs in our images)."""
        return self.data_storage / "tmp"


def load(path: Path) -> AgentConfig:
    """Read the configuration file. Raises ConfigError naming file, key and what is expected."""
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_SIZE + 1)
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    if len(raw) > _MAX_SIZE:
        raise ConfigError(f"{path}: larger than {_MAX_SIZE} bytes, this is no configuration")
    return parse(raw, str(path))


def parse(raw: bytes, name: str) -> AgentConfig:
    """Read the configuration file's content; ``name`` is the file's in errors.

    Raises ConfigError naming file, key and what is expected.
    """
    import tomllib  # once a start, and not where the configuration is made by code

    try:
        document = tomllib.loads(raw.decode())
    except UnicodeDecodeError as exc:
        raise ConfigError(f"{name}: not UTF-8 at offset {exc.start:#x}; expected is a TOML file") from exc
    except (tomllib.TOMLDecodeError, RecursionError) as exc:
        raise ConfigError(f"{name}: not TOML: {' '.join(str(exc).split())}") from exc
    top = _Table(name, "", document, _SECTIONS)
    agent, app = top.table("agent", _AGENT_KEYS), top.table("app", _APP_KEYS)
    if agent is None:
        top.wrong("agent", "is missing; expected is the section [agent]")
    storage = Path(agent.text("data_storage"))
    if not storage.is_absolute():
        agent.wrong("data_storage", "expected is an absolute path, as in /var/lib/cosmian_vm/")
    container = agent.optional_text("container") or "container"
    if container == "none":
        agent.none_of("container_size", "container_pcrs", why='there is no container (container = "none")')
    return AgentConfig(
        data_storage=storage,
        host=agent.optional_text("host") or "127.0.0.1",
        port=agent.port("port", default=5355),
        ssl_certificate=storage / agent.text("ssl_certificate"),
        ssl_private_key=storage / agent.text("ssl_private_key"),
        tpm_device=agent.optional_text("tpm_device"),
        container=None if container == "none" else storage / container,
        container_size=agent.size("container_size", default=FIRST_SIZE),
        container_pcrs=agent.pcrs("container_pcrs"),
        owners=agent.owners("owners"),
        app=None if app is None else _app(app, storage),
    )


def _app(table: _Table, storage: Path) -> AppConfig:
    kind = table.text("service_type")
    if kind not in set(ServiceType):
        table.wrong("service_type", f"is {kind[:40]!r}; expected is one of {', '.join(ServiceType)}")
    name = table.text("service_name")
    bare = name.rpartition("/")[2] if kind == ServiceType.STANDALONE and name.startswith("/") else name
    if not _SERVICE_NAME.fullmatch(bare) or ".." in name:
        table.wrong(
            "service_name", "expected is a service's name (letters, digits, . _ - : @) or, standalone, a program's path"
        )
    if kind == ServiceType.SUPERVISOR and name == "all":
        table.wrong("service_name", "is 'all', which stands for every program of supervisor; expected is one program")
    folder = Path(table.text("app_storage"))
    if ".." in folder.parts:
        table.wrong("app_storage", "has '..' in it; expected is a folder below data_storage, or an absolute path")
    user = table.optional_text("user") or "root"
    if not _USER_NAME.fullmatch(user):
        table.wrong("user", "expected is the name of the user that the application runs as")
    return AppConfig(service_type=ServiceType(kind), service_name=name, storage=storage / folder, user=user)


class _Table:
    """One section: hands out its keys, typed. Raises ConfigError for a key that is not among ``keys``, before one that
    is missing is named: it may be that one, misspelt.
    """

    def __init__(self, file: str, name: str, values: Mapping[str, Any], keys: tuple[str, ...]) -> None:
        self._file = file
        self._name = name
        self._values = values
        for key in values:
            if key not in keys:
                self._unknown(key, keys)

    def wrong(self, key: str, problem: str) -> NoReturn:
        """Raise ConfigError about ``key``."""
        section = f"[{self._name}] " if self._name else ""
        raise ConfigError(f"{self._file}: {section}{key}: {problem}")

    def _unknown(self, key: str, keys: tuple[str, ...]) -> NoReturn:
        import difflib  # for a mistake alone

        shown = key[:40] if key.isprintable() else repr(key[:40])
        absent = [known for known in keys if known not in self._values]
        meant = difflib.get_close_matches(key[:40].lower(), absent, n=1)
        hint = f"did you mean {meant[0]}? " if meant else ""
        self.wrong(shown, f"unknown key; {hint}expected are {', '.join(keys)}")

    def none_of(self, *keys: str, why: str) -> None:
        """Raise ConfigError for a key that would be read and have no effect."""
        for key in keys:
            if key in self._values:
                self.wrong(key, f"has no effect, {why}: leave it out")

    def _get(self, key: str) -> object:
        return self._values.get(key)

    def optional_text(self, key: str) -> str | None:
        """A string that is not empty and has no control characters; None where there is no such key."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, str) or not value or not value.isprintable():
            self.wrong(key, "expected is a string in quotes, not empty, without control characters")
        return value

    def text(self, key: str) -> str:
        """A string that must be there."""
        value = self.optional_text(key)
        if value is None:
            self.wrong(key, "is missing; expected is a string in quotes")
        return value

    def port(self, key: str, default: int) -> int:
        """A TCP port."""
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 65536:
            self.wrong(key, "expected is a port, a number from 1 to 65535")
        return value

    def owners(self, key: str) -> Literal["anyone"] | tuple[str, ...] | None:
        """``"anyone"``, a list of fingerprints, or nothing."""
        value = self._get(key)
        if value is None:
            return None
        if value == "anyone":
            return "anyone"
        if not isinstance(value, list) or not value or not all(isinstance(owner, str) for owner in value):
            self.wrong(
                key,
                'expected is "anyone" (orders from any client, as 1.3.x), a list of owners as `cosmian_vm owner show` '
                "prints them, or no such key (whoever claims it first)",
            )
        for owner in value:
            try:
                parse_fingerprint(owner)
            except EvidenceFormatError as exc:
                self.wrong(key, f"{owner[:60]!r} is no owner's fingerprint: {exc.problem}")
        if len(set(value)) != len(value) or len(value) > MAX_OWNERS:
            self.wrong(key, f"expected are {MAX_OWNERS} owners at most, each once")
        return tuple(value)

    def size(self, key: str, default: int) -> int:
        """Bytes, as text with a unit: ``"500MB"``."""
        value = self.optional_text(key)
        if value is None:
            return default
        try:
            return parse_size(value)
        except InputError as exc:
            self.wrong(key, str(exc))

    def pcrs(self, key: str) -> tuple[int, ...]:
        """PCRs to seal to, as text: ``"4+7+8+9+12+14"``."""
        value = self.optional_text(key)
        if value is None:
            return DEFAULT_PCRS
        try:
            return parse_pcrs(value)
        except InputError as exc:
            self.wrong(key, str(exc))

    def table(self, key: str, keys: tuple[str, ...]) -> _Table | None:
        """A section; None where there is no such section."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.wrong(key, f"expected is the section [{key}], not a value")
        return _Table(self._file, key, value, keys)
