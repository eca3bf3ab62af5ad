#!/bin/sh
# Compares the engine's speed with ONNX Runtime (inference) and PyTorch (training). One command:
#
#     tests/bench/engine.sh [--quick] [--build FOLDER] [--no-install] [engine.py's options]
#
#   --quick        2 rounds of half a second instead of 7 of two
#   --build FOLDER build and keep the peers here (default: build, below the source)
#   --no-install   take the peers that are there and install none
#   others         see: tests/bench/engine.py --help   (--only infer, --threads 4, --csv FILE, ...)
#
# Peers: Debian's python3-torch, python3-torchvision and python3-onnx (installed by apt-get when this
# runs as root), and the npm package onnxruntime-node, unpacked into FOLDER/peers. Without a network
# the missing ones show as "not installed". Results also go to FOLDER/engine-bench.csv.
set -eu

ORT_VERSION=1.30.0
MODELS="resnet18-224-1 resnet18-224-8 resnet50-224-1 resnet50-224-8"

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
build=$root/build
install=yes
speed=
while [ $# -gt 0 ]; do
    case $1 in
    --help | -h) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"; exit ;;
    --quick) speed="--rounds 2 --seconds 0.5" ;;
    --build) build=$2; shift ;;
    --no-install) install=no ;;
    *) break ;;
    esac
    shift
done
peers=$build/peers

cmake -S "$root" -B "$build" >/dev/null
cmake --build "$build" --target engine_bench

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

set -- --engine "$build/bin/engine_bench" --csv "$build/engine-bench.csv" $speed "$@"
if /usr/bin/python3 -c 'import torch, torchvision' 2>/dev/null; then
    set -- --torch /usr/bin/python3 "$@"
    /usr/bin/python3 "$here/export_onnx.py" "$peers/onnx" $MODELS ||
        echo "engine.sh: no ONNX models" >&2
fi
[ ! -d "$peers/node_modules/onnxruntime-node" ] || set -- --ort "$peers" "$@"
exec python3 "$here/engine.py" "$@"
