"""What the front uses of uvicorn, without its command line.

The package imports that before all else, and with it click and multiprocessing: an eighth of what the front loads.
"""

from __future__ import annotations

import sys
from types import ModuleType

__all__ = ["Config", "HttpToolsProtocol", "Server", "ServerState"]


class _CommandLine(ModuleType):
    """Has whatever the package wants of it, and does nothing."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


_ours = "uvicorn" not in sys.modules
if _ours:
    sys.modules["uvicorn.main"] = _CommandLine("uvicorn.main")
try:
    import uvicorn.lifespan.off  # noqa: F401 - uvicorn loads it by name, when the front may read no files any more
    from uvicorn.config import Config
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    from uvicorn.server import Server, ServerState
finally:
    if _ours:
        del sys.modules["uvicorn.main"]  # whoever asks for it from here on has the real one
