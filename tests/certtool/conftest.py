"""The program run in this process, on a simulated machine."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click.testing
import pytest

from cosmian_vm.attester.derived_key import TeeKey
from cosmian_vm.attester.platform import TeeDevice
from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.intel import IntelVendor
from cosmian_vm.devkit.tee import SimulatedTee
from cosmian_vm.errors import NotAvailableError

TESTS = Path(__file__).resolve().parent.parent


@dataclass
class Ran:
    """``status``: exit status. ``out``, ``err``: what was printed."""

    status: int
    out: str
    err: str


@dataclass
class FakeMachine:
    """Whose TEE the program uses; None: the platform has none."""

    device: TeeDevice | None = None
    secret: bytes | None = bytes(range(32))

    def tee(self) -> TeeDevice:
        if self.device is None:
            raise NotAvailableError("this machine has no confidential hardware")
        return self.device

    def key(self) -> TeeKey:
        if self.secret is None:
            raise NotAvailableError("this machine derives no key")
        return TeeKey(self.secret, "sev-snp")


@pytest.fixture(scope="session")
def vendor() -> AmdVendor:
    return AmdVendor.create(keys=VendorKeys.load(TESTS / "data" / "devkit_amd"), now=datetime.now(UTC))


@pytest.fixture(scope="session")
def intel() -> IntelVendor:
    return IntelVendor.create()


@pytest.fixture
def machine(vendor: AmdVendor) -> FakeMachine:
    return FakeMachine(SimulatedTee.launch(vendor, instance=b"one"))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: FakeMachine) -> Callable[..., Ran]:
    """Run one command line as the program does, in an empty folder, on ``machine``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments: object, stdin: bytes = b"") -> Ran:
        from cosmian_vm.certtool import main

        runner = click.testing.CliRunner()
        with runner.isolation(input=stdin) as streams:
            status = main.run([str(argument) for argument in arguments], machine)
            out, err = streams[0].getvalue().decode(), streams[1].getvalue().decode()
        return Ran(status, out, err)

    return run


@pytest.fixture
def amd_root(vendor: AmdVendor, tmp_path: Path) -> Path:
    path = tmp_path / "amd-root.pem"
    path.write_bytes(vendor.root_pem)
    return path


@pytest.fixture
def amd_crl(vendor: AmdVendor, tmp_path: Path) -> Path:
    path = tmp_path / "amd.crl"
    path.write_bytes(vendor.crl())
    return path


def _pebble_module() -> Any:
    spec = importlib.util.spec_from_file_location("certtool_pebble", Path(__file__).with_name("pebble.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pebble(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """An ACME CA on loopback; None of it leaves this machine, whatever proxies the environment names."""
    module = _pebble_module()
    if module.missing():
        pytest.skip(f"not installed: {', '.join(module.missing())}")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            patch.delenv(name, raising=False)
        ca = module.Pebble(tmp_path_factory.mktemp("pebble"))
        yield ca
        ca.stop()


@pytest.fixture
def loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Functions of ``pebble.py`` for servers of one's own."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    return _pebble_module()
