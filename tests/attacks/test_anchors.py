"""Who vouches for the AK: Azure's HCL, an SVSM, certificates; and those who only say so."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.devkit.amd import AmdVendor
from cosmian_vm.devkit.intel import IntelVendor
from cosmian_vm.devkit.intel_tee import SimulatedTd
from cosmian_vm.devkit.machine import Machine
from cosmian_vm.devkit.paravisor import SimulatedHcl, SimulatedSvsm, runtime_json
from cosmian_vm.devkit.soft_tpm import SoftTpm
from cosmian_vm.devkit.tpm_authority import TpmAuthority
from cosmian_vm.endorsements.intel_collateral import parse_collateral
from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence.azure import HclReport
from cosmian_vm.evidence.bundle import Activation, EndorsementKey, Evidence, PlatformAk
from cosmian_vm.evidence.snp import parse_report
from cosmian_vm.evidence.tpm import (
    Alg,
    ObjectAttributes,
    RsaParameters,
    Scheme,
    Symmetric,
    TpmPublic,
    name,
    serialise_public,
)
from cosmian_vm.evidence.tpm_certify import TpmCertifyInfo, parse_certify, serialise_certify
from cosmian_vm.reference.snapshot import Anchor
from cosmian_vm.verifier._tpm_certificates import TpmRoots
from cosmian_vm.verifier.credential import make_credential
from cosmian_vm.verifier.result import Check, Status

from .conftest import NONCE, NOW, Judge

AK = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_AK = rsa.generate_private_key(public_exponent=65537, key_size=2048)
MAKER = TpmAuthority.create("Simulated TPM Maker", now=NOW - timedelta(days=100))
OPERATOR = TpmAuthority.create("Simulated Cloud", now=NOW - timedelta(days=100))


def ak_check(judge: Judge, evidence: Evidence) -> Check:
    (check,) = judge.verdict(evidence).of("tpm.ak")
    return check


# Azure


def azure(vendor: AmdVendor, *, tdx: IntelVendor | None = None) -> Machine:
    machine = Machine.create(vendor, now=NOW - timedelta(days=1))
    assert machine.tpm is not None
    assert machine.tee is not None
    machine.tpm.rsa_key = AK
    machine.cloud = "Azure"
    if tdx is None:
        machine.device = SimulatedHcl(inner=machine.tee, data=runtime_json(AK.public_key()))
    else:
        td = SimulatedTd(vendor=tdx)
        td.fields["td_attributes"] = bytes(8)
        machine.device = SimulatedHcl(inner=td, data=runtime_json(AK.public_key()), mr_td=td.fields["mr_td"])
    return machine


@pytest.fixture
def hcl_machine(vendor: AmdVendor) -> Machine:
    return azure(vendor)


def hcl_judge(machine: Machine) -> Judge:
    import msgspec

    return Judge(roots=machine.roots, snapshot=msgspec.structs.replace(machine.snapshot(), anchor="tee"))


def device_of(machine: Machine) -> SimulatedHcl:
    assert isinstance(machine.device, SimulatedHcl)
    return machine.device


def test_azure(hcl_machine: Machine) -> None:
    judge = hcl_judge(hcl_machine)
    evidence = hcl_machine.evidence(NONCE)
    assert judge.failed(evidence) == set()
    check = ak_check(judge, evidence)
    assert check.status is Status.OK
    assert "'tee'" in check.line


def test_azure_tdx(vendor: AmdVendor) -> None:
    intel = IntelVendor.create()
    machine = azure(vendor, tdx=intel)
    judge = replace(
        hcl_judge(machine), roots=(intel.root,), now=intel.now, collateral=parse_collateral(intel.collateral())
    )
    assert judge.failed(machine.evidence(NONCE)) == set()
    device_of(machine).mr_td = b"\x01" * 48
    assert judge.failed(machine.evidence(NONCE)) == {"tee.report_data"}


def _changed(report: HclReport) -> HclReport:
    data = report.var_data.replace(b"secure-boot", b"secure-Boot")
    return replace(report, var_data=data)


def _padded(report: HclReport) -> HclReport:
    data = report.var_data + b" "
    return replace(report, var_data=data, data_size=20 + len(data), report_size=1236 + len(data))


def _other_report(report: HclReport) -> HclReport:
    raw = bytearray(report.hardware_report)
    raw[0x2A0] ^= 1
    return replace(report, hardware_report=bytes(raw))


@pytest.mark.parametrize("edit", [_changed, _padded, _other_report])
def test_runtime_data_that_the_report_is_not_bound_to(
    hcl_machine: Machine, edit: Callable[[HclReport], HclReport]
) -> None:
    judge = hcl_judge(hcl_machine)
    device_of(hcl_machine).edit = edit
    assert judge.failed(hcl_machine.evidence(NONCE)) == {"tee.report_data"}


def test_quote_by_another_ak_than_the_runtime_data_s(hcl_machine: Machine) -> None:
    judge = replace(hcl_judge(hcl_machine), snapshot=None)
    assert hcl_machine.tpm is not None
    hcl_machine.tpm.rsa_key = OTHER_AK
    assert judge.failed(hcl_machine.evidence(NONCE)) == {"tpm.ak"}
    hcl_machine.tpm.rsa_key = None  # ECC, as no HCL has
    assert judge.failed(hcl_machine.evidence(NONCE)) == {"tpm.ak"}


def test_runtime_data_without_a_key(hcl_machine: Machine) -> None:
    judge = replace(hcl_judge(hcl_machine), snapshot=None)
    device_of(hcl_machine).data = json.dumps({"keys": []}).encode()
    assert judge.failed(hcl_machine.evidence(NONCE)) == {"tpm.ak"}


def test_hcl_report_without_a_tpm_quote(hcl_machine: Machine) -> None:
    """Nothing would tell this answer from a recorded one."""
    judge = hcl_judge(hcl_machine)
    evidence = replace(hcl_machine.evidence(NONCE), tpm=None)
    assert "tee.report_data" in judge.failed(evidence)
    alone = judge.with_policy(without_tpm=True)
    assert replace(alone, snapshot=None).failed(evidence) == {"tee.report_data"}


def test_an_hcl_report_where_the_snapshot_had_none(machine: Machine, judge: Judge) -> None:
    """A guest of one's own can call anything runtime data: with a report of the very machine, it must not help."""
    assert machine.tee is not None
    assert machine.tpm is not None
    machine.tpm.rsa_key = AK
    machine.device = SimulatedHcl(inner=machine.tee, data=runtime_json(AK.public_key()))
    assert "tee.report_data" in judge.failed(machine.evidence(NONCE))


def test_garbage_for_an_hcl_report(hcl_machine: Machine) -> None:
    evidence = replace(hcl_machine.evidence(NONCE), hcl_report=b"HCLA" + bytes(40))
    failed = hcl_judge(hcl_machine).failed(evidence)
    assert {"tee.signature", "tee.report_data"} <= failed


def test_the_anchor_may_not_get_weaker(hcl_machine: Machine) -> None:
    judge = hcl_judge(hcl_machine)
    assert hcl_machine.tpm is not None
    hcl_machine.device = None
    assert judge.failed(hcl_machine.evidence(NONCE)) == {"tpm.ak"}


# SVSM


@pytest.fixture
def ek() -> SoftTpm:
    return SoftTpm(seed=b"the EK, whose attributes do not matter here")


def with_svsm(machine: Machine, ek: SoftTpm, **fields: int | bytes) -> Machine:
    assert machine.tee is not None
    machine.device = SimulatedSvsm(inner=machine.tee, manifest=ek.ak_public(), fields=fields)
    return machine


def activated(machine: Machine, ek: SoftTpm, evidence: Evidence, certificates: tuple[bytes, ...] = ()) -> Evidence:
    """With the proof that the EK's TPM has the AK."""
    assert evidence.tpm is not None
    secret = b"a credential of 32 bytes, random"
    activation = Activation(
        ek_public=ek.ak_public(), ak_name=name(evidence.tpm.ak_public), expected=secret, answered=secret
    )
    tpm = replace(evidence.tpm, ek=EndorsementKey(public=ek.ak_public(), certificates=certificates))
    return replace(evidence, tpm=tpm, activation=activation)


def test_svsm(machine: Machine, judge: Judge, ek: SoftTpm) -> None:
    with_svsm(machine, ek)
    evidence = activated(machine, ek, machine.evidence(NONCE))
    first = replace(judge, snapshot=None)
    assert first.failed(evidence) == set()
    assert "'svsm'" in ak_check(first, evidence).line
    assert ak_check(first, evidence).status is Status.OK
    unproven = replace(evidence, activation=None)
    assert first.failed(unproven) == set()
    assert "'operator'" in ak_check(first, unproven).line


@pytest.mark.parametrize("fields", [{"vmpl": 1}, {"measurement": b"\x01" * 48}, {"report_id": b"\x02" * 32}])
def test_an_svsm_that_is_none(machine: Machine, judge: Judge, ek: SoftTpm, fields: dict[str, int | bytes]) -> None:
    with_svsm(machine, ek, **fields)
    evidence = activated(machine, ek, machine.evidence(NONCE))
    assert "tpm.ak" in replace(judge, snapshot=None).failed(evidence)


def test_a_guest_at_vmpl_0_has_no_svsm_below_it(machine: Machine, judge: Judge, ek: SoftTpm) -> None:
    with_svsm(machine, ek)
    assert machine.tee is not None
    machine.tee.fields["vmpl"] = 0
    evidence = activated(machine, ek, machine.evidence(NONCE))
    assert replace(judge, snapshot=None).failed(evidence) == {"tpm.ak"}


def test_manifest_of_another_vtpm(machine: Machine, judge: Judge, ek: SoftTpm) -> None:
    with_svsm(machine, SoftTpm(seed=b"another"))
    evidence = activated(machine, ek, machine.evidence(NONCE))
    assert replace(judge, snapshot=None).failed(evidence) == {"tpm.ak"}


def test_svsm_report_of_another_vendor(machine: Machine, judge: Judge, ek: SoftTpm) -> None:
    with_svsm(machine, ek)
    evidence = activated(machine, ek, machine.evidence(NONCE))
    assert evidence.svsm is not None
    raw = bytearray(evidence.svsm.report)
    raw[0x2A0] ^= 1
    forged = replace(evidence, svsm=replace(evidence.svsm, report=bytes(raw)))
    assert "tpm.ak" in replace(judge, snapshot=None).failed(forged)


@pytest.mark.parametrize("lie", ["another chip", "the chip before its update", "that it is up to date"])
def test_svsm_report_by_a_key_that_leaked(
    machine: Machine, judge: Judge, ek: SoftTpm, vendor: AmdVendor, lie: str
) -> None:
    """Firmware with known holes gives its keys away, and they are genuine: whoever has one writes what he likes into an
    SVSM's report. The guest's own is of a chip with firmware as it should be.
    """
    old_tcb = {"bl": 1, "tee": 0, "snp": 2, "ucode": 3}
    leaked = vendor.new_chip(chip_id=None if lie == "another chip" else vendor.chip_id, tcb=old_tcb)
    with_svsm(machine, ek)
    evidence = activated(machine, ek, machine.evidence(NONCE))
    assert evidence.svsm is not None
    own = parse_report(evidence.svsm.report)
    copied = ["report_data", "measurement", "report_id", "policy", "host_data", "vmpl"]
    if lie == "that it is up to date":
        copied += ["reported_tcb", "current_tcb", "committed_tcb", "launch_tcb"]
    report = leaked.sign_report(**{name: getattr(own, name) for name in copied})
    forged = replace(
        evidence,
        svsm=replace(evidence.svsm, report=report),
        endorsements=(leaked.certificates[0], *evidence.endorsements),
    )
    strict = replace(judge, snapshot=None).with_policy(minimum_tcb={"Milan": {"snp": 20}})
    assert strict.failed(evidence) == set()
    assert "tpm.ak" in strict.failed(forged)


# Certificates


def certified(machine: Machine, evidence: Evidence, maker: TpmAuthority, **changes: bytes) -> Evidence:
    """With a platform's key that certified the AK for this connection."""
    assert evidence.tpm is not None
    platform = SoftTpm(seed=b"the platform's AK")
    from cosmian_vm.evidence.tpm import parse_quote

    quoted = parse_quote(evidence.tpm.quote)
    ak_name = changes.get("name", name(evidence.tpm.ak_public))
    info = TpmCertifyInfo(
        b"\x00\x0b" + bytes(32), changes.get("extra_data", quoted.extra_data), 1, 3, 0, True, 1, ak_name, ak_name
    )
    attest = serialise_certify(info)
    assert parse_certify(attest) == info
    told = PlatformAk(
        public=platform.ak_public(),
        attest=attest,
        signature=platform.sign(changes.get("signed", attest)),
        certificates=(maker.certify(platform.key.public_key(), "platform AK", now=NOW), *maker.chain),
    )
    return replace(evidence, tpm=replace(evidence.tpm, platform_ak=told))


def rooted(judge: Judge) -> Judge:
    return replace(judge, tpm_roots=TpmRoots(makers=(MAKER.root,), operators=(OPERATOR.root,)))


def anchor_of(check: Check) -> Anchor | None:
    text = " ".join((check.line, *check.details))
    anchors: tuple[Anchor, ...] = ("tee", "svsm", "certificate", "operator")
    return next((anchor for anchor in anchors if f"anchor {anchor!r}" in text), None)


def test_certified_by_the_platform_s_key(machine: Machine, judge: Judge) -> None:
    evidence = certified(machine, machine.evidence(NONCE), MAKER)
    check = ak_check(rooted(judge), evidence)
    assert (check.status, anchor_of(check)) == (Status.OK, "certificate")
    assert rooted(judge).failed(evidence) == set()
    unknown = ak_check(judge, evidence)
    assert (unknown.status, anchor_of(unknown)) == (Status.WARNING, "operator")
    assert any("--tpm-root" in detail for detail in unknown.details)
    cloud = ak_check(rooted(judge), certified(machine, machine.evidence(NONCE), OPERATOR))
    assert (cloud.status, anchor_of(cloud)) == (Status.WARNING, "operator")
    assert "the operator certified" in cloud.line


@pytest.mark.parametrize("change", ["name", "extra_data", "signed"])
def test_a_certification_of_something_else(machine: Machine, judge: Judge, change: str) -> None:
    evidence = certified(machine, machine.evidence(NONCE), MAKER, **{change: b"\x00\x0b" + b"\x01" * 32})
    assert rooted(judge).failed(evidence) == {"tpm.ak"}


def test_certificate_of_another_key(machine: Machine, judge: Judge) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1()).public_key()
    evidence = certified(machine, machine.evidence(NONCE), MAKER)
    assert evidence.tpm is not None
    assert evidence.tpm.platform_ak is not None
    other = (MAKER.certify(stranger, "another", now=NOW), *MAKER.chain)
    swapped = replace(
        evidence, tpm=replace(evidence.tpm, platform_ak=replace(evidence.tpm.platform_ak, certificates=other))
    )
    assert rooted(judge).failed(swapped) == {"tpm.ak"}
    own = replace(evidence, tpm=replace(evidence.tpm, platform_ak=None, ak_certificate=other[0]))
    assert rooted(judge).failed(own) == {"tpm.ak"}


def test_platform_s_key_that_signs_anything(machine: Machine, judge: Judge) -> None:
    evidence = certified(machine, machine.evidence(NONCE), MAKER)
    assert evidence.tpm is not None
    assert evidence.tpm.platform_ak is not None
    loose = SoftTpm(seed=b"the platform's AK")
    loose.attributes &= ~ObjectAttributes.RESTRICTED
    told = replace(evidence.tpm.platform_ak, public=loose.ak_public())
    assert rooted(judge).failed(replace(evidence, tpm=replace(evidence.tpm, platform_ak=told))) == {"tpm.ak"}


def test_expired_certificate(machine: Machine, judge: Judge) -> None:
    evidence = certified(machine, machine.evidence(NONCE), MAKER)
    assert evidence.tpm is not None
    assert evidence.tpm.platform_ak is not None
    platform = SoftTpm(seed=b"the platform's AK").key.public_key()
    old = (MAKER.certify(platform, "platform AK", now=NOW - timedelta(days=4000)), *MAKER.chain)
    told = replace(evidence.tpm.platform_ak, certificates=old)
    assert rooted(judge).failed(replace(evidence, tpm=replace(evidence.tpm, platform_ak=told))) == {"tpm.ak"}


def test_endorsement_key(machine: Machine, judge: Judge, ek: SoftTpm) -> None:
    certificate = MAKER.certify(ek.key.public_key(), "EK", now=NOW)
    evidence = activated(machine, ek, machine.evidence(NONCE), (certificate + bytes(100), *MAKER.chain))
    check = ak_check(rooted(judge), evidence)
    assert (check.status, anchor_of(check)) == (Status.OK, "certificate")
    # An EK certificate alone, without the proof that the EK's TPM has the key, is worth nothing.
    unproven = ak_check(rooted(judge), replace(evidence, activation=None))
    assert (unproven.status, anchor_of(unproven)) == (Status.WARNING, "operator")


@pytest.mark.parametrize("change", ["answered", "ek_public", "ak_name"])
def test_a_credential_that_was_not_opened(machine: Machine, judge: Judge, ek: SoftTpm, change: str) -> None:
    certificate = MAKER.certify(ek.key.public_key(), "EK", now=NOW)
    evidence = activated(machine, ek, machine.evidence(NONCE), (certificate, *MAKER.chain))
    assert evidence.activation is not None
    wrong = replace(evidence, activation=replace(evidence.activation, **{change: b"something else"}))
    assert rooted(judge).failed(wrong) == {"tpm.ak"}


def test_an_empty_credential_proves_nothing(machine: Machine, judge: Judge, ek: SoftTpm) -> None:
    certificate = MAKER.certify(ek.key.public_key(), "EK", now=NOW)
    evidence = activated(machine, ek, machine.evidence(NONCE), (certificate, *MAKER.chain))
    assert evidence.activation is not None
    empty = replace(evidence, activation=replace(evidence.activation, expected=b"", answered=b""))
    assert anchor_of(ak_check(rooted(judge), empty)) == "operator"


def test_anchors_that_the_policy_refuses(machine: Machine, judge: Judge) -> None:
    strict = judge.with_policy(anchors=frozenset({"tee", "svsm", "certificate"}))
    assert strict.failed(machine.evidence(NONCE)) == {"tpm.ak"}
    assert rooted(strict).failed(certified(machine, machine.evidence(NONCE), MAKER)) == set()


def test_a_certificate_under_no_authority(machine: Machine, judge: Judge) -> None:
    """A leaf of the maker's signs a certificate of the attacker's: it is no authority."""
    leaf_key = ec.generate_private_key(ec.SECP256R1())
    leaf = x509.load_der_x509_certificate(MAKER.certify(leaf_key.public_key(), "a leaf", now=NOW))
    forger = replace(MAKER, key=leaf_key, authority=leaf)
    evidence = certified(machine, machine.evidence(NONCE), forger)
    assert anchor_of(ak_check(rooted(judge), evidence)) == "operator"
    assert leaf.public_bytes(Encoding.DER) in forger.chain


@pytest.mark.parametrize("modulus", [1 << 2047, (1 << 2047) | 2], ids=["a power of 2", "even"])
def test_an_ek_that_nothing_can_be_encrypted_to(modulus: int) -> None:
    """The machine chooses it: it is no key, and no end of the program that verifies."""
    ek = TpmPublic(
        Alg.SHA256,
        ObjectAttributes(0x300B2),
        b"",
        RsaParameters(Symmetric(Alg.AES, 128, 0x43), Scheme(), 2048, 0, modulus.to_bytes(256)),
    )
    with pytest.raises(EvidenceFormatError, match="no usable public key"):
        make_credential(serialise_public(ek), b"\x00\x0b" + bytes(32), bytes(32), seed=bytes(64))
