"""Reference values out of evidence that has just been appraised. Pure.

A snapshot's file hashes are the agent's word, over a connection whose key the TEE vouched for. All the rest (TEE, TPM,
boot chain) the verifier takes from the evidence that it appraised itself, and refuses where the agent's own draft says
otherwise: the machine was then rebooted or swapped between the two answers.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

import msgspec

from cosmian_vm.errors import EvidenceFormatError
from cosmian_vm.evidence import ima, tpm
from cosmian_vm.evidence.bundle import Evidence
from cosmian_vm.reference.snapshot import BOOT_PCRS, FORMAT_VERSION, Anchor, Snapshot, TeePolicy, TpmPolicy
from cosmian_vm.reference.tee_values import tee_values
from cosmian_vm.verifier.policy import Policy

__all__ = ["ReferenceValues", "reference_from"]

_COMPARED = ("tpm_policy", "ak_name", "boot_pcrs", "vmpl", "host_data", "rtmrs", "enclave")
"""Values that do not change between the two answers; the first is all that 1.3.x knows."""

_CLOUDS: dict[str | None, Literal["AWS", "Azure", "GCP"]] = {"AWS": "AWS", "Azure": "Azure", "GCP": "GCP"}


@dataclass(frozen=True, slots=True)
class ReferenceValues:
    """The snapshot to keep, and each value in which the agent's draft differs from what was appraised (one line each:
    if there is one, the snapshot must not be kept).
    """

    snapshot: Snapshot
    differences: tuple[str, ...]


def reference_from(
    evidence: Evidence, draft: Snapshot, policy: Policy, *, now: datetime, anchor: Anchor | None = None
) -> ReferenceValues:
    """Join the evidence, appraised and trusted, with the agent's ``draft`` of the snapshot (its file hashes).

    ``now``: aware, written into the snapshot. ``anchor``: who vouches for the AK (Appraisal.anchor). Raises
    EvidenceFormatError if the evidence cannot be read: it was not appraised then.
    """
    if evidence.tee is None:
        raise EvidenceFormatError("TEE quote", "is missing")
    tee = tee_values(evidence.tee, cloud=draft.cloud_type if evidence.api == 1 else evidence.cloud)
    if evidence.api == 1:
        old = _of_version_1(evidence, draft, tee["tee_policy"], policy)
        return ReferenceValues(old, tuple(_differences(draft, old)))
    enclave = "enclave" in tee  # has neither TPM nor IMA list
    without_tpm = (policy.without_tpm or enclave) and evidence.tpm is None
    values = _tpm_values(evidence)
    owners = tuple(sorted(evidence.owners))
    snapshot = msgspec.structs.replace(
        draft,
        cloud_type=_CLOUDS.get(evidence.cloud),
        filehashes=None if without_tpm else draft.filehashes,
        path_bytes={} if without_tpm else draft.path_bytes,
        version=FORMAT_VERSION,
        created=now.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        agent_version=evidence.agent_version or None,
        owners=owners,
        without_tpm=without_tpm,
        anchor=None if evidence.tpm is None else anchor or "operator",
        **tee,
        **values,
    )
    return ReferenceValues(snapshot, tuple(_differences(draft, snapshot)))


def _of_version_1(evidence: Evidence, draft: Snapshot, tee: TeePolicy, policy: Policy) -> Snapshot:
    """What 1.3.x records, and nothing more than whether a TPM is expected: version 1 of the API shows no boot PCRs and
    binds no AK.
    """
    without_tpm = policy.without_tpm and evidence.tpm is None
    counters = None if without_tpm else draft.tpm_policy
    if evidence.tpm is not None:
        quote = tpm.parse_quote(evidence.tpm.quote)
        counters = TpmPolicy(reset_count=quote.reset_count, restart_count=quote.restart_count)
    return Snapshot(
        cloud_type=draft.cloud_type,
        tee_policy=tee,
        tpm_policy=counters,
        filehashes=None if without_tpm else draft.filehashes,
        path_bytes={} if without_tpm else draft.path_bytes,
        without_tpm=without_tpm,
    )


class _TpmValues(msgspec.Struct):
    """The fields of a snapshot that the TPM's quote and the IMA list give; all None without a TPM."""

    tpm_policy: TpmPolicy | None = None
    ak_name: str | None = None
    boot_pcrs: dict[str, str] | None = None
    clock: int | None = None
    ima_policy: tuple[tuple[str, str], ...] | None = None


def _tpm_values(evidence: Evidence) -> dict[str, object]:
    values = _TpmValues()
    if evidence.tpm is not None:
        quote = tpm.parse_quote(evidence.tpm.quote)
        pcrs = evidence.tpm.pcrs
        values.tpm_policy = TpmPolicy(reset_count=quote.reset_count, restart_count=quote.restart_count)
        values.ak_name = tpm.name(evidence.tpm.ak_public).hex()
        values.boot_pcrs = {str(pcr): pcrs[pcr].hex() for pcr in BOOT_PCRS if pcr in pcrs} or None
        values.clock = quote.clock
    if evidence.tpm is not None and evidence.ima_log is not None:  # without a TPM nobody has looked at the list
        found = ima.policy_files(ima.parse_binary(evidence.ima_log))
        values.ima_policy = tuple((ima.format_path(path), digest.hex()) for path, digest in found)
    return msgspec.structs.asdict(values)


def _without_report_data(snapshot: Snapshot) -> object:
    """1.3.x agents write the report_data of a quote of theirs, which is of no value."""
    if snapshot.sev is not None:
        return msgspec.structs.replace(snapshot.sev, report_data=None)
    if snapshot.tdx is not None:
        body: object = msgspec.structs.replace(snapshot.tdx.body, report_data=None)
        return snapshot.tdx.header, body
    if snapshot.sgx is not None:
        return snapshot.sgx.header, msgspec.structs.replace(snapshot.sgx.body, report_data=None)
    return None


def _differences(draft: Snapshot, kept: Snapshot) -> list[str]:
    """What the agent's draft says of the platform, where it says anything, against what was appraised."""
    lines = []
    if _without_report_data(draft) != _without_report_data(kept):
        lines.append("tee_policy: the agent's snapshot describes another TEE guest than its evidence")
    for name in _COMPARED if kept.version >= 2 else _COMPARED[:1]:
        said, appraised = getattr(draft, name), getattr(kept, name)
        if said is not None and said != appraised:
            lines.append(f"{name}: the agent's snapshot says {said}, its evidence {appraised}")
    if draft.filehashes is None and not kept.without_tpm:
        lines.append("filehashes: the agent's snapshot has no file hashes")
    return lines
