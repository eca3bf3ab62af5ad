#!/usr/bin/env bash
# The demo's story on a small part of its photographs, and what it promises: every job commits, no request fails, no
# head falls by more than its tolerance on its held-out photographs, and the heads have learned something.
set -euo pipefail
bin=$1
root=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

"$root/demo.sh" --tiny --bin "$bin" --results "$work/results" | tee "$work/output"

value() { sed -n "s/^$1=//p" "$work/results"; }

# check WHAT A OP B: an awk comparison of two numbers, said when it fails
check() {
    if ! awk -v a="$2" -v b="$4" "BEGIN { exit !(a != \"\" && b != \"\" && a + 0 $3 b + 0) }"; then
        echo "FAILED: $1: $2 is not $3 $4"
        failures=$((failures + 1))
    fi
}

for job in alice bob carol; do
    [ "$(value "jobs.$job")" = committed ] || { echo "FAILED: the job of $job"; failures=$((failures + 1)); }
done
check 'requests served during the jobs' "$(value traffic.requests)" '>' 50
check 'requests failed' "$(value traffic.failed)" '==' 0
check 'the client saw the versions change' "$(value traffic.last_version)" '>' "$(value traffic.first_version)"
# The held-out photographs decide; a point of tolerance, and a hair for rounding.
limit=1.01
for pair in alice:type:bob alice:type:carol bob:colour:carol; do
    IFS=: read -r before head after <<<"$pair"
    floor=$(awk -v a="$(value "validation.$before.$head")" -v l=$limit 'BEGIN { print a - l }')
    check "$head after the job of $after" "$(value "validation.$after.$head")" '>=' "$floor"
done
# Five types, five colours: chance is 20 %, more for the frequent ones.
check 'type on test photographs' "$(value test.carol.type)" '>' 60
check 'colour on test photographs' "$(value test.carol.colour)" '>' 35
check 'usage on test photographs' "$(value test.carol.usage)" '>' 60

# What Bob and Carol are told names nobody else's heads.
if grep -n 'alice/\|bob/' "$work/output"; then
    echo "FAILED: a tenant is told the names of another's heads"
    failures=$((failures + 1))
fi

[ $failures -eq 0 ] || exit 1
echo "the story holds"
