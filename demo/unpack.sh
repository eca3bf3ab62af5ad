#!/usr/bin/env bash
# Unpacks the demo's photographs beside their labels, once, whole or not at all. Any number may run at a time.
set -euo pipefail
fashion=$(cd "$(dirname "$0")/fashion" && pwd)
[ ! -d "$fashion/images" ] || exit 0
temp=$(mktemp -d "$fashion/images.XXXXXX")
trap 'rm -rf "$temp"' EXIT
tar -C "$temp" -xf "$fashion/photographs.tar.xz"
mv -T "$temp/images" "$fashion/images" 2>/dev/null || [ -d "$fashion/images" ]
