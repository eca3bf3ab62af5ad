#!/usr/bin/env bash
# kill -9 of trunkd, or of its trainer, at random moments of a small story, then a restart. What was acknowledged (data
# sets, versions, heads, tenants) is still there, the version that is served gives the same bits, and a job goes on to
# its commit.
set -euo pipefail
bin=$1
root=$(cd "$(dirname "$0")/../.." && pwd)
seed=${2:-$(($$ % 32768))}
RANDOM=$seed
work=$(mktemp -d)
server_pid=''

cleanup() {
    local code=$?
    trap - EXIT
    [ -z "$server_pid" ] || kill -9 "$server_pid" 2>/dev/null || true
    if [ $code -ne 0 ]; then
        echo "the last lines of the server's log (again with the same moments: kill_story.sh $bin $seed):"
        tail -n 40 "$work/log" || true
    fi
    rm -rf "$work"
    exit $code
}
trap cleanup EXIT

die() {
    echo "FAILED: $*"
    exit 1
}

for name in $(compgen -e TRUNKD_ || true); do unset "$name"; done
export XDG_CONFIG_HOME=$work/config

start() {
    rm -f "$work/port"
    "$bin/trunkd" --store "$work/store" --listen 127.0.0.1:0 --port-file "$work/port" --resize-mode squash \
        2>>"$work/log" &
    server_pid=$!
    for _ in $(seq 300); do
        [ ! -s "$work/port" ] || break
        kill -0 "$server_pid" 2>/dev/null || die "trunkd does not start on the store it left"
        sleep 0.1
    done
    TRUNKD_SERVER=127.0.0.1:$(cat "$work/port")
    export TRUNKD_SERVER
    "$bin/trunkctl" health --wait 30 --quiet || die "the server is not ready"
}

as() {
    local who=$1
    shift
    TRUNKD_TOKEN_FILE=$work/$who.token "$bin/trunkctl" "$@"
}

# The trainer's process id: a child of the server; empty when none runs.
trainer_pid() {
    local status
    for status in /proc/[0-9]*/status; do
        if grep -qs "^PPid:[[:space:]]*$server_pid\$" "$status"; then basename "$(dirname "$status")"; fi
    done | head -n 1
}

# All that the server has acknowledged and may not forget, without what changes by itself.
acknowledged() {
    as admin tenant list --json | grep '"name"' || true
    as alice dataset list --json | grep -E '"(id|sha256|images)"' || true
    as admin versions --json | grep -E '"(number|sha256)"' || true
}

# answers: the current version's answers to the last bit of what is sent
answers() { as alice classify "${frames[@]}" --head type --top 5 --json; }

# lost A B: lines of file A that file B has not
lost() { sort -u "$1" | comm -23 - <(sort -u "$2"); }

"$root/demo/unpack.sh"
awk -F, -v OFS=, -v root="$root/demo/fashion/" '
    NR == 1 { print; next }
    $3 ~ /^(Watches|Sunglasses|Jeans|Handbags)$/ && $4 ~ /^(Black|Blue|Brown|White)$/ { $1 = root $1; print }
' "$root/demo/fashion/labels.csv" >"$work/labels.csv"
mapfile -t frames < <(awk -F, '$2 == "test" { print $1 }' "$work/labels.csv" | head -n 20)

echo "moments by seed $seed"
mkdir -m 700 "$work/store"
start
cp "$work/store/admin.token" "$work/admin.token"
for tenant in alice bob; do (umask 077 && as admin tenant create $tenant --quiet >"$work/$tenant.token"); done

# A kill in the middle of an upload leaves nothing half-visible.
as alice dataset upload "$work/labels.csv" --label-column type --where part=alice --quiet >/dev/null 2>&1 &
upload_pid=$!
sleep 0.0$((RANDOM % 10))
kill -9 "$server_pid"
wait "$server_pid" 2>/dev/null || true
wait "$upload_pid" 2>/dev/null || true
start
as alice dataset list >/dev/null || die "data sets after a killed upload"

# story TENANT HEAD PART SETTINGS...: upload, train, and kill meanwhile
story() {
    local tenant=$1 head=$2 data job state kills=0 trainer_kills=0 version before='' victim
    shift 2
    data=$(as "$tenant" dataset upload "$work/labels.csv" --label-column "$head" --where "part=$tenant" --quiet)
    job=$(as "$tenant" finetune --head "$head" --data "$data" --quiet "$@")
    while :; do
        acknowledged >"$work/known"
        version=$(as admin status --quiet)
        [ "$version" = 0 ] || before=$(answers)
        sleep "$((RANDOM % 3)).$((RANDOM % 10))"
        state=$(as "$tenant" job get "$job" --quiet)
        case $state in queued | running) ;; *) break ;; esac
        [ $kills -lt 5 ] || { sleep 1; continue; }
        kills=$((kills + 1))
        victim=$(trainer_pid)
        # The third death of its trainer fails a job, rightly: two are to be survived.
        if [ -n "$victim" ] && [ $trainer_kills -lt 2 ] && [ $((RANDOM % 2)) = 0 ]; then
            trainer_kills=$((trainer_kills + 1))
            echo "  kill -9 of the trainer ($head)"
            kill -9 "$victim" 2>/dev/null || true
            sleep 0.5
            as "$tenant" health --quiet || die "the server went with its trainer"
        else
            echo "  kill -9 of trunkd ($head)"
            kill -9 "$server_pid"
            wait "$server_pid" 2>/dev/null || true
            start
        fi
        acknowledged >"$work/known.after"
        [ -z "$(lost "$work/known" "$work/known.after")" ] || die "lost: $(lost "$work/known" "$work/known.after")"
        if [ "$version" != 0 ] && [ "$(as admin status --quiet)" = "$version" ]; then
            [ "$(answers)" = "$before" ] || die "version $version answers differently after a restart"
        fi
    done
    echo "  job $job of $tenant: $state after $kills kills"
    [ "$state" = committed ] || die "job $job is $state: $(as "$tenant" job get "$job" | grep '^reason')"
    as "$tenant" heads | grep -q "$head" || die "committed, but there is no head $head"
}

story alice type --set epochs=10
story bob colour --set epochs=5

acknowledged >"$work/known"
before=$(answers)
kill -9 "$server_pid"
wait "$server_pid" 2>/dev/null || true
start
acknowledged >"$work/known.after"
cmp "$work/known" "$work/known.after" || die "the last restart changed the store"
[ "$(answers)" = "$before" ] || die "the last restart changed the answers"
kill "$server_pid"
wait "$server_pid" || die "trunkd does not end well on SIGTERM"
server_pid=''
echo "nothing acknowledged was lost"
