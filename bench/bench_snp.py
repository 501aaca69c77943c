"""Appraisal of an SNP report against its bare cryptography.

Goal: at most 1.2 times one ECDSA P-384 and one RSA-4096 verification. What depends on certificates alone is remembered
in a process: ARK, ASK, CRL, and the chip certificate of a machine that was seen before (a monitor's daily bread). A
machine that was never seen costs loading and verifying its certificate too, and the first of a process everything: both
are shown beside it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _table import row
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.evidence.snp import parse_evidence, serialise_v1
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.result import Status
from cosmian_vm.verifier.snp import appraise_snp

GOAL = 1.2
KEYS = Path(__file__).resolve().parent.parent / "tests" / "data" / "devkit_amd"


def microseconds(work: Callable[[], object]) -> float:
    """Time of one call of ``work``."""
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e6


def main(arguments: list[str] | None = None) -> None:
    """Print the table's rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--strangers", type=int, default=100, help="machines never seen before")
    parser.add_argument("--runs", type=int, default=2000, help="runs, of which the medians are taken")
    options = parser.parse_args(arguments)

    now = datetime.now(UTC)
    vendor = AmdVendor.create(keys=VendorKeys.load(KEYS), now=now)
    raw = vendor.sign_report(report_data=bytes(64))
    beside = vendor.endorsements()
    others = beside.certificates[1:]  # the chip's comes with the report
    endorsements = msgspec.structs.replace(beside, certificates=others)
    raw = serialise_v1(raw, vendor.certificates)
    strangers = []
    for _ in range(options.strangers):
        chip = vendor.new_chip()
        strangers.append(serialise_v1(chip.sign_report(report_data=bytes(64)), chip.certificates))
    report = parse_evidence(raw).report
    chip_key, ask_key = vendor.chip.public_key(), vendor.ask.public_key()
    if not isinstance(chip_key, ec.EllipticCurvePublicKey) or not isinstance(ask_key, rsa.RSAPublicKey):
        raise TypeError("the simulated vendor has other keys than AMD")
    signature = encode_dss_signature(report.r, report.s)
    signed, chip_signature, chip_tbs = report.signed, vendor.chip.signature, vendor.chip.tbs_certificate_bytes
    pss = padding.PSS(padding.MGF1(hashes.SHA384()), 48)

    def bare() -> None:
        try:
            chip_key.verify(signature, signed, ec.ECDSA(hashes.SHA384()))
            ask_key.verify(chip_signature, chip_tbs, pss, hashes.SHA384())
        except InvalidSignature:
            sys.exit("bench_snp: the bare signatures do not verify")

    def appraise(report: bytes) -> None:
        checks = appraise_snp(
            parse_evidence(report),
            endorsements,
            report_data=bytes(64),
            reference=None,
            policy=Policy(),
            roots=(vendor.ark,),
            now=now,
        )
        if any(check.status is Status.FAIL for check in checks):
            sys.exit("bench_snp: the appraisal fails")

    cold = microseconds(lambda: appraise(raw))
    # One of each in turn, so that whatever else the machine does meets both alike.
    pairs = [(microseconds(bare), microseconds(lambda: appraise(raw))) for _ in range(options.runs)]
    bare_median, our_median = (statistics.median(times) for times in zip(*pairs, strict=True))
    new = [(microseconds(bare), microseconds(lambda r=r: appraise(r))) for r in strangers]  # type: ignore[misc] # a default binds r
    new_bare, new_ours = (statistics.median(times) for times in zip(*new, strict=True))
    ratio = our_median / bare_median
    row("SNP: one P-384 and one RSA-4096 verification", bare_median, "us", None, True)
    row("SNP: appraisal, the first of a process", cold, "us", None, True)
    row("SNP: appraisal of a machine never seen, to bare", new_ours / new_bare, "x", None, True)
    row("SNP: appraisal of a machine", our_median, "us", None, True)
    row("SNP: appraisal of a machine, to bare", ratio, "x", f"<= {GOAL}", ratio <= GOAL)


if __name__ == "__main__":
    main()
