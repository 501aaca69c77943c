"""Version 2 of the API: one bundle of evidence, orders, and answers as they are on the wire."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import pytest
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cosmian_vm import __version__, wire
from cosmian_vm.agent import collector as collector_module
from cosmian_vm.agent.config import AgentConfig, AppConfig, ServiceType
from cosmian_vm.attester.platform import Platform, TeeQuote, TpmQuote
from cosmian_vm.certificates import spki_sha256
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.errors import AttesterError, CredentialRefusedError, NotAvailableError
from cosmian_vm.evidence import ima, snp, tpm
from cosmian_vm.evidence.binding import compute_binding, report_data
from cosmian_vm.evidence.bundle import V2_PCRS, EndorsementKey, PlatformAk, TeeKind

Talk = Callable[..., Any]
NONCE = bytes(range(32))


def asked(nonce: bytes = NONCE, **more: object) -> bytes:
    return json.dumps({"nonce": base64.b64encode(nonce).decode(), **more}).encode()


def answered(reply: Any) -> wire.EvidenceAnswer:
    assert reply.status == 200, reply.text
    return msgspec.json.decode(reply.body, type=wire.EvidenceAnswer)


@pytest.fixture
def with_app(config: AgentConfig) -> AgentConfig:
    app = AppConfig(
        service_type=ServiceType.STANDALONE, service_name="app", storage=config.data_storage / "data" / "app"
    )
    return replace(config, app=app, owners="anyone")


def test_evidence_is_bound_to_nonce_leaf_and_ak(talk: Talk, machine: Machine) -> None:
    told = answered(talk(lambda call: call("POST", "/v2/evidence", asked())))
    assert told.tpm is not None
    assert told.tee_quote is not None
    binding = compute_binding(NONCE, spki_sha256(machine.leaf), told.tpm.ak_public)
    assert snp.parse_report(told.tee_quote).report_data == report_data(NONCE, binding)
    quote = tpm.parse_quote(told.tpm.quote)
    assert quote.extra_data == binding
    assert [(s.bank, s.pcrs) for s in quote.pcr_selections] == [("sha256", V2_PCRS)]
    assert len(told.tpm.pcrs) == 16
    assert (told.api, told.agent_version, told.tee_kind) == (2, __version__, "sev-snp")
    assert told.ima_log == machine.ima_log()
    assert told.boot_event_log == machine.boot_event_log()
    assert told.owners == []
    assert len(told.endorsements) >= 3


def test_the_quote_is_taken_before_the_log_is_read(talk: Talk, platform: Platform) -> None:
    """A program that runs in between is in the log, after the quoted prefix; never in the quote and not in the log."""
    order: list[str] = []
    true: Any = platform

    class Tee:
        kind = TeeKind.SNP

        def quote(self, report_data: bytes) -> TeeQuote:
            order.append("tee")
            quote: TeeQuote = true.tee.quote(report_data)
            return quote

    class Tpm:
        def __getattr__(self, name: str) -> Any:
            return getattr(true.tpm, name)

        def quote(self, qualifying_data: bytes, pcrs: Any) -> TpmQuote:
            order.append("tpm")
            quote: TpmQuote = true.tpm.quote(qualifying_data, pcrs)
            return quote

    class Logs:
        def __getattr__(self, name: str) -> Any:
            order.append(name)
            return getattr(true.logs, name)

    watched = replace(platform, tee=Tee(), tpm=Tpm(), logs=Logs())
    answered(talk(lambda call: call("POST", "/v2/evidence", asked()), platform=watched))
    assert order == ["tee", "tpm", "ima_binary", "boot_event_log", "cc_event_log"]


def test_ima_log_from_an_entry_on(talk: Talk, machine: Machine) -> None:
    log = machine.ima_log()
    assert log is not None
    entries = ima.parse_binary(log)

    async def scenario(call: Any) -> None:
        for first in (0, 1, len(entries) - 1, len(entries), len(entries) + 5):
            told = answered(await call("POST", "/v2/evidence", asked(ima_from=first)))
            assert told.ima_from == first
            assert told.ima_log == ima.serialise_binary(entries[first:])

    talk(scenario)


def test_without_devices_the_evidence_says_so(talk: Talk, platform: Platform, machine: Machine) -> None:
    told = answered(talk(lambda call: call("POST", "/v2/evidence", asked()), platform=replace(platform, tpm=None)))
    assert told.tpm is None
    binding = compute_binding(NONCE, spki_sha256(machine.leaf), None)
    assert told.tee_quote is not None
    assert snp.parse_report(told.tee_quote).report_data == report_data(NONCE, binding)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"\xff\xfe",
        b"{}",
        asked(bytes(31)),
        asked(bytes(33)),
        asked(ima_from=-1),
        asked(ima_from="1"),
        asked(ima_from=10**30),
        asked(extra=1),
        b'{"nonce": 5}',
        b'{"nonce": "****"}',
        b"[" * 4000,
    ],
)
def test_what_is_no_request_is_refused(talk: Talk, body: bytes) -> None:
    reply = talk(lambda call: call("POST", "/v2/evidence", body))
    assert reply.status == 400
    assert reply.headers["content-type"].startswith("text/plain")
    assert "\n" not in reply.text


def test_a_device_that_fails_is_an_error_with_an_id(
    talk: Talk, platform: Platform, caplog: pytest.LogCaptureFixture
) -> None:
    class Tee:
        kind = TeeKind.SNP

        def quote(self, report_data: bytes) -> TeeQuote:
            raise AttesterError("the firmware says no\nand more")

    with caplog.at_level("ERROR"):
        reply = talk(lambda call: call("POST", "/v2/evidence", asked()), platform=replace(platform, tee=Tee()))
    assert reply.status == 500
    assert reply.text.startswith("the firmware says no and more (error ")
    error_id = reply.text.partition("(error ")[2].partition(":")[0]
    assert any(error_id in record.getMessage() for record in caplog.records)


def test_what_nobody_foresaw_shows_nothing_to_the_client(
    talk: Talk, platform: Platform, caplog: pytest.LogCaptureFixture
) -> None:
    class Tee:
        kind = TeeKind.SNP

        def quote(self, report_data: bytes) -> TeeQuote:
            raise RuntimeError("inner secret")

    with caplog.at_level("ERROR"):
        reply = talk(lambda call: call("POST", "/v2/evidence", asked()), platform=replace(platform, tee=Tee()))
    assert reply.status == 500
    assert "secret" not in reply.text
    assert reply.text.startswith("internal error (error ")
    assert any("inner secret" in record.getMessage() for record in caplog.records)
    assert all("\n" not in record.getMessage() for record in caplog.records)


def test_the_tpm_may_not_swap_its_key_under_the_binding(talk: Talk, platform: Platform) -> None:
    true: Any = platform.tpm

    class Tpm:
        def __getattr__(self, name: str) -> Any:
            return getattr(true, name)

        def quote(self, qualifying_data: bytes, pcrs: Any) -> TpmQuote:
            quote: TpmQuote = true.quote(qualifying_data, pcrs)
            return replace(quote, ak_public=b"another")

    reply = talk(lambda call: call("POST", "/v2/evidence", asked()), platform=replace(platform, tpm=Tpm()))
    assert (reply.status, "another key" in reply.text) == (500, True)


def test_a_device_that_hangs_is_503_and_does_not_pile_up(
    talk: Talk, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    monkeypatch.setattr(collector_module, "EVIDENCE_SECONDS", 0.3)
    let_go = threading.Event()
    entered = []

    class Tee:
        kind = TeeKind.SNP

        def quote(self, report_data: bytes) -> TeeQuote:
            entered.append(1)
            let_go.wait(60)
            raise AttesterError("late")

    async def scenario(call: Any) -> None:
        addresses = [f"192.0.2.{number}" for number in range(70)]  # one alone has a share that is smaller
        replies = await asyncio.gather(*(call("POST", "/v2/evidence", asked(), address=a) for a in addresses))
        let_go.set()
        assert {reply.status for reply in replies} == {503}
        texts = [reply.text for reply in replies]
        assert sum("too many calls are waiting" in text for text in texts) == 70 - 64
        assert sum("not done within" in text for text in texts) == 64
        assert len(entered) == 1  # the others were not begun: their time was over
        assert (await call("GET", "/health")).status == 200

    talk(scenario, platform=replace(platform, tee=Tee()))


def test_version(talk: Talk, platform: Platform) -> None:
    async def scenario(call: Any) -> Any:
        assert (await call("GET", "/version")).status == 200
        return await call("GET", "/version")

    told = msgspec.json.decode(talk(scenario).body, type=wire.VersionAnswer)
    assert told == wire.VersionAnswer(
        agent_version=__version__, api_versions=[1, 2], tee_kind="sev-snp", tpm=True, ima=True
    )
    told = msgspec.json.decode(
        talk(scenario, platform=replace(platform, tpm=None, tee=None)).body, type=wire.VersionAnswer
    )
    assert (told.tpm, told.tee_kind) == (False, None)


def test_openapi_names_every_call(talk: Talk) -> None:
    document = talk(lambda call: call("GET", "/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    paths = {(path, method) for path, methods in document["paths"].items() for method in methods}
    assert ("/v2/evidence", "post") in paths
    assert ("/snapshot", "delete") in paths

    async def scenario(call: Any) -> None:
        for path, method in paths:
            assert (await call(method.upper(), path)).status not in (404, 405) or path.startswith("/app/"), path

    talk(scenario)
    references = [part.partition('"')[0] for part in json.dumps(document).split("#/components/schemas/")[1:]]
    assert set(references) <= set(document["components"]["schemas"])


def test_zstd_where_the_client_takes_it(talk: Talk, machine: Machine) -> None:
    for number in range(300):
        machine.run(f"/usr/lib/some/where/module{number}.so", number.to_bytes(4, "big"))
    log = machine.ima_log()
    assert log is not None

    async def scenario(call: Any) -> None:
        plain = await call("POST", "/v2/evidence", asked())
        assert "content-encoding" not in plain.headers
        small = await call("POST", "/v2/evidence", asked(), headers={"Accept-Encoding": "gzip;q=1.0, zstd;q=0.5"})
        assert small.headers["content-encoding"] == "zstd"
        assert small.headers["vary"] == "accept-encoding"
        raw = zstandard.ZstdDecompressor().decompress(small.body)
        assert msgspec.json.decode(raw, type=wire.EvidenceAnswer).ima_log == log
        assert len(small.body) < len(plain.body)
        for header in ("zstd;q=0", "zstd;q=0.000", "gzip", "", "azstd", "zstdx"):
            assert (
                "content-encoding"
                not in (await call("GET", "/ima/binary", headers={"Accept-Encoding": header})).headers
            )

    talk(scenario)


# Orders


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/snapshot"),
        ("GET", "/v2/snapshot"),
        ("DELETE", "/snapshot"),
        ("POST", "/app/restart"),
        ("POST", "/app/init"),
    ],
)
def test_orders_of_version_1_need_anyone(
    talk: Talk, with_app: AgentConfig, service: Any, method: str, target: str
) -> None:
    body = b'{"content":"AAAA"}' if target == "/app/init" else b""

    async def version_1(call: Any) -> Any:
        return await call(method, target, body)

    async def version_2(call: Any) -> Any:
        owner = Ed25519PrivateKey.generate()
        assert (await call.order("POST", "/v2/owner/claim", by=owner)).status == 200
        refused = await version_1(call)
        assert (refused.status, refused.headers["www-authenticate"]) == (401, "cosmian-vm-proof")
        assert 'owners = "anyone"' in refused.text
        return await call.order(method, target, body, by=owner)

    nobody = replace(with_app, owners=None)
    reply = talk(version_1, config=nobody, service=service)
    assert reply.status == 403
    assert 'owners = "anyone"' in reply.text
    assert service.calls == []
    assert not (with_app.data_storage / "data" / "app").exists()
    assert talk(version_1, config=with_app, service=service).status in (200, 202)
    assert talk(version_2, config=nobody, service=service).status in (200, 202)


@pytest.mark.parametrize("value", ["1", "2", "", "two"])
def test_the_order_header_is_no_right(talk: Talk, with_app: AgentConfig, service: Any, value: str) -> None:
    reply = talk(
        lambda call: call("POST", "/app/restart", headers={wire.ORDER_HEADER: value}),
        config=replace(with_app, owners=None),
        service=service,
    )
    assert reply.status == 403
    assert service.calls == []


def test_app_init_writes_and_starts(talk: Talk, with_app: AgentConfig, service: Any) -> None:
    secret = bytes(range(256)) * 5
    body = json.dumps({"content": base64.b64encode(secret).decode().rstrip("=")}).encode()
    reply = talk(lambda call: call("POST", "/app/init", body), config=with_app, service=service)
    assert (reply.status, reply.body) == (200, b"null")
    assert with_app.app is not None
    file = with_app.app.storage / "app.conf"
    assert file.read_bytes() == secret
    assert file.stat().st_mode & 0o777 == 0o400
    assert service.calls == ["restart"]
    reply = talk(lambda call: call("POST", "/app/restart"), config=with_app, service=service)
    assert (reply.status, reply.body) == (200, b"null")
    assert service.calls == ["restart", "restart"]


def test_an_app_that_does_not_start_is_an_error(talk: Talk, with_app: AgentConfig, service: Any) -> None:
    service.problem = AttesterError("app ended at once with status 3")
    reply = talk(lambda call: call("POST", "/app/restart"), config=with_app, service=service)
    assert reply.status == 500
    assert reply.text.startswith("app ended at once with status 3 (error ")


@pytest.mark.parametrize("body", [b"", b"{}", b'{"content":"AA="}', b'{"content":"A"}', b'{"content":5}', b"\xff"])
def test_app_init_refuses_what_is_not_base64(talk: Talk, with_app: AgentConfig, service: Any, body: bytes) -> None:
    reply = talk(lambda call: call("POST", "/app/init", body), config=with_app, service=service)
    assert reply.status == 400
    assert service.calls == []


def test_app_init_takes_16_mib_and_no_more(talk: Talk, with_app: AgentConfig, service: Any) -> None:
    def body(size: int) -> list[bytes]:
        raw = b'{"content":"' + base64.b64encode(bytes(size)).rstrip(b"=") + b'"}'
        return [raw[at : at + 65536] for at in range(0, len(raw), 65536)]

    async def scenario(call: Any) -> None:
        limit = wire.MAX_APP_CONFIGURATION
        assert (await call("POST", "/app/init", body(limit))).status == 200
        for size in (limit + 1, limit + 2**20):
            reply = await call("POST", "/app/init", body(size))
            assert reply.status == 413
        huge = {"Content-Length": str(10**12)}
        reply = await call("POST", "/app/init", b"", headers=huge)
        assert (reply.status, reply.headers["connection"]) == (413, "close")

    talk(scenario, config=with_app, service=service)
    assert with_app.app is not None
    assert (with_app.app.storage / "app.conf").stat().st_size == wire.MAX_APP_CONFIGURATION


def test_without_an_app_section_there_is_no_app(talk: Talk, config: AgentConfig) -> None:
    anyone = replace(config, owners="anyone")
    reply = talk(lambda call: call("POST", "/app/restart"), config=anyone)
    assert (reply.status, "[app]" in reply.text) == (404, True)


def test_a_locked_container_declines_every_order(talk: Talk, with_app: AgentConfig, service: Any) -> None:
    locked = replace(with_app, container=with_app.data_storage / "container")

    async def scenario(call: Any) -> None:
        for method, target, body in (
            ("GET", "/v2/snapshot", b""),
            ("DELETE", "/snapshot", b""),
            ("POST", "/app/restart", b""),
            ("POST", "/app/init", b'{"content":"AAAA"}'),
        ):
            reply = await call(method, target, body)
            assert (reply.status, reply.text.startswith("container locked: ")) == (503, True)
        assert (await call("POST", "/v2/evidence", asked())).status == 200

    talk(scenario, config=locked, service=service)
    assert service.calls == []
    assert not (with_app.data_storage / "data").exists()


def test_evidence_names_the_owners(talk: Talk, config: AgentConfig) -> None:
    told = answered(talk(lambda call: call("POST", "/v2/evidence", asked()), config=replace(config, owners="anyone")))
    assert told.owners == ["anyone"]


class _Activating:
    """A TPM that answers TPM2_ActivateCredential, or does what ``problem`` says."""

    def __init__(self, true: Any, problem: Exception | None = None) -> None:
        self.true, self.problem = true, problem
        self.asked: list[tuple[bytes, bytes]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.true, name)

    def activate(self, credential_blob: bytes, secret: bytes) -> bytes:
        self.asked.append((credential_blob, secret))
        if self.problem is not None:
            raise self.problem
        return b"credential"


def activation(credential_blob: bytes = b"blob", secret: bytes = b"secret", **more: object) -> bytes:
    fields = {"credential_blob": credential_blob, "secret": secret}
    return json.dumps({k: base64.b64encode(v).decode() for k, v in fields.items()} | more).encode()


def test_activate(talk: Talk, platform: Platform) -> None:
    tpm = _Activating(platform.tpm)
    reply = talk(lambda call: call("POST", "/v2/activate", activation()), platform=replace(platform, tpm=tpm))
    assert reply.status == 200, reply.text
    assert msgspec.json.decode(reply.body, type=wire.ActivateAnswer).credential == b"credential"
    assert tpm.asked == [(b"blob", b"secret")]


@pytest.mark.parametrize(
    ("problem", "status", "text"),
    [
        (CredentialRefusedError("the TPM does not activate this credential"), 400, "does not activate"),
        (NotAvailableError("TPM: no endorsement key"), 404, "no endorsement key"),
        (AttesterError("TPM: it is locked out"), 500, "locked out"),
    ],
)
def test_a_credential_that_is_not_activated(
    talk: Talk, platform: Platform, problem: Exception, status: int, text: str
) -> None:
    tpm = _Activating(platform.tpm, problem)
    reply = talk(lambda call: call("POST", "/v2/activate", activation()), platform=replace(platform, tpm=tpm))
    assert (reply.status, text in reply.text, "\n" in reply.text.strip()) == (status, True, False)


def test_activate_without_a_tpm_or_an_ek(talk: Talk, platform: Platform) -> None:
    bare = replace(platform, tpm=None)
    assert talk(lambda call: call("POST", "/v2/activate", activation()), platform=bare).status == 404
    assert talk(lambda call: call("POST", "/v2/activate", activation())).status == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{}", 400),
        (activation(nonce="AAAA"), 400),
        (activation(credential_blob=bytes(wire.MAX_CREDENTIAL_BLOB + 1)), 400),
        (activation(secret=bytes(wire.MAX_CREDENTIAL_SECRET + 1)), 400),
        (activation(secret=bytes(5000)), 413),
    ],
)
def test_activate_with_a_bad_body(talk: Talk, platform: Platform, body: bytes, status: int) -> None:
    tpm = _Activating(platform.tpm)
    reply = talk(lambda call: call("POST", "/v2/activate", body), platform=replace(platform, tpm=tpm))
    assert (reply.status, tpm.asked) == (status, [])


def test_anchors_of_the_ak_are_in_the_evidence(talk: Talk, platform: Platform) -> None:
    true: Any = platform.tpm
    asked_for: list[bytes] = []

    class Tpm(_Activating):
        def platform_ak(self, qualifying_data: bytes) -> PlatformAk:
            asked_for.append(qualifying_data)
            return PlatformAk(
                public=b"public", attest=b"attest", signature=b"signature", certificates=(b"certificate",)
            )

        def ek(self) -> EndorsementKey:
            return EndorsementKey(public=b"ek", certificates=(b"own", b"maker"))

    told = answered(talk(lambda call: call("POST", "/v2/evidence", asked()), platform=replace(platform, tpm=Tpm(true))))
    assert told.tpm is not None
    assert told.tpm.platform_ak == wire.PlatformAkAnswer(
        public=b"public", attest=b"attest", signature=b"signature", certificates=[b"certificate"]
    )
    assert told.tpm.ek == wire.EkAnswer(public=b"ek", certificates=[b"own", b"maker"])
    assert asked_for == [tpm.parse_quote(told.tpm.quote).extra_data]
