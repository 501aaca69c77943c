"""The devkit's logs replay to its PCRs: in Python, and in a real (software) TPM."""

from __future__ import annotations

from hashlib import sha256

import pytest

from cosmian_vm.devkit.boot_log import PHASES, default_boot, extend_boot, serialise_boot, with_other_kernel
from cosmian_vm.devkit.ima import SoftwareIma
from cosmian_vm.devkit.pcrs import PcrBanks, TpmPcrs
from cosmian_vm.devkit.soft_tpm import SoftTpm
from cosmian_vm.devkit.swtpm import Swtpm
from cosmian_vm.evidence import boot_log, ima

LOGGED = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 14)


def everything(pcrs: PcrBanks) -> tuple[bytes, bytes]:
    """Boot, measure, violate; the two lists."""
    events = default_boot()
    extend_boot(events, pcrs)
    software = SoftwareIma(pcrs, template="ima-sig")
    software.boot()
    assert software.measure("/usr/bin/ls", b"list")
    assert not software.measure("/usr/bin/ls", b"list")  # measured once, as the kernel does
    assert software.measure("/usr/bin/ls", b"changed")
    assert software.measure(b"/opt/a b\xff", b"name", signature=b"\x03\x02" + bytes(10))
    software.violate("/var/log/x")
    software.violate("/var/log/x")
    return serialise_boot(events), software.binary()


def check(pcrs: dict[int, bytes], boot: bytes, measured: bytes) -> None:
    log = boot_log.parse(boot)
    assert log.trailing == 0
    replayed = boot_log.replay(log, "sha256")
    assert {pcr: replayed[pcr] for pcr in LOGGED} == {pcr: pcrs[pcr] for pcr in LOGGED}
    value = bytes(32)
    for phase in PHASES:
        value = sha256(value + sha256(phase.encode()).digest()).digest()
    assert pcrs[11] == value
    assert 11 not in replayed or replayed[11] == bytes(32)  # extended after boot, without a log
    entries = ima.parse_binary(measured)
    assert ima.replay(entries, "sha256") == pcrs[10]
    assert entries[0].path == b"boot_aggregate"
    assert entries[0].digest == sha256(b"".join(pcrs[pcr] for pcr in range(10))).digest()
    assert [entry.path for entry in entries[1:4]] == [b"/usr/bin/ls", b"/usr/bin/ls", b"/opt/a_b\xff"]
    assert [entry.is_violation for entry in entries] == [False] * 4 + [True] * 2


def test_logs_replay_in_python() -> None:
    tpm = SoftTpm()
    boot, measured = everything(tpm)
    check(tpm.read_pcrs(range(24)), boot, measured)
    entries = ima.parse_binary(measured)
    assert ima.replay(entries, "sha1") == tpm.pcrs["sha1"][10]


@pytest.mark.swtpm
def test_logs_replay_in_a_tpm(swtpm: Swtpm) -> None:
    pcrs = TpmPcrs(swtpm.tcti)
    boot, measured = everything(pcrs)
    check(pcrs.read_pcrs(range(24)), boot, measured)


def test_the_list_goes_on_where_it_was_left() -> None:
    tpm = SoftTpm()
    first = SoftwareIma(tpm)
    first.boot()
    first.measure("/a", b"a")
    second = SoftwareIma.from_list(first.binary(), tpm)
    assert not second.measure("/a", b"a")
    assert second.measure("/b", b"b")
    assert ima.replay(ima.parse_binary(second.binary()), "sha256") == tpm.pcrs["sha256"][10]
    assert len(second.ascii().splitlines()) == 3


def test_another_kernel_shows_in_pcrs_4_and_9_only() -> None:
    one, other = SoftTpm(), SoftTpm()
    extend_boot(default_boot(), one)
    extend_boot(with_other_kernel(default_boot()), other)
    differ = [pcr for pcr in range(24) if one.pcrs["sha256"][pcr] != other.pcrs["sha256"][pcr]]
    assert differ == [4, 9]


def test_another_command_line_shows_in_pcr_8() -> None:
    one, other = SoftTpm(), SoftTpm()
    extend_boot(default_boot(), one)
    extend_boot(default_boot("init=/bin/sh"), other)
    assert [pcr for pcr in range(24) if one.pcrs["sha256"][pcr] != other.pcrs["sha256"][pcr]] == [8]
