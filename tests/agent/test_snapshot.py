"""The snapshot job: ordered once, computed beside everything else, kept until deleted; and what it says."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha1, sha256, sha512
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cosmian_vm.agent import snapshot_build, snapshot_job
from cosmian_vm.agent.config import AgentConfig
from cosmian_vm.agent.snapshot_build import hash_algorithm, measured_files
from cosmian_vm.attester.platform import Platform
from cosmian_vm.devkit.intel import IntelVendor
from cosmian_vm.devkit.intel_tee import SimulatedEnclave, SimulatedTd
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.errors import AttesterError
from cosmian_vm.evidence import ima, snp, tpm
from cosmian_vm.reference.filesystem import walk_and_hash
from cosmian_vm.reference.snapshot import BOOT_PCRS, Snapshot, parse

Talk = Callable[..., Any]


@pytest.fixture
def config(config: AgentConfig) -> AgentConfig:
    """These tests are about the work; who may order it, is asked in test_owner."""
    return replace(config, owners="anyone")


async def wait_for_snapshot(call: Any, path: str = "/v2/snapshot") -> Any:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        reply = await call("GET", path)
        if reply.status != 202:
            return reply
        await asyncio.sleep(0.02)
    raise AssertionError("no snapshot in 60 s")


def taken(talk: Talk, **how: Any) -> Snapshot:
    reply = talk(wait_for_snapshot, **how)
    assert reply.status == 200, reply.text
    return parse(reply.body, "snapshot")


def test_snapshot_is_the_machine(talk: Talk, machine: Machine, platform: Platform, root: Path) -> None:
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc" / "name with spaces").write_bytes(b"1")
    snapshot = taken(talk)
    files = dict(snapshot.files)
    for path, content in machine.files.items():
        assert files[path.encode()] == sha256(content).digest()
    assert files[b"/etc/name with spaces"] == sha256(b"1").digest()
    assert b"boot_aggregate" in files
    assert snapshot.not_on_disk == ()
    assert snapshot.unreadable == ()
    assert platform.tee is not None
    assert platform.tpm is not None
    report = snp.parse_report(platform.tee.quote(bytes(64)).raw)
    assert snapshot.sev is not None
    assert snapshot.sev.bytes_of("measurement") == report.measurement
    assert snapshot.sev.bytes_of("report_data") == bytes(64)
    assert snapshot.sev.bytes_of("report_id") == report.report_id
    assert snapshot.ak_name_bytes == tpm.name(platform.tpm.ak_public())
    quote = tpm.parse_quote(platform.tpm.quote(b"", (0,)).quote)
    assert snapshot.tpm_policy is not None
    assert snapshot.tpm_policy.reset_count == quote.reset_count
    assert snapshot.tpm_policy.restart_count == quote.restart_count
    assert set(snapshot.boot_pcr_values()) == set(BOOT_PCRS)
    assert snapshot.hash_algorithm == "sha256"
    assert snapshot.version == 2
    assert snapshot.owners == ("anyone",)
    assert snapshot.created is not None


def test_version_1_states(talk: Talk, config: AgentConfig) -> None:
    async def scenario(call: Any) -> None:
        assert (await call("DELETE", "/snapshot")).status == 200  # nothing to delete is no error
        first = await call("GET", "/snapshot")
        assert (first.status, first.body) == (202, b"null")
        busy = await call("DELETE", "/snapshot")
        assert (busy.status, "being computed" in busy.text) == (409, True)
        done = await wait_for_snapshot(call, "/snapshot")
        assert done.status == 200
        assert (await call("GET", "/snapshot")).body == done.body  # it stays
        assert (await call("DELETE", "/snapshot")).body == b"null"
        again = await call("GET", "/snapshot")
        assert again.status == 202
        assert (await wait_for_snapshot(call, "/snapshot")).status == 200

    talk(scenario, config=replace(config, owners="anyone"))


def test_reading_a_finished_snapshot_needs_no_right(talk: Talk, config: AgentConfig) -> None:
    owner = Ed25519PrivateKey.generate()

    async def scenario(call: Any) -> None:
        assert (await call("GET", "/snapshot")).status == 403
        assert (await call.order("GET", "/v2/snapshot", by=owner)).status == 403
        assert (await call.order("POST", "/v2/owner/claim", by=owner)).status == 200
        assert (await call("GET", "/snapshot")).status == 401
        assert (await call.order("GET", "/v2/snapshot", by=owner)).status == 202
        assert (await call("GET", "/snapshot")).status in (200, 202)
        reply = await wait_for_snapshot(call)
        assert list(parse(reply.body, "snapshot").owners or ()) == (await call("GET", "/v2/owner")).json()["owners"]
        assert (await call("GET", "/snapshot")).status == 200
        assert (await call("DELETE", "/snapshot")).status == 401
        assert (await call.order("DELETE", "/v2/snapshot", by=owner)).status == 200

    talk(scenario, config=replace(config, owners=None))


def test_one_at_a_time_and_with_progress(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    walks = []
    true_walk, told, finish = walk_and_hash, threading.Event(), threading.Event()

    def slow(scope: Any, algorithm: str, progress: Any, cancelled: Any) -> Any:
        walks.append(1)
        progress(5, 1000, None)
        told.set()
        assert finish.wait(60)
        return true_walk(scope, algorithm, progress, cancelled=cancelled)

    monkeypatch.setattr(snapshot_job, "walk_and_hash", slow)

    async def scenario(call: Any) -> None:
        await asyncio.gather(*(call("GET", "/v2/snapshot") for _ in range(10)))
        assert await asyncio.to_thread(told.wait, 60)
        reply = await call("GET", "/v2/snapshot")
        assert reply.status == 202
        assert reply.json() == {"files_done": 5, "bytes_done": 1000, "files_total": None}
        evidence = await call("POST", "/v2/evidence", b'{"nonce":"' + b"A" * 43 + b'="}')
        assert evidence.status == 200  # served meanwhile
        finish.set()
        assert (await wait_for_snapshot(call)).status == 200

    talk(scenario)
    assert len(walks) == 1


def test_a_failed_snapshot_stays_until_it_is_deleted(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("inner secret")

    true_walk = walk_and_hash
    monkeypatch.setattr(snapshot_job, "walk_and_hash", broken)

    async def scenario(call: Any) -> None:
        for _ in range(2):
            reply = await wait_for_snapshot(call)
            assert reply.status == 500
            assert "the snapshot failed" in reply.text
            assert "(error " in reply.text
            assert "secret" not in reply.text
        monkeypatch.setattr(snapshot_job, "walk_and_hash", true_walk)
        assert (await wait_for_snapshot(call)).status == 500
        assert (await call("DELETE", "/v2/snapshot")).status == 200
        assert (await wait_for_snapshot(call)).status == 200

    talk(scenario)


def test_the_end_of_the_agent_ends_the_walk(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended = threading.Event(), []

    def endless(_scope: Any, _algorithm: str, _progress: Any, cancelled: Any) -> Any:
        begun.set()
        while not cancelled():
            time.sleep(0.01)
        ended.append(1)
        raise AttesterError("cancelled")

    monkeypatch.setattr(snapshot_job, "walk_and_hash", endless)

    async def scenario(call: Any) -> None:
        assert (await call("GET", "/v2/snapshot")).status == 202
        assert await asyncio.to_thread(begun.wait, 60)

    talk(scenario)
    assert ended == [1]


def test_what_runs_while_files_are_hashed_is_in_the_snapshot(
    talk: Talk, machine: Machine, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_walk = walk_and_hash

    def walk(*arguments: Any, **how: Any) -> Any:
        result = true_walk(*arguments, **how)
        machine.run("/usr/bin/late", b"late")
        return result

    monkeypatch.setattr(snapshot_job, "walk_and_hash", walk)
    snapshot = taken(talk)
    late = (b"/usr/bin/late", sha256(b"late").digest())
    assert late in set(snapshot.files)
    assert snapshot.not_on_disk == (("/usr/bin/late", late[1].hex()),)


def test_what_the_comparison_itself_puts_on_the_list_is_in_the_snapshot(
    talk: Talk, machine: Machine, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed, true_hash = b"/var/lib/seed", snapshot_build._hash_file
    (root / "var/lib").mkdir(parents=True)
    (root / "var/lib/seed").write_bytes(b"new")
    machine.run(seed.decode(), b"old")

    def hash_file(top: Path, path: bytes, algorithm: str) -> bytes | None:  # as under ima_policy=tcb
        if path == seed:
            machine.run(seed.decode(), b"new")
        return true_hash(top, path, algorithm)

    monkeypatch.setattr(snapshot_build, "_hash_file", hash_file)
    snapshot = taken(talk)
    assert {digest for path, digest in snapshot.files if path == seed} == {
        sha256(b"old").digest(),
        sha256(b"new").digest(),
    }
    assert snapshot.not_on_disk == (("/var/lib/seed", sha256(b"old").hexdigest()),)


def test_a_file_that_never_rests_does_not_keep_the_snapshot(
    talk: Talk, machine: Machine, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []

    def hash_file(_top: Path, path: bytes, _algorithm: str) -> bytes | None:
        looks.append(1)
        machine.run(path.decode(), b"%d" % len(looks))
        return None

    machine.run("/var/log/busy", b"first")
    monkeypatch.setattr(snapshot_build, "_hash_file", hash_file)
    assert b"/var/log/busy" in dict(taken(talk).files)


def test_without_ima_or_tpm_there_are_no_file_hashes(talk: Talk, platform: Platform) -> None:
    class NoLogs:
        def ima_binary(self) -> None: ...
        def ima_ascii(self) -> None: ...
        def boot_event_log(self) -> None: ...
        def cc_event_log(self) -> None: ...

    no_ima = taken(talk, platform=replace(platform, logs=NoLogs()))
    assert (no_ima.filehashes, no_ima.tpm_policy is None) == (None, False)
    no_tpm = taken(talk, platform=replace(platform, tpm=None))
    assert (no_tpm.filehashes, no_tpm.tpm_policy) == (None, None)


def test_a_machine_without_a_tee_is_told_at_once(talk: Talk, platform: Platform) -> None:
    reply = talk(wait_for_snapshot, platform=replace(platform, tee=None))
    assert (reply.status, "no TEE" in reply.text) == (500, True)


def test_a_td_and_an_enclave(talk: Talk, platform: Platform) -> None:
    intel = IntelVendor.create()
    td = SimulatedTd(vendor=intel)
    snapshot = taken(talk, platform=replace(platform, tee=td))
    assert snapshot.tdx is not None
    assert snapshot.tdx.body.mr_td == td.fields["mr_td"].hex()
    assert snapshot.rtmrs == tuple(value.hex() for value in td.rtmrs().values())
    enclave = SimulatedEnclave(vendor=intel)
    snapshot = taken(talk, platform=replace(platform, tee=enclave, tpm=None))
    assert snapshot.sgx is not None
    assert snapshot.sgx.body.mr_enclave == "11" * 32
    assert snapshot.enclave is not None
    assert snapshot.enclave.isv_svn == 3


# What the list names, against the disk


def entries(*made: ima.ImaEntry) -> bytes:
    return ima.serialise_binary(made)


def entry(path: bytes, content: bytes, template: str = "ima-ng", algorithm: str = "sha256") -> ima.ImaEntry:
    import hashlib

    return ima.make_entry(template, algorithm, hashlib.new(algorithm, content).digest(), path)


def go_on() -> None:
    """Nobody cancels."""


def test_measured_files_are_compared_with_the_disk(tmp_path: Path) -> None:
    def on_disk(path: str, content: bytes) -> tuple[bytes, bytes]:
        file = tmp_path / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return path.encode(), sha256(content).digest()

    walked = [
        on_disk("/usr/bin/same", b"1"),
        on_disk("/usr/bin/changed", b"new"),
        on_disk("/opt/with space", b"2"),
    ]
    on_disk("/var/lib/not walked", b"3")
    on_disk("/var/lib/plain", b"4")
    (tmp_path / "var/lib/link").symlink_to(tmp_path / "usr/bin/same")
    (tmp_path / "var/lib/folder").mkdir()
    outside = tmp_path.parent / "outside"
    outside.write_bytes(b"5")
    log = entries(
        entry(b"boot_aggregate", b"boot"),
        entry(b"/usr/bin/same", b"1"),
        entry(b"/usr/bin/changed", b"old"),
        entry(b"/usr/bin/gone", b"gone"),
        entry(b"/opt/with_space", b"2"),
        entry(b"/var/lib/plain", b"4"),
        entry(b"/var/lib/plain", b"4", algorithm="sha512", template="ima-sig"),
        entry(b"/var/lib/plain", b"5", algorithm="sha1"),
        entry(b"/var/lib/link", b"1"),
        entry(b"/var/lib/folder", b""),
        entry(b"/../outside", b"5"),
        entry(b"memfd", b"6"),
        entry(b"/usr/bin/same", b"1"),
        ima.make_violation("ima-ng", "sha256", 32, b"/usr/bin/same"),
    )
    measured = measured_files(log, tmp_path, walked, go_on)
    assert measured.not_on_disk == [
        (b"/usr/bin/changed", sha256(b"old").digest()),
        (b"/usr/bin/gone", sha256(b"gone").digest()),
        (b"/var/lib/plain", sha1(b"5").digest()),
        (b"/var/lib/link", sha256(b"1").digest()),
        (b"/var/lib/folder", sha256(b"").digest()),
        (b"/../outside", sha256(b"5").digest()),
        (b"memfd", sha256(b"6").digest()),
    ]
    assert len(measured.files) == 12  # each once, no violation
    assert (b"/var/lib/plain", sha512(b"4").digest()) in measured.files
    assert (b"/usr/bin/same", bytes(32)) not in measured.files


def test_a_fifo_in_the_list_does_not_hang(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    assert measured_files(entries(entry(b"/pipe", b"")), tmp_path, [], go_on).not_on_disk


def test_buffers_are_not_looked_for_on_disk(tmp_path: Path) -> None:
    buffer = ima.make_entry("ima-buf", "sha256", sha256(b"x").digest(), b".ima")
    log = ima.serialise_binary([buffer])
    measured = measured_files(log, tmp_path, [], go_on)
    assert [path for path, _ in measured.files] == [b".ima"]
    assert measured.not_on_disk == []


def test_the_walk_uses_the_algorithm_of_the_list() -> None:
    boot = entry(b"boot_aggregate", b"boot", algorithm="sha1")
    assert hash_algorithm(entries(boot)) == "sha1"
    assert hash_algorithm(entries(boot, entry(b"/a", b"", algorithm="sha512"))) == "sha512"
    mixed = [entry(b"/%d" % n, b"", algorithm="sha384" if n % 3 else "sha256") for n in range(9)]
    assert hash_algorithm(entries(boot, *mixed)) == "sha384"
    assert hash_algorithm(b"") == "sha256"
    assert hash_algorithm(entries(ima.make_violation("ima-ng", "sha1", 20, b"/x"))) == "sha256"


def test_cancelling_reaches_the_comparison(tmp_path: Path) -> None:
    def stop() -> None:
        raise AttesterError("cancelled")

    with pytest.raises(AttesterError):
        measured_files(entries(entry(b"/gone", b"1")), tmp_path, [], stop)
