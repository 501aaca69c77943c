"""Print the reference values of an image: what a verification will find, computed and not seen.

``_reference.py TREE UKI IMAGE --name NAME [--ovmf FILE --vcpus N[,N] --vcpu-type TYPE]``.
TREE: the files that the image was made of. UKI: its kernel as one EFI program. The date is SOURCE_DATE_EPOCH's.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

from cosmian_vm.attester.platform import FileScope
from cosmian_vm.errors import CosmianVmError, InputError
from cosmian_vm.reference._files import file_entries
from cosmian_vm.reference.build_reference import FORMAT, VERSION, BuildReference, Image, Launch, serialise
from cosmian_vm.reference.filesystem import walk_and_hash
from cosmian_vm.reference.uki import PHASES, predict, sections

IMA_POLICY = b"/etc/ima/ima-policy"
PHASE_UNITS = ("systemd-pcrphase-sysinit.service", "systemd-pcrphase.service")
SNP_ACTIVE = 0x1
"""SEV_FEATURES as QEMU sets them: SEV-SNP, and nothing beside it."""
# What the image does not decide. The rest is left out only where it cannot be computed.
OF_THE_PLATFORM = (
    ("PCR 0, 1, 2, 3, 7", "of the firmware, its settings and its Secure Boot keys, which the image does not bring"),
    ("PCR 5", "of the partition table too, as the firmware finds it on a disk that may be larger than the image"),
    ("PCR 6, 8, 14, 15", "not extended by this image; what the platform puts there is not known"),
)


def options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="image/build", usage="image/build --help")
    for name in ("tree", "uki", "image"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--ovmf", type=Path)
    parser.add_argument("--vcpus")
    parser.add_argument("--vcpu-type")
    chosen = parser.parse_args()
    if len({value is None for value in (chosen.ovmf, chosen.vcpus, chosen.vcpu_type)}) != 1:
        parser.error("--ovmf, --vcpus and --vcpu-type belong together: give all three")
    return chosen


def boot_phases(tree: Path) -> tuple[str, ...] | None:
    """The words for PCR 11, where both units of systemd-pcrphase are started at boot; else None."""
    wanted = tree / "usr/lib/systemd/system/sysinit.target.wants"
    started = all((wanted / unit).is_symlink() for unit in PHASE_UNITS)
    return PHASES if started and (tree / "usr/lib/systemd/systemd-pcrphase").is_file() else None


def launches(chosen: argparse.Namespace) -> tuple[Launch, ...]:
    """A launch measurement for each number of processors."""
    from sevsnpmeasure import guest, ovmf, vcpu_types
    from sevsnpmeasure.sev_mode import SevMode

    signature = vcpu_types.CPU_SIGS.get(chosen.vcpu_type)
    if signature is None:
        raise InputError(f"--vcpu-type {chosen.vcpu_type}: unknown; known are {', '.join(vcpu_types.CPU_SIGS)}")
    try:
        counts = sorted({int(count) for count in chosen.vcpus.split(",")})
    except ValueError as exc:
        raise InputError(f"--vcpus {chosen.vcpus}: expected are numbers, as 4 or 2,4,8") from exc
    if not 1 <= counts[0] <= counts[-1] <= 4096:
        raise InputError(f"--vcpus {chosen.vcpus}: expected are numbers from 1 to 4096")
    try:
        firmware = hashlib.sha256(chosen.ovmf.read_bytes()).hexdigest()
        if not ovmf.OVMF(str(chosen.ovmf)).metadata_items():
            raise InputError(f"--ovmf {chosen.ovmf}: this firmware was not built for SEV-SNP (it has no SEV metadata)")
        found = []
        for count in counts:
            digest = guest.calc_launch_digest(
                SevMode.SEV_SNP, count, signature, str(chosen.ovmf), "", "", "", SNP_ACTIVE
            )
            found.append(
                Launch(
                    measurement=digest.hex(),
                    ovmf_sha256=firmware,
                    vcpus=count,
                    vcpu_type=chosen.vcpu_type,
                    vcpu_signature=signature,
                    guest_features=SNP_ACTIVE,
                    vmm="QEMU",
                )
            )
    except OSError as exc:
        raise InputError(f"--ovmf {chosen.ovmf}: cannot be read: {exc.strerror}") from exc
    except (ValueError, RuntimeError, LookupError) as exc:
        raise InputError(f"--ovmf {chosen.ovmf}: its launch measurement cannot be computed: {exc}") from exc
    return tuple(found)


def image_of(path: Path, name: str) -> Image:
    """Name, size and hash."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Image(name=name, size=path.stat().st_size, sha256=digest)


def reference(chosen: argparse.Namespace) -> BuildReference:
    """All of it. Raises CosmianVmError, also where a file of the tree cannot be read: nothing is left out unsaid."""
    scope = FileScope(root=chosen.tree)
    walked = walk_and_hash(scope)
    for path, why in [*walked.unreadable, *walked.left_out]:
        raise InputError(f"{chosen.tree}{os.fsdecode(path)}: cannot be hashed: {why}")
    files, exact = file_entries(walked.files)
    uki = chosen.uki.read_bytes()
    predicted = predict(uki, phases=boot_phases(chosen.tree))
    left_out = [(f"files below {', '.join(scope.excluded)}", "left out of a snapshot too"), *OF_THE_PLATFORM]
    left_out += predicted.left_out
    policy: tuple[tuple[str, str], ...] | None = tuple(
        (path.decode(), digest.hex()) for path, digest in walked.files if path == IMA_POLICY
    )
    if b"ima_policy=tcb" not in sections(uki).get(".cmdline", b"").split():
        policy = None
        left_out.append(("IMA policy", "the kernel does not measure the policy file: ima_policy=tcb is not set"))
    if chosen.ovmf is None:
        left_out.append(("launch measurement", "no firmware was named (image/build --ovmf FILE)"))
    moment = datetime.fromtimestamp(int(os.environ["SOURCE_DATE_EPOCH"]), UTC)
    return BuildReference(
        format=FORMAT,
        version=VERSION,
        created=moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
        image=image_of(chosen.image, chosen.name),
        hash_algorithm="sha256",
        filehashes=files,
        path_bytes=exact,
        ima_policy=policy,
        pcrs={str(pcr): value.hex() for pcr, value in sorted(predicted.pcrs.items())},
        launches=launches(chosen) if chosen.ovmf is not None else (),
        left_out=tuple(left_out),
    )


def main() -> int:
    """0: printed."""
    try:
        sys.stdout.buffer.write(serialise(reference(options())))
    except CosmianVmError as exc:
        print(f"image/build: {exc}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
