#!/usr/bin/env bash
# The main job, end to end: Alice trains the trunk, then Bob and Carol add heads to it while Alice is being served, and
# nobody loses anything. See ./demo.sh --help.
set -euo pipefail
cd "$(dirname "$0")"
here=$PWD

usage() {
    cat <<'EOF'
Usage: ./demo.sh [OPTIONS]

Builds trunkd, starts it on the loopback with an empty store, and tells the story of three tenants with real photographs:
Alice's head "type" trains the trunk; then, while a client keeps classifying as Alice, Bob adds "colour" and Carol adds
"usage" with photographs of their own. Ends with every head's accuracy, before and after each job, on photographs that
the server never saw. About ten minutes on two cores.

  --tiny                a small part of the photographs, under two minutes
  --data DIR DIR...     the same story with your own data: a folder per tenant with train/CLASS/IMAGE.jpg and
                        test/CLASS/IMAGE.jpg; the first one trains the trunk
  --arch NAME           the trunk: resnet20 (default), resnet32, resnet56, resnet18, resnet34, resnet50
  --px N                its input size in pixels (default: 32, or 64 with resnet18/34/50)
  --resize-mode MODE    short (cut to the middle) or squash (default: squash)
  --first NAME=NUMBER   a setting of the first tenant's job (repeat for more), as in --first epochs=15
  --later NAME=NUMBER   a setting of the later tenants' jobs (repeat for more)
  --no-naive            leave out the contrast: the same data with plain fine-tuning (as --tiny does)
  --keep                keep the store and say where it is
  --bin DIR             use the programs in DIR instead of building them
  --results FILE        write every number to FILE, too, as name=value lines
EOF
}

die() {
    echo "demo.sh: $*" >&2
    exit 1
}

tiny=no naive=yes keep=no bin='' results='' arch=resnet20 px='' mode=squash
data=() first_set=() later_set=()
while [ $# -gt 0 ]; do
    case $1 in
    --tiny) tiny=yes naive=no ;;
    --no-naive) naive=no ;;
    --keep) keep=yes ;;
    --data)
        while [ $# -gt 1 ] && [ "${2#--}" = "$2" ]; do
            data+=("$2")
            shift
        done
        [ ${#data[@]} -ge 2 ] || die "--data needs a folder for each of at least two tenants"
        ;;
    --arch | --px | --resize-mode | --first | --later | --bin | --results)
        [ $# -gt 1 ] || die "$1 needs a value"
        case $1 in
        --arch) arch=$2 ;;
        --px) px=$2 ;;
        --resize-mode) mode=$2 ;;
        --first) first_set+=(--set "$2") ;;
        --later) later_set+=(--set "$2") ;;
        --bin) bin=$2 ;;
        --results) results=$2 ;;
        esac
        shift
        ;;
    -h | --help)
        usage
        exit 0
        ;;
    *)
        echo "demo.sh: unknown option $1" >&2
        usage >&2
        exit 2
        ;;
    esac
    shift
done
case $arch in
resnet18 | resnet34 | resnet50) px=${px:-64} ;;
*) px=${px:-32} ;;
esac

# -- telling it --

bold='' plain=''
if [ -t 1 ]; then bold=$'\033[1m' plain=$'\033[0m'; fi
began=$SECONDS
say() { printf '\n%s%s%s  (%d:%02d)\n' "$bold" "$*" "$plain" $(((SECONDS - began) / 60)) $(((SECONDS - began) % 60)); }
note() { [ -z "$results" ] || echo "$1=$2" >>"$results"; }
# minus A B: "+0.3", the difference of two accuracies
minus() { awk -v a="$1" -v b="$2" 'BEGIN { d = a - b; if (d > -0.05 && d < 0.05) d = 0; printf "%+.1f", d }'; }

# -- set-up and build --

if [ -z "$bin" ]; then
    say "Set-up and build"
    ./setup.sh
    cmake --preset release >/dev/null
    cmake --build build -j "$(nproc)" --target trunkd trunkd-trainer trunkctl
    bin=$here/build/bin
fi
bin=$(cd "$bin" && pwd)
trunkctl=$bin/trunkctl
for program in trunkd trunkd-trainer trunkctl; do [ -x "$bin/$program" ] || die "no $program in $bin"; done
[ -z "$results" ] || : >"$results"

# -- a place of its own, and cleaning up --

work=$(mktemp -d "${TMPDIR:-/tmp}/trunkd-demo.XXXXXX")
chmod 700 "$work"
server_pid='' traffic_pid=''

stop_server() {
    [ -n "$server_pid" ] || return 0
    kill "$server_pid" 2>/dev/null || true
    wait "$server_pid" 2>/dev/null || true
    server_pid=''
}

cleanup() {
    local code=$?
    trap - EXIT INT TERM
    if [ -n "$traffic_pid" ]; then
        kill "$traffic_pid" 2>/dev/null || true
        wait "$traffic_pid" 2>/dev/null || true
    fi
    stop_server
    if [ $code -ne 0 ] && [ $code -lt 128 ] && [ -s "$work/trunkd.log" ]; then
        echo "demo.sh: ended early; the server's last words:" >&2
        tail -n 15 "$work/trunkd.log" >&2
    fi
    if [ $keep = yes ]; then echo "Kept: $work"; else rm -rf "$work"; fi
    exit $code
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# What the person has set for a server or client of their own does not count here.
for name in $(compgen -e TRUNKD_ || true); do
    [ "$name" = TRUNKD_ISA ] || unset "$name"
done
export XDG_CONFIG_HOME=$work/config

# start_server STORE
start_server() {
    local store=$1
    rm -f "$work/port"
    "$bin/trunkd" --store "$store" --listen 127.0.0.1:0 --port-file "$work/port" --arch "$arch" --px "$px" \
        --resize-mode "$mode" 2>>"$work/trunkd.log" &
    server_pid=$!
    for _ in $(seq 300); do
        [ ! -s "$work/port" ] || break
        kill -0 "$server_pid" 2>/dev/null || die "trunkd did not start"
        sleep 0.1
    done
    [ -s "$work/port" ] || die "trunkd did not say its port"
    TRUNKD_SERVER=127.0.0.1:$(cat "$work/port")
    export TRUNKD_SERVER
    "$trunkctl" health --wait 30 --quiet
}

# as WHO COMMAND...: trunkctl with that tenant's token
as() {
    local who=$1
    shift
    TRUNKD_TOKEN_FILE=$work/$who.token "$trunkctl" "$@"
}

# -- who has what --

everyone=(alice bob carol dave erin frank grace heidi ivan judy)
tenants=() heads=()

# train_of I, test_of I: what trunkctl has to be told to find tenant I's photographs
if [ ${#data[@]} -gt 0 ]; then
    [ ${#data[@]} -le ${#everyone[@]} ] || die "at most ${#everyone[@]} folders"
    for i in "${!data[@]}"; do
        data[i]=$(cd "${data[i]}" 2>/dev/null && pwd) || die "${data[i]}: no such folder"
        for part in train test; do
            [ -d "${data[i]}/$part" ] || die "${data[i]}: it has no folder $part"
        done
        tenants+=("${everyone[i]}")
        heads+=("$(basename "${data[i]}" | tr '[:upper:]' '[:lower:]' | tr -c 'a-z0-9.\n_-' '-' | cut -c1-63)")
    done
    train_of() { where=("${data[$1]}/train"); }
    test_of() { where=("${data[$1]}/test"); }
    frames=("${data[0]}/test")
else
    tenants=(alice bob carol) heads=(type colour usage)
    fashion=$here/demo/fashion
    demo/unpack.sh
    labels=$fashion/labels.csv
    if [ $tiny = yes ]; then
        # Five types of product, a part of each tenant's photographs.
        labels=$work/labels.csv
        awk -F, -v OFS=, -v root="$fashion/" '
            NR == 1 { print; next }
            $3 ~ /^(Watches|Sunglasses|Jeans|Handbags|Sports Shoes)$/ && $4 ~ /^(Black|Blue|Brown|White|Grey)$/ {
                $1 = root $1
                print
            }' "$fashion/labels.csv" >"$labels"
    fi
    train_of() { where=("$labels" --label-column "${heads[$1]}" --where "part=${tenants[$1]}"); }
    test_of() { where=("$labels" --label-column "${heads[$1]}" --where part=test); }
    mapfile -t frames < <(awk -F, '$2 == "test" { print $1 }' "$labels" | head -n 200 | sed "s,^images/,$fashion/images/,")
fi
last=$((${#tenants[@]} - 1))
if [ $tiny = yes ]; then
    first_set=(--set epochs=12 "${first_set[@]}")
    later_set=(--set epochs=6 "${later_set[@]}")
fi

# -- the steps of the story --

declare -A accuracy # "row,head" -> per cent on the test photographs

# measure ROW UPTO: tests the heads of tenants 0..UPTO
measure() {
    local i
    for i in $(seq 0 "$2"); do
        test_of "$i"
        accuracy[$1,$i]=$(as "${tenants[i]}" evaluate "${where[@]}" --head "${heads[i]}" --quiet)
        note "test.$1.${heads[i]}" "${accuracy[$1,$i]}"
        note "validation.$1.${heads[i]}" "$(as "${tenants[i]}" validation "${heads[i]}" --quiet)"
        printf '  %-12s %5.1f %% on %s test photographs\n' "${heads[i]}" "${accuracy[$1,$i]}" "${tenants[i]}'s"
    done
}

# learn ROW I ARGS...: tenant I uploads and trains
learn() {
    local row=$1 i=$2 id
    shift 2
    train_of "$i"
    echo "\$ trunkctl dataset upload ${where[*]##*/}"
    id=$(as "${tenants[i]}" dataset upload "${where[@]}" --name "${heads[i]}" --quiet)
    as "${tenants[i]}" dataset get "$id" | head -n 1
    echo "\$ trunkctl finetune --head ${heads[i]} --data $id --watch $*"
    as "${tenants[i]}" finetune --head "${heads[i]}" --data "$id" --watch "$@"
    note "jobs.$row" committed
}

start_traffic() {
    # Not through as(): $! has to be the client itself.
    TRUNKD_TOKEN_FILE=$work/${tenants[0]}.token "$trunkctl" classify "${frames[@]}" --head "${heads[0]}" --repeat \
        --interval 20 --batch 1 --summary "$work/traffic" --quiet 2>"$work/traffic.err" &
    traffic_pid=$!
}

# traffic NAME: a number of the client's summary
traffic() { sed -n "s/^$1=//p" "$work/traffic"; }

stop_traffic() {
    kill -TERM "$traffic_pid" 2>/dev/null || true
    wait "$traffic_pid" 2>/dev/null || true
    traffic_pid=''
    [ -s "$work/traffic" ] || die "the client wrote no summary: $(cat "$work/traffic.err")"
    local name
    for name in requests failed first_version last_version p50_ms p99_ms; do
        note "traffic.$name" "$(traffic $name)"
    done
}

# -- the contrast: the trainer by hand, its gate off --

# tree PART I: the photographs of tenant I, as a folder per class (links), in $tree
tree() {
    if [ ${#data[@]} -gt 0 ]; then
        tree=${data[$2]}/$1
        return
    fi
    local part=$1 head=${heads[$2]} class
    [ "$part" = test ] || part=${tenants[$2]}
    tree=$work/tree-$1-$2
    mkdir "$tree"
    awk -F, -v part="$part" -v column="$head" -v root="$fashion/" '
        NR == 1 { for (i = 1; i <= NF; i++) if ($i == column) at = i }
        NR > 1 && $2 == part { print $at "\t" ($1 ~ /^\// ? $1 : root $1) }' "$labels" >"$tree.list"
    cut -f 1 "$tree.list" | sort -u | while IFS= read -r class; do
        mkdir "$tree/$class"
        awk -F'\t' -v class="$class" '$1 == class { printf "%s%c", $2, 0 }' "$tree.list" |
            xargs -0 ln -s -t "$tree/$class"
    done
}

# make_pack PART I: a data set as the trainer reads it
make_pack() {
    tree "$1" "$2"
    "$bin/trunkd-trainer" pack "$tree" "$work/$1-$2.pack" >/dev/null
}

# contrast RECIPE I BASE: trains tenant I's head on the version in file BASE, then measures all heads
contrast() {
    local recipe=$1 i=$2 dir=$work/$1-$2 k
    echo "${tenants[i]^}'s head by recipe $recipe:"
    mkdir "$dir"
    cat >"$dir/job.json" <<EOF
{"job": "contrast", "base": "$3", "data": "$work/train-$i.pack", "head": "${tenants[i]}/${heads[i]}", "validations": [],
 "retention": "nothing", "recipe": "$recipe", "fallback": "probe", "gate": false, "seed": 1, "threads": $(nproc)}
EOF
    # Of the trainer's events, a line per epoch.
    "$bin/trunkd-trainer" --normal-priority "$dir/job.json" 2>"$dir/log" | awk -v name="$recipe" '
        /"event": *"validation"/ { printf "  %s: measured (%d)\n", name, ++n; fflush() }'
    [ -s "$dir/candidate.safetensors" ] || { cat "$dir/log"; die "the trainer failed"; }
    for k in $(seq 0 "$i"); do
        accuracy[$recipe.$i,$k]=$("$bin/trunkd-trainer" eval "$dir/candidate.safetensors" "$work/test-$k.pack" \
            "${tenants[k]}/${heads[k]}" | sed -n 's/.*"accuracy": *\([0-9.e-]*\).*/\1/p' | awk '{ printf "%.2f", 100 * $1 }')
        note "test.$recipe.${tenants[i]}.${heads[k]}" "${accuracy[$recipe.$i,$k]}"
        printf '  %-12s %5.1f %% on test photographs\n' "${heads[k]}" "${accuracy[$recipe.$i,$k]}"
    done
}

# -- the story --

say "trunkd starts: an empty store, a fresh $arch at $px pixels"
mkdir -m 700 "$work/store"
start_server "$work/store"
cp "$work/store/admin.token" "$work/admin.token"
for tenant in "${tenants[@]}"; do
    (umask 077 && as admin tenant create "$tenant" --quiet >"$work/$tenant.token")
    echo "tenant $tenant"
done

say "Alice teaches the trunk its first head, \"${heads[0]}\""
learn alice 0 "${first_set[@]}"
measure alice 0

# The contrast below starts where Bob does.
[ $naive = no ] || as admin version export 1 --output "$work/alice.safetensors" --quiet

say "A client classifies ${tenants[0]}'s photographs from now on, without a pause"
start_traffic
for i in $(seq 1 "$last"); do
    say "${tenants[i]^} adds \"${heads[i]}\" with other photographs; nobody's training data is there but ${tenants[i]}'s"
    learn "${tenants[i]}" "$i" "${later_set[@]}"
    measure "${tenants[i]}" "$i"
    echo "  meanwhile: $(traffic requests) requests answered for ${tenants[0]}, $(traffic failed) failed"
done
stop_traffic
as admin status
stop_server

if [ $naive = yes ]; then
    say "The contrast: the same photographs without protection, by the trainer alone, outside the server"
    for i in $(seq 0 "$last"); do
        [ "$i" -eq 0 ] || make_pack train "$i"
        make_pack test "$i"
    done
    for recipe in probe finetune; do
        base=$work/alice.safetensors
        for i in $(seq 1 "$last"); do
            contrast $recipe "$i" "$base"
            base=$work/$recipe-$i/candidate.safetensors
        done
    done
fi

# -- what it came to --

# table_row ROW TITLE UPTO: every head's accuracy, and its change since it was new
table_row() {
    local i cell
    printf '  %-30s' "$2"
    for i in $(seq 0 "$last"); do
        cell=-
        if [ "$i" -le "$3" ]; then cell=$(printf '%.1f %%' "${accuracy[$1,$i]}"); fi
        if [ "$i" -lt "$3" ]; then cell+=" ($(minus "${accuracy[$1,$i]}" "${first[$i]}"))"; fi
        printf '  %-14s' "$cell"
    done
    echo
}

say "Accuracy on photographs that the server never saw (and its change since the head was new)"
printf '  %-30s' ''
printf '  %-14s' "${heads[@]}"
echo
declare -A first
for i in $(seq 0 "$last"); do
    first[$i]=${accuracy[${tenants[i]},$i]}
    table_row "${tenants[i]}" "after ${tenants[i]^}'s job" "$i"
done
if [ $naive = yes ]; then
    echo '  without trunkd, the same photographs:'
    for recipe in probe finetune; do
        for i in $(seq 1 "$last"); do
            title="${tenants[i]^}, plain fine-tuning"
            [ $recipe = finetune ] || title="${tenants[i]^}, the trunk left alone"
            first[$i]=${accuracy[$recipe.$i,$i]}
            table_row "$recipe.$i" "$title" "$i"
        done
    done
fi
echo
echo "  Requests served for ${tenants[0]} meanwhile: $(traffic requests), failed: $(traffic failed)" \
    "(99 % within $(traffic p99_ms) ms, by versions $(traffic first_version) to $(traffic last_version))"
note seconds $((SECONDS - began))

say "What to type next"
if [ $keep = yes ]; then
    cat <<EOF
  $bin/trunkd --store $work/store &
  $bin/trunkctl classify ${frames[0]} --token-file $work/alice.token --top 3
  $bin/trunkctl validation --history --token-file $work/admin.token
EOF
else
    cat <<EOF
  ./demo.sh --keep                               the same, and the store stays for you to play with
  ./demo.sh --data DIR DIR                       the same with your own photographs
  ${bin#"$here"/}/trunkd --store my-store &          a server of your own
  ${bin#"$here"/}/trunkctl help                      everything that you can ask it
EOF
fi
