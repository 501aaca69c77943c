#!/bin/sh
# Compiles tpm2-pytss where build has put its source: from files alone, whatever any pip called by another would like to fetch.
#   wheel.sh FOLDER    FOLDER has the source, build.txt and the wheels of build.txt; the new wheel is in FOLDER/out
set -eu
cd "$1"
export PIP_NO_INDEX=1 PIP_FIND_LINKS="$1" PIP_DISABLE_PIP_VERSION_CHECK=1
python3 -m venv venv
venv/bin/pip install --quiet --require-hashes --only-binary=:all: -r build.txt
venv/bin/pip wheel --quiet --no-deps --no-build-isolation --wheel-dir out --no-binary=tpm2-pytss tpm2-pytss
