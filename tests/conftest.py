"""What every test shares: the folder of real evidence, and proof that nothing leaves the machine."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterator
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


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every connection goes to this machine, or the test fails."""
    real_connect = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = address[0]
            loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
            if not loopback:
                pytest.fail(f"a test tried to leave this machine: {address!r}")
        real_connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    yield
