#!/usr/bin/env bash
# The shipped binaries against modelled boards: every module with every JetPack
# is identified, scenarios run on the agent as a process, by ssh to a server of
# its own on this machine, and, where qemu is, on the arm64 agent. SKEIN_SLOW=1
# runs more of them.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-$PWD/.bin}
scn=sim/scenario/testdata
dir=$(mktemp -d)
sshd=
cleanup() {
	[ -z "$sshd" ] || kill "$sshd" 2>/dev/null || true
	rm -rf "$dir"
}
trap cleanup EXIT

"$bin/skein-sim" hil boards >"$dir/boards"
echo "identified: $(grep -c ' ok ' "$dir/boards") pairs of module and JetPack"

fast=("$scn/bad-version.scn")
if [ -n "${SKEIN_SLOW:-}" ]; then
	fast+=("$scn/happy-path.scn" "$scn/kills.scn" "$scn/crash.scn" "$scn/refused.scn" "$scn/ota-airgap.txtar")
fi
run() {
	"$bin/skein-sim" hil --stretch "${STRETCH:-1.5}" --events "$dir/events" "$@" || {
		tail -40 "$dir/events" >&2
		return 1
	}
}
run "${fast[@]}"

cat >"$dir/two.scn" <<'SCN'
devices 1 mix orin-nano=1 seed 3
at 0s release v1
at 0s rollout v1 canary=1
at 7s release v2
at 7s rollout v2 canary=1 timeout=30s
at 8s fault kill device=1 down=300ms
at 9s fault cut device=1 for=1s
expect within 7s release v1 on all
expect within 45s release v2 on all
expect failed = 0
expect harmed = 0
SCN

if [ "$(uname -m)" = x86_64 ] && [ -x "$bin/arm64/skein-agent" ] && deploy/ensure-packages.sh qemu-user-static; then
	echo "the arm64 agent under qemu-user"
	STRETCH=4 run --arch arm64 "$dir/two.scn"
else
	echo "not run: the arm64 agent (needs make build-arm64 and qemu-user-static)"
fi

if deploy/ensure-packages.sh openssh-server openssh-client; then
	echo "a board by ssh"
	port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
	ssh-keygen -q -t ed25519 -N '' -f "$dir/host"
	ssh-keygen -q -t ed25519 -N '' -f "$dir/user"
	cp "$dir/user.pub" "$dir/authorized"
	[ "$(id -u)" != 0 ] || mkdir -p /run/sshd
	printf '%s\n' "Port $port" "ListenAddress 127.0.0.1" "HostKey $dir/host" "AuthorizedKeysFile $dir/authorized" \
		"PidFile none" "StrictModes no" "UsePAM no" "PasswordAuthentication no" >"$dir/sshd_config"
	"$(command -v sshd || echo /usr/sbin/sshd)" -D -e -f "$dir/sshd_config" 2>"$dir/sshd.log" &
	sshd=$!
	for _ in $(seq 50); do
		ssh-keyscan -p "$port" 127.0.0.1 >"$dir/known" 2>/dev/null && [ -s "$dir/known" ] && break
		sleep 0.1
	done
	run --device "ssh://$(id -un)@127.0.0.1:$port" --device-dir "$dir/board" --ssh-arg -i --ssh-arg "$dir/user" \
		--ssh-arg -o --ssh-arg "UserKnownHostsFile=$dir/known" --ssh-arg -o --ssh-arg ControlPersist=no "$dir/two.scn"
	left=$(ls -A "$dir/board")
	[ -z "$left" ] || { echo "left on the board: $left" >&2; exit 1; }
else
	echo "not run: a board by ssh (needs openssh-server)"
fi
