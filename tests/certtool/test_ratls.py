"""``ratls generate``, ``fetch``, ``verify``; and what somebody who wants to pass for our machine tries."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import stat
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.attester.platform import TeeQuote
from cosmian_vm.devkit.amd import AmdVendor
from cosmian_vm.devkit.intel import IntelVendor, enclave_report, td_body
from cosmian_vm.devkit.tee import SimulatedTee
from cosmian_vm.evidence.bundle import TeeKind
from cosmian_vm.evidence.snp import parse_evidence, serialise_v1
from cosmian_vm.ra_tls import DICE_OID, OIDS, embedded, make_certificate, report_data_for
from cosmian_vm.verifier.ra_tls import NOT_ALWAYS_TO_BE_HAD, Pins, Vouchers, appraise_certificate

Run = Callable[..., Any]
OID = {kind: oid for oid, kind in OIDS.items()}
KEY = ec.derive_private_key(0x1234567, ec.SECP256R1())
OTHER_KEY = ec.derive_private_key(0x7654321, ec.SECP256R1())


def load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def judge(run: Run, certificate: object, *arguments: object) -> tuple[int, dict[str, Any]]:
    """Exit status and the checks by id (the last of an id)."""
    ran = run("ratls", "verify", "--cert", certificate, "--offline", "--json", *arguments)
    assert ran.err == ""
    data = json.loads(ran.out)
    assert data["trusted"] == (ran.status == 0)
    return ran.status, {check["id"]: check for check in data["checks"]}


def failed(checks: dict[str, Any]) -> set[str]:
    return {name for name, check in checks.items() if check["status"] == "fail"}


def write(folder: Path, pem: bytes, name: str = "some.pem") -> Path:
    (folder / name).write_bytes(pem)
    return folder / name


def signed(
    extensions: list[tuple[str, bytes]],
    *,
    key: ec.EllipticCurvePrivateKey = KEY,
    now: datetime | None = None,
    days: int = 30,
) -> bytes:
    """A self-signed certificate with any extensions, PEM."""
    now = now or datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "vm")])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(now - timedelta(days=90))
        .not_valid_after(now + timedelta(days=days))
    )
    for oid, value in extensions:
        builder = builder.add_extension(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def snp(vendor: AmdVendor, key: ec.EllipticCurvePrivateKey = KEY, extra: bytes = b"", **fields: Any) -> bytes:
    report = vendor.sign_report(report_data=report_data_for(key.public_key(), extra), **fields)
    return serialise_v1(report, vendor.certificates)


# generate


def test_generate_writes_a_key_and_a_certificate_that_carries_its_proof(run: Run, tmp_path: Path) -> None:
    ran = run(
        "ratls", "generate", "--subject", "CN=vm.example.com,O=Example", "--san", "vm.example.com", "--san", "10.0.0.7",
        "--days", "10", "--output", "out",
    )  # fmt: skip
    assert (ran.status, ran.err) == (0, "")
    key_path, path = tmp_path / "out" / "key.ratls.pem", tmp_path / "out" / "cert.ratls.pem"
    assert stat.S_IMODE(key_path.stat().st_mode) == 0o600
    certificate = load(path)
    key = load_pem_private_key(key_path.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.public_key() == certificate.public_key()
    assert certificate.subject.rfc4514_string() == "CN=vm.example.com,O=Example"
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["vm.example.com"]
    assert [str(a) for a in names.get_values_for_type(x509.IPAddress)] == ["10.0.0.7"]
    left = certificate.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=9) < left <= timedelta(days=10)
    (item,) = embedded(certificate)
    assert (item.oid, item.kind) == (OID[TeeKind.SNP], TeeKind.SNP)
    point = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    assert len(point) == 65
    evidence = parse_evidence(item.raw)
    assert evidence.report.report_data == sha256(point).digest() + bytes(32)
    assert len(evidence.certificates) == 3


def test_the_agent_takes_it_as_its_own(run: Run, tmp_path: Path) -> None:
    from cosmian_vm.agent.tls import TlsIdentity
    from cosmian_vm.certificates import leaf_problem

    assert run("ratls", "generate").status == 0
    identity = TlsIdentity(tmp_path / "cert.ratls.pem", tmp_path / "key.ratls.pem")
    assert identity.leaf == load(tmp_path / "cert.ratls.pem").public_bytes(Encoding.DER)
    assert leaf_problem(identity.leaf) is None


def test_extension_is_the_bare_evidence(run: Run, tmp_path: Path) -> None:
    """As 1.3.x writes it: no OCTET STRING around it but the extension's own."""
    assert run("ratls", "generate").status == 0
    extension = load(tmp_path / "cert.ratls.pem").extensions.get_extension_for_oid(
        x509.ObjectIdentifier(OID[TeeKind.SNP])
    )
    assert isinstance(extension.value, x509.UnrecognizedExtension)
    assert extension.value.value[:4] == b"\x03\0\0\0"  # VERSION of the report


@pytest.mark.parametrize("kind", [TeeKind.SGX, TeeKind.TDX])
def test_generate_on_intel(run: Run, machine: Any, intel: IntelVendor, tmp_path: Path, kind: TeeKind) -> None:
    machine.device = _intel_tee(intel, kind)
    assert run("ratls", "generate").status == 0
    (item,) = embedded(load(tmp_path / "cert.ratls.pem"))
    assert (item.oid, item.kind) == (OID[kind], kind)


def _intel_tee(intel: IntelVendor, kind: TeeKind) -> Any:
    class Tee:
        def quote(self, report_data: bytes) -> TeeQuote:
            make = enclave_report if kind is TeeKind.SGX else td_body
            return TeeQuote(raw=intel.quote(make(report_data=report_data)))

    return Tee()


def test_derived_keys_come_out_again(run: Run, machine: Any, tmp_path: Path) -> None:
    def spki(*arguments: str) -> bytes:
        assert run("ratls", "generate", *arguments).status == 0
        return (
            load(tmp_path / "cert.ratls.pem").public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        )

    salted = spki("--tee-secret-key", "0badc0de")
    assert salted == spki("--tee-secret-key", "0BADC0DE")
    assert len({salted, spki("--tee-secret-key", "00"), spki("--tee-secret-key-no-salt"), spki(), spki()}) == 5
    machine.secret = bytes(32)[:-1] + b"\1"
    assert spki("--tee-secret-key", "0badc0de") != salted


def test_extra_data_is_padded(run: Run, tmp_path: Path, amd_root: Path, amd_crl: Path) -> None:
    for size in (0, 1, 31, 32):
        extra = write(tmp_path, bytes(range(1, size + 1)), "extra.bin")
        assert run("ratls", "generate", "--extra-data", extra).status == 0
        (item,) = embedded(load(tmp_path / "cert.ratls.pem"))
        assert parse_evidence(item.raw).report.report_data[32:] == bytes(range(1, size + 1)).ljust(32, b"\0")
        status, checks = judge(
            run, "cert.ratls.pem", "--trust-root", amd_root, "--with", amd_crl, "--extra-data", extra
        )
        assert (status, checks["ratls.extra_data"]["status"]) == (0, "ok")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--extra-data", "long.bin"], "at most 32 bytes"),
        (["--extra-data", "absent.bin"], "absent.bin: cannot be read"),
        (["--tee-secret-key", "xyz"], "--tee-secret-key"),
        (["--subject", "no name"], "RFC 4514"),
        (["--subject", ""], "RFC 4514"),
        (["--san", "not a name"], "neither a DNS name"),
        (["--days", "0"], "1 to 36500 days"),
        (["--days", "99999"], "1 to 36500 days"),
        (["--output", "long.bin/x"], "cannot be made"),
        (["--random-secret-key", "--tee-secret-key-no-salt"], "one of them"),
    ],
)
def test_generate_bad_input(run: Run, tmp_path: Path, arguments: list[str], named: str) -> None:
    write(tmp_path, bytes(33), "long.bin")
    ran = run("ratls", "generate", *arguments)
    assert ran.status == 2
    assert named in ran.err
    assert not list(tmp_path.glob("*.pem"))


def test_generate_without_a_tee(run: Run, machine: Any, tmp_path: Path) -> None:
    machine.device = None
    ran = run("ratls", "generate")
    assert (ran.status, ran.err.count("\n")) == (1, 1)
    assert not list(tmp_path.glob("*.pem"))


def test_generate_on_azure_is_refused(run: Run, machine: Any, vendor: AmdVendor, tmp_path: Path) -> None:
    class Azure:
        def quote(self, report_data: bytes) -> TeeQuote:
            return TeeQuote(raw=vendor.sign_report(), hcl_report=b"HCLA")

    machine.device = Azure()
    ran = run("ratls", "generate")
    assert (ran.status, ran.err.count("\n")) == (1, 1)
    assert "Azure" in ran.err
    assert not list(tmp_path.glob("*.pem"))


def test_generate_believes_no_device_that_quotes_something_else(
    run: Run, machine: Any, vendor: AmdVendor, tmp_path: Path
) -> None:
    machine.device = SimulatedTee(vendor=vendor, frozen=vendor.sign_report())
    assert run("ratls", "generate").status == 1
    assert not list(tmp_path.glob("*.pem"))


# verify


def test_the_honest_case(run: Run, vendor: AmdVendor, amd_root: Path, amd_crl: Path) -> None:
    assert run("ratls", "generate").status == 0
    measurement = vendor_measurement()
    status, checks = judge(
        run, "cert.ratls.pem", "--measurement", measurement, "--trust-root", amd_root, "--with", amd_crl
    )
    assert status == 0
    assert {check["status"] for check in checks.values()} == {"ok"}
    assert list(checks) == [
        "certificate.dates", "certificate.signature", "ratls.platform", "tee.signature", "tee.chain", "tee.revocation",
        "tee.tcb", "tee.debug", "tee.report_data", "ratls.extra_data", "tee.measurement",
    ]  # fmt: skip


def vendor_measurement() -> str:
    from hashlib import sha384

    return sha384(b"simulated firmware").hexdigest()


def test_lines(run: Run, amd_root: Path, amd_crl: Path) -> None:
    assert run("ratls", "generate").status == 0
    ran = run("ratls", "verify", "--cert", "cert.ratls.pem", "--trust-root", amd_root, "--with", amd_crl, "--offline")
    assert (ran.status, ran.err) == (0, "")
    assert "[ WARNING ] tee.measurement: Nothing is pinned" in ran.out
    assert vendor_measurement() in ran.out
    assert "[ WARNING ] Trusting the root" in ran.out
    assert ran.out.splitlines()[-1].startswith("[ OK ] Trusted: ")
    assert "only what you pin tells" in ran.out
    ran = run("ratls", "verify", "--cert", "cert.ratls.pem", "--offline")
    assert ran.status == 1
    assert ran.out.splitlines()[-1].startswith("[ FAIL ] Not trusted: failed: tee.chain")
    assert "--output DIR) and give --with DIR" in ran.out
    assert "--endorsements" not in ran.out, "this command has no such option"


def test_der_and_standard_input(run: Run, vendor: AmdVendor, tmp_path: Path, amd_root: Path, amd_crl: Path) -> None:
    pem = signed([(OID[TeeKind.SNP], snp(vendor))])
    der = write(tmp_path, x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER), "cert.der")
    given = ("--trust-root", amd_root, "--with", amd_crl)
    assert judge(run, der, *given)[0] == 0
    ran = run("ratls", "verify", "--cert", "-", "--offline", *given, stdin=pem)
    assert ran.status == 0


def test_a_folder_of_material(run: Run, vendor: AmdVendor, tmp_path: Path, amd_root: Path) -> None:
    folder = tmp_path / "vouchers"
    folder.mkdir()
    write(folder, vendor.crl(), "a.crl")
    write(
        folder, b"".join(x509.load_der_x509_certificate(d).public_bytes(Encoding.PEM) for d in vendor.certificates[1:])
    )
    bare = vendor.sign_report(report_data=report_data_for(KEY.public_key()))
    path = write(tmp_path, signed([(OID[TeeKind.SNP], bare)]))
    chip = write(tmp_path, vendor.certificates[0], "chip.der")
    assert judge(run, path, "--trust-root", amd_root, "--with", folder)[0] == 1
    assert judge(run, path, "--trust-root", amd_root, "--with", folder, "--with", chip)[0] == 0


def test_what_could_not_be_checked_withholds_trust(run: Run, vendor: AmdVendor, tmp_path: Path, amd_root: Path) -> None:
    path = write(tmp_path, signed([(OID[TeeKind.SNP], snp(vendor))]))
    status, checks = judge(run, path, "--trust-root", amd_root)
    assert (status, checks["tee.revocation"]["status"], failed(checks)) == (1, "skip", set())
    status, checks = judge(run, path, "--trust-root", amd_root, "--allow-unchecked", "tee.revocation")
    assert (status, checks["tee.revocation"]["status"]) == (0, "warning")


def test_a_revoked_chain_is_not_excused(run: Run, vendor: AmdVendor, tmp_path: Path, amd_root: Path) -> None:
    path = write(tmp_path, signed([(OID[TeeKind.SNP], snp(vendor))]))
    crl = write(tmp_path, vendor.crl([vendor.ask]), "revoked.crl")
    status, checks = judge(run, path, "--trust-root", amd_root, "--with", crl, "--allow-unchecked", "tee.revocation")
    assert (status, failed(checks)) == (1, {"tee.revocation"})


def test_only_what_vendors_publish_may_be_left_unchecked(run: Run) -> None:
    from cosmian_vm.certtool.ratls_verify import _UNCHECKED

    assert _UNCHECKED == NOT_ALWAYS_TO_BE_HAD
    ran = run("ratls", "verify", "--cert", "x", "--allow-unchecked", "tee.signature")
    assert ran.status == 2


@pytest.mark.parametrize("kind", [TeeKind.SGX, TeeKind.TDX])
def test_intel(run: Run, intel: IntelVendor, tmp_path: Path, kind: TeeKind) -> None:
    root = write(tmp_path, intel.root.public_bytes(Encoding.PEM), "intel-root.pem")
    collateral = write(tmp_path, intel.collateral(kind.upper()), "collateral.json")
    signer = rsa.generate_private_key(3, 3072)
    signer_pem = write(
        tmp_path, signer.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), "signer.pem"
    )
    mr_signer = sha256(signer.public_key().public_numbers().n.to_bytes(384, "little")).digest()
    bound = report_data_for(KEY.public_key())
    if kind is TeeKind.SGX:
        raw = intel.quote(enclave_report(report_data=bound, mr_enclave=b"\5" * 32, mr_signer=mr_signer))
        pins: tuple[object, ...] = ("--mrenclave", "05" * 32, "--public-signer-key", signer_pem)
        wrong: tuple[object, ...] = ("--mrenclave", "06" * 32)
    else:
        raw = intel.quote(td_body(report_data=bound, mr_td=b"\5" * 48))
        pins, wrong = ("--mrtd", "05" * 48), ("--mrtd", "06" * 48)
    path = write(tmp_path, signed([(OID[kind], raw)], now=intel.now))
    given = ("--trust-root", root, "--at", intel.now.isoformat())
    status, checks = judge(run, path, *given, "--with", collateral, *pins)
    assert (status, checks["tee.measurement"]["status"], failed(checks)) == (0, "ok", set())
    assert failed(judge(run, path, *given, "--with", collateral, *wrong)[1]) == {"tee.measurement"}
    assert failed(judge(run, path, *given, "--with", collateral, "--measurement", "05" * 48)[1]) == {"tee.measurement"}
    status, checks = judge(run, path, *given, *pins)
    assert (status, checks["tee.tcb"]["status"], checks["tee.revocation"]["status"]) == (1, "skip", "skip")
    allowed = ("--allow-unchecked", "tee.tcb", "--allow-unchecked", "tee.revocation")
    assert judge(run, path, *given, *pins, *allowed)[0] == 0


def test_one_pin_of_two_is_said(run: Run, intel: IntelVendor, tmp_path: Path) -> None:
    root = write(tmp_path, intel.root.public_bytes(Encoding.PEM), "intel-root.pem")
    raw = intel.quote(enclave_report(report_data=report_data_for(KEY.public_key()), mr_enclave=b"\5" * 32))
    path = write(tmp_path, signed([(OID[TeeKind.SGX], raw)], now=intel.now))
    checks = judge(run, path, "--trust-root", root, "--at", intel.now.isoformat(), "--mrenclave", "05" * 32)[1]
    assert checks["tee.measurement"]["status"] == "warning"
    assert "MRSIGNER" in checks["tee.measurement"]["line"]


def test_dice_evidence_of_any_kind_is_read(
    run: Run, vendor: AmdVendor, tmp_path: Path, amd_root: Path, amd_crl: Path
) -> None:
    path = write(tmp_path, signed([(DICE_OID, snp(vendor))]))
    assert judge(run, path, "--trust-root", amd_root, "--with", amd_crl)[0] == 0


# attacks


def test_the_key_of_somebody_else(run: Run, vendor: AmdVendor, tmp_path: Path, amd_root: Path, amd_crl: Path) -> None:
    """Evidence taken from a certificate of ours, in a certificate for the attacker's own key."""
    path = write(tmp_path, signed([(OID[TeeKind.SNP], snp(vendor))], key=OTHER_KEY))
    status, checks = judge(run, path, "--trust-root", amd_root, "--with", amd_crl)
    assert (status, failed(checks)) == (1, {"tee.report_data"})


def test_evidence_of_another_platform_under_the_wrong_oid(
    run: Run, vendor: AmdVendor, intel: IntelVendor, tmp_path: Path, amd_root: Path, amd_crl: Path
) -> None:
    root = write(tmp_path, intel.root.public_bytes(Encoding.PEM), "intel-root.pem")
    bound = report_data_for(KEY.public_key())
    evidence = {
        TeeKind.SNP: snp(vendor),
        TeeKind.SGX: intel.quote(enclave_report(report_data=bound)),
        TeeKind.TDX: intel.quote(td_body(report_data=bound)),
    }
    for of, raw in evidence.items():
        for under in evidence:
            path = write(tmp_path, signed([(OID[under], raw)]))
            status, checks = judge(
                run, path, "--trust-root", amd_root, "--trust-root", root, "--with", amd_crl,
                "--allow-unchecked", "tee.tcb", "--allow-unchecked", "tee.revocation",
            )  # fmt: skip
            assert ("ratls.platform" in failed(checks)) == (under is not of), (of, under)
            assert status == 1 or under is of


def test_an_expired_certificate(run: Run, vendor: AmdVendor, tmp_path: Path, amd_root: Path, amd_crl: Path) -> None:
    path = write(tmp_path, signed([(OID[TeeKind.SNP], snp(vendor))], days=-1))
    status, checks = judge(run, path, "--trust-root", amd_root, "--with", amd_crl)
    assert (status, failed(checks)) == (1, {"certificate.dates"})


def test_a_certificate_that_was_changed(
    run: Run, vendor: AmdVendor, tmp_path: Path, amd_root: Path, amd_crl: Path
) -> None:
    der = x509.load_pem_x509_certificate(signed([(OID[TeeKind.SNP], snp(vendor))])).public_bytes(Encoding.DER)
    path = write(tmp_path, der.replace(b"\x0c\x02vm", b"\x0c\x02mv"), "changed.der")
    status, checks = judge(run, path, "--trust-root", amd_root, "--with", amd_crl)
    assert (status, failed(checks)) == (1, {"certificate.signature"})


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_extension_of_10_mb(run: Run, tmp_path: Path, wrapped: bool) -> None:
    pem = signed([(OID[TeeKind.SNP], bytes(10 << 20))])
    raw = pem if wrapped else x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)
    ran = run("ratls", "verify", "--cert", write(tmp_path, raw), "--offline")
    assert (ran.status, ran.err.count("\n"), ran.out) == (2, 1, "")
    assert "larger than" in ran.err


def test_a_second_piece_of_evidence_that_is_forged(
    run: Run, vendor: AmdVendor, intel: IntelVendor, tmp_path: Path, amd_root: Path, amd_crl: Path
) -> None:
    """A genuine one beside it does not help."""
    forged = intel.quote(td_body(report_data=report_data_for(KEY.public_key())))
    path = write(tmp_path, signed([(OID[TeeKind.SNP], snp(vendor)), (OID[TeeKind.TDX], forged)]))
    status, _ = judge(run, path, "--trust-root", amd_root, "--with", amd_crl)
    assert status == 1
    status, _ = judge(run, path, "--trust-root", amd_root, "--with", amd_crl, "--measurement", vendor_measurement())
    assert status == 1


@given(
    st.binary(max_size=200),
    st.sampled_from([*OIDS, DICE_OID]),
    st.sampled_from([b"", b"\3\0\2\0", b"\4\0\2\0\x81\0\0\0"]),
)
def test_any_extension(vendor: AmdVendor, raw: bytes, oid: str, head: bytes) -> None:
    """Whatever stands there: a verdict, never trust, never an error."""
    certificate = x509.load_pem_x509_certificate(signed([(oid, head + raw)]))
    vouchers = Vouchers(amd=vendor.endorsements(), amd_roots=[vendor.ark], intel_roots=[vendor.ark])
    evidence = [(item, vouchers) for item in embedded(certificate)]
    verdict = appraise_certificate(certificate, evidence, Pins(), now=datetime.now(UTC), unchecked=NOT_ALWAYS_TO_BE_HAD)
    assert not verdict.trusted


def test_no_evidence_is_no_trust(run: Run, tmp_path: Path) -> None:
    status, checks = judge(run, write(tmp_path, signed([])))
    assert status == 1
    assert {"ratls.platform", "tee.signature", "tee.report_data"} <= failed(checks)
    status, checks = judge(run, write(tmp_path, signed([(OID[TeeKind.SNP], b"nothing known")])))
    assert {"ratls.platform", "tee.signature", "tee.report_data"} <= failed(checks)


def test_a_debug_machine(run: Run, vendor: AmdVendor, tmp_path: Path, amd_root: Path, amd_crl: Path) -> None:
    path = write(tmp_path, signed([(OID[TeeKind.SNP], snp(vendor, policy=0x30000 | 1 << 19))]))
    status, checks = judge(run, path, "--trust-root", amd_root, "--with", amd_crl)
    assert (status, failed(checks)) == (1, {"tee.debug"})


@pytest.mark.parametrize(
    ("vmpl", "status"), [(0, "ok"), (1, "warning"), (3, "warning"), (4, "fail"), (0xFFFFFFFF, "fail")]
)
def test_privilege_level(
    run: Run, vendor: AmdVendor, tmp_path: Path, amd_root: Path, amd_crl: Path, vmpl: int, status: str
) -> None:
    """1.3.x asks at VMPL 1; the host's own reports are nobody's."""
    path = write(tmp_path, signed([(OID[TeeKind.SNP], snp(vendor, vmpl=vmpl))]))
    done, checks = judge(run, path, "--trust-root", amd_root, "--with", amd_crl)
    assert checks["tee.debug"]["status"] == status
    assert done == (1 if status == "fail" else 0)


def test_damaged_evidence(run: Run, vendor: AmdVendor, tmp_path: Path, amd_root: Path, amd_crl: Path) -> None:
    good = snp(vendor)
    for position in range(0, 0x2A0, 97):
        changed = good[:position] + bytes([good[position] ^ 1]) + good[position + 1 :]
        path = write(tmp_path, signed([(OID[TeeKind.SNP], changed)]))
        assert judge(run, path, "--trust-root", amd_root, "--with", amd_crl)[0] == 1, position
    for size in (0, 1, 47, 48, 1183, 1184 + 3, len(good) - 1):
        path = write(tmp_path, signed([(OID[TeeKind.SNP], good[:size])]))
        assert judge(run, path, "--trust-root", amd_root, "--with", amd_crl)[0] == 1, size


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--measurement", "xy"], "--measurement"),
        (["--measurement", "00" * 47], "48 bytes"),
        (["--mrenclave", "00" * 48], "32 bytes"),
        (["--mrtd", "0"], "--mrtd"),
        (["--public-signer-key", "absent.pem"], "absent.pem"),
        (["--public-signer-key", "cert.ratls.pem"], "public key"),
        (["--extra-data", "absent.bin"], "absent.bin"),
        (["--with", "absent"], "absent"),
        (["--at", "yesterday"], "--at"),
        (["--at", "2025-01-01T00:00:00"], "offset"),
        (["--trust-root", "absent.pem"], "absent.pem"),
        (["--cert", "absent.pem"], "absent.pem"),
        (["--cert", "nonsense.pem"], "nonsense.pem"),
        (["--cert", "empty.pem"], "empty.pem"),
    ],
)
def test_verify_bad_input(run: Run, tmp_path: Path, arguments: list[str], named: str) -> None:
    assert run("ratls", "generate").status == 0
    write(tmp_path, b"-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n", "nonsense.pem")
    write(tmp_path, b"", "empty.pem")
    ran = run("ratls", "verify", "--cert", "cert.ratls.pem", "--offline", *arguments)
    assert (ran.status, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert named in ran.err


def test_a_small_or_private_signer_key(run: Run, tmp_path: Path) -> None:
    small = rsa.generate_private_key(65537, 2048).public_key()
    path = write(tmp_path, small.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert run("ratls", "generate").status == 0
    ran = run("ratls", "verify", "--cert", "cert.ratls.pem", "--offline", "--public-signer-key", path)
    assert "RSA-3072" in ran.err
    ran = run("ratls", "verify", "--cert", "cert.ratls.pem", "--offline", "--public-signer-key", "key.ratls.pem")
    assert "private key" in ran.err


# fetch


@pytest.fixture
def server(run: Run, tmp_path: Path) -> Any:
    """A TLS server on loopback that shows what ``ratls generate`` made; its port."""
    assert run("ratls", "generate", "--output", "served").status == 0
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "served" / "cert.ratls.pem", tmp_path / "served" / "key.ratls.pem")
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(20)

    def serve() -> None:
        try:
            connection, _ = listener.accept()
            connection.settimeout(20)
            with context.wrap_socket(connection, server_side=True) as tls:
                tls.recv(1)
        except OSError:
            pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield listener.getsockname()[1]
    listener.close()
    thread.join(20)


def test_fetch_then_verify(run: Run, server: int, tmp_path: Path, amd_root: Path, amd_crl: Path) -> None:
    ran = run("ratls", "fetch", "--hostname", "localhost", "--port", server, "--output", "new/folder")
    assert (ran.status, ran.err) == (0, "")
    path = tmp_path / "new" / "folder" / "cert.ratls.pem"
    assert load(path) == load(tmp_path / "served" / "cert.ratls.pem")
    assert judge(run, path, "--trust-root", amd_root, "--with", amd_crl)[0] == 0


def test_fetch_from_nobody(run: Run, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    ran = run("ratls", "fetch", "--hostname", "127.0.0.1", "--port", port)
    assert (ran.status, ran.err.count("\n")) == (3, 1)
    assert not list(tmp_path.glob("*.pem"))


def test_fetch_from_a_server_without_tls(run: Run) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(20)

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(20)
            connection.recv(1000)
            connection.sendall(b"HTTP/1.1 400 no\r\n\r\n")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    ran = run("ratls", "fetch", "--hostname", "127.0.0.1", "--port", listener.getsockname()[1], "--timeout", 10)
    assert (ran.status, ran.err.count("\n")) == (3, 1)
    thread.join(20)
    listener.close()


def test_fetch_of_an_extension_of_10_mb(run: Run, tmp_path: Path) -> None:
    """TLS itself refuses it, long before it is all there."""
    from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat

    certificate = write(tmp_path, signed([(OID[TeeKind.SNP], bytes(10 << 20))]), "huge.crt")
    key = write(tmp_path, KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), "huge.key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(20)

    def serve() -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            connection.settimeout(20)
            with context.wrap_socket(connection, server_side=True):
                pass

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    ran = run("ratls", "fetch", "--hostname", "127.0.0.1", "--port", listener.getsockname()[1], "--output", "out")
    assert (ran.status, ran.err.count("\n")) == (3, 1)
    assert not (tmp_path / "out").exists()
    thread.join(20)
    listener.close()


def test_as_of_another_day_nobody_is_asked(run: Run, vendor: AmdVendor, tmp_path: Path, amd_root: Path) -> None:
    """Were the network asked, the test would fail for it."""
    path = write(tmp_path, signed([(OID[TeeKind.SNP], snp(vendor))]))
    ran = run("ratls", "verify", "--cert", path, "--trust-root", amd_root, "--at", datetime.now(UTC).isoformat())
    assert ran.status == 1
    assert "the network is not to be used" in ran.out


def test_a_quote_in_a_buffer_filled_up_with_zeros(run: Run, intel: IntelVendor, tmp_path: Path) -> None:
    """As 1.3.x has TDX quotes: 8192 bytes."""
    root = write(tmp_path, intel.root.public_bytes(Encoding.PEM), "intel-root.pem")
    collateral = write(tmp_path, intel.collateral("TDX"), "collateral.json")
    raw = intel.quote(td_body(report_data=report_data_for(KEY.public_key()))).ljust(8192, b"\0")
    path = write(tmp_path, signed([(OID[TeeKind.TDX], raw)], now=intel.now))
    status, _ = judge(run, path, "--trust-root", root, "--with", collateral, "--at", intel.now.isoformat())
    assert status == 0


def test_make_certificate_for_unknown_evidence() -> None:
    from cosmian_vm.errors import InputError

    with pytest.raises(InputError):
        make_certificate(KEY, bytes(2000), subject="CN=a", sans=(), days=1, now=datetime.now(UTC))
    with pytest.raises(ValueError, match="33 bytes"):
        report_data_for(KEY.public_key(), bytes(33))
