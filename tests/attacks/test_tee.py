"""Forged reports, forged chains, other machines."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.certificates import leaf_der, self_signed
from cosmian_vm.devkit.amd import DEFAULT_TCB, AmdVendor, VendorKeys
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.endorsements.amd import Product
from cosmian_vm.evidence.snp import parse_report

from .conftest import NONCE, NOW, Judge


def _under(machine: Machine, vendor: AmdVendor) -> None:
    """Let ``vendor`` sign the machine's reports and hand out its own certificates and revocation list."""
    assert machine.tee is not None
    machine.tee.vendor = vendor
    machine.tee.endorsements = (*vendor.certificates, vendor.crl())


def test_self_made_amd_chain(machine: Machine, judge: Judge) -> None:
    """A vendor of the attacker's own: same names, same extensions, other keys."""
    forger = AmdVendor.create(keys=VendorKeys.generate(), chip_id=machine.vendor.chip_id, now=NOW)
    _under(machine, forger)
    assert judge.failed(machine.evidence(NONCE)) == {"tee.chain"}


def test_self_made_intermediate_under_the_true_root_s_name(machine: Machine, judge: Judge, keys: VendorKeys) -> None:
    """The true root's certificate is sent along; the forged ASK names it as its issuer."""
    fresh = VendorKeys.generate()
    forger = AmdVendor.create(keys=fresh, chip_id=machine.vendor.chip_id, now=NOW)
    assert machine.tee is not None
    machine.tee.vendor = forger
    true_root = machine.vendor.ark.public_bytes(Encoding.DER)
    machine.tee.endorsements = (*forger.certificates[:2], true_root, machine.vendor.crl())
    assert judge.failed(machine.evidence(NONCE)) == {"tee.chain"}


def test_chain_of_another_product(machine: Machine, judge: Judge, keys: VendorKeys) -> None:
    """A genuine chip of the Genoa family, whose root is trusted too, vouches for a report that says Milan."""
    genoa = AmdVendor.create(Product.GENOA, keys=keys, chip_id=machine.vendor.chip_id, now=NOW - timedelta(days=2))
    milan = machine.vendor.report()
    _under(machine, genoa)
    assert machine.tee is not None
    machine.tee.fields |= {
        "cpuid_fam_id": milan.cpuid_fam_id,
        "cpuid_mod_id": milan.cpuid_mod_id,
        "cpuid_step": milan.cpuid_step,
    }
    both = replace(judge, roots=(*judge.roots, genoa.ark))
    assert both.failed(machine.evidence(NONCE)) == {"tee.chain"}


def test_vcek_of_another_chip_with_its_signature(machine: Machine, judge: Judge) -> None:
    """Signed by a genuine chip that is not the one named in the report."""
    original = machine.vendor
    _under(machine, original.new_chip())
    assert machine.tee is not None
    machine.tee.fields["chip_id"] = original.chip_id
    assert judge.failed(machine.evidence(NONCE)) == {"tee.chain"}


def test_vcek_of_another_chip_beside_the_report(machine: Machine, judge: Judge) -> None:
    """The report is genuine, the certificate another chip's: the signature cannot be its."""
    other = machine.vendor.new_chip()
    assert machine.tee is not None
    machine.tee.endorsements = (*other.certificates, machine.vendor.crl())
    failed = judge.failed(machine.evidence(NONCE))
    assert "tee.signature" in failed
    assert failed <= {"tee.signature", "tee.chain"}


def test_revoked_vcek(machine: Machine, judge: Judge) -> None:
    vendor = machine.vendor
    assert machine.tee is not None
    machine.tee.endorsements = (*vendor.certificates, vendor.crl([vendor.ask]))
    assert judge.failed(machine.evidence(NONCE)) == {"tee.revocation"}


def test_revocation_list_left_out(machine: Machine, judge: Judge) -> None:
    """A missing list is not a clean one: nothing fails, and there is no trust."""
    assert machine.tee is not None
    machine.tee.endorsements = machine.vendor.certificates
    assert judge.failed(machine.evidence(NONCE)) == {"tee.revocation"}


def test_revocation_list_of_the_attacker_s_own(machine: Machine, judge: Judge) -> None:
    vendor = machine.vendor
    forged = vendor.crl(signer=VendorKeys.generate().ark)
    assert machine.tee is not None
    machine.tee.endorsements = (*vendor.certificates, forged)
    assert judge.failed(machine.evidence(NONCE)) == {"tee.revocation"}


def test_expired_revocation_list(machine: Machine, judge: Judge) -> None:
    vendor = machine.vendor
    assert machine.tee is not None
    machine.tee.endorsements = (*vendor.certificates, vendor.crl(next_update=NOW - timedelta(hours=1)))
    assert judge.failed(machine.evidence(NONCE)) == {"tee.revocation"}


def test_report_with_debug_on(machine: Machine, judge: Judge) -> None:
    """Without a snapshot, so that only the rule itself can refuse it."""
    assert machine.tee is not None
    machine.tee.fields["policy"] = 0x30000 | 1 << 19
    assert replace(judge, snapshot=None).failed(machine.evidence(NONCE)) == {"tee.debug"}


def test_report_that_may_migrate(machine: Machine, judge: Judge) -> None:
    assert machine.tee is not None
    machine.tee.fields["policy"] = 0x30000 | 1 << 18
    assert replace(judge, snapshot=None).failed(machine.evidence(NONCE)) == {"tee.debug"}


def test_report_of_an_older_tcb(machine: Machine, judge: Judge) -> None:
    """The chip's key of today's firmware signs for an older one: no genuine firmware does."""
    from cosmian_vm.evidence.snp import encode_tcb

    assert machine.tee is not None
    machine.tee.fields["reported_tcb"] = encode_tcb({**DEFAULT_TCB, "snp": 8}, machine.vendor.product.tcb_layout)
    assert judge.failed(machine.evidence(NONCE)) == {"tee.tcb"}


@pytest.mark.parametrize("component", ["bl", "snp", "ucode"])
def test_firmware_older_than_at_the_snapshot(machine: Machine, judge: Judge, component: str) -> None:
    """The host went back to firmware with known holes; chip, certificate and report agree on it."""
    assert machine.tee is not None
    older = {**DEFAULT_TCB, component: DEFAULT_TCB[component] - 1}
    _under(machine, machine.vendor.new_chip(chip_id=machine.vendor.chip_id, tcb=older))
    assert judge.failed(machine.evidence(NONCE)) == {"tee.tcb"}


def test_firmware_newer_than_at_the_snapshot_is_welcome(machine: Machine, judge: Judge) -> None:
    assert machine.tee is not None
    newer = {**DEFAULT_TCB, "ucode": DEFAULT_TCB["ucode"] + 1}
    _under(machine, machine.vendor.new_chip(chip_id=machine.vendor.chip_id, tcb=newer))
    assert judge.failed(machine.evidence(NONCE)) == set()


def test_firmware_below_the_minimum(machine: Machine, judge: Judge) -> None:
    """All genuine and consistent, but older than the policy allows."""
    old = {**DEFAULT_TCB, "snp": 8}
    _under(machine, machine.vendor.new_chip(chip_id=machine.vendor.chip_id, tcb=old))
    judge = replace(judge, snapshot=machine.snapshot())
    assert judge.failed(machine.evidence(NONCE)) == set()
    assert judge.with_policy(minimum_tcb={"Milan": {"snp": 20}}).failed(machine.evidence(NONCE)) == {"tee.tcb"}


@pytest.mark.parametrize("position", range(0, 0x2A0 + 144, 7))
def test_bit_flips_all_over_the_report(machine: Machine, judge: Judge, position: int) -> None:
    """Never trusted, never an exception; where it stays readable, the signature says it."""
    evidence = machine.evidence(NONCE)
    assert evidence.tee is not None
    flipped = bytearray(evidence.tee)
    flipped[position] ^= 1 << (position % 8)
    assert "tee.signature" in judge.failed(replace(evidence, tee=bytes(flipped)))


@pytest.mark.parametrize("size", [0, 1, 47, 48, 671, 1183])
def test_truncated_report(machine: Machine, judge: Judge, size: int) -> None:
    evidence = machine.evidence(NONCE)
    assert evidence.tee is not None
    assert "tee.signature" in judge.failed(replace(evidence, tee=evidence.tee[:size]))


def test_quote_of_another_tls_key(machine: Machine, judge: Judge) -> None:
    """The machine is genuine, but bound its evidence to another connection: the attacker in between relays it."""
    other = self_signed("attacker", ["127.0.0.1"], now=NOW)
    evidence = machine.evidence(NONCE, tls_leaf=leaf_der(other.certificate_pem))
    assert judge.failed(evidence) == {"tee.report_data", "tpm.nonce"}


def test_tee_quote_alone_of_another_tls_key(machine: Machine, judge: Judge) -> None:
    other = self_signed("attacker", ["127.0.0.1"], now=NOW)
    relayed = machine.evidence(NONCE, tls_leaf=leaf_der(other.certificate_pem))
    assert judge.failed(replace(machine.evidence(NONCE), tee=relayed.tee)) == {"tee.report_data"}


def test_replayed_tee_quote(machine: Machine, judge: Judge) -> None:
    yesterday = machine.evidence(bytes(32))
    assert judge.failed(replace(machine.evidence(NONCE), tee=yesterday.tee)) == {"tee.report_data"}


def test_other_firmware(machine: Machine, judge: Judge) -> None:
    assert machine.tee is not None
    machine.tee.fields["measurement"] = bytes(48)
    assert judge.failed(machine.evidence(NONCE)) == {"tee.measurement"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("family_id", b"\1" * 16),
        ("image_id", b"\1" * 16),
        ("guest_svn", 7),
        ("id_key_digest", b"\1" * 48),
        ("author_key_digest", b"\1" * 48),
        ("report_id_ma", b"\1" * 32),
        ("host_data", b"\1" * 32),
        ("policy", 0x20000),
    ],
)
def test_other_launch_values(machine: Machine, judge: Judge, name: str, value: int | bytes) -> None:
    assert machine.tee is not None
    machine.tee.fields[name] = value
    assert judge.failed(machine.evidence(NONCE)) == {"tee.measurement"}


def test_another_vmpl(machine: Machine, judge: Judge) -> None:
    assert machine.tee is not None
    machine.tee.fields["vmpl"] = 2
    failed = judge.failed(machine.evidence(NONCE))
    assert failed
    assert failed <= {"tee.measurement", "tee.debug"}


def test_another_genuine_machine_of_the_same_image(machine: Machine, judge: Judge, vendor: AmdVendor) -> None:
    """Everything is genuine and the same but the guest itself; its TPM is the operator's to copy."""
    assert machine.tee is not None
    other = Machine.create(vendor, instance=b"second", now=NOW)
    assert other.tee is not None
    machine.tee.fields["report_id"] = other.tee.fields["report_id"]
    assert judge.failed(machine.evidence(NONCE)) == {"tee.instance"}


def test_another_genuine_machine_with_its_own_tpm(judge: Judge, vendor: AmdVendor) -> None:
    other = Machine.create(vendor, instance=b"second", now=NOW)
    assert judge.failed(other.evidence(NONCE)) == {"tee.instance", "tpm.ak"}


def test_a_tdx_quote_is_not_taken_for_granted(machine: Machine, judge: Judge) -> None:
    header = (4).to_bytes(2, "little") + (2).to_bytes(2, "little") + (0x81).to_bytes(4, "little")
    failed = judge.failed(replace(machine.evidence(NONCE), tee=header + bytes(2000)))
    assert {"tee.signature", "tee.chain", "tee.measurement"} <= failed


def test_the_report_parses_as_what_the_attacks_believe(machine: Machine) -> None:
    evidence = machine.evidence(NONCE)
    assert evidence.tee is not None
    assert parse_report(evidence.tee).report_data[:32] == NONCE


def test_the_minimum_of_one_product_is_not_evaded_on_another(keys: VendorKeys, judge: Judge) -> None:
    """The operator's old firmware, on a processor that the policy does not speak of."""
    genoa = AmdVendor.create(Product.GENOA, keys=keys, tcb={"bl": 1, "snp": 1}, now=NOW - timedelta(days=30))
    machine = Machine.create(genoa, now=NOW - timedelta(days=1))
    first = replace(judge, roots=machine.roots, snapshot=None)
    assert first.failed(machine.evidence(NONCE)) == set()
    assert first.with_policy(minimum_tcb={"Milan": {"snp": 20}}).failed(machine.evidence(NONCE)) == {"tee.tcb"}
    both = {"Milan": {"snp": 20}, "Genoa": {"snp": 1}}
    assert first.with_policy(minimum_tcb=both).failed(machine.evidence(NONCE)) == set()
