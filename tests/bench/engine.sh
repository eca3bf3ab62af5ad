#!/bin/sh
# Compares the engine's speed with ONNX Runtime (inference) and PyTorch (training). One command:
#
#     tests/bench/engine.sh                              everything: times, ratios, targets (20 minutes)
#     tests/bench/engine.sh --quick --only resnet18      a glance
#     tests/bench/engine.sh --memory                     peak memory of training steps
#     tests/bench/engine.sh --layers --only 'train resnet18 64 64 2'    where the time goes
#     tests/bench/engine.sh --scaling                    two threads, two processes, and the peer's two threads
#
#   --build FOLDER build and keep the peers here (default: build, below the source)
#   --no-install   take the peers that are there and install none
#   --record       keep the numbers in tests/bench/results (default: FOLDER/bench)
#   others         are engine.py's; they and the table are explained below
#
# Peers: Debian's python3-torch, python3-torchvision and python3-onnx (installed by apt-get when this
# runs as root), and the npm package onnxruntime-node, unpacked into FOLDER/peers. Without a network
# the missing ones show as "not installed".
set -eu

ORT_VERSION=1.30.0

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
build=$root/build
install=yes
record=no
value_of=
for arg; do # everything that is not ours goes to the end, for engine.py
    shift
    if [ "$value_of" = build ]; then
        build=$arg value_of=
        continue
    fi
    case $arg in
    --help | -h)
        sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"
        exec python3 "$here/engine.py" --help
        ;;
    --build) value_of=build ;;
    --cases | --models) exec python3 "$here/engine.py" "$arg" ;;
    --no-install) install=no ;;
    --record) record=yes ;;
    *) set -- "$@" "$arg" ;;
    esac
done
peers=$build/peers
results=$build/bench
[ $record = no ] || results=$here/results

cmake -S "$root" -B "$build" >/dev/null
cmake --build "$build" --target engine_bench engine_layers

mkdir -p "$peers/onnx"
if [ $install = yes ]; then
    if ! /usr/bin/python3 -c 'import torch, torchvision, onnx' 2>/dev/null && [ "$(id -u)" = 0 ]; then
        apt-get install -y --no-install-recommends python3-torch python3-torchvision python3-onnx ||
            echo "engine.sh: PyTorch could not be installed" >&2
    fi
    if command -v npm >/dev/null && [ ! -d "$peers/node_modules/onnxruntime-node" ]; then
        echo '{"private": true}' >"$peers/package.json"
        # Its install script would fetch CUDA; the package itself holds the CPU library.
        (cd "$peers" && npm install --ignore-scripts --no-audit --no-fund "onnxruntime-node@$ORT_VERSION") ||
            echo "engine.sh: onnxruntime-node could not be installed" >&2
    fi
fi

models=$(python3 "$here/engine.py" --models "$@")
set -- --engine "$build/bin" --csv "$results" "$@"
if /usr/bin/python3 -c 'import torch, torchvision' 2>/dev/null; then
    set -- --torch /usr/bin/python3 "$@"
    # shellcheck disable=SC2086 # a list of words
    [ -z "$models" ] || /usr/bin/python3 "$here/export_onnx.py" "$peers/onnx" $models ||
        echo "engine.sh: no ONNX models" >&2
fi
[ ! -d "$peers/node_modules/onnxruntime-node" ] || set -- --ort "$peers" "$@"
exec python3 "$here/engine.py" "$@"
