from __future__ import annotations

import pytest

from cosmian_vm.attester.tpm import EsapiTpm
from cosmian_vm.devkit.soft_tpm import SoftTpm
from cosmian_vm.devkit.swtpm import Swtpm
from cosmian_vm.evidence.tpm import parse_public, parse_quote, parse_signature

NONCE = bytes(range(32))


@pytest.mark.swtpm
def test_it_looks_like_a_real_tpm(swtpm: Swtpm) -> None:
    """Same attributes, scheme, sizes and order as the AK and the quotes of the attester over swtpm."""
    real_device, soft = EsapiTpm(swtpm.tcti, keep_open=False), SoftTpm()
    real_device.provision()
    real, made = real_device.quote(NONCE, range(16)), soft.quote(NONCE, range(16))
    assert len(made.quote) == len(real.quote)
    assert len(made.signature) == len(real.signature)
    a, b = parse_public(real.ak_public), parse_public(made.ak_public)
    assert (a.type, a.name_alg, a.attributes, a.scheme) == (b.type, b.name_alg, b.attributes, b.scheme)
    x, y = parse_quote(real.quote), parse_quote(made.quote)
    assert (x.pcr_selections, x.extra_data, x.safe) == (y.pcr_selections, y.extra_data, y.safe)
    assert parse_signature(real.signature).scheme_name == parse_signature(made.signature).scheme_name


def test_the_seed_decides_the_key() -> None:
    assert SoftTpm(seed=b"1").ak_public() == SoftTpm(seed=b"1").ak_public() != SoftTpm(seed=b"2").ak_public()


def test_a_power_cycle() -> None:
    tpm = SoftTpm()
    tpm.extend(10, {"sha256": bytes(32), "sha1": bytes(20)})
    assert tpm.pcrs["sha256"][10] != bytes(32)
    before = parse_quote(tpm.quote(NONCE, [10]).quote)
    tpm.power_cycle()
    after = parse_quote(tpm.quote(NONCE, [10]).quote)
    assert tpm.pcrs["sha256"][10] == bytes(32)
    assert (after.reset_count, after.restart_count) == (before.reset_count + 1, 0)
    assert after.clock > before.clock


def test_it_can_be_told_to_quote_something_else() -> None:
    tpm = SoftTpm(bank="sha1", selection=(0, 16))
    (selection,) = parse_quote(tpm.quote(NONCE, range(16)).quote).pcr_selections
    assert (selection.bank, selection.pcrs) == ("sha1", (0, 16))
