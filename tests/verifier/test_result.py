"""A verdict: empty means no, a skipped required check means no."""

from __future__ import annotations

from cosmian_vm.verifier.result import CHECK_IDS, Check, Status, Verdict, fail, ok, skip, warning, with_required


def test_no_checks_is_not_trusted() -> None:
    assert not Verdict(()).trusted


def test_ok_and_warning_are_trusted_and_fail_is_not() -> None:
    assert Verdict((ok("tee.chain", "fine"), warning("vm.owner", "unclaimed"))).trusted
    assert not Verdict((ok("tee.chain", "fine"), fail("tee.debug", "on"))).trusted


def test_a_skip_counts_only_where_required() -> None:
    checks = (ok("tee.chain", "fine"), skip("ima.files", "no snapshot"))
    assert Verdict(checks).trusted
    required = Verdict(with_required(checks, frozenset({"ima.files"})))
    assert not required.trusted
    assert [c.id for c in required.skipped_required] == ["ima.files"]
    assert required.failures == ()


def test_of_finds_every_check_of_an_id() -> None:
    verdict = Verdict((ok("tls.application", "a"), fail("tls.application", "b"), ok("vm.owner", "c")))
    assert [c.line for c in verdict.of("tls.application")] == ["a", "b"]


def test_ids_are_unique_and_makers_set_the_status() -> None:
    assert len(set(CHECK_IDS)) == len(CHECK_IDS)
    made = (ok("a", "l"), fail("a", "l"), warning("a", "l"), skip("a", "l"))
    assert [c.status for c in made] == [Status.OK, Status.FAIL, Status.WARNING, Status.SKIP]
    assert ok("a", "l", ["d"]) == Check("a", Status.OK, "l", ("d",))
