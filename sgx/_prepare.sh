# Sourced by entrypoint.bash and measure: the folder with Python's packages, the manifest, the signature.
# shellcheck shell=bash

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
signer="${SGX_SIGNER_KEY:-$HOME/.config/gramine/enclave-key.pem}"

die() { printf '%s\n' "$*" >&2; exit 2; }

need() {
    local program
    for program in "$@"; do
        command -v "$program" >/dev/null || die "sgx: $program is not installed (see sgx/README.md)"
    done
}

python_packages() { # every one pinned by its hash; compiled once, for nothing is written in an enclave
    local root digest
    root=$(cd "$here/.." && pwd)
    digest=$(cd "$root" && find pyproject.toml requirements src -type f ! -name '*.pyc' | LC_ALL=C sort |
        xargs -d '\n' sha256sum | sha256sum)
    [ "$(cat "$here/build/.digest" 2>/dev/null)" != "$digest" ] || return 0
    rm -rf "$here/build"
    mkdir -p "$here/build/tools"
    "$python" -m venv "$here/build/tools"
    local pip=("$here/build/tools/bin/python" -I -m pip --quiet --disable-pip-version-check)
    "${pip[@]}" install --require-hashes --only-binary=:all: -r "$root/requirements/build.txt"
    "${pip[@]}" wheel --no-deps --no-build-isolation --require-hashes -r "$root/requirements/runtime.txt" \
        --wheel-dir "$here/build/wheels"
    "${pip[@]}" wheel --no-deps --no-build-isolation --wheel-dir "$here/build/wheels" "$root"
    "${pip[@]}" install --no-index --no-deps --no-build-isolation --no-compile --target "$here/build/python" \
        "$here"/build/wheels/*.whl
    # No TPM and no simulated hardware in an enclave; no programs, no name of this machine's folders.
    rm -rf "$here"/build/python/{bin,*.pth,tpm2_pytss*,setuptools*,pkg_resources,_distutils_hack,cosmian_vm/devkit}
    rm -f "$here"/build/python/*.dist-info/{RECORD,direct_url.json}
    PYTHONHASHSEED=0 "$python" -B -m compileall -q -f --invalidation-mode unchecked-hash \
        -s "$here/build/python" -p /usr/lib/cosmian_vm "$here/build/python"
    rm -rf "$here/build/tools" "$here/build/wheels"
    printf '%s\n' "$digest" >"$here/build/.digest"
}

sign() { # sign DOMAIN EMAIL [--staging]
    need gramine-manifest gramine-sgx-sign openssl
    python=$(readlink -f "$(command -v python3)")
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "sgx: $python is older than Python 3.11"
    cd "$here"
    [ -x bin/app ] || die "sgx: $here/bin/app is missing: put the application's program there"
    [ -x /usr/sbin/nginx ] || die "sgx: nginx is not installed"
    python_packages
    mkdir -p cosmian_vm_data app_data
    if [ ! -f "$signer" ]; then
        mkdir -p "$(dirname "$signer")"
        (umask 077 && openssl genrsa -3 -out "$signer" 3072 2>/dev/null)
        printf 'sgx: a new signing key was made: %s (keep it: app_data can be read only with it)\n' "$signer" >&2
    fi
    gramine-manifest -Ddomain_name="$1" -Demail="$2" -Dstaging="${3:+1}" -Dlog_level=error -Dpython="$python" \
        -Dstdlib="$("$python" -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
        -Darch_libdir="/lib/$(gcc -dumpmachine 2>/dev/null || echo x86_64-linux-gnu)" \
        cosmian_vm.manifest.template cosmian_vm.manifest
    gramine-sgx-sign --key "$signer" --manifest cosmian_vm.manifest --output cosmian_vm.manifest.sgx >build/sign.log ||
        { tail -n 20 build/sign.log >&2; die "sgx: gramine-sgx-sign failed"; }
}

check_names() { # a domain and an address go into a file of TOML
    [[ $1 =~ ^[A-Za-z0-9.-]{1,253}$ ]] || die "sgx: not a domain name: $1"
    [[ $2 =~ ^[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9.-]{1,253}$ ]] || die "sgx: not an e-mail address: $2"
    [ $# -eq 2 ] || [ "${3:-}" = --staging ] || die "sgx: unknown: $3"
}
