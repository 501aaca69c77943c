#!/bin/sh
# The last step of every build, as root: nothing of the build is part of the image, and nothing of a machine that ran.
#   clean.sh USER    USER is whom Packer logged in as
set -eu
fail() { printf 'packer/clean.sh: %s\n' "$*" >&2; exit 1; }

# Keys, certificate and container are each machine's own: an image that had them would give the same to all.
for found in /var/lib/cosmian_vm/container /var/lib/cosmian_vm/data/*; do
    [ ! -e "$found" ] || fail "$found: the agent ran during the build; its keys must not be in an image"
done
if [ -n "$(find /var/lib/cosmian_vm -type f)" ]; then
    fail "/var/lib/cosmian_vm: there are files; the agent ran during the build"
fi

# What identifies this machine.
rm -f /etc/ssh/ssh_host_* /var/lib/systemd/random-seed /var/lib/systemd/credential.secret
rm -f /var/lib/NetworkManager/secret_key /var/lib/dbus/machine-id
: >/etc/machine-id
rm -rf /var/lib/dhcp/*.leases /var/lib/dhclient/* /var/lib/NetworkManager/*.lease

# Who built it, and what was done.
user_home=$(getent passwd "$1" | cut -d: -f6)
[ -n "$user_home" ] || fail "$1: there is no such user on this machine"
for home in /root "$user_home"; do
    rm -rf "${home:?}/.ssh/authorized_keys" "$home/.ssh/known_hosts" "$home/.ansible" "$home/.cache" "$home/.bash_history" \
        "$home/.python_history" "$home/.sudo_as_admin_successful"
done
if command -v cloud-init >/dev/null; then cloud-init clean --logs; fi
if command -v waagent >/dev/null; then waagent -force -deprovision+user; fi
rm -rf /var/lib/google /etc/boto.cfg
# The user of the build (-f: it is logged in), and the right of the cloud's users to be root: none is made any more.
if [ "$1" != root ]; then
    if id "$1" >/dev/null 2>&1; then userdel -f -r "$1"; fi
    rm -f /etc/sudoers.d/90-cloud-init-users /etc/sudoers.d/waagent /etc/sudoers.d/google_sudoers
fi
if command -v apt-get >/dev/null; then apt-get clean && rm -rf /var/lib/apt/lists/*; fi
if command -v dnf >/dev/null; then dnf -q clean all; fi
rm -rf /var/tmp/.cosmian_vm_ansible_* /var/tmp/cosmian_vm_build /tmp/* /var/tmp/*
journalctl --quiet --rotate --vacuum-time=1s || true
find /var/log -type f \( -name '*.gz' -o -name '*.[0-9]' -o -path '*/journal/*' \) -delete
find /var/log -type f -exec truncate -s 0 {} +
sync
