"""One TLS connection at a time, whose other end is known before a byte is sent. Every loss has a name.

Nothing reconnects on its own: once a key has been attested (:meth:`Channel.pin`), a connection to another key is
refused before anything is sent over it. Nothing that the other side sends is believed or may hurt: bodies, compressed
bodies and times are bounded, text becomes one line of printable characters.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import msgspec

from cosmian_vm import __version__
from cosmian_vm.errors import ConnectionLostError, InputError, PeerChangedError, RefusedError, TransportError
from cosmian_vm.evidence.bundle import TlsPeer

__all__ = ["HTTPS_PORT", "Answer", "Channel", "deadline", "one_line", "parse_address", "unchecked_context"]

HTTPS_PORT = 443
_EXAMPLE = "service.example.com:3655"
_EXAMPLES = {"--url": "https://vm.example.com:5355"}
_MAX_SMALL = 1024 * 1024
_MAX_TEXT = 300
_CALL_TIME = 120.0
_UNFIT = re.compile(r"[\s\x00-\x1f\x7f]")


class Answer(msgspec.Struct, frozen=True):
    """``peer``: the other end of the connection that this very answer came over."""

    status: int
    body: bytes
    peer: TlsPeer


class _Request(msgspec.Struct, frozen=True):
    method: str
    path: str
    body: bytes | None
    headers: Mapping[str, str]
    limit: int
    seconds: float


def parse_address(address: str, what: str, default_port: int = HTTPS_PORT) -> tuple[str, int]:
    """``host``, ``host:port`` or ``[v6]:port``. Raises InputError naming ``what``."""
    try:
        parts = urlsplit(f"//{address}")
        host = parts.hostname
    except ValueError as exc:
        raise InputError(
            f"{what}: {address!r} is no host[:port]; expected, for instance, {_EXAMPLES.get(what, _EXAMPLE)}"
        ) from exc
    try:
        port = parts.port
    except ValueError as exc:
        raise InputError(f"{what}: {address!r}: the port is no number from 0 to 65535") from exc
    if not host or parts.path or parts.query or parts.fragment or "@" in address or _UNFIT.search(address):
        raise InputError(
            f"{what}: {address!r} is no host[:port]; expected, for instance, {_EXAMPLES.get(what, _EXAMPLE)}"
        )
    try:
        host.encode("idna")  # as the look-up does
    except ValueError as exc:
        raise InputError(f"{what}: {host!r} is no host name: its parts have 1 to 63 letters, digits or -") from exc
    return host, default_port if port is None else port


class Channel:
    """HTTP calls to one host. Not thread-safe. ``timeout``: seconds for each step on the network.

    ``allow_insecure_tls``: do not ask for the usual CA checks (TlsPeer.trusted is then None). Otherwise they are made,
    and where they fail the connection is opened all the same so that everything can be shown: TlsPeer.trusted is False.
    ``ca_file``: PEM file of CAs to use instead of the system's.

    Raises InputError where ``url`` or ``ca_file`` cannot be used.
    """

    def __init__(
        self, url: str, *, allow_insecure_tls: bool = False, ca_file: str | None = None, timeout: float = 30.0
    ) -> None:
        scheme, separator, rest = url.partition("://")
        if not separator:
            scheme, rest = "https", url
        if scheme.lower() != "https":
            raise InputError(f"--url {url}: the agent speaks https only")
        self._host, self._port = parse_address(rest.removesuffix("/"), "--url")
        self._timeout = timeout
        self._insecure = allow_insecure_tls
        self._ca_file = ca_file
        self._connection: http.client.HTTPSConnection | None = None
        self._peer: TlsPeer | None = None
        self._pinned: bytes | None = None
        self._held = False
        shown = f"[{self._host}]" if ":" in self._host else self._host
        self.url = f"https://{shown}" + ("" if self._port == HTTPS_PORT else f":{self._port}")
        """The address, in its short form, for messages."""
        self._contexts = self._tls_contexts()

    def close(self) -> None:
        """Close the connection, if there is one."""
        connection, self._connection, self._peer = self._connection, None, None
        if connection is not None:
            connection.close()

    def connect(self) -> TlsPeer:
        """The other end of the present connection, which is opened if there is none. Nothing has been sent yet.

        Raises TransportError, PeerChangedError where the key is not the pinned one, and ConnectionLostError where there
        is no connection any more and the last one is held.
        """
        if self._peer is not None and self._connection is not None and self._connection.sock is not None:
            return self._peer
        self.close()
        if self._held:
            raise ConnectionLostError(f"{self.url}: the connection that was verified is gone; nothing more was sent")
        self._connection, peer = self._open()
        if self._pinned is not None and _spki(peer.leaf) != self._pinned:
            found = _spki(peer.leaf).hex()
            self.close()
            raise PeerChangedError(
                f"{self.url}: another machine answers now: the TLS key has the fingerprint {found}, the machine that "
                f"was appraised has {self._pinned.hex()}; nothing was sent to it"
            )
        self._peer = peer
        return peer

    def pin(self, leaf: bytes) -> None:
        """From now on, talk to nobody but the holder of this certificate's key (DER): it has been attested."""
        self._pinned = _spki(leaf)
        if self._peer is not None and _spki(self._peer.leaf) != self._pinned:
            self.close()

    def hold(self, *, held: bool) -> None:
        """``held``: send nothing but on the present connection, which has been verified; a lost one is not replaced."""
        self._held = held

    def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        accept: tuple[int, ...] = (200,),
        headers: Mapping[str, str] | None = None,
        limit: int = _MAX_SMALL,
        seconds: float = _CALL_TIME,
    ) -> Answer:
        """One request and its answer, whole: at most ``limit`` bytes within ``seconds``.

        Raises RefusedError for an HTTP status that is not accepted, TransportError where there is no answer.
        """
        request = _Request(method, path, body, headers or {}, limit, seconds)
        reused = self._connection is not None and self._connection.sock is not None
        try:
            answer = self._exchange(request)
        except _StaleConnectionError:
            # Closed while it was idle, as servers do. A connection of our own making that is closed is a finding.
            if not reused:
                raise
            answer = self._exchange(request)
        if answer.status not in accept:
            text = "" if answer.body.lstrip()[:1] == b"<" else one_line(answer.body.decode("utf-8", "replace"))
            text = text or http.client.responses.get(answer.status, "")  # some web server's page says no more
            place = f"{method} {path.partition('?')[0]}"
            raise RefusedError(f"{self.url}: {place}: {answer.status} {text}", status=answer.status)
        return answer

    def _exchange(self, request: _Request) -> Answer:
        peer = self.connect()
        connection = self._connection
        if connection is None:  # connect() has just made it
            raise TransportError(f"{self.url}: not connected")
        sent = {"User-Agent": f"cosmian-vm/{__version__}", "Accept-Encoding": "zstd", **request.headers}
        if request.body is not None:
            sent["Content-Type"] = "application/json"
        with self._losses_named(request.seconds), deadline(connection.sock, request.seconds) as expired:
            try:
                connection.request(request.method, request.path, body=request.body, headers=sent)
                response = connection.getresponse()
                # closed here: with "Connection: close" it is the response that holds the socket
                with response:
                    raw = _read(response, request.limit if response.status < 400 else _MAX_SMALL)
            except (OSError, http.client.HTTPException, ValueError) as exc:
                self.close()
                if expired.is_set():
                    raise TimeoutError from exc
                raise
        if response.will_close:
            self.close()
        return Answer(response.status, raw, peer)

    def _open(self) -> tuple[http.client.HTTPSConnection, TlsPeer]:
        """A connection with its handshake done, the CA checks made where they are wanted."""
        checked, unchecked = self._contexts
        with self._losses_named(self._timeout):
            if checked is not None:
                try:
                    connection, leaf = self._handshake(checked)
                except ssl.SSLCertVerificationError as exc:
                    problem = one_line(exc.verify_message or str(exc))
                else:
                    return connection, TlsPeer(leaf=leaf, trusted=True)
                connection, leaf = self._handshake(unchecked)
                return connection, TlsPeer(leaf=leaf, trusted=False, problem=problem)
            connection, leaf = self._handshake(unchecked)
            return connection, TlsPeer(leaf=leaf, trusted=None)

    def _handshake(self, context: ssl.SSLContext) -> tuple[http.client.HTTPSConnection, bytes]:
        connection = http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout, context=context)
        connection.auto_open = 0  # a connection that http.client opened by itself would have an unknown peer
        try:
            connection.connect()
            leaf = connection.sock.getpeercert(binary_form=True)
        except BaseException:
            connection.close()
            raise
        if not leaf:
            connection.close()
            raise TransportError(f"{self.url}: the agent shows no certificate")
        return connection, leaf

    def _tls_contexts(self) -> tuple[ssl.SSLContext | None, ssl.SSLContext]:
        unchecked = unchecked_context()
        if self._insecure:
            return None, unchecked
        if self._ca_file == "":  # Python would take the system's
            raise InputError("--ca-file is empty: leave it out for the system's CAs")
        try:
            checked = ssl.create_default_context(cafile=self._ca_file)
        except ssl.SSLError as exc:
            raise InputError(f"{self._ca_file}: cannot be used as CA file: it has no certificate in PEM") from exc
        except (OSError, ValueError) as exc:
            problem = getattr(exc, "strerror", None) or "no name of a file"
            raise InputError(f"{self._ca_file}: cannot be used as CA file: {problem}") from exc
        checked.minimum_version = ssl.TLSVersion.TLSv1_2
        return checked, unchecked

    @contextmanager
    def _losses_named(self, seconds: float) -> Iterator[None]:
        """What the network does to us, as one TransportError that says what to look at."""
        try:
            yield
        except socket.gaierror as exc:
            raise TransportError(f"{self.url}: the name {self._host} is not known: {exc.strerror}") from exc
        except TimeoutError as exc:
            raise TransportError(f"{self.url}: no answer within {seconds:g} s") from exc
        except ConnectionRefusedError as exc:
            text = f"{self.url}: connection refused on port {self._port}: is the agent running, and on this port?"
            raise TransportError(text) from exc
        except (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError, ssl.SSLZeroReturnError) as exc:
            raise _StaleConnectionError(f"{self.url}: the connection was closed without an answer") from exc
        except ssl.SSLCertVerificationError:
            raise
        except ssl.SSLError as exc:
            reason = one_line(exc.reason or str(exc))
            text = (
                f"{self.url}: no TLS connection ({reason}): is this the agent's port, and does it speak TLS 1.2 or 1.3?"
            )
            raise TransportError(text) from exc
        except OSError as exc:
            raise TransportError(f"{self.url}: {one_line(exc.strerror or str(exc))}") from exc
        except (http.client.HTTPException, ValueError) as exc:
            raise TransportError(f"{self.url}: not an HTTP answer: {one_line(str(exc) or type(exc).__name__)}") from exc


class _StaleConnectionError(TransportError):
    """The other side closed the connection before a byte of an answer."""


def one_line(text: str) -> str:
    """What somebody else wrote, fit for a terminal: one line, printable, not too long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * _MAX_TEXT]).split())
    return line if len(line) <= _MAX_TEXT else line[: _MAX_TEXT - 1] + "…"


def unchecked_context() -> ssl.SSLContext:
    """Whoever is there: what its certificate is worth is judged by the appraisal, not by a CA."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _spki(leaf: bytes) -> bytes:
    from cosmian_vm.certificates import spki_sha256

    return spki_sha256(leaf)


@contextmanager
def deadline(sock: socket.socket, seconds: float) -> Iterator[threading.Event]:
    """Cut the connection after ``seconds`` whatever trickles in; the event tells that it was us."""
    expired = threading.Event()

    def cut() -> None:
        expired.set()
        with suppress(OSError):
            # not SSLSocket.shutdown, which takes the TLS object away under the reader
            socket.socket.shutdown(sock, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield expired
    finally:
        timer.cancel()


def _read(response: http.client.HTTPResponse, limit: int) -> bytes:
    """The whole body, at most ``limit`` bytes as sent and as decompressed. Raises ValueError beyond."""
    encoding = (response.getheader("Content-Encoding") or "identity").lower()
    raw = response.read(limit + 1)
    if len(raw) > limit:
        raise ValueError(f"the answer is larger than {limit} bytes")
    if response.length:  # read(n) is silent about a body that ends early
        raise http.client.IncompleteRead(raw[:0], response.length)
    if encoding == "identity":
        return raw
    if encoding != "zstd":
        raise ValueError(f"unknown Content-Encoding {encoding}")
    import zstandard

    try:
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(raw) as reader:
            plain: bytes = reader.read(limit + 1)
    except zstandard.ZstdError as exc:
        raise ValueError(f"broken zstd: {exc}") from exc
    if len(plain) > limit:
        raise ValueError(f"the answer is larger than {limit} bytes")
    return plain
