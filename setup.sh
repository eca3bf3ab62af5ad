#!/usr/bin/env bash
# Installs what trunkd needs to be built, run and tested, from Debian's packages. Does nothing when all of it is there.
set -euo pipefail

packages=(
    build-essential cmake ninja-build pkg-config # build
    protobuf-c-compiler libprotobuf-c-dev        # the messages
    libgrpc-dev libssl-dev                       # the wire
    libsqlite3-dev libjansson-dev                # the store
    libmicrohttpd-dev                            # metrics and health over HTTP
    libopenblas-serial-dev                       # eigenvectors; the peer of tests/bench/linear_bench
    libpng-dev libjpeg62-turbo-dev               # images in
    libcmocka-dev                                # tests
    python3-grpcio python3-protobuf              # tests: a foreign client
    protobuf-compiler protobuf-compiler-grpc     # tests: the examples in docs/
    xz-utils                                     # the demo's photographs
)

usage() {
    cat <<'EOF'
Usage: ./setup.sh [--check | --list]

Installs the Debian packages that trunkd needs (as root, or through sudo).
  --check   only say what is missing; exit status 1 if anything is
  --list    print the packages
EOF
}

missing_packages() {
    local p state
    for p in "${packages[@]}"; do
        state=$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null || true)
        [ "$state" = installed ] || echo "$p"
    done
}

case ${1:-} in
'' | --check) ;;
--list)
    printf '%s\n' "${packages[@]}"
    exit 0
    ;;
-h | --help)
    usage
    exit 0
    ;;
*)
    echo "setup.sh: unknown option $1" >&2
    usage >&2
    exit 2
    ;;
esac

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    cat >&2 <<EOF
setup.sh: this is no Debian system (no dpkg-query or apt-get), so nothing can be installed here.
trunkd is built and tested on Debian 12. Elsewhere, install what these Debian packages hold, then run
cmake --preset release && cmake --build --preset release:
  ${packages[*]}
EOF
    exit 1
fi

mapfile -t missing < <(missing_packages)
if [ ${#missing[@]} -eq 0 ]; then
    echo "setup: everything is installed"
    exit 0
fi
echo "setup: missing: ${missing[*]}"
[ "${1:-}" != --check ] || exit 1

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "setup.sh: installing packages needs root; run as root: apt-get install ${missing[*]}" >&2
        exit 1
    fi
    as_root=(sudo)
fi
"${as_root[@]}" apt-get update
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
echo "setup: done"
