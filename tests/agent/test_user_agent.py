"""Which clients are too old."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.agent.user_agent import is_too_old

OLD = """0 0.99 0.99.9 v0.5 1.0a1 1.0.0-alpha.2 1rc1 1.0.0.dev1 1.0b2.post3 1.0-preview 0!0.9 0.9+local
1.0rc1.dev1"""
PASSING = """1 1.0 1.0.0.0 1.0.post1 1.0-1 1.0.0.1.dev1 1.0.1a1 1.3.5 v2 10.0 1!0.1 1.0+g1 1.0.0.post2.dev3 x
1.0.0-nightly 0.9.9~deb"""


@pytest.mark.parametrize("version", OLD.split())
def test_older_than_1_0(version: str) -> None:
    assert is_too_old(f"cli-version/{version}")
    assert is_too_old(f"cli-version/{version} (linux)")


@pytest.mark.parametrize("version", [*PASSING.split(), "", "9" * 100, "0." * 500 + "1"])
def test_new_enough_or_unreadable(version: str) -> None:
    assert not is_too_old(f"cli-version/{version}")


@pytest.mark.parametrize("agent", ["", "curl/0.1", "cosmian-vm/0.1", "my cli-version/0.1", "cli-version"])
def test_others_pass(agent: str) -> None:
    assert not is_too_old(agent)


@given(st.text(max_size=300))
def test_nothing_breaks_it(text: str) -> None:
    is_too_old(text)
    is_too_old("cli-version/" + text)
