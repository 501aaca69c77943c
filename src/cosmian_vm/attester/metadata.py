"""The metadata service that clouds serve to their machines at 169.254.169.254, over plain HTTP.

It is the host that answers, so nothing of it is ever trusted: certificates chain to a pinned root or count for nothing,
and the cloud's name is a hint for people. No proxy, no redirect, bodies and times are bounded.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import httptools

from cosmian_vm.errors import AttesterError

__all__ = ["Metadata", "MetadataAnswer", "MetadataService", "find_cloud"]

MAX_BODY = 256 * 1024
_MAX_ANSWER = MAX_BODY + 64 * 1024
_ADDRESS = ("169.254.169.254", 80)
_PART = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataAnswer:
    """``headers``: names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Metadata(Protocol):
    """One request, one answer."""

    def __call__(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"", *, seconds: float
    ) -> MetadataAnswer:
        """The answer, whatever its status, had within ``seconds``. Raises AttesterError."""
        ...


@dataclass
class _Parsed:
    """What httptools calls while it reads an answer."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    head: bool = False
    complete: bool = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.head = True

    def on_body(self, part: bytes) -> None:
        self.body += part

    def on_message_complete(self) -> None:
        self.complete = True


class MetadataService:
    """A Metadata at ``address``. One connection for each request."""

    def __init__(self, address: tuple[str, int] = _ADDRESS) -> None:
        self._address = address

    def __call__(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"", *, seconds: float
    ) -> MetadataAnswer:
        """See Metadata."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._address[0]}", "Connection: close"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body or method != "GET":
            lines.append(f"Content-Length: {len(body)}")
        request = "\r\n".join([*lines, "", ""]).encode("ascii") + body
        try:
            return self._exchange(request, time.monotonic() + seconds)
        except (OSError, httptools.HttpParserError) as exc:
            reason = "no answer" if isinstance(exc, TimeoutError) else " ".join(str(exc).split()) or type(exc).__name__
            raise self._failed(path, reason) from exc

    def _exchange(self, request: bytes, deadline: float) -> MetadataAnswer:
        parsed = _Parsed()
        parser = httptools.HttpResponseParser(parsed)
        received = 0
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as connection:
            connection.settimeout(_left(deadline))
            connection.connect(self._address)
            connection.settimeout(_left(deadline))
            connection.sendall(request)
            while not parsed.complete:
                connection.settimeout(_left(deadline))
                part = connection.recv(_PART)
                received += len(part)
                if received > _MAX_ANSWER:
                    raise OSError(f"an answer of more than {_MAX_ANSWER} bytes")
                if not part:
                    break
                parser.feed_data(part)
        status = parser.get_status_code()
        if not status:
            raise OSError("this is no answer")
        bounded = "content-length" in parsed.headers or "transfer-encoding" in parsed.headers
        if not parsed.head or (bounded and not parsed.complete):
            raise OSError("the answer ends early")
        return MetadataAnswer(status=status, headers=parsed.headers, body=bytes(parsed.body))

    def _failed(self, path: str, reason: str) -> AttesterError:
        return AttesterError(f"metadata service: http://{self._address[0]}{path}: {reason}")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def find_cloud(metadata: Metadata, *, seconds: float) -> str | None:
    """Which cloud's metadata service answers, all questions within ``seconds``: "GCP", "Azure", "AWS" or None.

    Sources: Google "About VM metadata" (the answer carries Metadata-Flavor: Google), Azure "Instance Metadata Service"
    (compute.azEnvironment), AWS "Use the Instance Metadata Service": only version 2 gives tokens.
    """
    deadline = time.monotonic() + seconds

    def ask(method: str, path: str, name: str, value: str) -> MetadataAnswer | None:
        left = deadline - time.monotonic()
        try:
            return metadata(method, path, {name: value}, seconds=left) if left > 0 else None
        except AttesterError:
            return None

    answer = ask("GET", "/computeMetadata/v1/instance/id", "Metadata-Flavor", "Google")
    if answer and answer.status == 200 and answer.headers.get("metadata-flavor") == "Google":
        return "GCP"
    answer = ask("GET", "/metadata/instance?api-version=2021-02-01", "Metadata", "true")
    if answer and answer.status == 200 and b'"azEnvironment"' in answer.body:
        return "Azure"
    answer = ask("PUT", "/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds", "60")
    if answer and answer.status == 200 and 0 < len(answer.body) <= 256:
        return "AWS"
    return None
