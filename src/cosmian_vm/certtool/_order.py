"""One certificate from an ACME server (RFC 8555) by HTTP-01: account, order, challenges, certificate.

Spoken with certbot's ``acme``. The server's answers are bounded, and what it asks to be served must be a token; what it
issues must be for our key and our names, or it is not taken.
"""

from __future__ import annotations

import json
import signal
import ssl
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

import josepy
import requests
from acme import challenges, errors, messages
from acme.client import ClientNetwork, ClientV2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from josepy.jwa import ES256
from josepy.jwk import JWKEC

from cosmian_vm import __version__
from cosmian_vm.certtool._common import write_file
from cosmian_vm.certtool._http01 import PATH, TOKEN, ChallengeServer
from cosmian_vm.certtool._pair import names_of
from cosmian_vm.errors import InputError, IssuanceError, TransportError

__all__ = ["Order", "account_key"]

_SECONDS = 30
_DEADLINE = timedelta(seconds=180)
_MAX_ANSWER = 1 << 20
_ISSUANCE_SECONDS = 600
_MAX_REDIRECTS = 3
_SHOWN = 400
_WRAPPED = 8

_T = TypeVar("_T")


def account_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """The account's key (P-256, PEM): the one that is there, or a new one. Raises InputError."""
    try:
        with path.open("rb") as file:
            raw = file.read(1 << 16)
    except FileNotFoundError:
        key = ec.generate_private_key(ec.SECP256R1())
        write_file(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
        return key
    except OSError as exc:
        raise InputError(f"{path}: cannot be read: {exc.strerror or exc}") from exc
    try:
        found = load_pem_private_key(raw, None)
    except (ValueError, TypeError) as exc:
        raise InputError(f"{path}: not an account key; move it away, and a new account is made") from exc
    if not isinstance(found, ec.EllipticCurvePrivateKey) or not isinstance(found.curve, ec.SECP256R1):
        raise InputError(f"{path}: an account key must be P-256; move it away, and a new account is made")
    return found


class Order:
    """``directory``: URL, https. ``ca_bundle``: CAs (PEM) to check the server with, instead of the system's."""

    def __init__(self, directory: str, key: ec.EllipticCurvePrivateKey, *, ca_bundle: str | None) -> None:
        self._directory = directory
        self._key = JWKEC(key=key)
        if ca_bundle is not None:
            _check_bundle(ca_bundle)
        self._net = ClientNetwork(self._key, alg=ES256, user_agent=f"cosmian_certtool/{__version__}", timeout=_SECONDS)
        if ca_bundle is not None:
            self._net.verify_ssl = ca_bundle  # type: ignore[assignment]  # handed to requests, which takes a path too
        self._net.session.max_redirects = _MAX_REDIRECTS
        self._net.session.hooks["response"].append(_inspect)

    def issue(
        self, names: Sequence[str], email: str, key: ec.EllipticCurvePrivateKey, server: ChallengeServer
    ) -> bytes:
        """The certificate chain, PEM, for ``names`` (ASCII, lower case) and ``key``.

        Called in the main thread: a signal (SIGALRM) ends what takes too long. Raises TransportError where the server
        does not answer, IssuanceError where it does not issue.
        """
        with _at_most(_ISSUANCE_SECONDS, self._directory):
            chain = self._issue(names, email, key, server)
        _check_chain(chain, names, key)
        return chain

    def _issue(
        self, names: Sequence[str], email: str, key: ec.EllipticCurvePrivateKey, server: ChallengeServer
    ) -> bytes:
        client = self._speak(lambda: ClientV2(ClientV2.get_directory(self._directory, self._net), self._net))
        if self._speak(client.external_account_required):
            raise IssuanceError(f"{self._directory} takes no accounts but those that it has made (external binding)")
        self._speak(lambda: self._sign_in(client, email))
        try:
            return self._speak(lambda: self._run(client, names, key, server))
        finally:
            server.forget()

    def _sign_in(self, client: ClientV2, email: str) -> None:
        """The account of our key, made where there is none. It agrees to the CA's terms of service."""
        new = messages.NewRegistration.from_data(email=email, terms_of_service_agreed=True)
        try:
            client.new_account(new)
        except errors.ConflictError as exc:
            known = client.query_registration(
                messages.RegistrationResource(uri=exc.location, body=messages.Registration())
            )
            if known.body.contact and tuple(known.body.contact) != tuple(new.contact):
                client.update_registration(known, known.body.update(contact=new.contact))

    def _run(
        self, client: ClientV2, names: Sequence[str], key: ec.EllipticCurvePrivateKey, server: ChallengeServer
    ) -> bytes:
        order = client.new_order(_csr(names, key))
        for authorization in order.authorizations:
            self._answer(client, authorization.body, names, server)
        deadline = datetime.now() + _DEADLINE  # noqa: DTZ005 - the library compares it with such a one
        chain: str = client.poll_and_finalize(order, deadline).fullchain_pem
        return chain.encode("ascii", "replace")

    def _answer(
        self, client: ClientV2, body: messages.Authorization, names: Sequence[str], server: ChallengeServer
    ) -> None:
        name = str(body.identifier.value).lower()
        if name not in names:
            raise IssuanceError(f"the ACME server wants proof of {name!r}, which was not ordered")
        if body.status == messages.STATUS_VALID:
            return
        offered = [challenge for challenge in body.challenges if isinstance(challenge.chall, challenges.HTTP01)]
        if not offered:
            raise IssuanceError(f"{name}: the ACME server offers no HTTP-01 challenge")
        response, validation = offered[0].chall.response_and_validation(self._key)
        token = offered[0].chall.encode("token")
        if not TOKEN.fullmatch(token):
            raise IssuanceError(_outside(token))
        server.answer(token, validation.encode("ascii"))
        client.answer_challenge(offered[0], response)

    def _speak(self, call: Callable[[], _T]) -> _T:
        """What the library and requests raise becomes one of our errors, one line."""
        where = self._directory
        try:
            return call()
        except errors.ValidationError as exc:
            raise IssuanceError(_failed_challenges(exc)) from exc
        except errors.IssuanceError as exc:
            raise IssuanceError(f"the CA does not issue: {_problem(exc.error)}") from exc
        except messages.Error as exc:
            raise IssuanceError(f"the CA declines: {_problem(exc)}") from exc
        except errors.TimeoutError as exc:
            seconds = int(_DEADLINE.total_seconds())
            raise IssuanceError(f"{where}: the order was not decided within {seconds} s; run it again later") from exc
        except requests.exceptions.SSLError as exc:
            raise TransportError(
                f"{where}: its TLS certificate is not trusted (--ca-bundle): {_line(_cause(exc))}"
            ) from exc
        except (requests.exceptions.RequestException, OSError) as exc:
            raise TransportError(f"{where} cannot be reached: {_line(_cause(exc))}") from exc
        except (errors.Error, josepy.errors.Error) as exc:
            raise TransportError(f"{where} does not answer as an ACME server does: {_line(exc)}") from exc
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            raise TransportError(f"{where} does not answer as an ACME server does: {_line(exc)}") from exc


@contextmanager
def _at_most(seconds: float, where: str) -> Iterator[None]:
    """End what runs within: each read has its own limit, and a server that sends a byte from time to time meets all of
    them. Raises TransportError.
    """

    def ring(*_: object) -> None:
        raise TransportError(f"{where} took longer than {seconds:g} s in all and was not waited for")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _inspect(response: requests.Response, *_args: object, **_kwargs: object) -> requests.Response:
    """Every answer, before the library sees it: https, bounded, and asking for nothing but tokens."""
    if not response.url.startswith("https://"):
        raise requests.exceptions.InvalidURL(f"led to {response.url[:200]}, which is not https")
    content = b""
    for part in response.iter_content(1 << 16):
        content += part
        if len(content) > _MAX_ANSWER:
            response.close()
            raise requests.exceptions.ContentDecodingError(f"an answer of more than {_MAX_ANSWER} bytes")
    response._content = content  # what requests itself keeps when it has read it all
    try:
        answer = json.loads(content)
    except (ValueError, RecursionError):
        return response
    offered = answer.get("challenges") if isinstance(answer, dict) else None
    for challenge in offered if isinstance(offered, list) else []:
        if isinstance(challenge, dict) and challenge.get("type") == "http-01":
            token = challenge.get("token")
            # The library would decode and encode it again, and by that make something harmless of anything.
            if not isinstance(token, str) or not TOKEN.fullmatch(token):
                raise IssuanceError(_outside(token))
    return response


def _outside(token: object) -> str:
    return (
        f"the ACME server asks for what is no challenge: {PATH}{str(token)[:200]!r}; nothing of this machine was served"
    )


def _csr(names: Sequence[str], key: ec.EllipticCurvePrivateKey) -> bytes:
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=True)
        .sign(key, hashes.SHA256())
        .public_bytes(Encoding.PEM)
    )


def _check_chain(chain: bytes, names: Sequence[str], key: ec.EllipticCurvePrivateKey) -> None:
    """Whether this is what was ordered. Raises IssuanceError."""
    try:
        leaf = x509.load_pem_x509_certificates(chain)[0]
        ours = leaf.public_key() == key.public_key()
    except (ValueError, TypeError) as exc:
        raise IssuanceError(f"what the CA issued cannot be read as certificates: {_line(exc)}") from exc
    if not ours:
        raise IssuanceError("the CA issued a certificate for another key than ours")
    if missing := sorted(set(names) - names_of(leaf)):
        raise IssuanceError(f"the CA issued a certificate that is not for {', '.join(missing)}")


def _check_bundle(path: str) -> None:
    """Raises InputError."""
    try:
        ssl.create_default_context(cafile=path)
    except (OSError, ValueError) as exc:
        why = "no certificates in PEM" if isinstance(exc, ssl.SSLError) else getattr(exc, "strerror", None) or str(exc)
        raise InputError(f"--ca-bundle {path}: cannot be used: {why}") from exc


def _failed_challenges(exc: errors.ValidationError) -> str:
    lines: dict[str, str] = {}
    for authorization in exc.failed_authzrs:
        found = [_problem(c.error) for c in authorization.body.challenges if c.error is not None]
        lines.setdefault(str(authorization.body.identifier.value), found[0] if found else "no reason is given")
    told = "; ".join(f"{name}: {problem}" for name, problem in lines.items())
    return f"the CA could not verify {told} (does the name lead here, and does port 80 reach this program?)"


def _problem(error: messages.Error | None) -> str:
    if error is None:
        return "no reason is given"
    subproblems = [str(sub.detail) for sub in error.subproblems or () if sub.detail]
    parts = [str(error.title or ""), str(error.detail or ""), *subproblems]
    text = ": ".join(part for part in parts if part) or str(error.typ)
    return _line(text)


def _cause(problem: BaseException) -> object:
    """What the system said, out of the exceptions that requests and urllib3 wrapped around it."""
    seen: object = problem
    for _ in range(_WRAPPED):
        if isinstance(seen, OSError) and seen.strerror:
            return getattr(seen, "verify_message", "") or seen.strerror
        inner = [getattr(seen, "reason", None), *getattr(seen, "args", ()), getattr(seen, "__cause__", None)]
        seen = next((found for found in inner if isinstance(found, BaseException)), None)
    return problem


def _line(problem: object) -> str:
    return " ".join(str(problem).split())[:_SHOWN] or type(problem).__name__
