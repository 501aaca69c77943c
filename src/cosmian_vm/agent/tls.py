"""The agent's TLS side: certificate files that are picked up when they change, and which connection shows which leaf.

OpenSSL lets a connection change its context while it greets (``sni_callback``, called with or without a server name).
The listening context therefore has no certificate of its own: each connection is given the context of the present
*generation*, keeps it to its end, and so always knows the very certificate that its client saw.

Resumed sessions skip the certificate: tickets are off, and for TLS 1.2's session ids, which Python cannot turn off,
the leaf of the first handshake is remembered.
"""

from __future__ import annotations

import os
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from cosmian_vm.agent.log import LOGGER
from cosmian_vm.certificates import leaf_problem
from cosmian_vm.errors import ConfigError, EndorsementError

__all__ = ["FileWatch", "Generation", "Identity", "TlsIdentity", "load_context", "warn_of"]

_POLL_SECONDS = 1.0
_SETTLED_SECONDS = 2.0
"""A file that changed this recently may change again without its time stamp showing it."""
_MAX_SESSIONS = 20 * 1024
"""As many as OpenSSL keeps in a server's cache."""

_Signature = tuple[tuple[int, int, int, int], ...]


_Context = TypeVar("_Context", bound=ssl.SSLContext)


class Generation(ssl.SSLContext):
    """A context with a certificate; ``leaf`` is what clients of it see, DER."""

    leaf: bytes


class Identity:
    """Which certificate is shown, and which was shown to whom. ``context`` is for the listening socket."""

    def __init__(self, present: Generation) -> None:
        self._present = present
        self._sessions: OrderedDict[bytes, bytes] = OrderedDict()
        self.on_change: Callable[[], None] = lambda: None
        self.context = _new_context(ssl.SSLContext)
        self.context.sni_callback = self._greet

    @property
    def leaf(self) -> bytes:
        """The present leaf, DER."""
        return self._present.leaf

    def leaf_of(self, connection: ssl.SSLObject) -> bytes | None:
        """The leaf (DER) that the client of this connection saw; None where that is not known. Call it once, when the
        handshake is done.
        """
        session = connection.session
        if connection.session_reused:
            return self._sessions.get(session.id) if session is not None else None
        context = connection.context
        if not isinstance(context, Generation):
            return None
        if session is not None and session.id:
            self._sessions[session.id] = context.leaf
            while len(self._sessions) > _MAX_SESSIONS:
                self._sessions.popitem(last=False)
        return context.leaf

    def refresh(self) -> None:
        """Pick up what has changed; the server calls it again and again."""

    def _use(self, fresh: Generation, name: Path) -> None:
        """Show ``fresh``, which came from the file ``name``, from now on."""
        changed = fresh.leaf != self._present.leaf
        self._present = fresh
        if changed:
            LOGGER.info("TLS certificate: %s is in use now; older connections are closed", name)
            self.on_change()

    def _greet(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        self.refresh()
        connection.context = self._present


class TlsIdentity(Identity):
    """Certificate chain and private key, two PEM files.

    Raises ConfigError where the files cannot be used at start; later, what cannot be used is logged and the present
    certificate stays.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._watch = FileWatch(self._files)
        super().__init__(_load(certificate, key))

    def refresh(self) -> None:
        """Pick up changed files; the disk is looked at no more than once a second."""
        if not self._watch.changed():
            return
        try:
            fresh = _load(*self._files)
        except ConfigError as exc:
            LOGGER.warning("TLS certificate: the present one stays in use: %s", exc)
            return
        self._use(fresh, self._files[0])


class FileWatch:
    """Whether files have changed since they were read; the first time is right after this is made."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self._files = files
        self._signature = self._look()
        self._read_at = time.time()
        self._checked = time.monotonic()

    def changed(self) -> bool:
        """Whether to read them again, now; the disk is looked at no more than once a second."""
        now = time.monotonic()
        if now - self._checked < _POLL_SECONDS:
            return False
        self._checked = now
        signature = self._look()
        if signature == self._signature and not self._unsettled(signature):
            return False
        self._signature = signature
        self._read_at = time.time()
        return True

    def _look(self) -> _Signature:
        """What tells one state of the files from another."""
        seen = []
        for path in self._files:
            with suppress(OSError):
                stat = path.stat()
                seen.append((stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns))
        return tuple(seen)

    def _unsettled(self, signature: _Signature) -> bool:
        """Whether a file had changed just before it was read: it may have changed once more in the same tick."""
        newest = max((changed for *_, changed in signature), default=0) / 1e9
        return 0 <= self._read_at - newest < _SETTLED_SECONDS


def _new_context(kind: type[_Context]) -> _Context:
    context = kind(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    return context


def _load(certificate: Path, key: Path) -> Generation:
    for path in (certificate, key):
        try:
            with path.open("rb"):
                pass
        except OSError as exc:
            raise ConfigError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    context = load_context(certificate, key, (certificate, key))
    warn_of(context.leaf, certificate)
    return context


def load_context(certificate: Path, key: Path, names: tuple[Path, Path]) -> Generation:
    """A context that shows the certificate. ``names``: what the two files are called in errors.

    Raises ConfigError where they cannot be used.
    """
    context = _new_context(Generation)
    try:
        # The empty password: OpenSSL would ask for one on the terminal.
        context.load_cert_chain(os.fspath(certificate), os.fspath(key), password="")
    except ssl.SSLError as exc:
        reason = exc.reason or str(exc)
        if reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"{names[0]} and {names[1]}: certificate and key do not belong together") from exc
        text = "expected are a certificate chain, the server's first, and its key without a password, both PEM"
        raise ConfigError(f"{names[0]} and {names[1]}: cannot be used ({reason}); {text}") from exc
    except OSError as exc:
        raise ConfigError(f"{names[0]} and {names[1]}: cannot be read: {exc.strerror or exc}") from exc
    try:
        context.leaf = _shown_by(context)
    except ssl.SSLError as exc:
        raise ConfigError(f"{names[0]}: no client can use it: {exc}") from exc
    return context


def warn_of(leaf: bytes, name: Path) -> None:
    """Log what clients may dislike about the certificate. Raises ConfigError where none can use it."""
    try:
        problem = leaf_problem(leaf)
    except EndorsementError as exc:
        raise ConfigError(f"{name}: no client can use it: {exc}") from exc
    if problem:
        LOGGER.warning("%s %s: clients may refuse it", name, problem)


def _shown_by(context: ssl.SSLContext) -> bytes:
    """The leaf that a client of ``context`` sees, found by being one: the files may have changed since it read them."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    asking.check_hostname = False
    asking.verify_mode = ssl.CERT_NONE
    client = asking.wrap_bio(to_client, to_server)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):  # flights of a handshake
        for side in (client, server):
            with suppress(ssl.SSLWantReadError):
                side.do_handshake()
    leaf = client.getpeercert(binary_form=True)
    if leaf is None:
        raise ssl.SSLError("the handshake shows no certificate")
    return leaf
