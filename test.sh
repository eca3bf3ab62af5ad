#!/usr/bin/env bash
# Set-up, build, all tests: the quick ones under AddressSanitizer + UndefinedBehaviorSanitizer and under
# ThreadSanitizer, then all of them in the release build. Ends with ctest's summary of the last.
set -euo pipefail
cd "$(dirname "$0")"

usage() {
    cat <<'EOF'
Usage: ./test.sh [--quick] [--only release|asan|tsan]

  --quick      only the quick tests of the release build
  --only NAME  only one build: release (all tests), asan or tsan (the quick ones)

Build folders: build, build-asan, build-tsan. More of ctest: ctest --test-dir build --help
EOF
}

quick=no
builds=(asan tsan release)
while [ $# -gt 0 ]; do
    case $1 in
    --quick)
        quick=yes
        builds=(release)
        ;;
    --only)
        case ${2:-} in
        release | asan | tsan) builds=("$2") ;;
        *)
            echo "test.sh: --only needs release, asan or tsan" >&2
            exit 2
            ;;
        esac
        shift
        ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        echo "test.sh: unknown option $1" >&2
        usage >&2
        exit 2
        ;;
    esac
    shift
done

# A test's settings are its own.
for name in $(compgen -e TRUNKD_ || true); do
    [ "$name" = TRUNKD_ISA ] || unset "$name"
done

cores=$(nproc)
failed=()

# build NAME PRESET FOLDER
build() {
    echo "== $1: build"
    cmake --preset "$2" >"build-$1.log" 2>&1 || { cat "build-$1.log"; return 1; }
    rm -f "build-$1.log"
    cmake --build "$3" -j "$cores"
}

# ThreadSanitizer of gcc 12 cannot place its shadow when addresses are randomised widely, as newer kernels do.
fixed_addresses=()
if setarch -R true 2>/dev/null; then fixed_addresses=(setarch -R); fi

run_build() {
    case $1 in
    release)
        build release release build || return 1
        echo "== release: tests"
        if [ $quick = yes ]; then
            ctest --test-dir build --output-on-failure -j "$cores" -L fast
        else
            ctest --test-dir build --output-on-failure -j "$cores"
        fi
        ;;
    asan)
        build asan debug build-asan || return 1
        echo "== asan: quick tests"
        ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1:strict_string_checks=1:redzone=64} \
            LSAN_OPTIONS=${LSAN_OPTIONS:-suppressions=$PWD/tests/lsan.supp:print_suppressions=0} \
            UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1} \
            ctest --test-dir build-asan --output-on-failure -j "$cores" -L fast
        ;;
    tsan)
        build tsan tsan build-tsan || return 1
        echo "== tsan: quick tests"
        TSAN_OPTIONS=${TSAN_OPTIONS:-ignore_noninstrumented_modules=1:suppressions=$PWD/tests/tsan.supp} \
            "${fixed_addresses[@]}" ctest --test-dir build-tsan --output-on-failure -j "$cores" -L fast -LE whole
        ;;
    esac
}

./setup.sh --tests
for name in "${builds[@]}"; do
    run_build "$name" || failed+=("$name")
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "test.sh: failed in: ${failed[*]}" >&2
    exit 1
fi
