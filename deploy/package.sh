#!/usr/bin/env bash
# Builds Debian packages of what lies in a folder of binaries.
# usage: deploy/package.sh VERSION OUT amd64=FOLDER arm64=FOLDER
set -euo pipefail
cd "$(dirname "$0")/.."
version=$1 out=$2
shift 2
# 1.2.0-4-gabcdef is later than 1.2.0: 1.2.0+4.gabcdef. A version begins with a digit.
version=$(sed -E 's/^v//; s/-([0-9]+)-g/+\1.g/; s/[^A-Za-z0-9.+~]/./g' <<<"$version")
[[ $version =~ ^[0-9] && $version == *.* ]] || version="0~$version"
mkdir -p "$out"
rm -f "$out"/skein-agent_*.deb "$out"/skein-server_*.deb
for pair in "$@"; do
	export ARCH=${pair%%=*} BIN=${pair#*=} VERSION=$version
	list=(agent)
	[ ! -x "$BIN/skeind" ] || list+=(server)
	for p in "${list[@]}"; do
		config=$(mktemp)
		sed -e "s|\${BIN}|$BIN|g" -e "s|\${ARCH}|$ARCH|g" -e "s|\${VERSION}|$VERSION|g" "deploy/package/$p.yaml" >"$config"
		grep -q . "$config"
		[ -x "$BIN/skein-fetch" ] || sed -i '/skein-fetch/d' "$config"
		[ ! -x "$BIN/skein-nvml" ] || sed -i "s|^contents:|contents:\n  - {src: \"$BIN/skein-nvml\", dst: /usr/bin/skein-nvml, file_info: {mode: 0755}}|" "$config"
		[ "$p" = agent ] || sed -i '/skein-nvml/d' "$config"
		"${NFPM:-nfpm}" package --config "$config" --packager deb --target "$out/"
		rm -f "$config"
	done
done
