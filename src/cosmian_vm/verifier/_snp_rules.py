"""What a policy asks of an SNP guest and of the platform under it, beyond the snapshot. Pure.

Source: AMD 56860, tables "Guest Policy Structure" and "PLATFORM_INFO Field".
"""

from __future__ import annotations

from cosmian_vm.evidence.snp import SnpReport
from cosmian_vm.verifier.policy import PLATFORM_INFO_BITS, SnpRules

__all__ = ["launch_problems", "platform_changes", "platform_problems"]


def launch_problems(report: SnpReport, rules: SnpRules) -> list[str]:
    """In what the guest was launched otherwise than the policy allows."""
    problems = []
    abi = (report.policy >> 8 & 0xFF, report.policy & 0xFF)
    if rules.minimum_abi is not None and abi < rules.minimum_abi:
        least = f"{rules.minimum_abi[0]}.{rules.minimum_abi[1]}"
        problems.append(f"the guest policy accepts firmware of ABI {report.policy_abi}, least allowed is {least}")
    if rules.smt is False and report.policy_smt:
        problems.append("the guest policy allows simultaneous multithreading")
    if rules.single_socket and not report.policy_single_socket:
        problems.append("the guest policy does not bind it to a single socket")
    if rules.host_data is not None and report.host_data != rules.host_data:
        problems.append(f"host_data is {report.host_data.hex()}, not {rules.host_data.hex()}")
    for name, allowed in (("id_key_digest", rules.id_key_digests), ("author_key_digest", rules.author_key_digests)):
        value: bytes = getattr(report, name)
        if allowed and value not in allowed:
            problems.append(f"{name} {value.hex()} is none of the policy's")
    if rules.author_key_digests and not report.author_key_en:
        problems.append("no author key signed the ID block")
    return problems


def platform_problems(report: SnpReport, rules: SnpRules) -> list[str]:
    """In what state of the platform the policy forbids."""
    have = {name for name, bit in PLATFORM_INFO_BITS.items() if report.platform_info >> bit & 1}
    return [
        *(f"platform_info: {name} is not set" for name in sorted(rules.platform_set - have)),
        *(f"platform_info: {name} is set" for name in sorted(rules.platform_clear & have)),
    ]


def platform_changes(report: SnpReport, then: int) -> list[str]:
    """What changed in PLATFORM_INFO since ``then``, one bit a line."""
    names = {bit: name for name, bit in PLATFORM_INFO_BITS.items()}
    changed = report.platform_info ^ then
    return [
        f"platform_info: {names.get(bit, f'bit {bit}')} is {report.platform_info >> bit & 1}, it was {then >> bit & 1}"
        for bit in range(64)
        if changed >> bit & 1
    ]
