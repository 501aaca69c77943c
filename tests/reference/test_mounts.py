"""Which mounts count as local, and what is hidden from a process."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cosmian_vm.reference._mounts import foreign_mounts, hidden_paths

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


SYSTEM = b"""\
20 1 254:5 / / rw - ext4 /dev/vda5 rw
21 20 254:4 / /usr rw shared:1 - ext4 /dev/vda4 rw
22 20 0:30 /srv /srv rw - btrfs /dev/vda3 rw
23 20 0:5 / /proc rw - proc proc rw
24 21 0:31 / /usr/in\\040memory rw - tmpfs tmpfs rw
"""


def hidden(ours: bytes, systems: bytes = SYSTEM, root: bytes = b"/", excluded: tuple[bytes, ...] = ()) -> list[bytes]:
    return hidden_paths(ours, systems, root, excluded)


def test_the_same_mounts_in_another_namespace_hide_nothing() -> None:
    assert hidden(SYSTEM) == []
    read_only = b"931 920 254:5 /var/lib /var/lib rw - ext4 /dev/vda5 rw\n932 921 254:4 /lib /usr/lib ro - ext4 - ro\n"
    ours = SYSTEM.replace(b"20 1 ", b"920 1 ").replace(b"21 20 ", b"921 920 ").replace(b"22 20 ", b"922 920 ")
    ours = ours.replace(b"23 20 ", b"923 920 ").replace(b"24 21 ", b"924 921 ")
    assert hidden(ours + read_only) == []
    assert hidden(ours + b"933 922 0:30 /srv/app /srv/app ro - btrfs /dev/vda3 rw\n") == []


def test_what_is_covered_for_us_is_named() -> None:
    assert hidden(SYSTEM + b"30 20 0:40 / /home rw - tmpfs tmpfs rw\n") == [b"/home"]
    assert hidden(SYSTEM + b"30 21 0:41 /systemd/inaccessible/dir /usr/lib/modules ro - tmpfs tmpfs ro\n") == [
        b"/usr/lib/modules"
    ]
    assert hidden(SYSTEM + b"30 20 254:5 /tmp/systemd-private-1/tmp /opt rw - ext4 /dev/vda5 rw\n") == [b"/opt"]
    assert hidden(SYSTEM + b"30 21 254:4 /bin/false /usr/bin/su ro - ext4 /dev/vda4 ro\n") == [b"/usr/bin/su"]


def test_what_is_mounted_for_the_system_alone_is_named() -> None:
    later = SYSTEM + b"31 22 0:50 / /srv/data rw - tmpfs tmpfs rw\n"
    assert hidden(SYSTEM, later) == [b"/srv/data"]
    without = b"".join(line for line in SYSTEM.splitlines(keepends=True) if b" /usr" not in line)
    assert hidden(without) == [b"/usr"]  # and not what is below it


def test_a_mount_on_top_of_others_hides_all_of_them() -> None:
    over = b"40 21 0:60 / /usr rw - tmpfs tmpfs rw\n"
    assert hidden(SYSTEM + over) == [b"/usr"]
    assert hidden(SYSTEM + over, SYSTEM + over) == []
    # what is mounted below /usr does not come back with it
    assert hidden(SYSTEM + over, SYSTEM + over + b"41 21 0:61 / /usr/x rw - tmpfs tmpfs rw\n") == []


def test_another_root_or_none_is_named() -> None:
    assert hidden(SYSTEM.replace(b"254:5 / /", b"254:5 /jail /")) == [b"/"]
    assert hidden(b"") == [b"/"]
    assert hidden(b"", b"") == [b"/"]


def test_hidden_paths_are_those_of_the_tree_that_are_walked() -> None:
    ours = SYSTEM + b"30 21 0:40 / /usr/lib/x rw - tmpfs tmpfs rw\n"
    assert hidden(ours, root=b"/usr/lib") == [b"/x"]
    assert hidden(ours, root=b"/usr/lib/x") == [b"/"]
    assert hidden(ours, root=b"/usr/li") == []
    assert hidden(ours, excluded=(b"/usr",)) == []
    assert hidden(ours, excluded=(b"/usr/lib/x",)) == []


@given(st.binary(max_size=300))
def test_any_other_list_of_mounts(raw: bytes) -> None:
    assert all(path.startswith(b"/") for path in hidden(raw + b"\n" + SYSTEM))
