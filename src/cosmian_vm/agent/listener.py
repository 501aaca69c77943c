"""The listening socket: it is the collector's, which hands it to the front."""

from __future__ import annotations

import errno
import socket

from cosmian_vm.errors import ConfigError

__all__ = ["BACKLOG", "listen"]

BACKLOG = 1024
_LLMNR_PORT = 5355


def listen(host: str, port: int) -> socket.socket:
    """A listening TCP socket. Raises ConfigError naming the cause where there can be none."""
    place = f"host {host}, port {port}"
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as exc:
        raise ConfigError(f"[agent] host: {host!r} is no address of this machine: {exc}") from exc
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as exc:
        listener.close()
        if exc.errno == errno.EADDRINUSE and port == _LLMNR_PORT:
            raise ConfigError(
                f"{place}: the port is in use, most likely by systemd-resolved, which answers LLMNR on it: set "
                "LLMNR=no in /etc/systemd/resolved.conf and restart systemd-resolved, or set another [agent] port"
            ) from exc
        if exc.errno == errno.EADDRINUSE:
            raise ConfigError(f"{place}: the port is in use by another program: set another [agent] port") from exc
        raise ConfigError(f"{place}: cannot listen there: {exc.strerror or exc}") from exc
    listener.setblocking(False)
    return listener
