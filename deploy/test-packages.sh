#!/usr/bin/env bash
# Looks into the packages in a folder, and installs, runs, removes and purges
# that of this machine's agent in an overlay of this system that goes away with
# the test. The latter needs root and mount namespaces.
# usage: deploy/test-packages.sh FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath "$1")
for arch in amd64 arm64; do
	deb=$(ls "$out"/skein-agent_*_"$arch".deb)
	[ "$(dpkg-deb -f "$deb" Architecture)" = "$arch" ]
	list=$(dpkg-deb -c "$deb")
	for f in ./usr/bin/skein-agent ./usr/lib/systemd/system/skein-agent.service ./etc/skein/agent.json ./usr/share/doc/skein-agent/copyright; do
		grep -qE "root/root .* $f\$" <<<"$list" || { echo "$deb lacks $f" >&2; exit 1; }
	done
	dpkg-deb -I "$deb" conffiles | grep -qx /etc/skein/agent.json
	dir=$(mktemp -d)
	dpkg-deb -x "$deb" "$dir"
	go run ./deploy/elfcheck -arch "$arch" -static "$dir/usr/bin/skein-agent"
	rm -rf "$dir"
done
if [ "$(id -u)" != 0 ] || ! unshare -m true 2>/dev/null; then
	echo "not run: installation (needs root and mount namespaces)"
	exit 0
fi
deb=$(ls "$out"/skein-agent_*_"$(dpkg --print-architecture)".deb)
exec unshare -m --propagation private deploy/package/try.sh "$deb"
