#!/usr/bin/env bash
# Tests skein-fetch, a module of its own, against servers of S3 (versitygw) and
# of Google's storage (fake-gcs-server), which it builds first. Says so and
# leaves those two out where the module proxy does not give them.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=$PWD/.bin
server() { # variable, module@version
	local name
	name=$(basename "${2%@*}")
	if [ ! -x "$bin/$name" ] && ! GOBIN=$bin GOWORK=off go install "$2"; then
		echo "skipped: $2 cannot be built here" >&2
		return
	fi
	export "$1=$bin/$name"
}
server SKEIN_VERSITYGW github.com/versity/versitygw/cmd/versitygw@v1.8.0
server SKEIN_FAKE_GCS github.com/fsouza/fake-gcs-server@v1.52.3
export GOWORK=off
go -C ota/cmd/skein-fetch vet .
go -C ota/cmd/skein-fetch test -count=1 -timeout 5m .
