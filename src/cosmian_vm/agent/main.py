"""The program cosmian_vm_agent: arguments, configuration, and then the first launch or the serving."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from cosmian_vm import __version__
from cosmian_vm.agent import first_launch
from cosmian_vm.agent.config import CONFIG_VARIABLE, DEFAULT_CONFIG, PREINIT_VARIABLE, AgentConfig, load
from cosmian_vm.agent.log import LOGGER, configure
from cosmian_vm.attester.platform import Platform, detect
from cosmian_vm.errors import CosmianVmError, InputError

__all__ = ["main", "set_limits"]

_OPEN_FILES = 16384


def main(find_platform: Callable[[AgentConfig], Platform] = lambda config: detect(config.tpm_device)) -> None:
    """Entry point of cosmian_vm_agent. Exit status: 0 ended by a signal, 2 wrong usage or configuration, 1 else.

    ``find_platform``: whose devices are served. Raises SystemExit.
    """
    arguments = _arguments()
    configure()
    os.umask(0o077)
    set_limits()
    try:
        config = load(arguments.config)
        preinit = os.environ.get(PREINIT_VARIABLE) != "0"
        platform = find_platform(config)
        if arguments.first_launch:
            _end(_launch_only(config, platform))
        # here, for a first launch alone, which every boot waits for, takes half the time without
        from cosmian_vm.agent.privileges import find_front_user
        from cosmian_vm.agent.serving import run
        from cosmian_vm.evidence.bundle import TeeKind

        gc.freeze()
        gc.enable()
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
    storage = first_launch.open_storage(config, platform.tpm, preinit=True)
    if (reason := storage.locked()) is not None:
        LOGGER.error("container locked: %s", reason)
        return 1
    first_launch.certify(config, storage, preinit=True)
    return 0 if storage.why is None else 1


def _end(status: int) -> NoReturn:
    """End without taking the modules apart one by one: a boot waits for it. (``_program.end`` would bring in click.)"""
    logging.shutdown()
    os._exit(status)


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
