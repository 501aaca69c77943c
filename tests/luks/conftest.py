"""A software TPM, and a machine whose programs are played: the TPM and the files are real, the device mapper is not."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from cosmian_vm._run import Completed
from cosmian_vm.devkit.luks import header_file
from cosmian_vm.devkit.swtpm import Swtpm
from cosmian_vm.luks._commands import Machine
from cosmian_vm.luks.container import Container
from cosmian_vm.luks.nv_index import TpmRecords
from cosmian_vm.luks.pcrs import DEFAULT_PCRS
from cosmian_vm.luks.place import Place

RECORDED = Path(__file__).parent.parent / "data" / "luks" / "header.json"
DONE = Completed(status=0, output=b"")


@pytest.fixture(scope="session")
def swtpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swtpm]:
    if shutil.which("swtpm") is None or shutil.which("swtpm_setup") is None:
        pytest.skip("swtpm is not installed")
    tpm = Swtpm(tmp_path_factory.mktemp("swtpm"))
    tpm.start()
    try:
        yield tpm
    finally:
        tpm.stop()


def extend(tcti: str, pcr: int) -> None:
    from tpm2_pytss import ESAPI, ESYS_TR, TPML_DIGEST_VALUES
    from tpm2_pytss.constants import TPM2_ALG
    from tpm2_pytss.types import TPMT_HA, TPMU_HA

    with ESAPI(tcti) as esys:
        value = TPMT_HA(hashAlg=TPM2_ALG.SHA256, digest=TPMU_HA(sha256=sha256(b"something else was booted").digest()))
        esys.pcr_extend(ESYS_TR.PCR0 + pcr, TPML_DIGEST_VALUES([value]))


@dataclass
class Played:
    """The programs. ``calls``: what was run; ``before``: called with the name of each before it runs."""

    folder: Path
    calls: list[list[str]] = field(default_factory=list)
    secrets: list[bytes] = field(default_factory=list)
    before: Callable[[str], Completed | None] = lambda _name: None
    opened: list[bytes] = field(default_factory=list)
    stash: Path | None = None

    def __post_init__(self) -> None:
        self.passwords: dict[str, bytes] = {}
        self.document: dict[str, Any] = json.loads(RECORDED.read_bytes())
        self.document["config"]["keyslots_size"] = "802816"
        (self.folder / "mapper").mkdir()
        self.mountinfo = self.folder / "mountinfo"
        self.mountinfo.write_text(f"1 0 0:1 / {self.folder / 'work'} rw - tmpfs none rw\n")
        self.machine = Machine(
            run=self.run,
            find=lambda name: f"/usr/sbin/{name}",
            work=self.folder / "work",
            mapper=self.folder / "mapper",
            mountinfo=self.mountinfo,
            pause=lambda _seconds: None,
        )

    def run(self, argv: Sequence[str], *, seconds: float, descriptors: Sequence[int] = ()) -> Completed:
        assert seconds > 0
        self.calls.append(list(argv))
        self.descriptors = tuple(descriptors)
        program = Path(argv[0]).name
        name = f"{program} {argv[1]}" if program == "cryptsetup" else program
        answer = self.before(name)
        if answer is not None:
            return answer
        secret = os.pread(descriptors[0], 4096, 0)  # the last one is the lock's, an empty file
        self.secrets.append(secret)
        options = {one: argv[i + 1] for i, one in enumerate(argv[:-1]) if one.startswith("--")}
        play = getattr(self, f"_{name.replace(' ', '_').replace('-', '_').replace('.', '_')}")
        played = play(list(argv), options, secret)
        assert isinstance(played, Completed)
        return played

    def _cryptsetup_luksFormat(self, argv: list[str], options: dict[str, str], secret: bytes) -> Completed:  # noqa: N802
        assert Path(argv[-1]).is_file()
        assert options["--integrity"] == "hmac-sha256"
        document = json.loads(json.dumps(self.document))
        document["tokens"] = {}
        del document["keyslots"]["1"]
        document["digests"]["0"]["keyslots"] = ["0"]
        document["digests"]["0"]["salt"] = "".join(["A" * 42, "w", "="])
        Path(options["--header"]).write_bytes(header_file(document, sequence=1))
        self.passwords[options["--header"]] = secret
        self.password = secret
        return DONE

    def _dmsetup(self, argv: list[str], _options: dict[str, str], _secret: bytes) -> Completed:
        if (self.folder / "mapper" / argv[-1].removesuffix("_dif")).exists() and argv[-1].endswith("_dif"):
            return Completed(status=1, output=b"Device or resource busy\n")
        (self.folder / "mapper" / argv[-1]).unlink()
        return DONE

    def _systemd_cryptenroll(self, argv: list[str], _options: dict[str, str], secret: bytes) -> Completed:
        if secret != self.password:
            return Completed(status=1, output=b"Failed to set up: wrong key\n")
        pcrs = next(one.partition("=")[2] for one in argv if one.startswith("--tpm2-pcrs="))
        document = json.loads(json.dumps(self.document))
        document["tokens"]["0"]["tpm2-pcrs"] = [int(pcr) for pcr in pcrs.split("+")]
        self.sequence = getattr(self, "sequence", 1) + 2
        Path(argv[-1]).write_bytes(header_file(document, sequence=self.sequence))
        return DONE

    def _cryptsetup_open(self, argv: list[str], options: dict[str, str], secret: bytes) -> Completed:
        if "--test-passphrase" in argv:
            return DONE
        if "--token-only" not in argv and secret != self.password:
            return Completed(status=2, output=b"No key available with this passphrase.\n")
        header = Path(options["--header"])
        assert header.parent.parent == self.machine.work, "a header is opened from memory only"
        self.opened.append(header.read_bytes())
        (self.folder / "mapper" / argv[-1]).touch()
        return DONE

    def _cryptsetup_close(self, argv: list[str], _options: dict[str, str], _secret: bytes) -> Completed:
        (self.folder / "mapper" / argv[-1]).unlink()
        return DONE

    def _mkfs_ext4(self, argv: list[str], _options: dict[str, str], _secret: bytes) -> Completed:
        assert Path(argv[-1]).exists()
        self.stash = None
        return DONE

    def _mount(self, argv: list[str], _options: dict[str, str], _secret: bytes) -> Completed:
        with self.mountinfo.open("a") as file:
            file.write(f"2 1 254:1 / {argv[-1]} rw - ext4 {argv[-2]} rw\n")
        if self.stash is not None:
            for path in self.stash.iterdir():
                path.rename(Path(argv[-1]) / path.name)
        return DONE

    def _umount(self, argv: list[str], _options: dict[str, str], _secret: bytes) -> Completed:
        lines = [line for line in self.mountinfo.read_text().splitlines(True) if f" {argv[-1]} " not in line]
        self.mountinfo.write_text("".join(lines))
        self.stash = self.folder / f"stash{len(self.calls)}"
        self.stash.mkdir()
        for path in Path(argv[-1]).iterdir():
            path.rename(self.stash / path.name)
        return DONE


@dataclass
class Bench:
    """A container that is not made yet, on a played machine with a real software TPM."""

    folder: Path
    tcti: str
    played: Played
    place: Place

    def container(self, pcrs: Sequence[int] = DEFAULT_PCRS) -> Container:
        return Container(self.place, self.tcti, pcrs=pcrs, machine=self.played.machine)

    @property
    def records(self) -> TpmRecords:
        return TpmRecords(self.tcti)

    def extend(self, pcr: int) -> None:
        extend(self.tcti, pcr)

    def left(self) -> list[str]:
        """What there is: files, mappings, mounts, records."""
        return [
            *sorted(path.name for path in (self.folder / "disk").iterdir()),
            *sorted(path.name for path in (self.folder / "mapper").iterdir()),
            *[line.split()[4] for line in self.played.mountinfo.read_text().splitlines()[1:]],
            *[f"record {one.index:#x}" for one in self.records.find(self.place.digest)],
            *sorted(path.name for path in (self.folder / "work").iterdir() if path.name != "lock"),
        ]


@pytest.fixture
def bench(tmp_path: Path, swtpm: Swtpm) -> Iterator[Bench]:
    (tmp_path / "disk").mkdir()
    bench = Bench(tmp_path, swtpm.tcti, Played(tmp_path), Place.at(tmp_path / "disk" / "box", tmp_path / "data"))
    bench.extend(4)
    try:
        yield bench
    finally:
        bench.records.remove(bench.place.digest)
