"""The serving: the collector, and the front, in the same process or in one of its own.

``main`` imports it only to serve: a first launch does without, and without asyncio.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING

import uvloop

from cosmian_vm.agent import first_launch
from cosmian_vm.agent.collector import Collector
from cosmian_vm.agent.config import AgentConfig
from cosmian_vm.agent.first_launch import TlsFiles
from cosmian_vm.agent.listener import listen
from cosmian_vm.agent.log import LOGGER, describe
from cosmian_vm.agent.orders import Orders
from cosmian_vm.agent.storage import Storage
from cosmian_vm.attester.platform import Platform
from cosmian_vm.errors import CosmianVmError

if TYPE_CHECKING:
    from cosmian_vm.agent.privileges import FrontUser

__all__ = ["run"]

_LOOK_SECONDS = 2.0

_Serve = Callable[[Orders, asyncio.Event], Coroutine[None, None, None]]


def run(
    config: AgentConfig,
    platform: Platform,
    *,
    preinit: bool = True,
    on_ready: Callable[[str, int], None] | None = None,
    front: FrontUser | None = None,
    find_again: Callable[[], Platform] | None = None,
) -> None:
    """Serve this machine until SIGTERM or SIGINT.

    ``preinit``: open and make what the first launch makes (container, AK, certificate). ``on_ready`` is called with
    address and port when connections are taken: with port 0 in ``config``, this is how the chosen one is known.
    ``front``: whom the front is to run as, in a process of its own; None: front and collector are this one process.
    ``find_again``: the devices, whenever the serving begins again: a TPM may have appeared since ``platform``.

    Raises ConfigError where configuration, certificate or port cannot be used.
    """
    if config.owners == "anyone":
        LOGGER.warning('owners = "anyone": every client that reaches this agent may give it orders')
    while _serve_once(config, platform, preinit=preinit, on_ready=on_ready, front=front):
        LOGGER.info("the encrypted container is open now: starting over with what is in it")
        if find_again is not None:
            platform = find_again()


def _serve_once(
    config: AgentConfig,
    platform: Platform,
    *,
    preinit: bool,
    on_ready: Callable[[str, int], None] | None,
    front: FrontUser | None,
) -> bool:
    """Whether to begin again: the container was locked, and has been opened meanwhile."""
    listener = listen(config.host, config.port)
    try:
        storage = first_launch.open_storage(config, platform.tpm, preinit=preinit)
        files = first_launch.certify(config, storage, preinit=preinit)
        serve_it = _with_front_apart(files, listener, front, on_ready) if front else _here(files, listener, on_ready)
        return uvloop.run(_serve(Collector(config, platform, storage=storage), storage, serve_it))
    finally:
        listener.close()


def _here(files: TlsFiles, listener: socket.socket, on_ready: Callable[[str, int], None] | None) -> _Serve:
    from cosmian_vm.agent.front import create_app  # the front's modules: not needed where it is a process of its own
    from cosmian_vm.agent.server import serve
    from cosmian_vm.agent.tls import TlsIdentity

    identity = TlsIdentity(files.certificate, files.key)
    return lambda orders, stop: serve(create_app(orders), identity, listener, on_ready=on_ready, stop=stop)


def _with_front_apart(
    files: TlsFiles, listener: socket.socket, user: FrontUser, on_ready: Callable[[str, int], None] | None
) -> _Serve:
    from cosmian_vm.agent.front_parent import serve_apart  # not needed where there is one process
    from cosmian_vm.agent.handover import MaterialFiles

    material = MaterialFiles(files.certificate, files.key)
    return lambda orders, stop: serve_apart(orders, material, listener, user, on_ready, stop=stop)


async def _serve(collector: Collector, storage: Storage, serve_orders: _Serve) -> bool:
    try:
        await collector.version()
    except CosmianVmError as exc:
        LOGGER.error("the devices of this machine do not answer: %s", describe(exc))
    opened, stop = asyncio.Event(), asyncio.Event()
    watch = None if storage.locked() is None else asyncio.create_task(_until_open(storage, opened, stop))
    try:
        await serve_orders(collector, stop)
    finally:
        if watch is not None:
            watch.cancel()
        await collector.close()
    return opened.is_set()


async def _until_open(storage: Storage, opened: asyncio.Event, stop: asyncio.Event) -> None:
    """End the serving when the container is open: by `cosmian_fstool`, or by the unit that tries at boot."""
    while storage.locked() is not None:
        await asyncio.sleep(_LOOK_SECONDS)
    opened.set()
    stop.set()
