#!/usr/bin/env bash
# Checks the arm64 agent given as argument (static, under 25 MB, starts) and runs
# the short tests of what must not depend on the processor under qemu-user.
set -euo pipefail
cd "$(dirname "$0")/.."
agent=$1
qemu=
if [ "$(uname -m)" != aarch64 ]; then
	deploy/ensure-packages.sh qemu-user-static || { echo "not run: arm64 tests (need qemu-user-static)"; exit 0; }
	qemu=qemu-aarch64-static
fi
go run ./deploy/elfcheck -arch arm64 -static -max 25000000 "$agent"
$qemu "$agent" version
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
count=0
for pkg in telemetry/probe/tegra proto/wire agent/internal/reconcile; do
	CGO_ENABLED=0 GOARCH=arm64 go test -c -o "$dir/test" "./$pkg"
	out=$(cd "$pkg" && $qemu "$dir/test" -test.short -test.v -test.timeout 5m) || { echo "$out" | tail -40; exit 1; }
	n=$(grep -c '^--- PASS' <<<"$out")
	echo "arm64: $n tests of $pkg"
	count=$((count + n))
done
[ "$count" -ge 15 ] || { echo "only $count tests ran on arm64"; exit 1; }
