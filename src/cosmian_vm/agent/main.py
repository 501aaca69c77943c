"""The program cosmian_vm_agent: configuration, first launch, and the server around it all."""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import socket
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from cosmian_vm import __version__
from cosmian_vm.agent import first_launch
from cosmian_vm.agent.collector import Collector
from cosmian_vm.agent.config import CONFIG_VARIABLE, DEFAULT_CONFIG, PREINIT_VARIABLE, AgentConfig, load
from cosmian_vm.agent.first_launch import TlsFiles
from cosmian_vm.agent.front import create_app
from cosmian_vm.agent.log import LOGGER, configure, describe
from cosmian_vm.agent.orders import Orders
from cosmian_vm.agent.server import listen, serve
from cosmian_vm.agent.storage import Storage
from cosmian_vm.agent.tls import TlsIdentity
from cosmian_vm.attester.platform import Platform, detect
from cosmian_vm.errors import CosmianVmError, InputError
from cosmian_vm.evidence.bundle import TeeKind

if TYPE_CHECKING:
    from cosmian_vm.agent.privileges import FrontUser

__all__ = ["main", "run", "set_limits"]

_OPEN_FILES = 16384
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
        storage, files = _launch(config, platform, preinit=preinit)
        serve_it = _with_front_apart(files, listener, front, on_ready) if front else _here(files, listener, on_ready)
        return uvloop.run(_serve(Collector(config, platform, storage=storage), storage, serve_it))
    finally:
        listener.close()


def _launch(config: AgentConfig, platform: Platform, *, preinit: bool) -> tuple[Storage, TlsFiles]:
    """What ``first_launch`` says, in its order. Raises ConfigError."""
    storage = _opened(config, platform, preinit=preinit)
    return storage, _certificate(config, storage, preinit=preinit)


def _opened(config: AgentConfig, platform: Platform, *, preinit: bool) -> Storage:
    why = first_launch.open_container(config, platform.tpm, preinit=preinit)
    if preinit:
        first_launch.provision_tpm(config, platform.tpm, why)
    return Storage(config, why=why)


def _certificate(config: AgentConfig, storage: Storage, *, preinit: bool) -> TlsFiles:
    return first_launch.prepare(config, storage, preinit=preinit, hostname=socket.gethostname(), now=datetime.now(UTC))


def _here(files: TlsFiles, listener: socket.socket, on_ready: Callable[[str, int], None] | None) -> _Serve:
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


def main(find_platform: Callable[[AgentConfig], Platform] = lambda config: detect(config.tpm_device)) -> None:
    """Entry point of cosmian_vm_agent. Exit status: 0 ended by a signal, 2 wrong usage or configuration, 1 else.

    ``find_platform``: whose devices are served. Raises SystemExit.
    """
    from cosmian_vm.agent.privileges import find_front_user

    arguments = _arguments()
    configure()
    os.umask(0o077)
    set_limits()
    try:
        config = load(arguments.config)
        preinit = os.environ.get(PREINIT_VARIABLE) != "0"
        platform = find_platform(config)
        if arguments.first_launch:
            sys.exit(_launch_only(config, platform))
        # An enclave is one process, whatever users its passwd file has.
        enclave = platform.tee is not None and platform.tee.kind is TeeKind.SGX
        user = None if enclave else find_front_user()
        run(config, platform, preinit=preinit, front=user, find_again=lambda: find_platform(config))
    except InputError as exc:
        sys.exit(_fail(exc, 2))
    except CosmianVmError as exc:
        sys.exit(_fail(exc, 1))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="cosmian_vm_agent",
        description="Serve this machine's evidence over HTTPS: IMA list, TPM quote, TEE quote, snapshot.",
        epilog=f"Environment: {CONFIG_VARIABLE} names another configuration file, {PREINIT_VARIABLE}=0 skips what the "
        "first launch makes (encrypted container, TPM keys, certificate) when serving.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument(
        "--config",
        type=Path,
        default=Path(os.environ.get(CONFIG_VARIABLE) or DEFAULT_CONFIG),
        metavar="FILE",
        help="configuration file (default: %(default)s)",
    )
    parser.add_argument(
        "--first-launch",
        action="store_true",
        help="open the encrypted container, or make it with all else that a new machine needs, and end (status 1 if "
        "it stays locked)",
    )
    return parser.parse_args()


def _launch_only(config: AgentConfig, platform: Platform) -> int:
    """Where the container stays locked, no certificate is made: the throw-away one is that of the agent that serves."""
    storage = _opened(config, platform, preinit=True)
    if (reason := storage.locked()) is not None:
        LOGGER.error("container locked: %s", reason)
        return 1
    _certificate(config, storage, preinit=True)
    return 0 if storage.why is None else 1


def set_limits() -> None:
    """No core files: secrets pass through. And open files enough that connections do not take the devices' share."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _fail(exc: CosmianVmError, status: int) -> int:
    print(f"cosmian_vm_agent: {exc}", file=sys.stderr)
    return status
