#!/usr/bin/env bash
# Every command of trunkctl against a real server: what it prints, in words and as JSON, and its exit codes.
set -uo pipefail
bin=$1
trunkctl=${2:-$bin/trunkctl}
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
server_pid=''
failures=0

cleanup() {
    [ -z "$server_pid" ] || kill "$server_pid" 2>/dev/null
    [ -z "$server_pid" ] || wait "$server_pid" 2>/dev/null
    [ $failures -eq 0 ] || tail -n 20 "$work/log"
    rm -rf "$work"
}
trap cleanup EXIT
for name in $(compgen -e TRUNKD_); do unset "$name"; done
export XDG_CONFIG_HOME=$work/config

# expect CODE PATTERN WHO COMMAND...: trunkctl as WHO, its exit code, and a pattern in what it prints
expect() {
    local code=$1 pattern=$2 got out
    export TRUNKD_TOKEN_FILE=$work/$3.token
    shift 3
    out=$("$trunkctl" "$@" 2>&1)
    got=$?
    if [ $got -ne "$code" ] || ! grep -qE -- "$pattern" <<<"$out"; then
        echo "FAILED: trunkctl $* gave $got (expected $code and \"$pattern\"):"
        head -n 30 <<<"$out" | sed 's/^/    /'
        failures=$((failures + 1))
    fi
}

as() {
    export TRUNKD_TOKEN_FILE=$work/$1.token
    shift
    "$trunkctl" "$@"
}

# -- photographs --

"$root/demo/unpack.sh"
awk -F, -v OFS=, -v root="$root/demo/fashion/" '
    NR == 1 { print; next }
    $2 == "alice" && $3 ~ /^(Watches|Jeans)$/ && n[$3]++ < 40 { $1 = root $1; print }' \
    "$root/demo/fashion/labels.csv" >"$work/labels.csv"
mapfile -t photos < <(awk -F, 'NR > 1 { print $1 }' "$work/labels.csv" | head -n 4)
mkdir -p "$work/tree/Käse" "$work/tree/red"
cp "${photos[0]}" "${photos[1]}" "$work/tree/Käse"
cp "${photos[2]}" "${photos[3]}" "$work/tree/red"
head -c 300 "${photos[0]}" >"$work/tree/red/cut.jpg"

# -- the server --

"$bin/trunkd" --store "$work/store" --listen 127.0.0.1:0 --port-file "$work/port" 2>"$work/log" &
server_pid=$!
for _ in $(seq 300); do [ -s "$work/port" ] || sleep 0.1; done
TRUNKD_SERVER=127.0.0.1:$(cat "$work/port")
export TRUNKD_SERVER
cp "$work/store/admin.token" "$work/admin.token"
echo wrong >"$work/nobody.token"

expect 0 '^SERVING' nobody health --wait 30
expect 0 '"status": "SERVING"' nobody health --json
expect 1 'UNAUTHENTICATED' nobody heads
expect 1 'STORE/admin.token' nobody heads

# -- tenants and tokens --

expect 0 'No tenant yet' admin tenant list
expect 0 '^token +[^ ]+ .*shown this once' admin tenant create alice
expect 1 'ALREADY_EXISTS' admin tenant create alice
expect 1 'INVALID_ARGUMENT' admin tenant create 'Not A Name'
as admin token issue alice --quiet >"$work/alice.token"
as admin tenant create bob --quiet >"$work/bob.token"
expect 0 '^alice +0 +0 ' admin tenant list
expect 0 '"name": "bob"' admin tenant list --json
expect 1 'PERMISSION_DENIED' alice tenant list
id=$(as admin token issue bob --json | sed -n 's/.*"token_id": "\(.*\)".*/\1/p')
expect 0 'revoked' admin token revoke "$id"
expect 1 'NOT_FOUND' admin token revoke "$id-not"
expect 0 'token id' admin token issue --admin

# -- data sets --

expect 0 'No data set' alice dataset list
expect 0 '^data set [0-9]+ +tree: 4 images, 2 labels' alice dataset upload "$work/tree"
expect 0 'skipped red/cut.jpg: ' alice dataset upload "$work/tree" --name again
expect 1 'cut.jpg' alice dataset upload "$work/tree" --refuse-bad
expect 0 'Käse +2' alice dataset get 1
expect 0 '"label": "Käse"' alice dataset get 1 --json
expect 1 'NOT_FOUND' bob dataset get 1
expect 0 'deleted' alice dataset delete 1
expect 1 'NOT_FOUND' alice dataset get 1
data=$(as alice dataset upload "$work/labels.csv" --label-column type --where part=alice --quiet)
expect 0 "data set $data  labels: 80 images, 2 labels" alice dataset list

# -- a job --

expect 0 'none yet' admin status
expect 0 'No version yet' admin versions
expect 1 'recipe' alice finetune --head type --data "$data" --recipe bogus
expect 1 'NOT_FOUND' bob finetune --head type --data "$data"
expect 0 'job [0-9]+: committed as version 1' alice finetune --head type --data "$data" --set epochs=2 --watch
expect 0 'type +.* committed ' alice job list
expect 0 '^state +committed' alice job get 1
expect 0 '^committed$' alice job get 1 --quiet
expect 0 'committed as version 1' alice job watch 1
expect 1 'NOT_FOUND' bob job watch 1
expect 1 'NOT_FOUND' bob job cancel 1
expect 0 'No job yet' bob job list

# -- heads and answers --

expect 0 '^type +2 ' alice heads
expect 0 'No head yet' bob heads
expect 0 '^alice/type ' admin heads
expect 0 '^type +1 +[0-9.]+ %' alice validation
expect 0 '"confusion"' alice validation --json
expect 0 '^ +Jeans +[0-9]+ of [0-9]+' alice validation type --classes
expect 0 '^1 +.* type +\* [0-9.]+ %$' alice validation --history
expect 0 '^ACC +[0-9.]+ % +1 +accuracy at the last version' alice validation --history
expect 0 '^BWT +- +- ' alice validation --history type
expect 0 '^1,[0-9]+,type,type,[01]\.[0-9]+,[0-9]+,accuracy,1,' alice validation --history --csv
expect 0 '"acc": \{' alice validation --history --json
expect 0 '^[0-9.]+$' alice validation --history --quiet
expect 0 '^ +Jeans +[0-9]+ of [0-9]+' alice validation --history --classes
expect 1 'NOT_FOUND: head "colour"' alice validation --history colour
expect 0 'No head yet' bob validation --history
expect 2 '--csv goes with --history' alice validation --csv
expect 0 'type: (Jeans|Watches) [0-9.]+ %, (Jeans|Watches)' alice classify "${photos[0]}" --top 2
expect 0 '^(Jeans|Watches)$' alice classify "${photos[0]}" --quiet
expect 0 '^\{"file":.*"version":1,"heads":\{"type":\[\{"label":' alice classify "${photos[@]}" --json
expect 0 '^type: 4 images' alice classify "${photos[@]}" --tally --head type
expect 0 '"images": 4' alice classify "${photos[@]}" --tally --json
expect 1 'cut.jpg: ' alice classify "$work/tree/red"
expect 0 '"version":1' alice classify "${photos[@]}" --batch 1 --json
expect 0 '^weight +1, as everybody' admin tenant limits alice
expect 0 '^weight +2$' admin tenant limits alice --weight 2
expect 0 '^rate +500 images/s' admin tenant limits alice --rate 500
expect 0 '^weight +2$' admin tenant limits alice
expect 0 '"rate": 500' admin tenant limits alice --json
expect 0 '^TENANT .* WEIGHT +IMAGES/S +QUEUE +QUEUE BYTES +SINCE$' admin tenant list
expect 0 '^alice .* 2 +500 +- +- +20' admin tenant list
expect 0 '^bob .* 1 +- +- +- +20' admin tenant list
expect 0 '"weight": 2\.0,?$' admin tenant list --json
expect 0 '^bytes +1048576 in the queue' admin tenant limits bob --images 64 --bytes 1048576
expect 0 '^bob .* 1 +- +64 +1\.0 MiB +20' admin tenant list
expect 1 'weight is 1000, but must be 0.01 to 100' admin tenant limits alice --weight 1000
expect 1 'NOT_FOUND' admin tenant limits nobody
expect 1 'PERMISSION_DENIED' alice tenant limits alice
expect 0 '^weight +2$' admin tenant limits alice --rate 0
expect 0 '^type: 4 images' alice classify "${photos[@]}" --tally --head type --priority 5
expect 1 'INVALID_ARGUMENT: priority is 6' alice classify "${photos[0]}" --priority 6
expect 1 'INVALID_ARGUMENT: priority is 6' alice classify "${photos[@]}" --batch 1 --priority 6
expect 1 'NOT_FOUND' bob classify "${photos[0]}" --head type
expect 1 'NOT_FOUND' alice classify "${photos[0]}" --head colour
expect 0 '[1-9][0-9]* requests, 0 failed' alice classify "${photos[@]}" --repeat --for 1 --interval 10
expect 0 '"failed": 0' alice classify "${photos[@]}" --repeat --for 0.3 --json --summary "$work/summary"
grep -q '^failed=0$' "$work/summary" || { echo "FAILED: no summary"; failures=$((failures + 1)); }
cat "${photos[@]}" >"$work/stream.mjpeg"
expect 0 '^type: 4 images' alice classify - --tally <"$work/stream.mjpeg"
expect 0 '^type: [0-9.]+ % \([0-9]+ of 80\)' alice evaluate --head type "$work/labels.csv" --label-column type
expect 0 '^[0-9.]+$' alice evaluate --head type "$work/labels.csv" --label-column type --quiet
expect 0 '"accuracy": ' alice evaluate --head type "$work/labels.csv" --label-column type --json

# -- versions --

expect 0 '^1 \* .* fp32 \*' admin versions
expect 0 '^VERSION +PRECISION +HEAD +ACCURACY +CHANGE +ALIKE +TOLERANCE +IMAGES +VERDICT' admin versions --precision
expect 0 '^1 \* +bf16 +alice/type +[0-9.]+ % +[-+0-9.]+ +[0-9.]+ % +1\.0 +[1-9][0-9]* +(admitted|refused)$' \
    admin versions --precision
expect 0 '^1 \* +int8 +alice/type +[0-9.]+ %' admin versions --precision
expect 0 '"alike": ' admin versions --json
expect 0 '^precision fp32 \(asked: fp32; admitted: fp32' admin status
expect 1 'PERMISSION_DENIED' alice versions
expect 0 'trunk.safetensors: ' admin version export --output "$work/trunk.safetensors"
expect 1 'NOT_FOUND' admin version export 99 --output "$work/none.safetensors"
[ ! -e "$work/none.safetensors" ] && [ ! -e "$work/none.safetensors.part" ] || failures=$((failures + 1))
expect 1 'FAILED_PRECONDITION' admin rollback 1
expect 1 'NOT_FOUND' admin rollback 77

# -- what the jobs leave: a second head, so that the gate has something to judge --

expect 0 'committed as version 2' alice finetune --head again --data "$data" --set epochs=2 \
    --set rate=0.003 --set gate_sigma=0.5 --watch
expect 0 '^base +none: a fresh trunk' alice gate explain 1
expect 0 '^base +version 1, sha256 [0-9a-f]{64}$' alice gate explain 2
expect 0 '^candidate +version 2, sha256 [0-9a-f]{64}$' alice gate explain 2
expect 0 '^type: [0-9.]+ % before, [0-9.]+ % after on [0-9]+ held-out images .*: admitted\. .*0\.5 times the standard error' \
    alice gate explain 2
expect 0 'Not enough held-out images to tell a drop of 1\.0 points from chance' alice gate explain 2
expect 0 '^bf16 +type ' alice gate explain 2
expect 0 'every head and the outcome come out the same' alice gate explain 2
expect 0 '"same": true' alice gate explain 2 --json
expect 0 '^alice/type +[0-9]+ ' admin gate explain 2
expect 1 'NOT_FOUND: job 2: there is none' bob gate explain 2
expect 1 'NOT_FOUND: job 77: there is none' alice gate explain 77
expect 2 '"x" is not a job' alice gate explain x
expect 0 '^train +2 +[0-9]+ +[0-9.]+ +type +[0-9.]+ % +[0-9.]+ % ' alice job curves 2
expect 0 '^0,0,warm-up,type,[0-9]+,accuracy,[01]\.[0-9]+,[01]\.[0-9]+,,,,$' alice job curves 2 --csv
expect 0 '^[0-9]+,2,train,again,[0-9]+,accuracy,[01]\.[0-9]+,,[0-9.e-]+,[0-9.e-]+,[0-9.e-]+,[0-9.e-]+$' \
    alice job curves 2 --csv
expect 0 '"points": \[' alice job curves 2 --json
expect 1 'NOT_FOUND: job 2: there is none' bob job curves 2
expect 2 '--svg goes without' alice job curves 2 --csv --svg "$work/curves.svg"
expect 1 'No such file' alice job curves 2 --svg "$work/none/curves.svg"
expect 0 '' alice job curves 2 --svg "$work/curves.svg"
[ "$(grep -c '<polyline' "$work/curves.svg")" -eq 2 ] && [ "$(tail -n 1 "$work/curves.svg")" = '</svg>' ] ||
    { echo 'FAILED: the chart of job 2'; failures=$((failures + 1)); }
expect 0 '<svg xmlns' alice job curves 2 --svg -
expect 0 '^2 +.* again +' alice validation --history

# -- labels --

expect 0 '^stable is version 1, 0 % of the requests that name none$' admin version label stable 1
expect 0 '^canary is version 2, 100 % ' admin version label canary 2 --percent 100
expect 0 '^2 \* +canary 100 % ' admin versions
expect 0 '^1 +stable ' admin versions
expect 0 '"version":1' alice classify "${photos[0]}" --json --model-version stable
expect 0 '"version":2' alice classify "${photos[0]}" --json
expect 0 '"version":1' alice classify "${photos[@]}" --batch 1 --json --model-version stable
expect 1 'NOT_FOUND: you have no head in version "77"' alice classify "${photos[@]}" --batch 1 --model-version 77
expect 1 'NOT_FOUND: you have no head in version "77"' alice classify "${photos[0]}" --model-version 77
expect 1 'INVALID_ARGUMENT: label: "latest" is always the current version' admin version label latest 1
expect 1 'PERMISSION_DENIED' alice version label mine 1
expect 0 '' admin version unlabel canary
expect 1 'NOT_FOUND: label "canary": there is none' admin version unlabel canary

# -- a head goes on learning (at rate 0: what the gate is asked matters here) --

expect 1 'failed' alice finetune --head none --data "$data" --refresh --watch
expect 0 'refresh: there is no head "none" yet' alice job get 3
expect 0 'committed as version 3' alice finetune --head type --data "$data" --refresh --set rate=0 --set epochs=1 --watch
expect 0 '^type@earlier: [0-9.]+ % before, [0-9.]+ % after on [0-9]+ held-out images .*: admitted' alice gate explain 4
expect 0 '^train +1 +[0-9]+ +[0-9.]+ +type@earlier +[0-9.]+ % ' alice job curves 4
expect 0 '^type +2 ' alice heads

# -- versions that no job makes --

expect 0 'deleted' alice head delete type
expect 1 'NOT_FOUND' alice head delete type
expect 0 '^4 \* ' admin versions
expect 0 '^5 \* ' admin rollback 1
expect 0 'version +5' admin status
expect 0 '"isa"' admin status --json
expect 0 '^requests .* in flight$' admin top --once --interval 0.2
expect 0 '"requests_per_s":' admin top --once --interval 0.2 --json
expect 2 '0.1 to 3600' admin top --interval 0
expect 1 'PERMISSION_DENIED' alice top --once
expect 1 'No such file' admin trunk import "$work/none"
expect 1 '(INVALID_ARGUMENT|FAILED_PRECONDITION)' admin trunk import "$work/labels.csv"

# -- a tenant leaves --

expect 1 'PERMISSION_DENIED' alice tenant delete bob
expect 0 '^deleted$' admin tenant delete bob
expect 1 'NOT_FOUND' admin tenant delete bob
expect 1 'UNAUTHENTICATED' bob heads

[ $failures -eq 0 ] || exit 1
echo "every command does as it should"
