"""tpm.* : each thing that can be wrong with a quote fails the one check that asks for it."""

from __future__ import annotations

import re
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.devkit.soft_tpm import SoftTpm
from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence import tpm as tpm_format
from cosmian_vm.evidence.bundle import V2_PCRS, TpmEvidence
from cosmian_vm.evidence.tpm import Alg, Curve, ObjectAttributes
from cosmian_vm.reference.snapshot import BOOT_PCRS, Anchor, SevPolicy, Snapshot, TeePolicy, TpmPolicy
from cosmian_vm.verifier._quoted import NOTHING_QUOTED
from cosmian_vm.verifier.anchor import OPERATOR
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.result import Check, Status
from cosmian_vm.verifier.tpm import TPM_CHECKS, appraise_tpm, key_of, quoted_pcrs, signature_problem

BINDING = bytes(range(32))
STRICT = Policy()
SEV = SevPolicy(
    measurement="00" * 48,
    report_data="00" * 64,
    family_id="00" * 16,
    image_id="00" * 16,
    guest_svn=0,
    id_key_digest="00" * 48,
    author_key_digest="00" * 48,
    policy=0x30000,
    report_id="00" * 32,
    report_id_ma="00" * 32,
)


def machine() -> SoftTpm:
    device = SoftTpm()
    for pcr in V2_PCRS:
        device.extend(pcr, {"sha1": bytes([pcr]) * 20, "sha256": bytes([pcr]) * 32})
    return device


def collect(device: SoftTpm, binding: bytes = BINDING, pcrs: tuple[int, ...] = V2_PCRS) -> TpmEvidence:
    quote = device.quote(binding, pcrs)
    return TpmEvidence(quote=quote.quote, signature=quote.signature, ak_public=quote.ak_public, pcrs=quote.pcrs)


def reference_of(device: SoftTpm, **changes: Any) -> Snapshot:
    values: dict[str, Any] = {
        "tee_policy": TeePolicy(sev=SEV),
        "tpm_policy": TpmPolicy(reset_count=device.reset_count, restart_count=device.restart_count),
        "ak_name": tpm_format.name(device.ak_public()).hex(),
        "anchor": "operator",
        "clock": device.clock,
        "boot_pcrs": {str(pcr): value.hex() for pcr, value in device.read_pcrs(BOOT_PCRS).items()},
        "version": 2,
    }
    return Snapshot(**{**values, **changes})


def judge(
    evidence: TpmEvidence | None,
    reference: Snapshot | None = None,
    policy: Policy = STRICT,
    *,
    binding: bytes = BINDING,
    pcrs: frozenset[int] = frozenset(V2_PCRS),
    api: int = 2,
    anchor: Anchor = "operator",
) -> dict[str, Check]:
    checks = appraise_tpm(
        evidence,
        binding=binding,
        expected_pcrs=pcrs,
        reference=reference,
        policy=policy,
        api=api,
        anchored=OPERATOR._replace(anchor=anchor),
    )
    assert tuple(check.id for check in checks) == TPM_CHECKS
    for check in checks:
        assert check.line.isprintable(), check
        assert all(detail.isprintable() for detail in check.details)
    return {check.id: check for check in checks}


def failed(checks: dict[str, Check]) -> set[str]:
    return {check.id for check in checks.values() if check.status is Status.FAIL}


def resigned(device: SoftTpm, evidence: TpmEvidence, **changes: Any) -> TpmEvidence:
    """The same quote with other fields, signed by the same AK as no restricted key would."""
    quote = tpm_format.serialise_quote(tpm_format.parse_quote(evidence.quote)._replace(**changes))
    return replace(evidence, quote=quote, signature=device.sign(quote))


def test_honest() -> None:
    device = machine()
    checks = judge(collect(device), reference_of(device))
    assert [check.status for check in checks.values()] == [Status.WARNING, *[Status.OK] * 4]
    assert "operator" in checks["tpm.ak"].line


@pytest.mark.parametrize("anchor", ["tee", "svsm", "certificate"])
def test_a_stronger_anchor_does_not_warn(anchor: Anchor) -> None:
    device = machine()
    checks = judge(collect(device), reference_of(device, anchor=anchor), anchor=anchor)
    assert checks["tpm.ak"].status is Status.OK
    lost = judge(collect(device), reference_of(device, anchor=anchor), anchor="operator")
    assert failed(lost) == {"tpm.ak"}


def test_no_tpm_fails_everything_whatever_the_agent_says() -> None:
    assert failed(judge(None)) == set(TPM_CHECKS)
    skipped = judge(None, policy=Policy(without_tpm=True))
    assert {check.status for check in skipped.values()} == {Status.SKIP}


def test_a_tpm_is_appraised_even_where_none_is_expected() -> None:
    assert failed(judge(collect(machine(), b"another"), policy=Policy(without_tpm=True))) == {"tpm.nonce"}


@pytest.mark.parametrize(
    "bit",
    [
        ObjectAttributes.RESTRICTED,
        ObjectAttributes.SIGN,
        ObjectAttributes.FIXED_TPM,
        ObjectAttributes.FIXED_PARENT,
        ObjectAttributes.SENSITIVE_DATA_ORIGIN,
    ],
)
def test_key_that_is_no_ak(bit: ObjectAttributes) -> None:
    device = machine()
    device.attributes &= ~bit
    assert failed(judge(collect(device), reference_of(device))) == {"tpm.ak"}


def test_key_that_also_decrypts() -> None:
    device = machine()
    device.attributes |= ObjectAttributes.DECRYPT
    assert failed(judge(collect(device), reference_of(device))) == {"tpm.ak"}


@pytest.mark.parametrize("scheme", [tpm_format.Scheme(), tpm_format.Scheme(Alg.ECDH, Alg.SHA256)])
def test_key_without_a_fixed_signing_scheme(scheme: tpm_format.Scheme) -> None:
    device = machine()
    device.scheme = scheme
    assert "tpm.ak" in failed(judge(collect(device), reference_of(device)))


def test_key_named_with_sha1() -> None:
    device = machine()
    evidence = collect(device)
    public = tpm_format.parse_public(evidence.ak_public)._replace(name_alg=Alg.SHA1)
    evidence = replace(evidence, ak_public=tpm_format.serialise_public(public))
    assert failed(judge(evidence)) == {"tpm.ak"}


def test_another_ak() -> None:
    reference = reference_of(machine())
    other = machine()
    other.seed = b"another TPM"
    assert failed(judge(collect(other), reference)) == {"tpm.ak"}


def test_snapshot_that_names_no_ak_warns() -> None:
    device = machine()
    checks = judge(collect(device), reference_of(device, ak_name=None))
    assert checks["tpm.ak"].status is Status.WARNING
    assert "does not name" in checks["tpm.ak"].line


def test_point_that_is_not_on_the_curve() -> None:
    evidence = collect(machine())
    public = tpm_format.parse_public(evidence.ak_public)
    assert isinstance(public.parameters, tpm_format.EccParameters)
    parameters = public.parameters._replace(y=bytes(31) + b"\x01")
    evidence = replace(evidence, ak_public=tpm_format.serialise_public(public._replace(parameters=parameters)))
    assert failed(judge(evidence)) == {"tpm.ak", "tpm.signature"}


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_every_bit_of_the_quote_is_signed(at: int, bit: int) -> None:
    evidence = collect(machine())
    quote = bytearray(evidence.quote)
    quote[at % len(quote)] ^= 1 << bit
    assert "tpm.signature" in failed(judge(replace(evidence, quote=bytes(quote))))


@given(at=st.integers(0, 71), bit=st.integers(0, 7))
def test_every_bit_of_the_signature_counts(at: int, bit: int) -> None:
    evidence = collect(machine())
    signature = bytearray(evidence.signature)
    signature[at] ^= 1 << bit
    assert "tpm.signature" in failed(judge(replace(evidence, signature=bytes(signature))))


@given(quote=st.binary(max_size=150), signature=st.binary(max_size=80), public=st.binary(max_size=100))
def test_garbage_fails_and_never_raises(quote: bytes, signature: bytes, public: bytes) -> None:
    evidence = TpmEvidence(quote=quote, signature=signature, ak_public=public, pcrs={})
    assert failed(judge(evidence)) == set(TPM_CHECKS)
    assert quoted_pcrs(evidence) == NOTHING_QUOTED


def test_signature_of_another_key() -> None:
    other = machine()
    other.seed = b"another"
    evidence = collect(machine())
    assert failed(judge(replace(evidence, signature=other.sign(evidence.quote)))) == {"tpm.signature"}


def test_signed_but_no_quote() -> None:
    device = machine()
    evidence = collect(device)
    certify = evidence.quote[:4] + b"\x80\x17" + evidence.quote[6:]
    checks = judge(replace(evidence, quote=certify, signature=device.sign(certify)))
    assert failed(checks) == set(TPM_CHECKS) - {"tpm.ak"}


def test_scheme_must_be_the_one_fixed_in_the_key() -> None:
    device = machine()
    evidence = collect(device)
    r, s = decode_dss_signature(device.key.sign(evidence.quote, ec.ECDSA(hashes.SHA384())))
    other = tpm_format.TpmSignature(Alg.ECDSA, Alg.SHA384, r=r.to_bytes(32, "big"), s=s.to_bytes(32, "big"))
    checks = judge(replace(evidence, signature=tpm_format.serialise_signature(other)))
    assert "tpm.signature" in failed(checks)
    assert "fixed to ECDSA-sha256" in checks["tpm.signature"].line


@pytest.mark.parametrize("nonce", [b"", bytes(32), BINDING[:31], BINDING + b"\0"])
def test_replayed_or_foreign_challenge(nonce: bytes) -> None:
    device = machine()
    assert failed(judge(collect(device, nonce), reference_of(device))) == {"tpm.nonce"}


def test_empty_binding_matches_nothing() -> None:
    assert failed(judge(collect(machine(), b""), binding=b"")) == {"tpm.nonce"}


@pytest.mark.parametrize("selection", [(10,), tuple(range(15)), tuple(range(17)), (*range(15), 23), ()])
def test_other_pcrs(selection: tuple[int, ...]) -> None:
    device = machine()
    device.selection = selection
    assert failed(judge(collect(device), reference_of(device))) == {"tpm.pcr_selection"}


def test_sha1_bank() -> None:
    device = machine()
    device.bank = "sha1"
    evidence = collect(device)
    assert failed(judge(evidence, reference_of(device))) == {"tpm.pcr_selection"}
    assert quoted_pcrs(evidence) == NOTHING_QUOTED


def test_sha1_bank_in_version_1() -> None:
    device = machine()
    device.bank = "sha1"
    evidence = replace(collect(device, pcrs=(10,)), pcrs={})
    assert failed(judge(evidence, pcrs=frozenset({10}), api=1)) == {"tpm.pcr_selection"}
    assert quoted_pcrs(evidence) == NOTHING_QUOTED


@pytest.mark.parametrize("banks", [("sha256", "sha1"), ("sha1", "sha256"), ("sha256", "sha256"), ()])
def test_more_or_less_than_one_bank(banks: tuple[str, ...]) -> None:
    device = machine()
    selections = tuple(tpm_format.pcr_selection(bank, V2_PCRS) for bank in banks)
    digest = tpm_format.compute_pcr_digest(selections, device.pcrs, Alg.SHA256)
    evidence = resigned(device, collect(device), pcr_selections=selections, pcr_digest=digest)
    assert failed(judge(evidence)) == {"tpm.pcr_selection"}
    assert quoted_pcrs(evidence) == NOTHING_QUOTED


@pytest.mark.parametrize("pcr", [16, 17, 22, 23])
def test_resettable_pcr_even_if_it_was_asked_for(pcr: int) -> None:
    evidence = collect(machine(), pcrs=(pcr,))
    for api in (1, 2):
        checks = judge(replace(evidence, pcrs={}), pcrs=frozenset({pcr}), api=api)
        assert failed(checks) == {"tpm.pcr_selection"}
        assert "reset" in checks["tpm.pcr_selection"].line
    assert quoted_pcrs(evidence) == NOTHING_QUOTED


def test_claimed_values_must_be_the_quoted_ones() -> None:
    device = machine()
    evidence = collect(device)
    for claimed in (
        {**evidence.pcrs, 4: bytes(32)},
        {**evidence.pcrs, 4: bytes(20)},
        {pcr: value for pcr, value in evidence.pcrs.items() if pcr != 4},
        {**evidence.pcrs, 16: bytes(32)},
        {},
    ):
        lying = replace(evidence, pcrs=claimed)
        assert failed(judge(lying, reference_of(device))) == {"tpm.pcr_selection"}
        assert quoted_pcrs(lying) == NOTHING_QUOTED


def test_quoted_values() -> None:
    device = machine()
    quoted = quoted_pcrs(collect(device))
    assert quoted.indices == frozenset(V2_PCRS)
    assert quoted.matches(10, device.pcrs["sha256"][10])
    assert not quoted.matches(10, bytes(32))
    assert not quoted.matches(16, device.pcrs["sha256"][16])
    assert quoted_pcrs(None) == NOTHING_QUOTED


def test_version_1_quotes_one_pcr_by_its_digest() -> None:
    device = machine()
    evidence = replace(collect(device, pcrs=(10,)), pcrs={})
    quoted = quoted_pcrs(evidence)
    assert (quoted.values, quoted.digest_pcr) == ({}, 10)
    assert quoted.matches(10, device.pcrs["sha256"][10])
    assert not quoted.matches(10, bytes(32))
    assert not quoted.matches(9, device.pcrs["sha256"][10])
    two = replace(collect(device, pcrs=(9, 10)), pcrs={})
    assert quoted_pcrs(two) == NOTHING_QUOTED


def test_version_1_warns_on_every_line_that_it_weakens() -> None:
    device = machine()
    evidence = replace(collect(device, pcrs=(10,)), pcrs={})
    checks = judge(evidence, reference_of(device), pcrs=frozenset({10}), api=1)
    warned = {check.id for check in checks.values() if check.status is Status.WARNING}
    assert warned == {"tpm.ak", "tpm.nonce", "tpm.pcr_selection"}
    assert not failed(checks)
    assert failed(judge(evidence, pcrs=frozenset({11}), api=1)) == {"tpm.pcr_selection"}


def test_reboot() -> None:
    device = machine()
    reference = reference_of(device)
    device.reset_count += 1
    checks = judge(collect(device), reference)
    assert failed(checks) == {"tpm.clock"}
    assert "rebooted 1 time since" in checks["tpm.clock"].line
    allowed = judge(collect(device), reference, Policy(allow_reboot=True))
    assert allowed["tpm.clock"].status is Status.WARNING


def test_restart_without_reset() -> None:
    device = machine()
    reference = reference_of(device)
    device.restart_count += 2
    checks = judge(collect(device), reference)
    assert failed(checks) == {"tpm.clock"}
    assert "restarted 2 times" in checks["tpm.clock"].line


def test_restarts_count_anew_after_a_reboot() -> None:
    device = machine()
    device.restart_count = 5
    reference = reference_of(device)
    device.reset_count, device.restart_count = device.reset_count + 1, 0
    assert judge(collect(device), reference, Policy(allow_reboot=True))["tpm.clock"].status is Status.WARNING


@pytest.mark.parametrize(
    "change",
    [
        {"reset_count": 2},
        {"clock": 1},
        {"safe": False},
        {"reset_count": 9, "clock": 1},
    ],
)
def test_rollback_and_unsafe_clock_fail_even_where_a_reboot_is_allowed(change: dict[str, int]) -> None:
    device = machine()
    reference = reference_of(device)
    for attribute, value in change.items():
        setattr(device, attribute, value)
    assert failed(judge(collect(device), reference, Policy(allow_reboot=True))) == {"tpm.clock"}


def test_restart_count_rolled_back() -> None:
    device = machine()
    device.restart_count = 4
    reference = reference_of(device)
    device.restart_count = 3
    assert failed(judge(collect(device), reference, Policy(allow_reboot=True))) == {"tpm.clock"}


def test_counters_may_wrap() -> None:
    device = machine()
    device.reset_count = 0xFFFFFFFF
    reference = reference_of(device)
    device.reset_count = 0
    assert judge(collect(device), reference, Policy(allow_reboot=True))["tpm.clock"].status is Status.WARNING


def test_unsafe_clock_without_a_snapshot() -> None:
    device = machine()
    assert not failed(judge(collect(device)))
    device.safe = False
    assert failed(judge(collect(device))) == {"tpm.clock"}


def test_snapshot_without_counters_is_no_answer() -> None:
    device = machine()
    checks = judge(collect(device), reference_of(device, tpm_policy=None, clock=None))
    assert checks["tpm.clock"].status is Status.SKIP


# Schemes


def rsa_public(key: rsa.RSAPrivateKey, scheme: Alg) -> tpm_format.TpmPublic:
    modulus = key.public_key().public_numbers().n
    size = key.key_size // 8
    parameters = tpm_format.RsaParameters(
        tpm_format.Symmetric(), tpm_format.Scheme(scheme, Alg.SHA256), key.key_size, 0, modulus.to_bytes(size, "big")
    )
    return tpm_format.TpmPublic(Alg.SHA256, SoftTpm().attributes, b"", parameters)


@pytest.fixture(scope="module")
def rsa_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


PSS_LENGTHS = [padding.PSS.DIGEST_LENGTH, padding.PSS.MAX_LENGTH]


@pytest.mark.parametrize("salt", PSS_LENGTHS)
def test_rsapss(rsa_key: rsa.RSAPrivateKey, salt: Any) -> None:
    evidence = collect(machine())
    pss = padding.PSS(padding.MGF1(hashes.SHA256()), salt)
    signed = rsa_key.sign(evidence.quote, pss, hashes.SHA256())
    check_rsa(evidence, rsa_key, Alg.RSAPSS, signed)


def test_rsassa(rsa_key: rsa.RSAPrivateKey) -> None:
    evidence = collect(machine())
    check_rsa(evidence, rsa_key, Alg.RSASSA, rsa_key.sign(evidence.quote, padding.PKCS1v15(), hashes.SHA256()))


def check_rsa(evidence: TpmEvidence, key: rsa.RSAPrivateKey, scheme: Alg, signed: bytes) -> None:
    public = tpm_format.serialise_public(rsa_public(key, scheme))
    signature = tpm_format.TpmSignature(scheme, Alg.SHA256, rsa=signed)
    good = replace(evidence, ak_public=public, signature=tpm_format.serialise_signature(signature))
    assert not failed(judge(good))
    for damaged in (signed[:-1] + bytes([signed[-1] ^ 1]), signed[:-1], b"\0" + signed, bytes(256)):
        bad = tpm_format.serialise_signature(signature._replace(rsa=damaged))
        assert failed(judge(replace(good, signature=bad))) == {"tpm.signature"}
    other = Alg.RSAPSS if scheme == Alg.RSASSA else Alg.RSASSA
    confused = tpm_format.serialise_signature(signature._replace(algorithm=other))
    assert failed(judge(replace(good, signature=confused))) == {"tpm.signature"}


def test_p384() -> None:
    evidence = collect(machine())
    key = ec.generate_private_key(ec.SECP384R1())
    point = key.public_key().public_numbers()
    scheme = tpm_format.Scheme(Alg.ECDSA, Alg.SHA384)
    parameters = tpm_format.EccParameters(
        tpm_format.Symmetric(),
        scheme,
        Curve.NIST_P384,
        tpm_format.Scheme(),
        point.x.to_bytes(48, "big").lstrip(b"\0"),  # some TPMs leave leading zeros out
        point.y.to_bytes(48, "big"),
    )
    public = tpm_format.TpmPublic(Alg.SHA384, SoftTpm().attributes, b"", parameters)
    quote = tpm_format.parse_quote(evidence.quote)
    digest = tpm_format.compute_pcr_digest(quote.pcr_selections, {"sha256": evidence.pcrs}, Alg.SHA384)
    raw = tpm_format.serialise_quote(quote._replace(pcr_digest=digest))
    r, s = decode_dss_signature(key.sign(raw, ec.ECDSA(hashes.SHA384())))
    signature = tpm_format.TpmSignature(Alg.ECDSA, Alg.SHA384, r=r.to_bytes(48, "big"), s=s.to_bytes(48, "big"))
    good = replace(
        evidence,
        quote=raw,
        ak_public=tpm_format.serialise_public(public),
        signature=tpm_format.serialise_signature(signature),
    )
    assert not failed(judge(good))
    assert quoted_pcrs(good).indices == frozenset(V2_PCRS)


def test_weak_keys_and_curves_are_refused(rsa_key: rsa.RSAPrivateKey) -> None:
    public = rsa_public(rsa_key, Alg.RSASSA)
    assert isinstance(public.parameters, tpm_format.RsaParameters)
    short = public.parameters._replace(key_bits=1024, modulus=b"\xff" * 127 + b"\xfd")
    lying = public.parameters._replace(key_bits=3072)
    for parameters in (short, lying, public.parameters._replace(exponent=1)):
        with pytest.raises(EvidenceFormatError):
            key_of(public._replace(parameters=parameters))
    ecc = tpm_format.parse_public(machine().ak_public()).parameters
    assert isinstance(ecc, tpm_format.EccParameters)
    for change in ({"curve": 0x20}, {"curve": Curve.NIST_P384}, {"x": bytes(33)}, {"x": b"", "y": b""}):
        with pytest.raises(EvidenceFormatError):
            key_of(public._replace(parameters=ecc._replace(**change)))


def test_sha1_signatures_are_refused(rsa_key: rsa.RSAPrivateKey) -> None:
    signed = rsa_key.sign(b"message", padding.PKCS1v15(), hashes.SHA1())
    signature = tpm_format.TpmSignature(Alg.RSASSA, Alg.SHA1, rsa=signed)
    assert "sha1" in signature_problem(rsa_key.public_key(), signature, b"message")


def test_scheme_that_does_not_go_with_the_key(rsa_key: rsa.RSAPrivateKey) -> None:
    rsassa = tpm_format.TpmSignature(Alg.RSASSA, Alg.SHA256, rsa=bytes(256))
    ecdsa = tpm_format.TpmSignature(Alg.ECDSA, Alg.SHA256, r=b"\1", s=b"\1")
    assert "elliptic" in signature_problem(machine().key.public_key(), rsassa, b"")
    assert "RSA key" in signature_problem(rsa_key.public_key(), ecdsa, b"")


# Real quotes


def pcrs_of(folder: Path) -> dict[int, bytes]:
    text = (folder / "pcrs.yaml").read_text()
    found = re.findall(r"^ +(\d+) *: 0x([0-9A-F]{64})$", text, re.MULTILINE)
    return {int(pcr): bytes.fromhex(value) for pcr, value in found if int(pcr) < 15}


def real(folder: Path) -> TpmEvidence:
    return TpmEvidence(
        quote=(folder / "qall.msg").read_bytes(),
        signature=(folder / "qall.sig").read_bytes(),
        ak_public=(folder / "ak.tpmt_public").read_bytes(),
        pcrs=pcrs_of(folder),
    )


def judge_real(folder: Path, reference: Snapshot | None) -> dict[str, Check]:
    return judge(real(folder), reference, binding=(folder / "nonce").read_bytes(), pcrs=frozenset(range(15)))


@pytest.mark.evidence
def test_four_boots_of_one_real_tpm(evidence: Path) -> None:
    vm = evidence / "vm"
    names = ("uefi-tcb", "uefi-custom-plus-tcb", "uefi-coldreboot", "direct-custom-notcb")
    for name in names:
        assert not failed(judge_real(vm / name, None))
    first = tpm_format.parse_quote(real(vm / "uefi-tcb").quote)
    reference = real_reference(vm / "uefi-tcb", first)
    assert not failed(judge_real(vm / "uefi-tcb", reference))
    assert failed(judge_real(vm / "uefi-custom-plus-tcb", reference)) == {"tpm.clock"}
    assert failed(judge_real(vm / "uefi-coldreboot", reference)) == {"tpm.clock"}


@pytest.mark.evidence
def test_two_continuations_of_one_tpm_state(evidence: Path) -> None:
    """A rolled-back TPM: the counters agree, only the clock tells."""
    vm = evidence / "vm"
    later = tpm_format.parse_quote(real(vm / "uefi-coldreboot").quote)
    reference = real_reference(vm / "uefi-coldreboot", later)
    checks = judge_real(vm / "direct-custom-notcb", reference)
    assert failed(checks) == {"tpm.clock"}
    assert "rolled back" in checks["tpm.clock"].line


def real_reference(folder: Path, quote: tpm_format.TpmQuoteInfo) -> Snapshot:
    public = (folder / "ak.tpmt_public").read_bytes()
    return Snapshot(
        tee_policy=TeePolicy(sev=SEV),
        tpm_policy=TpmPolicy(reset_count=quote.reset_count, restart_count=quote.restart_count),
        ak_name=(b"\x00\x0b" + sha256(public).digest()).hex(),
        clock=quote.clock,
        version=2,
    )
