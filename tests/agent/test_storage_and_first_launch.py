"""Nothing is written below data unless it is the encrypted container; and the first launch, killed at any point."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cosmian_vm.agent import first_launch
from cosmian_vm.agent.config import AgentConfig, AppConfig, ServiceType
from cosmian_vm.agent.files import write_atomically
from cosmian_vm.agent.first_launch import prepare, provision_tpm
from cosmian_vm.agent.storage import Storage
from cosmian_vm.agent.tls import TlsIdentity
from cosmian_vm.errors import AttesterError, ConfigError, OrderError
from cosmian_vm.luks.place import Place

NOW = datetime.now(UTC)
Mounted = Callable[..., Storage]


@pytest.fixture
def encrypted(config: AgentConfig) -> AgentConfig:
    return replace(config, container=config.data_storage / "container")


@pytest.fixture
def mounted(encrypted: AgentConfig, tmp_path: Path) -> Mounted:
    """``mounted(lines, uuid)``: storage as the kernel would show it. DATA in ``lines`` is the folder's path."""

    def make(lines: str, uuid: str | None) -> Storage:
        mountinfo, devices = tmp_path / "mountinfo", tmp_path / "block"
        mountinfo.write_text(lines.replace("DATA", str(encrypted.data).replace(" ", "\\040")))
        if uuid is not None:
            (devices / "253:7" / "dm").mkdir(parents=True, exist_ok=True)
            encrypted.data_storage.mkdir(parents=True, exist_ok=True)
            ours = Place.at(encrypted.data_storage / "container", encrypted.data).name
            (devices / "253:7" / "dm" / "uuid").write_text(uuid.replace("OURS", ours) + "\n")
        return Storage(encrypted, mountinfo=mountinfo, block_devices=devices)

    return make


LUKS = "CRYPT-LUKS2-0123456789abcdef-OURS"  # OURS: the mapping's name, which comes from the container's path
MOUNT = "36 35 253:7 / DATA rw,noatime - ext4 /dev/mapper/cosmian_vm rw\n"


def test_an_open_container(mounted: Mounted) -> None:
    storage = mounted("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n" + MOUNT, LUKS)
    assert storage.locked() is None
    storage.require_open()


@pytest.mark.parametrize(
    ("lines", "uuid"),
    [
        ("", LUKS),
        ("garbage\n\n", LUKS),
        ("22 1 8:1 / / rw - ext4 /dev/sda1 rw\n", LUKS),
        (MOUNT.replace("DATA", "DATA/app"), LUKS),
        (MOUNT, None),
        (MOUNT, "CRYPT-LUKS2-0123456789abcdef-luks-another"),
        (MOUNT, "LVM-abcdef"),
        (MOUNT, "CRYPT-PLAIN-x"),
        (MOUNT, ""),
        (MOUNT + "37 36 0:55 / DATA rw - tmpfs tmpfs rw\n", LUKS),  # something was mounted over it
    ],
)
def test_a_container_that_is_not_there(mounted: Mounted, lines: str, uuid: str | None) -> None:
    storage = mounted(lines, uuid)
    assert storage.locked()
    with pytest.raises(OrderError, match=r"^container locked: ") as caught:
        storage.require_open()
    assert caught.value.status == 503


def test_losing_the_container_is_seen_at_the_next_order(
    mounted: Mounted, encrypted: AgentConfig, tmp_path: Path
) -> None:
    app = AppConfig(service_type=ServiceType.STANDALONE, service_name="a", storage=encrypted.data / "app")
    storage = mounted(MOUNT, LUKS)
    storage.write_app_configuration(app, b"1")
    (tmp_path / "mountinfo").write_text("")
    with pytest.raises(OrderError):
        storage.write_app_configuration(app, b"2")
    assert (app.storage / "app.conf").read_bytes() == b"1"


def test_what_lies_on_the_container(mounted: Mounted, encrypted: AgentConfig, config: AgentConfig) -> None:
    storage = mounted(MOUNT, LUKS)
    assert storage.on_container(encrypted.data / "app")  # which is not there yet
    encrypted.data.mkdir(exist_ok=True)
    (encrypted.data / "link").symlink_to("/etc")
    for elsewhere in (encrypted.data_storage / "app", Path("/srv/app"), encrypted.data / "link" / "app"):
        assert not storage.on_container(elsewhere)
    assert not mounted("", LUKS).on_container(encrypted.data / "app")
    assert not Storage(config).on_container(config.data / "app")


def test_no_container_by_configuration(config: AgentConfig) -> None:
    assert Storage(config).locked() is None


def test_a_failed_write_keeps_the_old_configuration(config: AgentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    app = AppConfig(service_type=ServiceType.STANDALONE, service_name="a", storage=config.data / "app")
    storage = Storage(config)
    storage.write_app_configuration(app, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AttesterError, match=r"app\.conf cannot be written: No space left on device; the old one stays"):
        storage.write_app_configuration(app, b"new")
    assert [p.name for p in app.storage.iterdir()] == ["app.conf"]
    assert (app.storage / "app.conf").read_bytes() == b"old"


def test_files_are_never_seen_with_too_many_rights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    true_fchmod = os.fchmod

    def watch(descriptor: int, mode: int) -> None:
        seen.append(os.fstat(descriptor).st_mode & 0o777)
        true_fchmod(descriptor, mode)

    monkeypatch.setattr(os, "fchmod", watch)
    before = os.umask(0)
    try:
        write_atomically(tmp_path / "key.pem", b"x", 0o400)
    finally:
        os.umask(before)
    assert seen == [0o600]
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o400


def test_a_planted_link_is_replaced_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    (tmp_path / "app.conf").symlink_to(victim)
    write_atomically(tmp_path / "app.conf", b"new", 0o400)
    assert victim.read_bytes() == b"precious"
    assert not (tmp_path / "app.conf").is_symlink()


# First launch


def launch(config: AgentConfig, storage: Storage | None = None, *, preinit: bool = True) -> first_launch.TlsFiles:
    return prepare(config, storage or Storage(config), preinit=preinit, hostname="vm.example", now=NOW)


def test_first_launch_makes_a_certificate_once(config: AgentConfig) -> None:
    files = launch(config)
    assert (files.certificate, files.key) == (config.ssl_certificate, config.ssl_private_key)
    assert files.key.stat().st_mode & 0o777 == 0o600
    before = files.certificate.read_bytes(), files.key.read_bytes()
    assert launch(config) == files
    assert launch(config, preinit=False) == files
    assert (files.certificate.read_bytes(), files.key.read_bytes()) == before
    TlsIdentity(files.certificate, files.key)


def test_first_launch_killed_between_key_and_certificate(config: AgentConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    true_write = write_atomically
    written: list[Path] = []

    def killed(path: Path, content: bytes, mode: int) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path)
        true_write(path, content, mode)

    monkeypatch.setattr(first_launch, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        launch(config)
    key = config.ssl_private_key.read_bytes()
    monkeypatch.setattr(first_launch, "write_atomically", true_write)
    files = launch(config)
    assert files.key.read_bytes() == key
    TlsIdentity(files.certificate, files.key)


def test_without_preinit_nothing_is_made(config: AgentConfig) -> None:
    with pytest.raises(ConfigError, match=r"cert\.pem: is missing, and COSMIAN_VM_PREINIT=0"):
        launch(config, preinit=False)
    assert not config.data.exists()


def test_what_stands_in_the_way_is_named(config: AgentConfig) -> None:
    config.data_storage.write_bytes(b"a file")
    with pytest.raises(ConfigError, match="cannot be made"):
        launch(config)
    config.data_storage.unlink()
    config.data.mkdir(parents=True)
    config.ssl_private_key.write_bytes(b"rubbish")
    with pytest.raises(ConfigError, match=r"key\.pem: not a private key"):
        launch(config)
    assert config.ssl_private_key.read_bytes() == b"rubbish"


def test_a_locked_container_serves_under_a_throw_away_key(mounted: Mounted, encrypted: AgentConfig) -> None:
    storage = mounted("", None)
    encrypted.data.mkdir(parents=True)  # the bare mount point
    files = launch(encrypted, storage)
    assert files.certificate.parent == files.key.parent == encrypted.tmp
    first = files.key.read_bytes()
    assert launch(encrypted, storage) == files
    assert files.key.read_bytes() != first
    assert list(encrypted.data.iterdir()) == []
    TlsIdentity(files.certificate, files.key)


def test_a_tpm_that_fails_is_logged_and_survived(config: AgentConfig, caplog: pytest.LogCaptureFixture) -> None:
    class Tpm:
        def __init__(self, problem: Exception | None) -> None:
            self.problem = problem
            self.calls = 0

        def provision(self) -> None:
            self.calls += 1
            if self.problem:
                raise self.problem

        def __getattr__(self, name: str) -> Any:
            raise AssertionError(name)

    good, bad = Tpm(None), Tpm(AttesterError("the TPM is full"))
    provision_tpm(config, good)
    assert good.calls == 1
    with caplog.at_level("ERROR"):
        provision_tpm(config, bad)
    assert "the TPM is full" in caplog.text
    provision_tpm(config, None)
