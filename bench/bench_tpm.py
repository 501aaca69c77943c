"""What the appraisal of a TPM quote costs beside one bare P-256 verification of the same signature.

Each quote is new to the verifier (its parsers keep the last ones), the AK is known, as it is from the second quote of a
machine on; the first one is shown too. Both sides take turns in the same process, many quotes at a time; medians.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from _table import row
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from cosmian_vm.devkit.soft_tpm import SoftTpm
from cosmian_vm.evidence.bundle import V2_PCRS, TpmEvidence
from cosmian_vm.evidence.tpm import name, parse_signature
from cosmian_vm.reference.snapshot import SevPolicy, Snapshot, TeePolicy, TpmPolicy
from cosmian_vm.verifier.policy import Policy
from cosmian_vm.verifier.result import Check, Status
from cosmian_vm.verifier.tpm import appraise_tpm, load_ak

QUOTES = 300
RUNS = 21
GOAL = 1.25
BINDING = bytes(32)
_T = TypeVar("_T")


def collect(device: SoftTpm) -> TpmEvidence:
    """A new quote of the same TPM."""
    quote = device.quote(BINDING, V2_PCRS)
    return TpmEvidence(quote=quote.quote, signature=quote.signature, ak_public=quote.ak_public, pcrs=quote.pcrs)


def reference_of(device: SoftTpm) -> Snapshot:
    """What a snapshot of this TPM says."""
    zero = {size: "00" * size for size in (16, 32, 48, 64)}
    sev = SevPolicy(
        measurement=zero[48],
        report_data=zero[64],
        family_id=zero[16],
        image_id=zero[16],
        guest_svn=0,
        id_key_digest=zero[48],
        author_key_digest=zero[48],
        policy=0x30000,
        report_id=zero[32],
        report_id_ma=zero[32],
    )
    return Snapshot(
        tee_policy=TeePolicy(sev=sev),
        tpm_policy=TpmPolicy(reset_count=device.reset_count, restart_count=device.restart_count),
        ak_name=name(device.ak_public()).hex(),
        anchor="operator",
        clock=device.clock,
        version=2,
    )


def seconds(work: Callable[[], object]) -> float:
    """Processor time of one call: what else runs on the machine does not count."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


def all_of(work: Callable[[_T], object], items: Sequence[_T]) -> None:
    """Do it for each."""
    for item in items:
        work(item)


def main() -> None:
    """Measure and print the rows."""
    device = SoftTpm()
    reference = reference_of(device)
    public = device.key.public_key()
    algorithm = ec.ECDSA(hashes.SHA256())
    policy, expected = Policy(), frozenset(V2_PCRS)

    def appraise(evidence: TpmEvidence) -> list[Check]:
        return appraise_tpm(
            evidence, binding=BINDING, expected_pcrs=expected, reference=reference, policy=policy, api=2
        )

    checks = appraise(collect(device))
    if any(check.status in (Status.FAIL, Status.SKIP) for check in checks):
        raise SystemExit(f"an honest quote fails: {checks}")

    def bare(item: tuple[bytes, bytes]) -> None:
        public.verify(item[0], item[1], algorithm)

    ratios, bares, fulls, firsts = [], [], [], []
    for _ in range(RUNS):
        quotes = [collect(device) for _ in range(QUOTES)]
        load_ak.cache_clear()
        firsts.append(seconds(partial(appraise, quotes[0])))
        raw = []
        for quote in quotes:
            signature = parse_signature(quote.signature)
            r, s = (int.from_bytes(value, "big") for value in (signature.r, signature.s))
            raw.append((encode_dss_signature(r, s), quote.quote))
        bares.append(seconds(partial(all_of, bare, raw)) / QUOTES)
        fulls.append(seconds(partial(all_of, appraise, quotes)) / QUOTES)
        ratios.append(fulls[-1] / bares[-1])
    ratio = statistics.median(ratios)
    row("TPM quote: one bare P-256 verification", statistics.median(bares) * 1e6, "us", None, True)
    row("TPM quote: appraisal", statistics.median(fulls) * 1e6, "us", None, True)
    row("TPM quote: first of a machine (AK not known)", statistics.median(firsts) * 1e6, "us", None, True)
    row("TPM quote: appraisal / bare verification", ratio, "x", f"<= {GOAL}", ratio <= GOAL)


if __name__ == "__main__":
    main()
