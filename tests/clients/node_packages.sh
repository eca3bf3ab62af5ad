#!/bin/sh
# Puts the Node packages of tests/clients/package-lock.json into FOLDER/node_modules; does nothing when they are there.
#
#     tests/clients/node_packages.sh FOLDER
#     tests/clients/node_packages.sh --check FOLDER    # only say whether they are there
set -eu

here=$(cd "$(dirname "$0")" && pwd)
check=no
[ "${1:-}" != --check ] || { check=yes; shift; }
[ $# = 1 ] || { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0" >&2; exit 2; }
folder=$1

# The copy of the lock is written last, so it says that all of it was unpacked.
if cmp -s "$here/package-lock.json" "$folder/unpacked"; then exit 0; fi
[ $check = no ] || exit 1
if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
    echo "node_packages.sh: node or npm is missing: ./setup.sh --tests installs them" >&2
    exit 1
fi
mkdir -p "$folder"
cp "$here/package.json" "$here/package-lock.json" "$folder"
if ! (cd "$folder" && npm ci --ignore-scripts --no-audit --no-fund --loglevel=error); then
    echo "node_packages.sh: the packages of tests/clients/package-lock.json could not be fetched into $folder;" \
        "npm needs a network the first time (see its lines above)" >&2
    exit 1
fi
cp "$here/package-lock.json" "$folder/unpacked"
