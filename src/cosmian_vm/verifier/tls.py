"""The wire: the agent's certificate, and whether the applications serve the same one. Pure."""

from __future__ import annotations

from cosmian_vm.evidence.bundle import Evidence
from cosmian_vm.verifier.result import Check, fail, ok, warning

__all__ = ["check_tls"]


def check_tls(evidence: Evidence) -> list[Check]:
    """``tls.certificate`` and one ``tls.application`` for each application."""
    tls = evidence.tls
    if tls.trusted is None:
        checks = [
            warning(
                "tls.certificate",
                "The certificate's name and issuer were not checked (--allow-insecure-tls): that this is your machine "
                "rests on the snapshot alone",
            )
        ]
    elif tls.trusted:
        checks = [ok("tls.certificate", "The certificate is valid for this name")]
    else:
        checks = [
            fail(
                "tls.certificate",
                f"{tls.problem or 'the certificate is not trusted'}; if it is the agent's own self-signed one, add "
                "--allow-insecure-tls",
            )
        ]
    for peer in evidence.applications:
        if peer.leaf is None:
            checks.append(fail("tls.application", f"{peer.address}: no certificate to be had: {peer.problem}"))
        elif peer.leaf != tls.leaf:
            checks.append(
                fail(
                    "tls.application",
                    f"{peer.address} serves another certificate than the verified agent: it may run on another machine",
                )
            )
        else:
            checks.append(ok("tls.application", f"{peer.address} serves the certificate of the verified agent"))
    return checks
