"""Appraisal of a TDX and of an SGX quote against its bare cryptography.

Goal: at most 1.3 times the signature checks that a platform's quote takes, with the same library: quote, QE report, PCK
certificate and authority, the two documents of the collateral and their signer, the two CRLs. What depends on
certificates and collateral alone is remembered in a process; the first of a process is shown beside it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _table import row
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.devkit.intel import IntelVendor, enclave_report, td_body
from cosmian_vm.endorsements.intel import parse_chain
from cosmian_vm.endorsements.intel_collateral import IntelCollateral, parse_collateral
from cosmian_vm.evidence.intel_quote import parse_quote
from cosmian_vm.verifier import _dcap
from cosmian_vm.verifier._intel_chain import build_path
from cosmian_vm.verifier.intel import verify_quote
from cosmian_vm.verifier.result import Status

GOAL = 1.3
_ES256 = ec.ECDSA(hashes.SHA256())
_Check = tuple[ec.EllipticCurvePublicKey, bytes, bytes]


def microseconds(work: Callable[[], object]) -> float:
    """Time of one call of ``work``."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e6


def _der(signature: bytes) -> bytes:
    return encode_dss_signature(int.from_bytes(signature[:32]), int.from_bytes(signature[32:]))


def _bare(raw: bytes, collateral: IntelCollateral) -> list[_Check]:
    quote = parse_quote(raw)
    signature = quote.signature
    pck, authority, root = parse_chain(signature.cert_data, "PCK chain")
    signer = collateral.tcb_info_chain[0]
    keys = [certificate.public_key() for certificate in (pck, authority, root, signer)]
    pck_key, authority_key, root_key, signer_key = (k for k in keys if isinstance(k, ec.EllipticCurvePublicKey))
    own = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), b"\x04" + signature.attestation_key)
    checks = [
        (own, _der(signature.signature), quote.signed),
        (pck_key, _der(signature.qe_report_signature), signature.qe_report.raw),
        (authority_key, pck.signature, pck.tbs_certificate_bytes),
        (root_key, authority.signature, authority.tbs_certificate_bytes),
        (root_key, root.signature, root.tbs_certificate_bytes),
        (root_key, signer.signature, signer.tbs_certificate_bytes),
        (signer_key, _der(collateral.tcb_info_signature), collateral.tcb_info_text),
        (signer_key, _der(collateral.qe_identity_signature), collateral.qe_identity_text),
        (authority_key, collateral.pck_crl.signature, collateral.pck_crl.tbs_certlist_bytes),
        (root_key, collateral.root_crl.signature, collateral.root_crl.tbs_certlist_bytes),
    ]
    for key, made, message in checks:
        key.verify(made, message, _ES256)
    return checks


def measure(name: str, raw: bytes, tee: str, vendor: IntelVendor, runs: int) -> None:
    """Print one kind's rows."""
    collateral = parse_collateral(vendor.collateral(tee))
    checks = _bare(raw, collateral)

    def bare() -> None:
        for key, made, message in checks:
            key.verify(made, message, _ES256)

    def appraise() -> None:
        found = verify_quote(parse_quote(raw), collateral, (vendor.root,), vendor.now)
        if any(check.status is not Status.OK for check in found):
            sys.exit(f"bench_intel: the appraisal fails: {found}")

    strangers = []
    for _ in range(runs // 10):  # another platform, as far as the verifier remembers any
        _dcap._remembered.clear()
        strangers.append(microseconds(appraise))
    cold = strangers[0]
    path = build_path(parse_chain(parse_quote(raw).signature.cert_data, "PCK chain"), (vendor.root,))[0]
    if path is None:
        sys.exit("bench_intel: there is no chain")

    root = path.root.public_bytes(Encoding.DER)

    def library() -> None:
        _dcap._ask(parse_quote(raw), root, collateral, int(vendor.now.timestamp()))

    runs_of_each = [(microseconds(bare), microseconds(library), microseconds(appraise)) for _ in range(runs)]
    bare_median, library_median, our_median = (statistics.median(times) for times in zip(*runs_of_each, strict=True))
    ratio = our_median / bare_median
    row(f"{name}: {len(checks)} P-256 verifications", bare_median / 1000, "ms", None, True)
    row(f"{name}: dcap-qvl alone", library_median / 1000, "ms", None, True)
    row(f"{name}: appraisal, the first of a process", cold / 1000, "ms", None, True)
    row(f"{name}: appraisal, platform not seen before", statistics.median(strangers) / 1000, "ms", None, True)
    row(f"{name}: appraisal", our_median / 1000, "ms", None, True)
    row(f"{name}: appraisal, to dcap-qvl alone", our_median / library_median, "x", None, True)
    row(f"{name}: appraisal, to bare", ratio, "x", f"<= {GOAL}", ratio <= GOAL)


def main(arguments: list[str] | None = None) -> None:
    """Print the table's rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=500, help="runs, of which the medians are taken")
    options = parser.parse_args(arguments)
    vendor = IntelVendor.create()
    measure("TDX", vendor.quote(td_body(mr_td=b"\x01" * 48)), "TDX", vendor, options.runs)
    measure("SGX", vendor.quote(enclave_report(mr_enclave=b"\x01" * 32)), "SGX", vendor, options.runs)


if __name__ == "__main__":
    main()
