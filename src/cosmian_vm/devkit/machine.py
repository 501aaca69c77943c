"""A whole simulated machine in one process, without sockets or files: what tests of the verifier appraise.

Everything is in the real formats and honest until something is changed::

    machine = Machine.create(vendor)
    reference = machine.snapshot()
    machine.run("/usr/bin/new", b"unknown program")
    machine.tpm.attributes &= ~ObjectAttributes.RESTRICTED
    evidence = machine.evidence(nonce)

``tee``, ``tpm``, ``ima``, ``boot`` may each be changed or set to None (a machine that has none, or denies it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

from cryptography import x509

from cosmian_vm.attester.platform import Platform, TeeDevice, TeeQuote
from cosmian_vm.certificates import SelfSigned, leaf_der, self_signed, spki_sha256
from cosmian_vm.devkit.amd import AmdVendor
from cosmian_vm.devkit.boot_log import BootEvent, default_boot, extend_boot, serialise_boot
from cosmian_vm.devkit.ima import IMA_POLICY_PATH, SoftwareIma
from cosmian_vm.devkit.intel_tee import SimulatedTd
from cosmian_vm.devkit.soft_tpm import SoftTpm
from cosmian_vm.devkit.tee import SimulatedTee
from cosmian_vm.endorsements.amd import AmdEndorsements, collect
from cosmian_vm.evidence.binding import compute_binding, report_data, report_data_v1
from cosmian_vm.evidence.bundle import V2_PCRS, ApplicationPeer, Evidence, TlsPeer, TpmEvidence
from cosmian_vm.evidence.ima import parse_binary, policy_files, serialise_binary
from cosmian_vm.evidence.snp import parse_report, serialise_v1
from cosmian_vm.evidence.tpm import name, parse_quote
from cosmian_vm.reference.build_reference import FORMAT, VERSION, BuildReference, Image, Launch
from cosmian_vm.reference.snapshot import (
    BOOT_PCRS,
    FORMAT_VERSION,
    Snapshot,
    TpmPolicy,
    file_entries,
)
from cosmian_vm.reference.tee_values import tee_values

__all__ = ["DEFAULT_FILES", "PREDICTED_PCRS", "Machine", "MemoryLogs"]

DEFAULT_FILES: Mapping[str, bytes] = {
    "/usr/lib/systemd/systemd": b"init",
    IMA_POLICY_PATH: b"measure func=BPRM_CHECK mask=MAY_EXEC\n",
    "/usr/bin/bash": b"shell",
    "/usr/bin/ls": b"list",
    "/usr/bin/a program with spaces": b"spaces",
    "/opt/app/server": b"application",
}
"""The file system of a machine as it is created: path and content. The first five have run."""

_HAVE_RUN = 5

PREDICTED_PCRS = (4, 9, 11, 12, 13)
"""What ``build_reference`` has values of, as image/build has."""


@dataclass(kw_only=True)
class MemoryLogs:
    """The kernel's lists of a Machine, as the Logs protocol has them. Set a value to forge a list, None to deny it."""

    machine: Machine

    def ima_binary(self) -> bytes | None:
        """binary_runtime_measurements."""
        return self.machine.ima_log()

    def ima_ascii(self) -> bytes | None:
        """ascii_runtime_measurements."""
        return None if self.machine.ima is None else self.machine.ima.ascii()

    def boot_event_log(self) -> bytes | None:
        """binary_bios_measurements."""
        return self.machine.boot_event_log()

    def cc_event_log(self) -> bytes | None:
        """The CCEL of a TD."""
        return self.machine.cc_event_log()


@dataclass(kw_only=True)
class Machine:
    """A simulated confidential VM; see the head of this module.

    ``files``: path to content of what is on disk. ``forged_ima_log``, ``forged_boot_log``: handed out instead of the
    true lists where set. ``device``: another TEE than ``tee``, which is then left alone.
    """

    vendor: AmdVendor
    instance: bytes
    tls: SelfSigned
    tee: SimulatedTee | None
    tpm: SoftTpm | None
    ima: SoftwareIma | None
    boot: list[BootEvent]
    files: dict[str, bytes] = field(default_factory=dict)
    owners: tuple[str, ...] = ()
    cloud: str | None = None
    forged_ima_log: bytes | None = None
    forged_boot_log: bytes | None = None
    device: TeeDevice | None = None

    @classmethod
    def create(
        cls,
        vendor: AmdVendor,
        *,
        instance: bytes = b"first",
        files: Mapping[str, bytes] | None = None,
        template: str = "ima-ng",
        now: datetime | None = None,
    ) -> Machine:
        """A machine that has booted and run its first programs.

        ``instance`` tells this guest from others of the same image: its report_id and its TPM come from it.
        ``vendor`` made its processor: load a stored one, creating one takes seconds.
        """
        tpm = SoftTpm(seed=instance)
        machine = cls(
            vendor=vendor,
            instance=instance,
            tls=self_signed("simulated-vm", ["127.0.0.1"], now=now or datetime.now(UTC)),
            tee=SimulatedTee.launch(vendor, instance=instance),
            tpm=tpm,
            ima=SoftwareIma(tpm, template=template),
            boot=default_boot(),
            files=dict(DEFAULT_FILES if files is None else files),
        )
        machine._start()
        return machine

    def _start(self) -> None:
        assert self.tpm is not None  # noqa: S101 - power_on and create have just made them
        assert self.ima is not None  # noqa: S101
        extend_boot(self.boot, self.tpm)
        self.ima.boot()
        for path in list(self.files)[:_HAVE_RUN]:
            self.run(path)

    @property
    def leaf(self) -> bytes:
        """The agent's TLS certificate, DER."""
        return leaf_der(self.tls.certificate_pem)

    @property
    def roots(self) -> tuple[x509.Certificate, ...]:
        """The vendor's root: what ``--trust-root`` names."""
        return (self.vendor.ark,)

    def run(self, path: str, content: bytes | None = None) -> None:
        """Run a program: the kernel measures it. ``content`` writes it to disk first."""
        if content is not None:
            self.files[path] = content
        if self.ima is not None:
            self.ima.measure(path, self.files[path])

    def reboot(self, *, new_instance: bytes | None = None, boot: Sequence[BootEvent] | None = None) -> None:
        """A power cycle: PCRs and list start anew. ``new_instance``: the host launches the guest anew, so its
        report_id changes; the TPM stays. ``boot``: another boot chain.
        """
        if self.tpm is None or self.ima is None:
            raise ValueError("a machine without TPM or IMA has nothing that a reboot would change")
        if new_instance is not None and self.tee is not None:
            self.tee = SimulatedTee.launch(self.vendor, instance=new_instance)
        if boot is not None:
            self.boot = list(boot)
        self.tpm.power_cycle()
        self.ima.entries.clear()
        self._start()

    def ima_log(self) -> bytes | None:
        """The binary list that is handed out."""
        if self.ima is None:
            return None
        return self.ima.binary() if self.forged_ima_log is None else self.forged_ima_log

    def boot_event_log(self) -> bytes | None:
        """The event log that is handed out."""
        if self.tpm is None:
            return None
        return serialise_boot(self.boot) if self.forged_boot_log is None else self.forged_boot_log

    def platform(self) -> Platform:
        """The same machine as an agent sees it."""
        return Platform(tee=self.device or self.tee, tpm=self.tpm, logs=MemoryLogs(machine=self), cloud=self.cloud)

    def evidence(
        self,
        nonce: bytes,
        tls_leaf: bytes | None = None,
        *,
        api: int = 2,
        ima_from: int = 0,
        trusted: bool | None = None,
        applications: Sequence[ApplicationPeer] = (),
    ) -> Evidence:
        """What a client gathers from this machine's agent.

        ``tls_leaf``: certificate (DER) of the connection that the *machine* binds to, its own where None; the evidence
        always names the machine's own as that of the connection. ``trusted``: outcome of the CA checks, None with
        --allow-insecure-tls.
        """
        bound_to = self.leaf if tls_leaf is None else tls_leaf
        ak = None if self.tpm is None else self.tpm.ak_public()
        binding = compute_binding(nonce, spki_sha256(bound_to), ak) if api == 2 else b""
        tpm = None if self.tpm is None else self._tpm_evidence(self.tpm, nonce if api == 1 else binding, api)
        quote = self._tee_quote(report_data(nonce, binding) if api == 2 else report_data_v1(nonce, bound_to))
        return Evidence(
            api=api,
            tee=None if quote is None else quote.raw if api == 2 else serialise_v1(quote.raw, quote.endorsements),
            tpm=tpm,
            ima_log=_from_entry(self.ima_log(), ima_from),
            boot_event_log=self.boot_event_log() if api == 2 else None,
            tls=TlsPeer(leaf=self.leaf, trusted=trusted),
            endorsements=() if quote is None or api == 1 else quote.endorsements,
            ima_from=ima_from,
            owners=self.owners if api == 2 else (),
            cloud=self.cloud,
            agent_version="devkit",
            applications=tuple(applications),
            hcl_report=None if quote is None else quote.hcl_report,
            cc_event_log=self.cc_event_log(),
            svsm=None if quote is None else quote.svsm,
        )

    def cc_event_log(self) -> bytes | None:
        """The CCEL of a TD, None on another machine."""
        return self.device.cc_event_log() if isinstance(self.device, SimulatedTd) else None

    def endorsements(self, evidence: Evidence) -> AmdEndorsements:
        """What a client makes of the certificates and CRLs that came along."""
        return collect(evidence.endorsements)

    def snapshot(self) -> Snapshot:
        """Reference values of this machine as it is now, from its own knowledge and not from evidence."""
        tee = self.device or self.tee or SimulatedTee.launch(self.vendor, instance=self.instance)
        values: dict[str, Any] = {
            **tee_values(tee.quote(bytes(64)).raw, cloud=self.cloud),
            "version": FORMAT_VERSION,
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "agent_version": "devkit",
            "owners": self.owners,
            "without_tpm": self.tpm is None,
        }
        if self.tpm is not None:
            values |= self._tpm_values(self.tpm)
        return Snapshot(**values)

    def build_reference(self) -> BuildReference:
        """What the build of this machine's image would have written, if it is as it was created."""
        tee = self.tee or SimulatedTee.launch(self.vendor, instance=self.instance)
        tpm = self.tpm or SoftTpm(seed=self.instance)
        launch = Launch(
            measurement=parse_report(tee.quote(bytes(64)).raw).measurement.hex(),
            ovmf_sha256=sha256(b"simulated firmware").hexdigest(),
            vcpus=2,
            vcpu_type="EPYC-Milan",
            vcpu_signature=0x00A00F11,
            guest_features=1,
            vmm="QEMU",
        )
        entries, exact = file_entries(
            sorted((path.encode(), sha256(content).digest()) for path, content in self.files.items())
        )
        policy = [(path, digest) for path, digest in entries if path == IMA_POLICY_PATH]
        values: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "created": "2026-01-01T00:00:00Z",
            "image": Image(name="simulated.img", size=4096, sha256=sha256(b"simulated image").hexdigest()),
            "hash_algorithm": "sha256",
            "filehashes": entries,
            "path_bytes": exact,
            "ima_policy": tuple(policy),
            "pcrs": {str(pcr): value.hex() for pcr, value in tpm.read_pcrs(PREDICTED_PCRS).items()},
            "launches": (launch,),
            "left_out": (),
        }
        return BuildReference(**values)

    def _tpm_values(self, tpm: SoftTpm) -> dict[str, Any]:
        info = parse_quote(tpm.quote(b"", V2_PCRS).quote)
        values: dict[str, Any] = {
            "tpm_policy": TpmPolicy(reset_count=info.reset_count, restart_count=info.restart_count),
            "clock": info.clock,
            "ak_name": name(tpm.ak_public()).hex(),
            "anchor": "operator",
            "boot_pcrs": {str(pcr): value.hex() for pcr, value in tpm.read_pcrs(BOOT_PCRS).items()},
        }
        if self.ima is not None:
            on_disk = {path.encode(): sha256(content).digest() for path, content in self.files.items()}
            entries, exact = file_entries(sorted(on_disk.items()))
            policy, _ = file_entries(policy_files(self.ima.entries))
            values |= {
                "filehashes": entries,
                "path_bytes": exact,
                "hash_algorithm": "sha256",
                "ima_policy": policy,
            }
        return values

    def _tpm_evidence(self, tpm: SoftTpm, qualifying_data: bytes, api: int) -> TpmEvidence:
        entries = parse_binary(self.ima_log() or b"")
        pcrs = V2_PCRS if api == 2 else ((entries[0].pcr if entries else 10),)
        quote = tpm.quote(qualifying_data, pcrs)
        return TpmEvidence(
            quote=quote.quote,
            signature=quote.signature,
            ak_public=quote.ak_public,
            pcrs=quote.pcrs if api == 2 else {},
            ak_certificate=tpm.ak_certificate() if api == 2 else None,
        )

    def _tee_quote(self, data: bytes) -> TeeQuote | None:
        tee = self.device or self.tee
        return None if tee is None else tee.quote(data)


def _from_entry(log: bytes | None, first: int) -> bytes | None:
    """The list without its first ``first`` entries."""
    if log is None or first == 0:
        return log
    return serialise_binary(parse_binary(log)[first:])
