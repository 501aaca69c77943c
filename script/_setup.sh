# Sourced by the other scripts: installs what they need, once.
# Debian packages go through apt (root or sudo); Python packages into .venv, every one pinned by its hash.
# shellcheck shell=bash

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv="$root/.venv"
# The TSS2 library is built against the headers of the system's own Python, so that one is used and not another on PATH.
debian_packages=(swtpm swtpm-tools fuse3 libtss2-dev gcc pkg-config python3-dev python3-venv)

say() { printf '\033[2m── %s\033[0m\n' "$*" >&2; }
die() { printf '%s\n' "$*" >&2; exit 2; }

install_debian() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q '^install ok installed$' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    command -v apt-get >/dev/null || die "script: needs these packages, and there is no apt-get here: ${missing[*]}"
    local sudo=()
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null || die "script: installing ${missing[*]} needs root or sudo"
        sudo=(sudo)
    fi
    say "installing Debian packages: ${missing[*]}"
    local log
    log=$(mktemp)
    if ! { "${sudo[@]}" apt-get -q update && "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get -q -o DPkg::Lock::Timeout=600 install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
        tail -n 15 "$log" >&2
        rm -f "$log"
        die "script: apt-get could not install ${missing[*]}"
    fi
    rm -f "$log"
}

system_python() {
    local python
    for python in /usr/bin/python3.1[1-9] /usr/bin/python3; do
        if [ -x "$python" ] && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$python"
            return
        fi
    done
    die "script: needs Python 3.11 or newer in /usr/bin (Debian 12, Ubuntu 24.04 and later have it)"
}

# install_python runtime|dev: those requirements and the project itself, unless .venv has them already (dev has all).
install_python() {
    local level=$1 stamp python
    python=$(system_python)
    stamp="$("$python" -V) $root $(cat "$root"/requirements/*.txt "$root/pyproject.toml" | sha256sum)"
    if [ -x "$venv/bin/python" ]; then
        case "$(cat "$venv/.stamp" 2>/dev/null)" in
        "dev $stamp" | "$level $stamp") return ;;
        esac
    fi
    say "installing Python packages into .venv (pinned by hash)"
    rm -f "$venv/.stamp"
    "$python" -m venv "$venv"
    # What builds comes first, pinned too: by itself pip would fetch it unchecked for each build.
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --only-binary=:all: \
        -r "$root/requirements/build.txt"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --require-hashes --no-build-isolation \
        -r "$root/requirements/$level.txt"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable "$root"
    printf '%s\n' "$level $stamp" >"$venv/.stamp"
}
