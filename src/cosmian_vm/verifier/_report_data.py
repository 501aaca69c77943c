"""``tee.report_data``: what the TEE's report is bound to. Pure."""

from __future__ import annotations

from cosmian_vm.evidence.binding import NONCE_SIZE
from cosmian_vm.verifier.result import Check, fail, ok, skip

__all__ = ["check_report_data"]


def check_report_data(have: bytes, expected: bytes | None) -> Check:
    """``have``: the report's 64 bytes. ``expected``: nonce and binding of this connection; None: nothing is known."""
    if expected is None:
        return skip("tee.report_data", "Nothing is known that the report should be bound to")
    if have == expected:
        return ok("tee.report_data", "The report answers this request and is bound to this connection")
    if have[:NONCE_SIZE] != expected[:NONCE_SIZE]:
        line = "The report does not answer this request: it was made earlier, or for somebody else (replay)"
    else:
        line = "The report is bound to another TLS key or another TPM than this connection's: somebody is in between"
    return fail("tee.report_data", line)
