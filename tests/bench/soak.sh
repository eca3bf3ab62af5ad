#!/bin/sh
# Does the server stay right, and as large as it is, under everything at once? For tests/bench/soak.py, explained below.
#
#     tests/bench/soak.sh                          10 minutes of mixed load, jobs, rollbacks, deleted heads
#     tests/bench/soak.sh --minutes 2 --build build-tsan
#     tests/bench/soak.sh swaps                    200 rollbacks between three versions under load
#
#   --build FOLDER   build here (default: build, below the source); one with sanitizers will do
#   others           are soak.py's
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
build=$root/build
value_of=
for arg; do # everything that is not ours goes to the end, for soak.py
    shift
    if [ "$value_of" = build ]; then
        build=$arg value_of=
        continue
    fi
    case $arg in
    --help | -h)
        sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"
        exec /usr/bin/python3 "$here/soak.py" --help
        ;;
    --build) value_of=build ;;
    *) set -- "$@" "$arg" ;;
    esac
done
[ -z "$value_of" ] || { echo "soak.sh: --$value_of needs a value" >&2; exit 2; }

cmake -S "$root" -B "$build" >/dev/null
cmake --build "$build" --target trunkd trunkd-trainer foreign_store
sanitizers=$(sed -n 's/^TRUNKD_SANITIZE:[A-Z]*=//p' "$build/CMakeCache.txt")
[ -z "$sanitizers" ] || set -- --sanitized "$@"
case $sanitizers in # see tests/tsan.supp; its shadow needs addresses that are not randomised widely
*thread*)
    export TSAN_OPTIONS="${TSAN_OPTIONS:-ignore_noninstrumented_modules=1:suppressions=$root/tests/tsan.supp}"
    exec setarch -R /usr/bin/python3 "$here/soak.py" --bin "$build/bin" "$@"
    ;;
*address*) export LSAN_OPTIONS="${LSAN_OPTIONS:-suppressions=$root/tests/lsan.supp:print_suppressions=0}" ;;
esac
exec /usr/bin/python3 "$here/soak.py" --bin "$build/bin" "$@"
