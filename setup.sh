#!/usr/bin/env bash
# Installs what trunkd needs to be built, run and tested, from Debian's packages. Does nothing when all of it is there.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)

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
Usage: ./setup.sh [--tests] [--check | --list]

Installs the Debian packages that trunkd needs (as root, or through sudo).
  --tests   also Node with npm, and the npm packages of tests/clients/package-lock.json, into build/node
  --check   only say what is missing; exit status 1 if anything is
  --list    print the Debian packages
EOF
}

# A Node that is not Debian's brings its own npm, and will do.
missing_packages() {
    local p state
    for p in "${packages[@]}"; do
        case $p in
        nodejs) ! command -v node >/dev/null || continue ;;
        npm) ! command -v npm >/dev/null || continue ;;
        esac
        state=$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null || true)
        [ "$state" = installed ] || echo "$p"
    done
}

tests=no
action=install
for arg; do
    case $arg in
    --tests) tests=yes ;;
    --check) action=check ;;
    --list) action=list ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        echo "setup.sh: unknown option $arg" >&2
        usage >&2
        exit 2
        ;;
    esac
done
[ $tests = no ] || packages+=(nodejs npm)
if [ $action = list ]; then
    printf '%s\n' "${packages[@]}"
    exit 0
fi

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
    cat >&2 <<EOF
setup.sh: this is no Debian system (no dpkg-query or apt-get), so nothing can be installed here.
trunkd is built and tested on Debian 12. Elsewhere, install what these Debian packages hold, then run
cmake --preset release && cmake --build --preset release:
  ${packages[*]}
EOF
    exit 1
fi

install_packages() {
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        if ! command -v sudo >/dev/null; then
            echo "setup.sh: installing packages needs root; run as root: apt-get install $*" >&2
            exit 1
        fi
        as_root=(sudo)
    fi
    "${as_root[@]}" apt-get update
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"
}

# Without them two tests fail and say so; the others can run.
fetch_npm_packages() {
    "$here/tests/clients/node_packages.sh" "$here/build/node" ||
        echo "setup.sh: without these packages the tests foreign_node and docs_python will fail" >&2
}

mapfile -t missing < <(missing_packages)
npm=there
if [ $tests = yes ] && ! "$here/tests/clients/node_packages.sh" --check "$here/build/node"; then npm=missing; fi
if [ ${#missing[@]} -eq 0 ] && [ $npm = there ]; then
    echo "setup: everything is installed"
    exit 0
fi
[ ${#missing[@]} -eq 0 ] || echo "setup: missing: ${missing[*]}"
[ $npm = there ] || echo "setup: missing: npm packages of the tests"
[ $action = install ] || exit 1
[ ${#missing[@]} -eq 0 ] || install_packages "${missing[@]}"
[ $npm = there ] || fetch_npm_packages
echo "setup: done"
