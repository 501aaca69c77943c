"""Which mounts count as local."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.reference._mounts import foreign_mounts

MOUNTINFO = b"""\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
28 27 0:25 / /mnt/share rw,relatime shared:1 master:2 - nfs4 server:/x rw
29 28 0:26 / /mnt/share/inner rw - fuse.sshfs a:b rw
30 27 0:27 / /opt/in\\040memory rw - tmpfs tmpfs rw
31 27 0:28 / /opt/of\\040the\\040host rw - virtiofs tag rw
32 27 0:29 / /home rw - btrfs /dev/vdb rw
33 27 259:1 / /data rw - fuseblk /dev/vdc rw
34 27 0:30 / /over rw - nfs server:/y rw
35 34 254:1 / /over rw - xfs /dev/vdd rw
36 22 0:31 / /proc/sys/fs/binfmt_misc rw - autofs systemd-1 rw
37 27 0:32 / /back\\134slash rw - cifs //server/z rw
"""


def test_network_virtual_and_host_file_systems_are_named() -> None:
    assert foreign_mounts(MOUNTINFO, b"/", []) == {
        b"/proc": b"proc",
        b"/mnt/share": b"nfs4",
        b"/opt/of the host": b"virtiofs",
        b"/back\\slash": b"cifs",
    }


def test_what_is_excluded_anyway_is_not_named() -> None:
    found = foreign_mounts(MOUNTINFO, b"/", [b"/proc", b"/mnt", b"/opt"])
    assert found == {b"/back\\slash": b"cifs"}


def test_paths_are_relative_to_the_root() -> None:
    assert foreign_mounts(MOUNTINFO, b"/mnt", []) == {b"/share": b"nfs4"}
    assert foreign_mounts(MOUNTINFO, b"/mnt/share", []) == {b"/inner": b"fuse.sshfs"}  # the root itself was asked for
    assert foreign_mounts(MOUNTINFO, b"/mn", []) == {}


def test_the_last_mount_on_a_path_counts() -> None:
    assert b"/over" not in foreign_mounts(MOUNTINFO, b"/", [])
    lines = MOUNTINFO.splitlines(keepends=True)
    swapped = b"".join([*lines[:8], lines[9], lines[8], *lines[10:]])
    assert foreign_mounts(swapped, b"/", [])[b"/over"] == b"nfs"


@given(st.binary(max_size=300))
def test_any_list_of_mounts(raw: bytes) -> None:
    assert all(path.startswith(b"/") for path in foreign_mounts(raw + b"\n" + MOUNTINFO, b"/", []))
