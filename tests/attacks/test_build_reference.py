"""Machines that did not boot the image as it was built, before anybody has taken a snapshot of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from cosmian_vm.devkit.boot_log import BootEvent, default_boot, serialise_boot, with_other_kernel
from cosmian_vm.devkit.machine import DEFAULT_FILES, Machine
from cosmian_vm.devkit.tee import SimulatedTee

from .conftest import NONCE, NOW, Judge

_EV_IPL = 0x0D


@pytest.fixture
def built(machine: Machine, judge: Judge) -> Judge:
    """A verifier that has nothing but what the build wrote."""
    return replace(judge, snapshot=None, build=machine.build_reference())


def test_the_image_itself_passes(machine: Machine, built: Judge) -> None:
    assert built.failed(machine.evidence(NONCE)) == set()


def test_another_command_line(machine: Machine, built: Judge) -> None:
    """The simulated boot is by GRUB, which has the command line in PCR 8; a kernel of its own is in 4 and 9."""
    machine.reboot(boot=with_other_kernel(default_boot()))
    assert built.failed(machine.evidence(NONCE)) == {"tpm.boot_pcrs"}


@pytest.mark.parametrize("pcr", [11, 12, 13])
def test_a_boot_phase_or_extension_too_many(machine: Machine, built: Judge, pcr: int) -> None:
    machine.reboot(boot=[*default_boot(), BootEvent(pcr, _EV_IPL, b"extra")])
    assert built.failed(machine.evidence(NONCE)) == {"tpm.boot_pcrs"}


def test_a_boot_log_of_the_true_image_over_another_boot(machine: Machine, built: Judge) -> None:
    machine.reboot(boot=with_other_kernel(default_boot()))
    machine.forged_boot_log = serialise_boot(default_boot())
    assert built.failed(machine.evidence(NONCE)) == {"tpm.boot_pcrs"}


def test_a_program_replaced_on_the_disk_before_the_first_boot(machine: Machine, built: Judge) -> None:
    """No snapshot would tell: it would be taken of the machine that the operator has changed."""
    files = {**DEFAULT_FILES, "/usr/bin/bash": b"with a back door"}
    tampered = Machine.create(machine.vendor, files=files, now=NOW - timedelta(days=1))
    assert replace(built, build=None, snapshot=tampered.snapshot()).failed(tampered.evidence(NONCE)) == set()
    assert built.failed(tampered.evidence(NONCE)) == {"ima.files"}
    both = replace(built, snapshot=tampered.snapshot())
    assert both.failed(tampered.evidence(NONCE)) == {"ima.files"}
    assert any("/usr/bin/bash" in line for line in both.verdict(tampered.evidence(NONCE)).of("ima.files")[0].details)


def test_other_firmware(machine: Machine, built: Judge) -> None:
    machine.tee = SimulatedTee.launch(machine.vendor, instance=machine.instance, image=b"the operator's firmware")
    assert built.failed(machine.evidence(NONCE)) == {"tee.measurement"}


def test_a_relay(machine: Machine, built: Judge) -> None:
    other = Machine.create(machine.vendor, instance=b"second", now=NOW - timedelta(days=1))
    relayed = replace(machine.evidence(NONCE), tls=other.evidence(NONCE).tls)
    assert {"tee.report_data", "tpm.nonce"} <= built.failed(relayed)
