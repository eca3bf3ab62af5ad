#!/bin/sh
# The server's speed on this machine: requests by gRPC, from JPEG to label, against the engine alone.
#
#     tests/bench/serving.sh              5 rounds of ResNet-18 at 224 px (9 minutes)
#     tests/bench/serving.sh --quick      does it run? (a glance; the figures mean little)
#
#   --build FOLDER build here (default: build, below the source)
#   others         are serving.py's; they and the table are explained below
#
# Alone on the machine, or the figures are the neighbours'.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
build=$root/build
value_of=
for arg; do # everything that is not ours goes to the end, for serving.py
    shift
    if [ "$value_of" = build ]; then
        build=$arg value_of=
        continue
    fi
    case $arg in
    --help | -h)
        sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"
        exec python3 "$here/serving.py" --help
        ;;
    --build) value_of=build ;;
    *) set -- "$@" "$arg" ;;
    esac
done
[ -z "$value_of" ] || { echo "serving.sh: --$value_of needs a value" >&2; exit 2; }

cmake -S "$root" -B "$build" >/dev/null
cmake --build "$build" --target trunkd trunkctl engine_bench serving_store
exec python3 "$here/serving.py" --bin "$build/bin" "$@"
