"""Where the commands look endorsements up: the user's cache, AMD's and Intel's services, or a PCCS."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cosmian_vm.endorsements.store import EndorsementStore, Services, fetch

__all__ = ["endorsement_store", "services"]

_SERVICES = Services()


def services(pccs: str | None) -> Services:
    """The vendors' services, Intel's by way of ``pccs`` where one is named. Raises InputError."""
    return _SERVICES if pccs is None else _SERVICES.through(pccs)


def endorsement_store(*, pccs: str | None, offline: bool) -> EndorsementStore:
    """What looks endorsements up; ``offline``: in the cache alone. Raises InputError."""
    return EndorsementStore(cache=_cache_folder(), fetcher=None if offline else fetch, services=services(pccs))


def _cache_folder() -> Path | None:
    """Where vendors' certificates and revocation lists are kept between runs: public, and verified each time."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or ("~/.cache" if os.environ.get("HOME") else None)
    return None if not base else Path(base).expanduser() / "cosmian_vm"
