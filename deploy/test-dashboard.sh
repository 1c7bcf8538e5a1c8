#!/usr/bin/env bash
# Drives the dashboard in Chromium over a live fleet of virtual Jetsons: every
# page, accessibility, and a rollout started, paused, resumed and aborted.
# SKEIN_SHOTS=DIR keeps screenshots. Needs `make build` and Debian's chromium.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
log=$work/demo.log
.bin/skein-sim demo --devices 16 --mix default --http 127.0.0.1:0 --data "$work/data" >"$log" 2>&1 &
demo=$!
trap 'kill $demo 2>/dev/null || true; wait $demo 2>/dev/null || true; rm -rf "$work"' EXIT
for _ in $(seq 240); do
	grep -q '^Running on' "$log" && break
	kill -0 $demo 2>/dev/null || { cat "$log" >&2; exit 1; }
	sleep 1
done
grep -q '^Running on' "$log" || { echo "the demo fleet did not get ready:" >&2; cat "$log" >&2; exit 1; }
SKEIN_URL=$(sed -n 's/^Dashboard: //p' "$log") SKEIN_TOKEN=$(sed -n 's/^Credential: //p' "$log") \
	node controlplane/dashboard/test/walk.mjs
