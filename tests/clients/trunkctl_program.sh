#!/usr/bin/env bash
# trunkctl as a program: help everywhere, exit codes, and sentences for local mistakes. Needs no server.
set -uo pipefail
trunkctl=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
unset TRUNKD_SERVER TRUNKD_TOKEN TRUNKD_TOKEN_FILE
export XDG_CONFIG_HOME=$work/config
failures=0

# expect CODE PATTERN COMMAND...: the exit code, and a pattern in what is printed
expect() {
    local code=$1 pattern=$2 got out
    shift 2
    out=$("$@" 2>&1)
    got=$?
    if [ $got -ne "$code" ] || ! grep -q -- "$pattern" <<<"$out"; then
        echo "FAILED: $* gave $got (expected $code and \"$pattern\"):"
        echo "$out" | sed 's/^/    /'
        failures=$((failures + 1))
    fi
}

expect 0 'Usage: trunkctl COMMAND' "$trunkctl" --help
expect 0 'Usage: trunkctl COMMAND' "$trunkctl" help
expect 2 'Usage: trunkctl COMMAND' "$trunkctl"
expect 0 '^trunkctl [0-9]' "$trunkctl" --version
expect 2 'no command "bogus"' "$trunkctl" bogus
expect 2 'trunkctl dataset upload' "$trunkctl" dataset

# Every command teaches: usage, an example that begins with its own name, and the common options.
commands=('classify' 'evaluate' 'dataset upload' 'dataset list' 'dataset get' 'dataset delete' 'finetune' 'job list'
    'job get' 'job watch' 'job cancel' 'job curves' 'gate explain' 'heads' 'head delete' 'validation' 'tenant create' 'tenant list' 'tenant limits' 'token issue'
    'token revoke' 'versions' 'version label' 'version unlabel' 'rollback' 'version export' 'trunk import' 'status' 'top' 'health')
for command in "${commands[@]}"; do
    # shellcheck disable=SC2086 # two words
    expect 0 "^  trunkctl $command" "$trunkctl" $command --help
    # shellcheck disable=SC2086
    expect 0 '--token-file FILE' "$trunkctl" help $command
    expect 0 "^  $command " "$trunkctl" --help
done

# Nothing listens on port 1.
nowhere=(--server 127.0.0.1:1 --timeout 3000)
expect 1 'UNAVAILABLE' "$trunkctl" heads "${nowhere[@]}"
expect 1 'Is trunkd running at 127.0.0.1:1' "$trunkctl" health "${nowhere[@]}"

mkdir -p "$work/photos/red" "$work/empty/red"
expect 1 'no image in it' "$trunkctl" dataset upload "$work/empty" "${nowhere[@]}"
expect 1 'each class is a folder' "$trunkctl" dataset upload "$work/empty/red" "${nowhere[@]}"
expect 1 'No such file' "$trunkctl" classify "$work/nothing.jpg" "${nowhere[@]}"
printf 'a.jpg,red\n' >"$work/labels.csv"
expect 1 'labels.csv:1: no column "file"' "$trunkctl" dataset upload "$work/labels.csv" "${nowhere[@]}"
printf 'file,label\nmissing.jpg,red\n' >"$work/labels.csv"
expect 1 'labels.csv:2: .*missing.jpg: No such file' "$trunkctl" evaluate --head x "$work/labels.csv" "${nowhere[@]}"
if [ "$(id -u)" -ne 0 ]; then
    : >"$work/photos/red/a.jpg"
    chmod 000 "$work/photos/red/a.jpg"
    expect 1 'a.jpg: Permission denied' "$trunkctl" dataset upload "$work/photos" "${nowhere[@]}"
fi

expect 2 '--head NAME is missing' "$trunkctl" evaluate "$work/photos"
expect 2 '--data ID is missing' "$trunkctl" finetune --head x
expect 2 'expected NAME=NUMBER' "$trunkctl" finetune --head x --data 1 --set kappa "${nowhere[@]}"
expect 2 'expected auto|shared|adapter|probe' "$trunkctl" finetune --head x --data 1 --policy maybe "${nowhere[@]}"
expect 2 'expected probe|reject' "$trunkctl" finetune --head x --data 1 --fallback maybe "${nowhere[@]}"
expect 2 'is not a whole number' "$trunkctl" finetune --head x --data one
expect 2 '--priority is 1 to 5' "$trunkctl" classify x.jpg --priority 99999999999
expect 0 'priority N .*1 comes first, 5 last' "$trunkctl" classify --help
expect 2 'go with --repeat' "$trunkctl" classify x.jpg --interval 5
expect 2 'or else --admin' "$trunkctl" token issue
expect 2 'one argument too many' "$trunkctl" rollback 1 2
expect 2 'NAME VERSION is missing' "$trunkctl" version label canary
expect 2 'is not a version' "$trunkctl" version label canary stable
expect 2 'is 0 to 100' "$trunkctl" version label canary 12 --percent 101

mkdir -p "$work/config/trunkd"
printf 'token = secret\n' >"$work/config/trunkd/config"
chmod 644 "$work/config/trunkd/config"
expect 1 'its mode is 0644' "$trunkctl" heads "${nowhere[@]}"
chmod 600 "$work/config/trunkd/config"
expect 1 'UNAVAILABLE' "$trunkctl" heads "${nowhere[@]}"
printf 'server = 127.0.0.1:1\n' >"$work/config/trunkd/config"
expect 1 'running at 127.0.0.1:1' "$trunkctl" heads --timeout 3000
TRUNKD_SERVER=127.0.0.1:2 expect 1 'running at 127.0.0.1:2' "$trunkctl" heads --timeout 3000
expect 1 'token file .*No such file' "$trunkctl" heads --token-file "$work/none" "${nowhere[@]}"

[ $failures -eq 0 ] || exit 1
echo "trunkctl does as it should"
