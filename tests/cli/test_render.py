"""Lines and page of a verdict: the wording that people grep for, and what must never be hidden."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import click
import msgspec
import pytest

from cosmian_vm.cli.render import Outcome, as_data, group_status, lines, printable
from cosmian_vm.cli.report import page
from cosmian_vm.verifier.result import Check, Status, Verdict, fail, ok, skip, warning

ALL_WELL = (
    ok("tee.signature", "signed"),
    ok("tpm.ak", "ours"),
    ok("ima.files", "all known"),
    ok("tls.certificate", "valid"),
    ok("vm.owner", "ours"),
)


def outcome(*checks: Check, files: int | None = 7, snapshot: str | None = "s") -> Outcome:
    return Outcome(
        verdict=Verdict(checks or ALL_WELL),
        url="https://vm",
        moment=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
        api=2,
        agent_version="2.0.0",
        tls_sha256="ab" * 32,
        snapshot=snapshot,
        files=files,
    )


def shown(told: Outcome, *, verbose: bool = False) -> list[str]:
    return [click.unstyle(line) for line in lines(told, verbose=verbose)]


def test_all_well() -> None:
    assert (shown(outcome())) == [
        "[ OK ] Verifying VM integrity (against 7 files)",
        "[ OK ] Verifying TPM attestation",
        "[ OK ] Verifying TEE attestation",
        "[ OK ] Verifying TLS certificate of https://vm",
        "[ OK ] Verifying owner",
        "[ OK ] Trusted: https://vm is the machine of s",
    ]


def test_platform_without_ima() -> None:
    """As on SGX."""
    checks = (ok("tee.signature", "x"), skip("tpm.ak", "x"), skip("ima.files", "x"))
    assert shown(outcome(*checks, files=None))[:4] == [
        "[ WARNING ] No files hash in the snapshot",
        "[ SKIP ] Verifying VM integrity",
        "[ SKIP ] Verifying TPM attestation",
        "[ OK ] Verifying TEE attestation",
    ]


@pytest.mark.parametrize(
    ("checks", "status"),
    [
        ([ok("a", "")], Status.OK),
        ([ok("a", ""), skip("b", "")], Status.OK),
        ([skip("a", ""), skip("b", "")], Status.SKIP),
        ([ok("a", ""), warning("b", "")], Status.OK),
        ([warning("a", ""), skip("b", "")], Status.WARNING),
        ([warning("a", ""), fail("b", "")], Status.FAIL),
        ([ok("a", ""), replace(skip("b", ""), required=True)], Status.FAIL),
    ],
)
def test_what_the_line_of_a_group_says(checks: list[Check], status: Status) -> None:
    assert group_status(checks) is status


def test_required_check_that_was_not_made_is_named() -> None:
    told = shown(outcome(ok("tee.signature", "x"), replace(skip("tee.revocation", "no list"), required=True)))
    assert "[ FAIL ] Verifying TEE attestation" in told
    assert any("tee.revocation: no list (required" in line for line in told)
    assert told[-1] == "[ FAIL ] Not trusted: https://vm: could not be checked: tee.revocation"


def test_no_checks_is_no_trust() -> None:
    empty = msgspec.structs.replace(outcome(), verdict=Verdict(()))
    assert (shown(empty)) == ["[ FAIL ] Not trusted: https://vm: nothing was checked"]
    assert as_data(empty)["trusted"] is False
    assert b"<h1>Not trusted</h1>" in page(empty)


def test_check_of_an_unknown_id_is_shown_too() -> None:
    assert "[ FAIL ] Verifying the rest" in (shown(outcome(ok("tee.signature", "x"), fail("new.id", "bad"))))


def test_many_details_are_counted_not_dropped() -> None:
    check = fail("ima.files", "unknown files", [f"/f{i}" for i in range(50)])
    assert any("and 30 more" in line for line in shown(outcome(check)))
    assert sum("/f" in line for line in shown(outcome(check), verbose=True)) == 50
    assert all(f"/f{i}<".encode() in page(outcome(check)) for i in range(50))


def test_snapshot_less_verdict_claims_no_identity() -> None:
    last = shown(outcome(ok("tee.signature", "x"), snapshot=None, files=None))[-1]
    assert last == "[ OK ] https://vm is genuine; whose machine it is, only a snapshot tells"


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "\x00", "\u202e", "\x9b1m", "\u2028", "\ud800"])
def test_printable(text: str) -> None:
    assert printable(text).isprintable()


def test_page_is_whole_and_escaped() -> None:
    nasty = "<img src=x onerror=alert(1)>\x1b\"'&"
    html = page(
        msgspec.structs.replace(
            outcome(fail("ima.files", nasty, [nasty])), url=nasty, agent_version=nasty, notes=(nasty,)
        )
    ).decode()
    assert "<img" not in html
    assert "\x1b" not in html
    assert html.count("&lt;img") >= 4
    assert html.startswith("<!doctype html>")
    assert html.rstrip().endswith("</html>")
