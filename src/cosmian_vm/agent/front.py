"""The front: HTTP API versions 1 and 2. It reads requests, hands orders on, writes answers, and holds no device.

Reading evidence is open to all; whether an order is obeyed is the collector's decision.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from cosmian_vm import wire
from cosmian_vm.agent import requests
from cosmian_vm.agent.answers import (
    Answer,
    Budget,
    Shares,
    byte_array,
    compressed,
    from_error,
    json_answer,
    takes_zstd,
    text_answer,
)
from cosmian_vm.agent.asgi import ASGIApp, Handler, Receive, Request, Router, Scope, Send
from cosmian_vm.agent.caller import Caller
from cosmian_vm.agent.lane import Lane
from cosmian_vm.agent.openapi import openapi_document
from cosmian_vm.agent.orders import Orders, SnapshotState
from cosmian_vm.agent.rates import Rates
from cosmian_vm.agent.user_agent import is_too_old
from cosmian_vm.errors import AttesterError, OrderError
from cosmian_vm.evidence.binding import NONCE_SIZE
from cosmian_vm.owner_proof import PROOF_HEADER

__all__ = ["create_app"]

_MAX_UNDERWAY = 256 * 1024 * 1024
_MAX_BODIES = 4 * wire.MAX_APP_BODY
"""Of those who were admitted: strangers' answers do not take their room."""
_SMALL_ANSWER = 64 * 1024
"""Below it an answer does not count: what an order came to is told whatever else is being sent."""
_MAX_ENCODING = 16
_MAX_OF_ONE_CLIENT = 16
_ENCODING_SECONDS = 60.0

# For each client, in calls; a verification is one, of version 1 three. A snapshot that is being computed is asked for
# about once a second.
_READS_AT_ONCE = 120
_READS_EACH_MINUTE = 120
_ORDERS_AT_ONCE = 240
_ORDERS_EACH_MINUTE = 240

_Call = Callable[[Request], Awaitable[Answer]]


def create_app(orders: Orders) -> ASGIApp:
    """The ASGI application. Each request's scope has ``state["leaf"]``: the certificate (DER) of its connection."""
    front = _Front(orders)
    calls: dict[str, dict[str, _Call]] = {
        wire.IMA_ASCII: {"GET": front.ima_ascii},
        wire.IMA_BINARY: {"GET": front.ima_binary},
        wire.QUOTE_TEE: {"GET": front.quote_tee},
        wire.QUOTE_TPM: {"GET": front.quote_tpm},
        wire.SNAPSHOT_V1: {"GET": front.snapshot_v1, "DELETE": front.delete_snapshot},
        wire.SNAPSHOT_V2: {"GET": front.snapshot_v2, "DELETE": front.delete_snapshot},
        wire.APP_INIT: {"POST": front.app_init},
        wire.APP_RESTART: {"POST": front.app_restart},
        wire.APP: {"GET": front.app_status},
        wire.APP_LOGS: {"GET": front.app_logs},
        wire.NONCE: {"POST": front.nonce},
        wire.OWNER: {"GET": front.owners},
        wire.OWNER_CLAIM: {"POST": front.claim},
        wire.OWNER_ADD: {"POST": front.add_owner},
        wire.OWNER_REMOVE: {"POST": front.remove_owner},
        wire.VERSION: {"GET": front.version},
        wire.EVIDENCE: {"POST": front.evidence},
        wire.ACTIVATE: {"POST": front.activate},
        wire.OPENAPI: {"GET": front.openapi},
        wire.HEALTH: {"GET": front.health},
    }
    router = Router(
        {path: {method: front.answered(call) for method, call in methods.items()} for path, methods in calls.items()},
        text_answer,
    )

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope, receive)
        agent = request.header("user-agent")
        if is_too_old(agent):
            answer: ASGIApp = text_answer(400, f"{agent[:60]} is too old for this agent: 1.0 or newer is needed")
        else:
            answer = await router.answer(request)
        await answer(scope, receive, send)

    return app


class _Front:
    """One method for each call."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._encoding = Lane("answers", capacity=_MAX_ENCODING)
        self._budget = Budget(_MAX_UNDERWAY)
        self._bodies = Budget(_MAX_BODIES)
        self._shares = Shares(_MAX_OF_ONE_CLIENT)
        self._reading = Rates(burst=_READS_AT_ONCE, each_minute=_READS_EACH_MINUTE)
        self._orders_given = Rates(burst=_ORDERS_AT_ONCE, each_minute=_ORDERS_EACH_MINUTE)
        self._openapi = msgspec.json.encode(openapi_document())

    def answered(self, handler: _Call) -> Handler:
        """``handler`` with every failure turned into an answer, within the client's share and the budget."""

        async def call(request: Request) -> ASGIApp:
            what = f"{request.method} {request.path}"
            try:
                client = self._shares.take(request.address)
            except OrderError as exc:
                return from_error(exc, what)
            kept = False
            try:
                answer = await handler(request)
                self._budget.take(_counted(answer))
                kept = True
            except requests.ClientGoneError:
                return text_answer(400, "the request ended early", close=True)
            except Exception as exc:
                return from_error(exc, what)
            finally:
                if not kept:
                    self._shares.give_back(client)
            return _Bounded(answer, self._budget, self._shares, client)

        return call

    async def version(self, _request: Request) -> Answer:
        """``GET /version``."""
        return json_answer(await self._orders.version())

    async def evidence(self, request: Request) -> Answer:
        """``POST /v2/evidence``."""
        first = bool(request.header(PROOF_HEADER)) and await self._orders.is_owner(self._caller(request))
        if not first:
            self._reading.take(request.address)
        asked = await requests.evidence_request(request)
        evidence = await self._orders.evidence(asked.nonce, requests.leaf(request), asked.ima_from, first=first)
        return await self._encoded(request, lambda: msgspec.json.encode(evidence), first=first)

    async def activate(self, request: Request) -> Answer:
        """``POST /v2/activate``."""
        self._reading.take(request.address)
        asked = await requests.activate_request(request)
        credential = await self._orders.activate(asked.credential_blob, asked.secret)
        return json_answer(wire.ActivateAnswer(credential=credential))

    async def quote_tee(self, request: Request) -> Answer:
        """``GET /quote/tee``."""
        self._reading.take(request.address)
        nonce = requests.nonce(request, exactly=NONCE_SIZE)
        quote = await self._orders.tee_quote_v1(nonce, requests.leaf(request))
        return await self._encoded(request, lambda: byte_array(quote))

    async def quote_tpm(self, request: Request) -> Answer:
        """``GET /quote/tpm``."""
        self._reading.take(request.address)
        return json_answer(await self._orders.tpm_quote_v1(requests.nonce(request)))

    async def ima_ascii(self, request: Request) -> Answer:
        """``GET /ima/ascii``. Names may hold any bytes: those that are not UTF-8 are U+FFFD here."""
        self._reading.take(request.address)
        log = await self._orders.ima_ascii()
        return await self._encoded(request, lambda: msgspec.json.encode(log.decode(errors="replace")))

    async def ima_binary(self, request: Request) -> Answer:
        """``GET /ima/binary``."""
        self._reading.take(request.address)
        log = await self._orders.ima_binary()
        return await self._encoded(request, lambda: byte_array(log))

    async def snapshot_v1(self, request: Request) -> Answer:
        """``GET /snapshot``."""
        state = await self._orders.snapshot(self._caller(request))
        return json_answer(None, 202) if state.progress is not None else await self._snapshot(request, state)

    async def snapshot_v2(self, request: Request) -> Answer:
        """``GET /v2/snapshot``."""
        state = await self._orders.snapshot(self._caller(request))
        return json_answer(state.progress, 202) if state.progress is not None else await self._snapshot(request, state)

    async def _snapshot(self, request: Request, state: SnapshotState) -> Answer:
        finished = state.finished
        if finished is None:
            raise AttesterError(f"the snapshot failed: {state.failed}; delete it to order another")
        self._reading.take(request.address)
        return await self._encoded(request, lambda: finished)

    async def delete_snapshot(self, request: Request) -> Answer:
        """``DELETE /snapshot``, ``DELETE /v2/snapshot``."""
        await self._orders.delete_snapshot(self._caller(request))
        return json_answer(None)

    async def app_init(self, request: Request) -> Answer:
        """``POST /app/init``. Of somebody who may not order it, the body is not even read."""
        caller = self._caller(request)
        await self._orders.admit_init(caller)
        body = await requests.app_body(request, self._bodies)
        try:
            await self._orders.init_app(caller, body)
        finally:
            self._bodies.give_back(len(body))
        return json_answer(None)

    async def app_restart(self, request: Request) -> Answer:
        """``POST /app/restart``."""
        await self._orders.restart_app(self._caller(request))
        return json_answer(None)

    async def app_status(self, request: Request) -> Answer:
        """``GET /v2/app``."""
        return json_answer(await self._orders.app_status(self._caller(request)))

    async def app_logs(self, request: Request) -> Answer:
        """``GET /v2/app/logs``."""
        lines = requests.log_lines(request)
        return json_answer(await self._orders.app_logs(self._caller(request), lines))

    async def nonce(self, _request: Request) -> Answer:
        """``POST /v2/nonce``."""
        return json_answer(wire.NonceAnswer(nonce=await self._orders.nonce()))

    async def owners(self, _request: Request) -> Answer:
        """``GET /v2/owner``."""
        return json_answer(await self._orders.owners())

    async def claim(self, request: Request) -> Answer:
        """``POST /v2/owner/claim``."""
        await requests.no_body(request)
        return json_answer(await self._orders.claim(self._caller(request)))

    async def add_owner(self, request: Request) -> Answer:
        """``POST /v2/owner/add``."""
        body = await requests.small_body(request)
        return json_answer(await self._orders.add_owner(self._caller(request), body))

    async def remove_owner(self, request: Request) -> Answer:
        """``POST /v2/owner/remove``."""
        body = await requests.small_body(request)
        return json_answer(await self._orders.remove_owner(self._caller(request), body))

    async def openapi(self, _request: Request) -> Answer:
        """``GET /openapi.json``."""
        return Answer(200, self._openapi, "application/json")

    async def health(self, _request: Request) -> Answer:
        """``GET /health``."""
        return json_answer({"status": "ok"})

    def _caller(self, request: Request) -> Caller:
        """Whoever gives an order. Raises OrderError where a client gives too many without a proof; one with a proof is
        quickly told, and must not be kept out by its neighbours.
        """
        caller = requests.caller(request)
        if not caller.proof:
            self._orders_given.take(request.address)
        return caller

    async def _encoded(self, request: Request, encode: Callable[[], bytes], *, first: bool = False) -> Answer:
        """A large answer, encoded and compressed beside the event loop."""
        zstd = takes_zstd(request.header("accept-encoding"))
        return await self._encoding.call(
            lambda: compressed(encode(), zstd=zstd), seconds=_ENCODING_SECONDS, first=first
        )


def _counted(answer: Answer) -> int:
    return len(answer.body) if len(answer.body) > _SMALL_ANSWER else 0


class _Bounded(Answer):
    """An answer whose bytes, and place in its client's share, are given back when it is out."""

    def __init__(self, answer: Answer, budget: Budget, shares: Shares, client: bytes) -> None:
        self.status, self.body, self.headers = answer.status, answer.body, answer.headers
        self._budget = budget
        self._shares = shares
        self._client = client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._budget.give_back(_counted(self))
            self._shares.give_back(self._client)
