#!/usr/bin/env bash
# Runs the tests of containers against Debian's containerd and runc, which it
# installs when root, with a root, state and socket of their own. Prints how many
# ran; where they should run, a skipped one is a failure. Without root it says so.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "$(id -u)" != 0 ]; then
	echo "containerd suite: 0 tests ran: containers need root" >&2
	exit 0
fi
deploy/ensure-packages.sh containerd runc
out=$(mktemp)
trap 'rm -f "$out"' EXIT
SKEIN_NEED_CONTAINERD=1 go test -count=1 -timeout 15m -v ./agent/internal/containerd/... 2>&1 | tee "$out" | grep -E '^(---|ok|FAIL|panic|    )' || true
go test -count=1 -timeout 15m -v -run '^TestContainers$' ./sim/e2e 2>&1 | tee -a "$out" | grep -E '^(---|ok|FAIL|panic|    )' || true
ran=$(grep -c '^--- PASS' "$out" || true)
skipped=$(grep -c '^--- SKIP' "$out" || true)
echo "containerd suite: $ran tests ran"
if grep -qE '^(FAIL|panic)' "$out" || [ "$skipped" != 0 ] || [ "$ran" = 0 ]; then
	echo "containerd suite: failed, or $skipped tests were skipped" >&2
	exit 1
fi
