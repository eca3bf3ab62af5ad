#!/bin/sh
# The server's speed on this machine: requests by gRPC, from JPEG to label, against the engine alone, against ONNX Runtime
# behind a gRPC server, and against the bare C core.
#
#     tests/bench/serving.sh              3 rounds of ResNet-18 at 64 px and at 224 px (20 minutes)
#     tests/bench/serving.sh --quick      does it run? (a glance; the figures mean little)
#     tests/bench/serving.sh --only tenants,overload --px 224
#
#   --build FOLDER build and keep the peers here (default: build, below the source)
#   --no-install   take the peers that are there and install none
#   --record       keep the figures in tests/bench/results
#   others         are serving.py's; they and the table are explained below
#
# The peer is made of npm packages, unpacked into FOLDER/peers, and of models that Debian's python3-torch exports (installed
# by apt-get when this runs as root). Alone on the machine, or the figures are the neighbours'.
set -eu

PEERS="onnxruntime-node@1.30.0 sharp@0.34.5 @grpc/grpc-js@1.14.7 @grpc/proto-loader@0.8.1"

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
build=$root/build
install=yes
record=no
px=64,224
only=
value_of=
for arg; do # everything that is not ours goes to the end, for serving.py
    shift
    case $value_of in
    build)
        build=$arg value_of=
        continue
        ;;
    px) px=$arg value_of= ;;
    only) only=$arg value_of= ;;
    esac
    case $arg in
    --help | -h)
        sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"
        exec python3 "$here/serving.py" --help
        ;;
    --build) value_of=build && continue ;;
    --no-install) install=no && continue ;;
    --record) record=yes && continue ;;
    --px | --only) value_of=${arg#--} ;;
    --quick) px=64 ;;
    esac
    set -- "$@" "$arg"
done
[ -z "$value_of" ] || { echo "serving.sh: --$value_of needs a value" >&2; exit 2; }
peers=$build/peers

cmake -S "$root" -B "$build" >/dev/null
cmake --build "$build" --target trunkd trunkd-trainer trunkctl engine_bench serving_store echo_server foreign_store

# The peer's packages and models, when a part needs them.
case ",$only," in
,, | *,ort,* | *,models,*)
    mkdir -p "$peers/onnx"
    if [ $install = yes ]; then
        if ! /usr/bin/python3 -c 'import torch, torchvision, onnx' 2>/dev/null && [ "$(id -u)" = 0 ]; then
            apt-get install -y --no-install-recommends python3-torch python3-torchvision python3-onnx
        fi
        if [ ! -d "$peers/node_modules/sharp" ] || [ ! -d "$peers/node_modules/@grpc/proto-loader" ]; then
            [ -f "$peers/package.json" ] || echo '{"private": true}' >"$peers/package.json"
            # shellcheck disable=SC2086 # a list; install scripts would fetch more, and are not needed
            (cd "$peers" && npm install --ignore-scripts --no-audit --no-fund --loglevel=error $PEERS)
        fi
        models=$(echo "$px" | tr ',' '\n' | sed 's/.*/resnet18-&-n/')
        # shellcheck disable=SC2086 # a list
        /usr/bin/python3 "$here/export_onnx.py" "$peers/onnx" $models
    fi
    ;;
esac
[ $record = no ] || set -- --results "$here/results" "$@"
exec python3 "$here/serving.py" --bin "$build/bin" --peers "$peers" "$@"
