#!/usr/bin/env bash
# Checks what we write against the reference implementations from PyPI: models
# against onnx.checker and ONNX Runtime, signed repositories against python-tuf
# in both directions. The packages go into folders of their own. Says so and
# passes where there is no Python 3.10 with venv, or no package index.
#
# SKEIN_TUF_CONFORMANCE=FOLDER runs the TUF conformance suite against our client
# too: FOLDER holds a checkout of github.com/theupdateframework/tuf-conformance
# (the figure in ota/README.md is of commit eec841c). It is in no package index,
# and its cases are also Go tests in ota/cmd/skein-tuf.
set -euo pipefail
suite=${SKEIN_TUF_CONFORMANCE:+$(realpath -e "$SKEIN_TUF_CONFORMANCE")}
cd "$(dirname "$0")/.."
# The distribution conformance programme comes from no module proxy: whoever
# has built it names it.
if [ -n "${SKEIN_OCI_CONFORMANCE:-}" ]; then
	go test -count=1 -v -run TestConformance ./controlplane
fi
if ! python3 -c 'import sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
	echo "skipped: no python3 of at least 3.10 with venv here" >&2
	exit 0
fi
env=$PWD/.cache/tuf-venv
if [ ! -f "$env/installed-2" ]; then
	python3 -m venv "$env"
	if ! "$env/bin/pip" install -q --disable-pip-version-check 'tuf==7.0.1' 'securesystemslib[crypto]==1.4.0' 'pytest==9.1.1'; then
		echo "skipped: the packages tuf and pytest cannot be installed here" >&2
		exit 0
	fi
	touch "$env/installed-2"
fi
SKEIN_PYTHON=$env/bin/python go test -count=1 -run Python ./ota/trust

if [ -z "$suite" ]; then
	echo "skipped: the TUF conformance suite, for SKEIN_TUF_CONFORMANCE names no checkout of github.com/theupdateframework/tuf-conformance" >&2
else
	client=$(mktemp -d)
	trap 'rm -rf "$client"' EXIT
	go build -o "$client/skein-tuf" ./ota/cmd/skein-tuf
	cp ota/cmd/skein-tuf/testdata/faketime ota/cmd/skein-tuf/testdata/skein-tuf.xfails "$client/"
	echo "TUF client conformance suite"
	PATH=$client:$PATH PYTHONPATH=$suite PYTHONDONTWRITEBYTECODE=1 \
		"$env/bin/pytest" -q -p no:cacheprovider "$suite/tuf_conformance" --entrypoint "$client/skein-tuf"
fi

SKEIN_SLOW=1 go test -count=1 ./sim/meter/ortcheck
