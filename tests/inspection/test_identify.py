"""The frame around the kinds: who is asked, in which order, and what becomes of what cannot be read."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.inspection import identify
from cosmian_vm.inspection.model import Facts, Inspection, Item, Kind, Material, Roots, is_authentic
from cosmian_vm.verifier.result import Check, fail, ok, skip, warning

AT = datetime(2026, 1, 1, tzinfo=UTC)


def kind(name: str, magic: bytes, *, problem: str = "", checks: tuple[Check, ...] = (ok("a", "fine"),)) -> Kind:
    def facts(raw: bytes, _: Material) -> Facts:
        if problem:
            raise EvidenceFormatError(name, problem)
        return {"size": len(raw)}

    return Kind(
        name=name,
        title=name.upper(),
        matches=lambda raw: raw.startswith(magic),
        facts=facts,
        verify=lambda *_: list(checks),
        claims=lambda _, material: bool(material.of(f"for-{name}")),
    )


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = (kind("first", b"A"), kind("second", b"AB"), kind("third", b"C", problem="broken"))
    monkeypatch.setattr(identify, "known_kinds", lambda: kinds)


def inspect(raw: bytes, *items: Item) -> Inspection:
    return identify.inspect(raw, Material(items), verify=(AT, Roots()))


@pytest.mark.usefixtures("known")
class TestFrame:
    def test_first_that_matches(self) -> None:
        found = inspect(b"AB")
        assert (found.kind, found.facts, found.authentic()) == ("first", {"size": 2}, True)

    def test_material_makes_it_one_only_if_nobody_knows_it(self) -> None:
        assert inspect(b"x", Item("for-second", "f", b"")).kind == "second"
        assert inspect(b"A", Item("for-second", "f", b"")).kind == "first"

    def test_nothing_known(self) -> None:
        found = inspect(b"x")
        assert (found.kind, found.authentic()) == (identify.UNKNOWN, False)
        assert found.problem

    def test_unreadable_is_never_authentic(self) -> None:
        """Even if all checks passed: they then judged something else than what was read."""
        found = inspect(b"C")
        assert (found.kind, found.facts, found.problem) == ("third", {"bytes": 1}, "third: broken")
        assert found.checks is not None
        assert [check.id for check in found.checks] == ["a", "format"]
        assert not found.authentic()

    def test_not_asked_not_judged(self) -> None:
        found = identify.inspect(b"A", Material())
        assert found.checks is None
        assert not found.authentic()

    def test_told_kind_is_not_questioned(self) -> None:
        assert identify.inspect(b"x", Material(), kind="second").kind == "second"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ima/list.txt", "ima-log-ascii"),
        ("/sys/kernel/security/ima/ascii_runtime_measurements", "ima-log-ascii"),
        ("boot_log/x.bin", "event-log"),
        ("binary_bios_measurements", "event-log"),
        ("image.bin", identify.UNKNOWN),
        ("/home/ima/a/b/c/file", identify.UNKNOWN),
        ("", identify.UNKNOWN),
    ],
)
def test_name_decides_only_where_the_content_says_nothing(name: str, expected: str) -> None:
    found = identify.inspect(b"nothing that anybody knows", Material(), name=name, verify=(AT, Roots()))
    assert found.kind == expected
    assert not found.authentic()


REQUIRED = replace(skip("tpm.signature", "no signature"), required=True)


@pytest.mark.parametrize(
    ("checks", "plain", "policy"),
    [
        ([], False, False),
        ([ok("a", "")], True, True),
        ([warning("a", "")], True, True),
        ([skip("a", "")], False, False),
        ([ok("a", ""), skip("b", "")], True, True),
        ([ok("a", ""), REQUIRED], False, False),
        ([ok("a", ""), fail("b", "")], False, False),
        ([ok("a", ""), fail("tee.debug", "")], True, False),
        ([ok("tee.debug", ""), ok("tee.tcb", "")], False, False),
        ([ok("a", ""), replace(skip("tee.tcb", ""), required=True)], True, False),
    ],
)
def test_authentic(checks: list[Check], plain: bool, policy: bool) -> None:
    assert is_authentic(checks) is plain
    assert is_authentic(checks, policy=True) is policy


def test_what_cannot_be_read_is_not_authentic_whatever_the_checks_say() -> None:
    found = Inspection(kind="x", title="x", problem="broken", checks=(ok("a", "fine"),))
    assert not found.authentic()
    assert replace(found, problem="").authentic()


def test_kinds_have_names_of_their_own() -> None:
    names = [known.name for known in identify.known_kinds()]
    assert len(names) == len(set(names))
    assert {"snp-report", "tpm-quote", "ima-log-ascii", "event-log", "certificate", "evidence-bundle"} <= set(names)


@given(st.binary(max_size=400), st.binary(max_size=400))
def test_total(raw: bytes, beside: bytes) -> None:
    """Whatever the bytes: an answer, and the same one again."""
    material = identify.material_of([("beside", beside)])
    found = identify.inspect(raw, material, verify=(AT, Roots()))
    assert found.checks
    assert found == identify.inspect(raw, material, verify=(AT, Roots()))


@pytest.mark.parametrize("name", [known.name for known in identify.known_kinds()])
@given(raw=st.binary(max_size=300))
def test_every_kind_is_total(name: str, raw: bytes) -> None:
    """A kind that is told and wrong: facts or a problem, checks that do not pass, no exception."""
    found = identify.inspect(raw, Material(), verify=(AT, Roots()), kind=name)
    assert found.kind == name
    assert found.checks
