#!/usr/bin/env bash
# Runs every fuzz target for the time given (default 10s). Little of it goes into
# making interesting inputs smaller, which would else take most.
set -euo pipefail
cd "$(dirname "$0")/.."
for_each=${1:-10s}
grep -rlE '^func Fuzz' --include='*_test.go' agent controlplane ota proto sim telemetry | while read -r file; do
	dir=./$(dirname "$file")
	grep -ohE '^func Fuzz[A-Za-z0-9_]*' "$file" | awk '{print $2}' | while read -r target; do
		echo "fuzz $dir $target"
		if [ -f "$dir/go.mod" ]; then export GOWORK=off; else unset GOWORK; fi
		go -C "$dir" test . -run '^$' -fuzz "^$target\$" -fuzztime "$for_each" -fuzzminimizetime 10x
	done
done
