#!/usr/bin/env bash
# The table of recipes: what each costs the old head, and what it gives the new one.
set -euo pipefail

usage() {
    cat <<'EOF'
usage: tests/bench/recipes.sh --alice DIR --bob DIR [options]

Trains Alice's head (and the trunk) from scratch on ALICE/train, then Bob's head on BOB/train once by each
recipe with the gate off, so that the table shows what the method itself does, and once more as trunkd ships
it (kd+ewc behind the gate). Prints, in the style of Striveworks' "Sequential Learning through Knowledge
Distillation", for every recipe

    Score  the highest mean of both heads' accuracies over the evaluations of the job (on the server's own
           validation split, which is what the job sees)
    A, B   accuracy of Alice's and of Bob's head after the job, on the untouched test photographs

  --alice DIR     DIR/train/CLASS/IMAGE and DIR/test/CLASS/IMAGE
  --bob DIR       the same for the new task; photographs should be disjoint from Alice's
  --arch NAME     trunk (resnet18)
  --px N          input size (64)
  --epochs N      of Alice's training from scratch (the recipe's own)
  --recipes LIST  comma separated (finetune,finetune-low-lr,kd,ewc,kd+ewc,probe,adapter)
  --set K=V       override of a hyper-parameter of every recipe of Bob's; may be repeated
  --seed N        (1)
  --threads N     (all cores)
  --build DIR     where trunkd-trainer was built (build)
  --out DIR       work folder, kept; Alice's version in it is used again (a fresh temporary one, removed)

Example: the cars of the README
  tests/bench/recipes.sh --alice cars/cars-body9 --bob carcolor9
EOF
}

die() { echo "recipes.sh: $*" >&2; exit 2; }

alice= bob= arch=resnet18 px=64 epochs= seed=1 threads=$(nproc) out=
recipes=finetune,finetune-low-lr,kd,ewc,kd+ewc,probe,adapter
build=$(cd "$(dirname "$0")/../.." && pwd)/build
overrides=()
while [ $# -gt 0 ]; do
    case $1 in
    --alice | --bob | --arch | --px | --epochs | --recipes | --seed | --threads | --build | --out)
        [ $# -ge 2 ] || die "$1 needs a value"
        printf -v "${1#--}" %s "$2"
        shift 2
        ;;
    --set) [ $# -ge 2 ] || die "--set needs K=V"; overrides+=("$2"); shift 2 ;;
    --help | -h) usage; exit 0 ;;
    *) die "unknown argument \"$1\"; see --help" ;;
    esac
done
[ -d "$alice/train" ] && [ -d "$alice/test" ] || die "--alice: no train/ and test/ in \"$alice\""
[ -d "$bob/train" ] && [ -d "$bob/test" ] || die "--bob: no train/ and test/ in \"$bob\""
trainer=$build/bin/trunkd-trainer
[ -x "$trainer" ] || die "no $trainer: build first, or give --build"
if [ -z "$out" ]; then
    out=$(mktemp -d)
    trap 'rm -rf "$out"' EXIT
fi
mkdir -p "$out"

# settings "epochs=3" ... -> JSON members
settings() {
    local first=1 s
    for s in "$@"; do
        [ "$first" = 1 ] || printf ', '
        printf '"%s": %s' "${s%%=*}" "${s#*=}"
        first=0
    done
}

# job NAME BASE-or-null DATA HEAD RECIPE GATE VALIDATIONS [K=V...]: runs one job; its events go to NAME/events
job() {
    local name=$1 base=$2 data=$3 head=$4 recipe=$5 gate=$6 validations=$7
    shift 7
    mkdir -p "$out/$name"
    cat > "$out/$name/job.json" <<EOF
{"job": "$name", "base": $base, "arch": "$arch", "preproc": $preproc, "data": "$data", "head": "$head",
 "tolerance": 1.0, "retention": "validation", "validations": [$validations], "recipe": "$recipe",
 "set": {$(settings "$@")}, "fallback": "probe", "gate": $gate, "seed": $seed, "threads": $threads}
EOF
    "$trainer" --normal-priority "$out/$name/job.json" > "$out/$name/events" 2> "$out/$name/log" \
        || { tail -n 5 "$out/$name/log" "$out/$name/events" >&2; exit 1; }
}

# number KEY: the first "KEY": number on standard input
number() { sed -n "s/.*\"$1\": *\\([-0-9.e]*\\).*/\\1/p" | head -n 1; }
percent() { awk -v x="$1" 'BEGIN { printf "%5.1f", 100 * x }'; }
test_accuracy() { "$trainer" eval "$1" "$2" "$3" | number accuracy; }

# Highest mean of the heads' accuracies over the validation events.
score() {
    grep '"event": *"validation"' "$1/events" | awk '{
        sum = n = 0; line = $0
        while (match(line, /"accuracy": *[0-9.e-]+/)) {
            v = substr(line, RSTART, RLENGTH); sub(/.*: */, "", v); sum += v; n++
            line = substr(line, RSTART + RLENGTH)
        }
        if (n && sum / n > best) best = sum / n
    } END { print best + 0 }'
}

case $arch in
resnet18 | resnet34 | resnet50) resize=$((px * 8 / 7)) ;;
*) resize=$px ;;
esac
preproc="{\"mode\": \"squash\", \"resize\": $resize, \"crop\": $px}"
for who in alice bob; do
    for part in train test; do
        [ -s "$out/$who-$part.pack" ] || "$trainer" pack "${!who}/$part" "$out/$who-$part.pack" > /dev/null
    done
done

if [ ! -s "$out/scratch/candidate.safetensors" ]; then
    echo "training Alice's head and the trunk from scratch ($arch, $px px) ..." >&2
    job scratch null "$out/alice-train.pack" alice/a scratch true "" ${epochs:+epochs=$epochs}
fi
base=$out/scratch/candidate.safetensors
retained="{\"head\": \"alice/a\", \"pack\": \"$out/scratch/validation.pack\"}"

printf '%-22s %6s %6s %6s  %s\n' recipe Score A B outcome
printf '%-22s %6s %6s %6s\n' "Alice alone" "" "$(percent "$(test_accuracy "$base" "$out/alice-test.pack" alice/a)")" ""
row() { # LABEL RECIPE GATE
    local dir=bob-$2-$3
    rm -rf "${out:?}/$dir"
    job "$dir" "\"$base\"" "$out/bob-train.pack" bob/b "$2" "$3" "$retained" "${overrides[@]}"
    local v=$out/$dir/candidate.safetensors
    printf '%-22s %s  %s  %s   %s\n' "$1" "$(percent "$(score "$out/$dir")")" \
        "$(percent "$(test_accuracy "$v" "$out/alice-test.pack" alice/a)")" \
        "$(percent "$(test_accuracy "$v" "$out/bob-test.pack" bob/b)")" \
        "$(sed -n 's/.*"outcome": *"\([a-z]*\)".*/\1/p' "$out/$dir/events" | tail -n 1)"
}
for recipe in ${recipes//,/ }; do
    row "$recipe" "$recipe" false
done
row "kd+ewc, gate (default)" kd+ewc true
