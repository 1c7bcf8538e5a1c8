#!/usr/bin/env bash
# Checks what we write against the reference implementations from PyPI: models
# against onnx.checker and ONNX Runtime, the signed repository against
# python-tuf. The packages go into folders of their own. Says so and passes
# where there is no Python 3 with venv, or no package index.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! python3 -c 'import venv' 2>/dev/null; then
	echo "skipped: no python3 with venv here" >&2
	exit 0
fi
env=$PWD/.cache/tuf-venv
if [ ! -f "$env/installed" ]; then
	python3 -m venv "$env"
	if ! "$env/bin/pip" install -q --disable-pip-version-check 'tuf==7.0.1'; then
		echo "skipped: the package tuf cannot be installed here" >&2
		exit 0
	fi
	touch "$env/installed"
fi
SKEIN_PYTHON=$env/bin/python go test -count=1 -run Python ./ota/trust
SKEIN_SLOW=1 go test -count=1 ./sim/meter/ortcheck
