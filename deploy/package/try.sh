#!/usr/bin/env bash
# Runs in a mount namespace of its own: the package goes into an overlay of /.
set -euo pipefail
deb=$1
top=$(mktemp -d)
mount -t tmpfs tmpfs "$top"
mkdir "$top"/{up,work,root}
mount -t overlay overlay -o "lowerdir=/,upperdir=$top/up,workdir=$top/work" "$top/root"
mount -t proc proc "$top/root/proc"
mount --rbind /dev "$top/root/dev"
mount -t tmpfs tmpfs "$top/root/run" # no service manager of the host is seen
mount -t tmpfs tmpfs "$top/root/tmp"
cp "$deb" "$top/root/tmp/agent.deb"
inside() { chroot "$top/root" "$@"; }
say() { echo "package: $*"; }

inside dpkg --force-depends -i /tmp/agent.deb >"$top/log" 2>&1 || { cat "$top/log" >&2; exit 1; }
inside getent passwd skein >/dev/null
inside getent group skein-tap >/dev/null
inside skein-agent version
say "installed, with its user and group"

inside sh -c 'skein-agent run --config /etc/skein/agent.json --runtime mock' 2>"$top/err" && exit 1
grep -q 'write /etc/skein/enroll.json' "$top/err"
say "says how to enrol"

inside skein-agent run --preseed= --runtime mock --check --state /var/lib/skein-agent 2>"$top/err" && exit 1
grep -qi 'enrol' "$top/err"
echo '{"server": "https://127.0.0.1:1", "claim": "x", "site": "lyon"}' >"$top/root/etc/skein/enroll.json"
inside skein-agent run --config /etc/skein/agent.json --runtime mock 2>"$top/err" && exit 1
grep -q 'unknown field' "$top/err"
say "names a wrong preseed"

# Against a control plane: the preseed enrols the device and is gone.
if [ -x "${BIN:-}/skeind" ] && [ -x "$BIN/skein" ]; then
	read -r http https mqtt < <(python3 -c 'import socket
s = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
print(*[x.getsockname()[1] for x in s])')
	"$BIN/skeind" --data-dir "$top/plane" --http-addr 127.0.0.1:$http --device-addr 127.0.0.1:$https --mqtt-addr 127.0.0.1:$mqtt --debug-addr '' >"$top/plane.log" 2>&1 &
	plane=$!
	trap 'kill $plane ${agent:-} 2>/dev/null || true; wait || true' EXIT
	for _ in $(seq 100); do [ -s "$top/plane/admin.token" ] && "$BIN/skein" --server http://127.0.0.1:$http --token "$(cat "$top/plane/admin.token")" device list >/dev/null 2>&1 && break; sleep 0.1; done
	claim=$("$BIN/skein" --server http://127.0.0.1:$http --token "$(cat "$top/plane/admin.token")" token create --auto-approve | grep -o 'skein1\.[^ ]*' | head -1)
	printf '{"server": "https://127.0.0.1:%s", "claim": "%s", "name": "packaged"}' "$https" "$claim" >"$top/root/etc/skein/enroll.json"
	chroot "$top/root" skein-agent supervise --state /var/lib/skein-agent --config /etc/skein/agent.json -- --runtime mock --peer-listen= 2>"$top/agent.log" &
	agent=$!
	for _ in $(seq 150); do inside skein-agent status >"$top/status" 2>/dev/null && grep -q 'link *connected' "$top/status" && break; sleep 0.1; done
	grep -q 'packaged' "$top/status" && grep -q 'link *connected' "$top/status" || { cat "$top/agent.log" "$top/status" >&2; exit 1; }
	[ ! -e "$top/root/etc/skein/enroll.json" ]
	kill "$agent"
	wait "$agent" || true
	kill "$plane"
	wait "$plane" || true
	trap - EXIT
	say "enrolled by its preseed, connected, stopped"
fi

touch "$top/root/var/lib/skein-agent/kept"
inside dpkg --remove skein-agent >"$top/log" 2>&1 || { cat "$top/log" >&2; exit 1; }
[ ! -e "$top/root/usr/bin/skein-agent" ]
[ -e "$top/root/var/lib/skein-agent/kept" ] && [ -e "$top/root/etc/skein/agent.json" ]
say "removed; state and configuration stay"

inside dpkg --purge skein-agent >"$top/log" 2>&1 || { cat "$top/log" >&2; exit 1; }
left=$(cd "$top/root" && find etc/skein var/lib/skein-agent usr/lib/systemd/system/skein-agent* usr/share/doc/skein-agent 2>/dev/null || true)
[ -z "$left" ] || { echo "left after purge: $left" >&2; exit 1; }
inside getent passwd skein >/dev/null && { echo "the user skein is left" >&2; exit 1; }
say "purged; nothing is left"
