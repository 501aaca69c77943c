"""The program cosmian_vm_agent: configuration, first launch, and the server around it all."""

from __future__ import annotations

from collections.abc import Callable

from cosmian_vm.agent.config import AgentConfig
from cosmian_vm.attester.platform import Platform

__all__ = ["main", "run"]


def run(
    config: AgentConfig,
    platform: Platform,
    *,
    preinit: bool = True,
    on_ready: Callable[[str, int], None] | None = None,
) -> None:
    """Serve this machine until SIGTERM or SIGINT.

    ``preinit``: make what the first launch makes (AK, certificate). ``on_ready`` is called once with address and port
    when connections are taken: with port 0 in ``config``, this is how the chosen one is known.

    Raises ConfigError, AttesterError.
    """
    raise NotImplementedError


def main() -> None:
    """Entry point of cosmian_vm_agent."""
    raise NotImplementedError
