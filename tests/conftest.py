"""What every test shares: the folder of real evidence, and proof that nothing leaves the machine."""

from __future__ import annotations

import ipaddress
import itertools
import os
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def evidence_folder() -> Path | None:
    """The folder of real evidence beside the checkout (or COSMIAN_VM_EVIDENCE), None where it is absent."""
    named = os.environ.get("COSMIAN_VM_EVIDENCE")
    folder = Path(named) if named else ROOT.parent / "shared" / "evidence"
    return folder if (folder / "expected.json").is_file() else None


@pytest.fixture(scope="session")
def evidence() -> Path:
    folder = evidence_folder()
    if folder is None:
        pytest.skip("the folder of real evidence is absent (set COSMIAN_VM_EVIDENCE)")
    return folder


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_here(host: str) -> bool:
    return host in ("localhost", "") or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection goes to this machine, or the test fails."""
    real_connect = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_here(address[0]):
            pytest.fail(f"a test tried to leave this machine: {address!r}")
        real_connect(self, address)

    real_lookup = socket.getaddrinfo

    def lookup(host: Any, *arguments: Any, **options: Any) -> Any:
        """The name alone would tell somebody. What can be the name of nobody (RFC 2606, no dot) is unknown here."""
        name = host.decode() if isinstance(host, bytes) else host
        if name is None or _is_here(name) or _is_address(name):
            return real_lookup(host, *arguments, **options)
        last = name.rpartition(".")[2]
        if "." in name and last.isalpha() and last != "invalid":
            pytest.fail(f"a test tried to look up {name!r}")
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", lookup)


_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _nobodys_configuration(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Owner's key and remembered machines of a test are its own, and never those of whoever runs it."""
    folder = tmp_path_factory.getbasetemp() / f"configuration-{os.getpid()}-{next(_numbers)}"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest first: the booted machines, while there is another process for all the rest (script/test keeps
    the order: --no-loadscope-reorder).
    """
    items.sort(key=lambda item: item.get_closest_marker("vm") is None)


def pytest_configure(config: pytest.Config) -> None:
    from hypothesis import HealthCheck, settings

    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background job; some tests interrupt themselves
        signal.signal(signal.SIGINT, signal.default_int_handler)

    slow_is_fine = [HealthCheck.too_slow]
    for name, examples in (("default", 100), ("full", 10_000)):
        settings.register_profile(
            name, max_examples=examples, deadline=None, suppress_health_check=slow_is_fine, derandomize=True
        )
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """Where CI is set, a skip for want of swtpm, real evidence, FUSE, pebble, the tools of the image or QEMU fails."""
    if os.environ.get("CI") and call.excinfo is not None and call.excinfo.errisinstance(pytest.skip.Exception):
        needed = [
            mark for mark in ("swtpm", "evidence", "fuse", "image", "pebble", "vm") if item.get_closest_marker(mark)
        ]
        if needed:
            call.excinfo = pytest.ExceptionInfo.from_exception(
                AssertionError(f"skipped in CI, where {' and '.join(needed)} must be there: {call.excinfo.value}")
            )
