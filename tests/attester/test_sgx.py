"""SGX quotes through Gramine's files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cosmian_vm.attester.sgx import SgxGramine
from cosmian_vm.devkit.intel import IntelVendor, enclave_report, td_body
from cosmian_vm.errors import AttesterError
from cosmian_vm.evidence.bundle import TeeKind
from cosmian_vm.evidence.intel_quote import parse_quote

DATA = bytes(range(64))


class Gramine(SgxGramine):
    """Files of a folder; what is behind ``quote`` is made when it is asked for."""

    def __init__(self, base: Path, made: Callable[[bytes], bytes]) -> None:
        super().__init__(base)
        base.mkdir()
        (base / "attestation_type").write_text("dcap")
        (base / "user_report_data").touch()
        self.base, self.made = base, made

    def quote(self, report_data: bytes) -> object:  # type: ignore[override] # as it is
        (self.base / "quote").write_bytes(self.made(report_data))
        (self.base / "user_report_data").write_bytes(bytes(64))
        return super().quote(report_data)


@pytest.fixture(scope="module")
def vendor() -> IntelVendor:
    return IntelVendor.create()


@pytest.fixture
def gramine(vendor: IntelVendor, tmp_path: Path) -> Gramine:
    return Gramine(tmp_path / "attestation", lambda data: vendor.quote(enclave_report(report_data=data)))


def test_quote(gramine: Gramine) -> None:
    told = gramine.quote(DATA)
    assert parse_quote(told.raw).body.report_data == DATA  # type: ignore[attr-defined] # a TeeQuote
    assert (gramine.base / "user_report_data").read_bytes() == DATA
    assert gramine.kind is TeeKind.SGX


def test_what_was_not_asked_for_is_refused(gramine: Gramine, vendor: IntelVendor) -> None:
    for made, match in (
        (lambda _data: vendor.quote(enclave_report()), "other report_data"),
        (lambda data: vendor.quote(td_body(report_data=data)), "are no quote"),
        (lambda data: vendor.quote(enclave_report(report_data=data))[:500], "do not hold"),
        (lambda _data: b"", "are no quote"),
        (lambda _data: bytes(200_000), "more than"),
    ):
        gramine.made = made
        with pytest.raises(AttesterError, match=match):
            gramine.quote(DATA)
    with pytest.raises(AttesterError, match="64 bytes, not 0"):
        gramine.quote(b"")


@pytest.mark.parametrize("told", ["none", "epid", ""])
def test_gramine_without_dcap(gramine: Gramine, told: str) -> None:
    (gramine.base / "attestation_type").write_text(told)
    with pytest.raises(AttesterError, match=r"sgx.remote_attestation = .dcap."):
        gramine.quote(DATA)


@pytest.mark.parametrize("name", ["attestation_type", "user_report_data", "quote"])
def test_a_file_that_is_missing_is_named(vendor: IntelVendor, tmp_path: Path, name: str) -> None:
    (tmp_path / "attestation_type").write_text("dcap\n")
    (tmp_path / "user_report_data").touch()
    (tmp_path / "quote").write_bytes(vendor.quote(enclave_report(report_data=DATA)))
    device = SgxGramine(tmp_path)
    assert device.quote(DATA).raw
    (tmp_path / name).unlink()
    with pytest.raises(AttesterError, match=f"{name}: No such file"):
        device.quote(DATA)
    assert not (tmp_path / name).exists()
