"""configfs-tsm in memory, and as files: what the kernel's documentation says of it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from hashlib import sha512
from pathlib import Path

import pytest
from cryptography import x509

from cosmian_vm.attester import platform
from cosmian_vm.attester._tsm import TsmEntries, TsmFiles, provider
from cosmian_vm.attester.metadata import MetadataAnswer
from cosmian_vm.attester.snp import SnpTsm
from cosmian_vm.attester.tdx import TdxTsm
from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.intel import IntelVendor
from cosmian_vm.devkit.tsm import SnpDriver, TdxDriver, TsmModel
from cosmian_vm.devkit.tsm_fs import MANIFEST, TsmMount
from cosmian_vm.errors import AttesterError, NotAvailableError
from cosmian_vm.evidence.intel_quote import parse_quote
from cosmian_vm.evidence.snp import parse_report

KEYS = Path(__file__).resolve().parent.parent / "data" / "devkit_amd"
DATA = bytes(range(64))
FIRST_VMPL = 2

Opened = Callable[[str], TsmEntries]


@pytest.fixture(params=["memory", pytest.param("files", marks=pytest.mark.fuse)])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opened]:
    """Entries of a driver: the model itself, and the model as files."""
    mounts: list[TsmMount] = []

    def memory(driver: str) -> TsmEntries:
        if driver == "tdx":
            return TsmModel(TdxDriver(vendor=IntelVendor.create()))
        amd = AmdVendor.create(keys=VendorKeys.load(KEYS))
        return TsmModel(SnpDriver(vendor=amd, manifest=MANIFEST if driver == "svsm" else None))

    def files(driver: str) -> TsmEntries:
        mounts.append(mounted(tmp_path / driver, driver))
        return TsmFiles(mounts[-1].report)

    yield memory if request.param == "memory" else files
    for mount in mounts:
        mount.__exit__()


def mounted(folder: Path, driver: str, report: Path | None = None) -> TsmMount:
    folder.mkdir()
    mount = TsmMount(folder, driver, report=report, keys=KEYS)
    try:
        return mount.__enter__()
    except (NotAvailableError, AttesterError) as exc:
        if not os.path.exists("/dev/fuse") or "fuse" in str(exc):
            pytest.skip(f"no FUSE here: {exc}")
        raise


def refused(number: int, call: Callable[..., object], *args: object) -> None:
    with pytest.raises(OSError, match=r".") as caught:
        call(*args)
    assert caught.value.errno == number


def test_an_entry_and_its_attributes(opened: Opened) -> None:
    entries = opened("snp")
    refused(errno.ENOENT, entries.read, "a", "provider")
    entries.make("a")
    refused(errno.EEXIST, entries.make, "a")
    assert entries.read("a", "provider") == b"sev_guest\n"
    assert entries.read("a", "privlevel_floor") == b"0\n"
    assert entries.read("a", "generation") == b"0\n"
    for attribute in ("outblob", "auxblob"):
        refused(errno.EINVAL, entries.read, "a", attribute)
    for attribute in ("inblob", "privlevel"):
        refused(errno.EACCES, entries.read, "a", attribute)
    for attribute in ("outblob", "auxblob", "provider", "generation", "privlevel_floor"):
        refused(errno.EACCES, entries.write, "a", attribute, b"1")
    for attribute in ("manifestblob", "service_guid", "nothing"):
        refused(errno.ENOENT, entries.read, "a", attribute)
        refused(errno.ENOENT, entries.write, "a", attribute, b"1")
    refused(errno.EINVAL, entries.write, "a", "privlevel", b"4")
    refused(errno.EINVAL, entries.write, "a", "privlevel", b"one")
    assert entries.read("a", "generation") == b"0\n"
    entries.remove("a")
    refused(errno.ENOENT, entries.remove, "a")


def test_generation_counts_the_writes_and_outblob_follows_them(opened: Opened) -> None:
    entries = opened("snp")
    entries.make("a")
    entries.make("b")
    for count, (attribute, value) in enumerate([("privlevel", b"1"), ("inblob", DATA), ("inblob", DATA[::-1])], 1):
        entries.write("a", attribute, value)
        assert entries.read("a", "generation") == b"%d\n" % count
    first = entries.read("a", "outblob")
    assert parse_report(first).report_data == DATA[::-1]
    assert parse_report(first).vmpl == 1
    assert entries.read("a", "outblob") == first  # the same: nothing was written since
    assert entries.read("a", "generation") == b"3\n"
    entries.write("a", "inblob", DATA)
    assert parse_report(entries.read("a", "outblob")).report_data == DATA
    assert entries.read("b", "generation") == b"0\n"
    refused(errno.EINVAL, entries.read, "b", "outblob")
    entries.write("b", "inblob", b"short")
    refused(errno.EINVAL, entries.read, "b", "outblob")


def test_a_td_has_no_privilege_levels(opened: Opened) -> None:
    entries = opened("tdx")
    assert provider(entries) == b"tdx_guest"
    entries.make("a")
    for attribute in ("privlevel_floor", "auxblob", "manifestblob"):
        refused(errno.ENOENT, entries.read, "a", attribute)
    quote = TdxTsm(entries).quote(DATA)
    assert parse_quote(quote.raw).body.report_data == DATA


def test_a_guest_above_an_svsm(opened: Opened) -> None:
    entries = opened("svsm")
    quote = SnpTsm(entries).quote(DATA)
    assert (parse_report(quote.raw).vmpl, parse_report(quote.raw).report_data) == (FIRST_VMPL, DATA)
    assert len(quote.endorsements) == 3
    assert quote.svsm is not None
    assert quote.svsm.manifest == MANIFEST
    report = parse_report(quote.svsm.report)
    assert (report.vmpl, report.report_data) == (0, sha512(DATA + MANIFEST).digest())
    entries.make("a")
    refused(errno.EINVAL, entries.write, "a", "privlevel", b"1")  # below the floor
    assert entries.read("a", "generation") == b"0\n"
    refused(errno.EINVAL, entries.write, "a", "service_guid", b"none")
    assert entries.read("a", "generation") == b"1\n"  # it counts all the same
    entries.write("a", "inblob", DATA)
    for service in (b"svsm", b"other"):
        entries.write("a", "service_provider", service)
        refused(errno.EINVAL, entries.read, "a", "outblob")  # of no service


class Intruded(TsmFiles):
    """Another process writes into our entries, between our write and our read, so many times."""

    def __init__(self, base: Path, times: int) -> None:
        super().__init__(base)
        self.times = times

    def read(self, name: str, attribute: str) -> bytes:
        if attribute == "outblob" and self.times:
            self.times -= 1
            super().write(name, "inblob", bytes(64))
        return super().read(name, attribute)


@pytest.mark.fuse
def test_a_concurrent_writer_is_noticed(tmp_path: Path) -> None:
    mount = mounted(tmp_path / "snp", "snp")
    try:
        quote = SnpTsm(Intruded(mount.report, 2), pause=lambda _seconds: None).quote(DATA)
        assert parse_report(quote.raw).report_data == DATA
        with pytest.raises(AttesterError, match=r"written to by another process|other report_data"):
            SnpTsm(Intruded(mount.report, 99), pause=lambda _seconds: None).quote(DATA)
        assert list(mount.report.iterdir()) == []
    finally:
        mount.__exit__()


@pytest.mark.fuse
def test_whatever_another_writer_does_no_report_is_anybody_elses(tmp_path: Path) -> None:
    mount = mounted(tmp_path / "snp", "snp")
    over = threading.Event()

    def write_everywhere() -> None:
        while not over.is_set():
            for entry in os.listdir(mount.report):
                try:
                    TsmFiles(mount.report).write(entry, "inblob", bytes(64))
                except OSError:
                    continue  # it is gone already

    writer = threading.Thread(target=write_everywhere)
    writer.start()
    try:
        for number in range(10):
            data = bytes([number + 1]) * 64
            try:
                quote = SnpTsm(TsmFiles(mount.report), pause=lambda _seconds: None).quote(data)
            except AttesterError:
                continue
            assert parse_report(quote.raw).report_data == data
    finally:
        over.set()
        writer.join()
        mount.__exit__()


@pytest.mark.fuse
def test_the_files_are_no_others(tmp_path: Path) -> None:
    mount = mounted(tmp_path / "snp", "snp")
    try:
        entry = mount.report / "entry"
        entry.mkdir()
        assert sorted(path.name for path in entry.iterdir()) == sorted(
            ["generation", "provider", "inblob", "outblob", "auxblob", "privlevel", "privlevel_floor"]
        )
        refused(errno.EACCES, (mount.report / "file").write_bytes, b"")
        refused(errno.EACCES, (entry / "other").write_bytes, b"")
        refused(errno.EPERM, (entry / "folder").mkdir)
        refused(errno.EPERM, (entry / "inblob").unlink)
        (entry / "inblob").write_bytes(DATA)
        assert (entry / "generation").read_text() == "1\n"
        report = parse_report((entry / "outblob").read_bytes())
        assert report.report_data == DATA
        with (entry / "outblob").open("rb") as held:
            assert held.read(100) == report.raw[:100]
            (entry / "inblob").write_bytes(DATA[::-1])
            assert held.read() == report.raw[100:]  # an open file keeps what it began with
        assert x509.load_pem_x509_certificate(mount.root.read_bytes()).issuer.rdns
        entry.rmdir()
        assert list(mount.report.iterdir()) == []
    finally:
        mount.__exit__()
    assert not mount.report.is_mount()


@pytest.mark.fuse
@pytest.mark.parametrize(("driver", "device"), [("snp", SnpTsm), ("tdx", TdxTsm)])
def test_the_real_detection_finds_it(tmp_path: Path, driver: str, device: type) -> None:
    def nobody(*_: object, **__: object) -> MetadataAnswer:
        raise AttesterError("no answer")

    mount = mounted(tmp_path / "made", driver, tmp_path / "sys/kernel/config/tsm/report")
    try:
        found = platform.detect(None, root=tmp_path, metadata=nobody).tee
        assert type(found) is device
        assert found is not None
        assert DATA in found.quote(DATA).raw
    finally:
        mount.__exit__()


def test_without_a_driver_nothing_is_made() -> None:
    refused(errno.ENXIO, TsmModel(None).make, "a")


@pytest.mark.fuse
def test_a_file_system_that_was_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    mount = mounted(tmp_path / "tdx", "tdx")
    pid = mount.pid
    assert pid is not None
    os.kill(pid, 9)
    mount.__exit__()
    assert str(mount.report) not in Path("/proc/self/mounts").read_text()
