"""Version 1 of the API: what the published 1.3.x programs insist on."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Any
from urllib.parse import quote

import pytest

from cosmian_vm.attester.platform import Platform, TeeQuote
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.devkit.soft_tpm import SoftTpm
from cosmian_vm.evidence import ima, snp, tpm
from cosmian_vm.evidence.bundle import TeeKind

Talk = Callable[..., Any]
NONCE = bytes(range(32))


def nonce_query(nonce: bytes) -> str:
    return "nonce=" + quote(base64.b64encode(nonce).decode().rstrip("="), safe="")


def test_tee_quote_binds_nonce_and_leaf(talk: Talk, machine: Machine) -> None:
    reply = talk(lambda call: call("GET", f"/quote/tee?{nonce_query(NONCE)}"))
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    evidence = snp.parse_evidence(bytes(reply.json()))
    assert evidence.report.report_data == NONCE + sha256(machine.leaf).digest()
    assert evidence.layout is snp.CertificateLayout.TYPED
    assert len(evidence.certificates) == 3
    assert evidence.trailing == 0


def test_tee_quote_follows_the_connection(talk: Talk, vendor: Any) -> None:
    other = Machine.create(vendor).leaf
    reply = talk(lambda call: call("GET", f"/quote/tee?{nonce_query(NONCE)}"), leaf=other)
    assert snp.parse_evidence(bytes(reply.json())).report.report_data == NONCE + sha256(other).digest()


def test_a_connection_of_unknown_leaf_gets_no_quote(talk: Talk) -> None:
    for method, target, body in (
        ("GET", f"/quote/tee?{nonce_query(NONCE)}", b""),
        ("POST", "/v2/evidence", b'{"nonce":"' + base64.b64encode(NONCE) + b'"}'),
    ):
        reply = talk(lambda call, m=method, t=target, b=body: call(m, t, b), leaf=None)
        assert (reply.status, "resumed" in reply.text) == (503, True)


def test_all_zero_nonce_is_taken(talk: Talk) -> None:
    assert talk(lambda call: call("GET", f"/quote/tee?{nonce_query(bytes(32))}")).status == 200
    assert talk(lambda call: call("GET", f"/quote/tpm?{nonce_query(bytes(32))}")).status == 200


@pytest.mark.parametrize("path", ["/quote/tee", "/quote/tpm"])
@pytest.mark.parametrize(
    "query",
    [
        "",
        "nonce=A",
        "nonce=" + "A" * 42 + "B",  # trailing bits are not zero
        "nonce=" + quote(base64.b64encode(bytes(32)).decode()),  # padding
        "nonce=" + "-" * 43,  # the URL alphabet
        "nonce=" + "+" * 43,  # spaces, once decoded
        "nonce=" + "A" * 43 + "&nonce=" + "A" * 43,
        "nonce=%00%ff" + "A" * 41,
        "nonce=" + "é" * 43,
        "nonse=" + "A" * 43,
        "nonce=" + "A" * 88,  # 66 bytes
    ],
)
def test_what_is_no_nonce_is_refused(talk: Talk, path: str, query: str) -> None:
    reply = talk(lambda call: call("GET", f"{path}?{query}"))
    assert (reply.status, reply.text.startswith("nonce")) == (400, True)
    assert "\n" not in reply.text


def test_plus_sent_as_percent_2b_is_taken(talk: Talk) -> None:
    nonce = base64.b64decode("+" * 42 + "8=")
    assert "%2B" in nonce_query(nonce)
    assert talk(lambda call: call("GET", f"/quote/tee?{nonce_query(nonce)}")).status == 200


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_tee_nonce_has_32_bytes(talk: Talk, size: int) -> None:
    assert talk(lambda call: call("GET", f"/quote/tee?{nonce_query(bytes(size))}")).status == 400


@pytest.mark.parametrize("size", [0, 1, 20, 64])
def test_tpm_quote_covers_the_one_pcr_of_ima(talk: Talk, size: int) -> None:
    nonce = bytes(range(size))
    answer = talk(lambda call: call("GET", f"/quote/tpm?{nonce_query(nonce)}")).json()
    assert sorted(answer) == ["pcr_value_hash_method", "public_key", "quote", "signature"]
    assert answer["pcr_value_hash_method"] == "Sha256"
    raw = {name: base64.b64decode(answer[name] + "==") for name in ("quote", "signature", "public_key")}
    assert all("=" not in answer[name] for name in raw)
    told = tpm.parse_quote(raw["quote"])
    assert told.extra_data == nonce
    assert [(s.bank, s.pcrs) for s in told.pcr_selections] == [("sha256", (10,))]
    tpm.parse_signature(raw["signature"])


def test_tpm_quote_takes_the_pcr_from_the_first_entry(talk: Talk, machine: Machine, platform: Platform) -> None:
    log = machine.ima_log()
    assert log is not None
    entries = ima.parse_binary(log)
    machine.forged_ima_log = ima.serialise_binary([entries[0]._replace(pcr=12), *entries[1:]])
    answer = talk(lambda call: call("GET", f"/quote/tpm?{nonce_query(NONCE)}")).json()
    told = tpm.parse_quote(base64.b64decode(answer["quote"] + "=="))
    assert told.pcr_selections[0].pcrs == (12,)


def test_tpm_quote_is_by_version_1s_own_key_where_there_is_one(talk: Talk, platform: Platform) -> None:
    own = SoftTpm(seed=b"of version 1")
    answer = talk(
        lambda call: call("GET", f"/quote/tpm?{nonce_query(NONCE)}"), platform=replace(platform, tpm_v1=own)
    ).json()
    assert base64.b64decode(answer["public_key"] + "==") == own.ak_public()
    assert platform.tpm is not None
    assert platform.tpm.ak_public() != own.ak_public()


def test_tpm_quote_without_a_readable_list_is_no_quote(talk: Talk, machine: Machine) -> None:
    machine.forged_ima_log = b""
    reply = talk(lambda call: call("GET", f"/quote/tpm?{nonce_query(NONCE)}"))
    assert reply.status == 500
    assert "(error " in reply.text


def test_ima_lists(talk: Talk, machine: Machine, platform: Platform) -> None:
    binary = talk(lambda call: call("GET", "/ima/binary"))
    assert bytes(binary.json()) == machine.ima_log()
    text = talk(lambda call: call("GET", "/ima/ascii")).json()
    assert text == (platform.logs.ima_ascii() or b"").decode()
    assert text.startswith("10 ")


def test_ima_list_in_ascii_survives_any_name(talk: Talk, machine: Machine) -> None:
    machine.run("/usr/bin/\udcff name".encode("utf-8", "surrogateescape").decode("latin-1"), b"x")
    assert talk(lambda call: call("GET", "/ima/ascii")).status == 200


def test_a_large_list_is_the_same_in_slices(talk: Talk, machine: Machine) -> None:
    machine.forged_ima_log = bytes(range(256)) * 1000 + b"\x07"
    assert bytes(talk(lambda call: call("GET", "/ima/binary")).json()) == machine.forged_ima_log


def test_missing_devices_are_not_found(talk: Talk, platform: Platform) -> None:
    class NoLogs:
        def ima_binary(self) -> None: ...
        def ima_ascii(self) -> None: ...
        def boot_event_log(self) -> None: ...
        def cc_event_log(self) -> None: ...

    bare = Platform(tee=None, tpm=None, logs=NoLogs())

    async def scenario(call: Any) -> None:
        for target in (
            "/ima/ascii",
            "/ima/binary",
            f"/quote/tee?{nonce_query(NONCE)}",
            f"/quote/tpm?{nonce_query(NONCE)}",
        ):
            reply = await call("GET", target)
            assert (reply.status, reply.text.startswith("this machine has no")) == (404, True)

    talk(scenario, platform=bare)


@pytest.mark.parametrize(
    ("kind", "raw", "expected"),
    [
        (TeeKind.SGX, bytes(432) + (8).to_bytes(4, "little") + b"signatur" + b"padding", 436 + 8),
        (TeeKind.SGX, b"short", 5),
        (TeeKind.TDX, bytes(1000), 1000),
    ],
)
def test_intel_quotes_have_exactly_their_size(
    talk: Talk, platform: Platform, kind: TeeKind, raw: bytes, expected: int
) -> None:
    class Tee:
        def __init__(self) -> None:
            self.kind = kind

        def quote(self, report_data: bytes) -> TeeQuote:
            assert len(report_data) == 64
            return TeeQuote(raw=raw)

    reply = talk(lambda call: call("GET", f"/quote/tee?{nonce_query(NONCE)}"), platform=replace(platform, tee=Tee()))
    assert bytes(reply.json()) == raw[:expected]


def test_azure_snp_is_report_and_pem(talk: Talk, platform: Platform, machine: Machine) -> None:
    pem = b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n"
    true_tee: Any = platform.tee

    class Tee:
        kind = TeeKind.SNP

        def quote(self, report_data: bytes) -> TeeQuote:
            return TeeQuote(raw=true_tee.quote(report_data).raw, endorsements=(pem, pem))

    azure = replace(platform, tee=Tee(), cloud="Azure")
    reply = talk(lambda call: call("GET", f"/quote/tee?{nonce_query(NONCE)}"), platform=azure)
    assert bytes(reply.json())[1184:] == pem + pem


@pytest.mark.parametrize(
    ("agent", "status"),
    [
        ("cli-version/1.3.5", 200),
        ("cli-version/1.0", 200),
        ("cli-version/1.0.0.post1.dev2", 200),
        ("cli-version/0.9.9", 400),
        ("cli-version/1.0.0-rc.1", 400),
        ("cli-version/1.0.dev3", 400),
        ("cli-version/nightly", 200),
        ("cosmian-vm/0.1", 200),
        ("", 200),
    ],
)
def test_clients_before_1_0_are_refused(talk: Talk, agent: str, status: int) -> None:
    reply = talk(lambda call: call("GET", "/ima/ascii", headers={"User-Agent": agent}))
    assert reply.status == status
    if status == 400:
        assert "too old" in reply.text


def test_unknown_calls_are_one_line_of_text(talk: Talk) -> None:
    async def scenario(call: Any) -> None:
        for method, target, status in (("GET", "/", 404), ("GET", "/nope", 404), ("PUT", "/version", 405)):
            reply = await call(method, target)
            assert reply.status == status
            assert reply.headers["content-type"].startswith("text/plain")
            assert "\n" not in reply.text

    talk(scenario)


def test_version_1_quotes_are_not_taken_side_by_side(talk: Talk, platform: Platform) -> None:
    """Expensive calls run one at a time, in the order in which they came."""
    running, most = 0, 0
    true_tee: Any = platform.tee

    class Tee:
        kind = TeeKind.SNP

        def quote(self, report_data: bytes) -> TeeQuote:
            nonlocal running, most
            running += 1
            most = max(most, running)
            try:
                quote: TeeQuote = true_tee.quote(report_data)
                return quote
            finally:
                running -= 1

    async def scenario(call: Any) -> list[int]:
        calls = (call("GET", f"/quote/tee?{nonce_query(bytes([n] * 32))}") for n in range(10))
        return [reply.status for reply in await asyncio.gather(*calls)]

    assert talk(scenario, platform=replace(platform, tee=Tee())) == [200] * 10
    assert most == 1
