"""configfs-tsm as files: ``devkit.tsm``'s model behind a FUSE file system, in a process of its own.

As fs/configfs/file.c has it: an attribute's content is made when an open file is first read; what is written to a
binary attribute (``inblob``) reaches the driver when the file is closed, and an error of the driver's is lost there;
nobody opens a file for what its attribute does not allow, not even root; nobody makes or removes files.

``python -m cosmian_vm.devkit.tsm_fs MOUNTPOINT --driver snp|svsm|tdx`` serves until it is told to end.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import stat
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding

from cosmian_vm.devkit._process import Daemon
from cosmian_vm.devkit.amd import AmdVendor, VendorKeys
from cosmian_vm.devkit.intel import IntelVendor
from cosmian_vm.devkit.tsm import WRITABLE, SnpDriver, TdxDriver, TsmModel
from cosmian_vm.errors import NotAvailableError

__all__ = ["DRIVERS", "TsmMount", "main", "serve"]

DRIVERS = ("snp", "svsm", "tdx")
MANIFEST = b"TPMT_PUBLIC of the simulated vTPM's EK"
FUSE_DEVICE = Path("/dev/fuse")
_PAGE = 4096  # what configfs tells of an attribute's size
_START_SECONDS = 20.0
_BINARY = frozenset({"inblob", "outblob", "auxblob", "manifestblob"})


@dataclass
class _Open:
    name: str
    attribute: str
    content: bytes | None = None
    written: bytes | None = None


class _Files:
    """What mfusepy asks for: one method for each operation of libfuse, errors as OSError."""

    use_ns = True

    def __init__(self, model: TsmModel) -> None:
        self._model = model
        self._open: dict[int, _Open] = {}
        self._last = 0
        self._lock = threading.Lock()

    def init(self, path: str) -> None:
        """Nothing to do."""

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:  # noqa: ARG002 - libfuse's
        """As configfs has them: 0755 for folders, and for each file what may be done with it."""
        parts = self._parts(path)
        if len(parts) == 2:
            mode = stat.S_IFREG | (stat.S_IWUSR if parts[1] in WRITABLE else stat.S_IRUSR)
            return {"st_mode": mode, "st_nlink": 1, "st_size": 0 if parts[1] in _BINARY else _PAGE}
        return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}

    def readdir(self, path: str, fh: int) -> list[str]:  # noqa: ARG002 - libfuse's
        """Entries of the folder, or an entry's attributes."""
        parts = self._parts(path)
        return [".", "..", *(self._model.attributes(parts[0]) if parts else self._model.names)]

    def mkdir(self, path: str, mode: int) -> int:  # noqa: ARG002 - libfuse's
        """An entry; there is nothing below one."""
        parts = path.strip("/").split("/")
        if len(parts) != 1:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        self._model.make(parts[0])
        return 0

    def rmdir(self, path: str) -> int:
        """An entry, with its attributes."""
        parts = self._parts(path)
        if len(parts) != 1:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        self._model.remove(parts[0])
        return 0

    def create(self, path: str, mode: int, fi: object = None) -> int:  # noqa: ARG002 - libfuse's
        """Nobody makes files here."""
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    def unlink(self, path: str) -> int:  # noqa: ARG002 - libfuse's
        """Nor removes them."""
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:  # noqa: ARG002 - libfuse's
        """Means nothing."""
        self._parts(path)
        return 0

    def open(self, path: str, flags: int) -> int:
        """A handle, for what the attribute allows."""
        name, attribute = self._parts(path)
        wanted = os.O_WRONLY if attribute in WRITABLE else os.O_RDONLY
        if flags & os.O_ACCMODE != wanted:
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        with self._lock:
            self._last += 1
            self._open[self._last] = _Open(name, attribute)
            return self._last

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:  # noqa: ARG002 - libfuse's
        """From the content of the moment of the first read."""
        file = self._open[fh]
        if file.content is None:
            file.content = self._model.read(file.name, file.attribute)
        return file.content[offset : offset + size]

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:  # noqa: ARG002 - libfuse's
        """At once, or with the rest when the file is closed."""
        file = self._open[fh]
        if file.attribute not in _BINARY:
            self._model.write(file.name, file.attribute, data)
        else:
            file.written = (file.written or b"")[:offset].ljust(offset, b"\0") + data
        return len(data)

    def flush(self, path: str, fh: int) -> int:  # noqa: ARG002 - libfuse's
        """close(2): in the kernel it is the release that writes, which FUSE does not wait for."""
        file = self._open[fh]
        written, file.written = file.written, None
        if written is not None:
            with suppress(OSError):
                self._model.write(file.name, file.attribute, written)
        return 0

    def release(self, path: str, fh: int) -> int:  # noqa: ARG002 - libfuse's
        """Forget the handle."""
        self._open.pop(fh, None)
        return 0

    def _parts(self, path: str) -> list[str]:
        """[], [entry] or [entry, attribute], of those that there are."""
        parts = [part for part in path.split("/") if part]
        there = not parts or (
            parts[0] in self._model.names and (len(parts) == 1 or parts[1:] in [[a] for a in self._attributes(parts)])
        )
        if not there:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return parts

    def _attributes(self, parts: list[str]) -> tuple[str, ...]:
        return self._model.attributes(parts[0])


def serve(model: TsmModel, mountpoint: Path) -> None:
    """Until it is unmounted, or SIGTERM. Raises NotAvailableError without libfuse."""
    try:
        from mfusepy import FUSE
    except (ImportError, OSError) as exc:
        raise NotAvailableError("libfuse is not installed (Debian package fuse3)") from exc
    FUSE(
        _Files(model),
        str(mountpoint),
        foreground=True,
        direct_io=True,
        attr_timeout=0,
        entry_timeout=0,
        fsname="tsm",
    )


class TsmMount:
    """The file system at ``report`` (None: ``folder/report``), while the context lasts. ``driver``: one of DRIVERS.

    ``keys``: see ``main``. The simulated vendor's root is in ``folder/root.pem``. Raises NotAvailableError where there
    is no FUSE.
    """

    def __init__(self, folder: Path, driver: str, *, report: Path | None = None, keys: Path | None = None) -> None:
        self.report = report or folder / "report"
        """What stands for /sys/kernel/config/tsm/report."""
        self.root = folder / "root.pem"
        self._options = ["--driver", driver, "--root", str(self.root)]
        if keys is not None:
            self._options += ["--keys", str(keys)]
        self._log = folder / "tsm_fs.log"
        self._daemon = Daemon(folder / "tsm_fs.pid")

    @property
    def pid(self) -> int | None:
        """The process, while it runs."""
        return self._daemon.pid

    def __enter__(self) -> TsmMount:
        if not FUSE_DEVICE.exists():
            raise NotAvailableError(f"there is no {FUSE_DEVICE}")
        self.report.mkdir(parents=True)
        self._daemon.start(
            [sys.executable, "-m", "cosmian_vm.devkit.tsm_fs", str(self.report), *self._options],
            log=self._log,
            env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
        )
        try:
            self._daemon.wait_until(self.report.is_mount, seconds=_START_SECONDS, log=self._log)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._daemon.stop()
        # A process that was killed leaves a mount behind, which answers no question about itself.
        if f" {self.report} " in Path("/proc/self/mounts").read_text(encoding="utf-8"):
            command = ["fusermount3", "-u", "-z"] if shutil.which("fusermount3") else ["umount", "--lazy"]
            subprocess.run([*command, str(self.report)], check=False, timeout=30)


def main() -> None:
    """``python -m cosmian_vm.devkit.tsm_fs``."""
    parser = argparse.ArgumentParser(prog="tsm_fs", description="configfs-tsm with simulated hardware behind it")
    parser.add_argument("mountpoint", type=Path)
    parser.add_argument("--driver", choices=DRIVERS, required=True)
    parser.add_argument("--root", type=Path, required=True, help="where to write the vendor's root, PEM")
    parser.add_argument("--keys", type=Path, help="folder with AMD's keys (they take some seconds to make)")
    arguments = parser.parse_args()
    driver: SnpDriver | TdxDriver
    if arguments.driver == "tdx":
        intel = IntelVendor.create()
        driver = TdxDriver(vendor=intel)
        root = intel.root.public_bytes(Encoding.PEM)
    else:
        amd = AmdVendor.create(keys=None if arguments.keys is None else VendorKeys.load(arguments.keys))
        driver = SnpDriver(vendor=amd, manifest=MANIFEST if arguments.driver == "svsm" else None)
        root = amd.root_pem
    arguments.root.write_bytes(root)
    serve(TsmModel(driver), arguments.mountpoint)


if __name__ == "__main__":
    main()
