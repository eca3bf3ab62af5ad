#!/usr/bin/env bash
# docs/learning.md names every recipe, and every setting with the default and the bounds that the trainer has.
set -euo pipefail
trainer=$1 page=$2
help=$("$trainer" --help)
missing=0
need() {
    grep -qF -- "$1" "$page" || { echo "docs/learning.md lacks: $1"; missing=$((missing + 1)); }
}
settings=$(sed -n '/^Hyper-parameters/,$p' <<<"$help" | sed -nE 's/^  (\w+) +(\S+) .*\((\S+)\)$/| `\1` | \2 | \3 |/p')
recipes=$(sed -n '/^Recipes/,/^$/p' <<<"$help" | sed -nE 's/^  ([a-z+-]+) .*/| `\1` |/p')
[ "$(wc -l <<<"$settings")" -gt 30 ] && [ "$(wc -l <<<"$recipes")" -gt 5 ] || { echo "the help has another form"; exit 1; }
while read -r row; do need "$row"; done <<<"$settings"
while read -r row; do need "$row"; done <<<"$recipes"
[ "$missing" -eq 0 ]
