#!/usr/bin/env bash
# Starts Cosmian VM in SGX enclaves on this machine.
#
#   sudo ./entrypoint.bash DOMAIN EMAIL [--staging]     --staging: a certificate for trying, which no browser trusts
#   sudo ./entrypoint.bash DOMAIN EMAIL --emulation     only compute MRENCLAVE; needs no SGX (as ./measure)
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/_prepare.sh"

case "${1:-}" in "" | -h | --help) sed -n '2,5s/^# \{0,1\}//p' "$0"; [ -n "${1:-}" ] || exit 2; exit 0 ;; esac
[ $# -ge 2 ] && [ $# -le 3 ] || die "sgx: DOMAIN EMAIL [--staging | --emulation]"
if [ "${3:-}" = --emulation ]; then
    exec "$here/measure" "$1" "$2"
fi
check_names "$@"
[ "$(id -u)" -eq 0 ] || die "sgx: this takes root (ports 80 and 443, /dev/sgx_enclave)"
[ -e /dev/sgx_enclave ] || die "sgx: this machine has no SGX (/dev/sgx_enclave); ./measure works without"
need gramine-sgx
sign "$@"
exec gramine-sgx ./cosmian_vm
