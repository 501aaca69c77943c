"""As much of ASGI as a dozen fixed calls need: a request's parts, and which call it is.

A framework would bring some thirty modules more into a process that is measured and trusted, and a fifth of its start.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

__all__ = ["ASGIApp", "Handler", "Message", "Receive", "Request", "Router", "Scope", "Send"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Handler = Callable[["Request"], Awaitable[ASGIApp]]

_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_MAX_PARAMETERS = 16


class Request:
    """One HTTP request. ``receive`` gives its body, part by part."""

    __slots__ = ("receive", "scope")

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.scope = scope
        self.receive = receive

    @property
    def method(self) -> str:
        """GET, POST, ..."""
        method: str = self.scope["method"]
        return method

    @property
    def path(self) -> str:
        """The path, percent-decoded, without the query."""
        path: str = self.scope["path"]
        return path

    @property
    def target(self) -> str:
        """Path and query exactly as they came: what an owner signs."""
        raw: bytes = self.scope.get("raw_path") or self.path.encode()
        query: bytes = self.scope["query_string"]
        return (raw + b"?" + query if query else raw).decode("latin-1")

    @property
    def address(self) -> str:
        """The client's address, for the log."""
        client = self.scope.get("client")
        return "unknown" if client is None else str(client[0])

    @property
    def leaf(self) -> bytes | None:
        """Certificate (DER) that the client of this very connection saw; None where that is not known."""
        leaf = self.scope.get("state", {}).get("leaf")
        return leaf if isinstance(leaf, bytes) else None

    def header(self, name: str) -> str:
        """The value of the header ``name`` (lower case), all of them joined by commas; empty where there is none."""
        wanted = name.encode("ascii")
        return ",".join(value.decode("latin-1") for key, value in self.scope["headers"] if key == wanted)

    def parameters(self, name: str) -> list[str]:
        """The values of the query parameter ``name``, in order. A ``+`` is a space, as in every form."""
        query: bytes = self.scope["query_string"]
        found = []
        for part in query.split(b"&", _MAX_PARAMETERS):
            key, _, value = part.partition(b"=")
            if _decoded(key) == name:
                found.append(_decoded(value))
        return found


def _decoded(raw: bytes) -> str:
    plain = _ESCAPE.sub(lambda match: bytes([int(match[1], 16)]), raw.replace(b"+", b" "))
    return plain.decode("latin-1")


class Router:
    """Paths and methods to handlers. ``refuse(status, text, headers)`` makes the answer to what is not there."""

    def __init__(
        self,
        calls: Mapping[str, Mapping[str, Handler]],
        refuse: Callable[[int, str, Mapping[str, str]], ASGIApp],
    ) -> None:
        self._calls = calls
        self._refuse = refuse

    async def answer(self, request: Request) -> ASGIApp:
        """The answer to ``request``. HEAD is GET: the server leaves the body out."""
        methods = self._calls.get(request.path)
        if methods is None:
            return self._refuse(404, "there is no such call; /openapi.json lists them", {})
        handler = methods.get("GET" if request.method == "HEAD" else request.method)
        if handler is None:
            allowed = ", ".join(methods)
            return self._refuse(405, f"this call takes {allowed}", {"allow": allowed})
        return await handler(request)
