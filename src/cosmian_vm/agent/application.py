"""The user's application: its configuration, and whoever keeps it running. Everything here blocks."""

from __future__ import annotations

import msgspec

from cosmian_vm.agent.config import AgentConfig, AppConfig
from cosmian_vm.agent.log import LOGGER
from cosmian_vm.agent.services import Service, service_for
from cosmian_vm.agent.storage import APP_CONFIGURATION, Storage
from cosmian_vm.errors import AttesterError, EvidenceFormatError, NotAvailableError, OrderError
from cosmian_vm.wire import (
    MAX_APP_CONFIGURATION,
    AppAnswer,
    AppConfiguration,
    AppLogsAnswer,
    decode_base64_unpadded,
)

__all__ = ["Application"]


class Application:
    """Section ``[app]``, where there is one. ``service``: who keeps it, instead of whom the section names."""

    def __init__(self, config: AgentConfig, storage: Storage, service: Service | None = None) -> None:
        self._app = config.app
        self._storage = storage
        self._service = service
        if service is None and config.app is not None:
            self._service = service_for(config.app, config.tmp)
        if config.app is not None:
            self._warn(config.app)
            self._open_the_way(config.app)

    def init(self, body: bytes) -> None:
        """Write ``app.conf`` and start the application with it. ``body``: of ``POST /app/init``.

        Raises NotAvailableError where there is no application, OrderError (400, 413, 503), AttesterError.
        """
        app, service = self._there()
        content = _configuration(body)
        self._warn(app)
        self._storage.write_app_configuration(app, content)
        service.restart()

    def restart(self) -> None:
        """Restart it. Raises NotAvailableError, AttesterError."""
        self._there()[1].restart()

    def status(self) -> AppAnswer:
        """How it is. Raises NotAvailableError, AttesterError."""
        app, service = self._there()
        state = service.state()
        return AppAnswer(
            service_type=app.service_type,
            service_name=app.service_name,
            running=state.running,
            state=state.text,
            configured=self._storage.has_app_configuration(app),
            encrypted=self._storage.on_container(app.storage),
        )

    def logs(self, lines: int) -> AppLogsAnswer:
        """Its last words. Raises NotAvailableError, AttesterError."""
        return AppLogsAnswer(lines=self._there()[1].log(lines))

    def _there(self) -> tuple[AppConfig, Service]:
        if self._app is None or self._service is None:
            raise NotAvailableError("this machine has no application (agent.toml has no section [app])")
        return self._app, self._service

    def _open_the_way(self, app: AppConfig) -> None:
        try:
            if self._storage.locked() is None:
                self._storage.let_through(app)
        except (OSError, AttesterError) as exc:
            LOGGER.warning("the application's user %s may not reach %s: %s", app.user, app.storage, exc)

    def _warn(self, app: AppConfig) -> None:
        if self._storage.locked() is None and not self._storage.on_container(app.storage):
            place = app.storage / APP_CONFIGURATION
            LOGGER.warning("%s is not on the encrypted container: the disk shows it to the operator", place)


def _configuration(body: bytes) -> bytes:
    try:
        asked = msgspec.json.decode(body, type=AppConfiguration)
        content = decode_base64_unpadded(asked.content, "content")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise OrderError(f"the body is not understood: {exc}", status=400) from exc
    except EvidenceFormatError as exc:
        raise OrderError(str(exc), status=400) from exc
    if len(content) > MAX_APP_CONFIGURATION:
        raise OrderError(f"the configuration is larger than {MAX_APP_CONFIGURATION} bytes", status=413)
    return content
