#!/usr/bin/env bash
# Tests against model servers that nobody here wrote, from PyPI: the Triton in
# nvidia-pytriton (its Python backend is the only one in there; ONNX Runtime runs
# behind it, and repositories for the ONNX and TensorRT backends are held to
# golden files) and MLServer; and tritonclient as an application. The packages go
# into folders of their own. Says so and passes where there is no Python 3.9 to
# 3.13 with venv, or no package index. Arguments are Go packages to test instead
# of those listed here.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! python3 -c 'import sys, venv; sys.exit(not (3, 9) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
	echo "skipped: no python3 of 3.9 to 3.13 with venv here" >&2
	exit 0
fi
if [ "$(uname -m)" != x86_64 ]; then
	echo "skipped: PyPI has Triton for x86_64 only" >&2
	exit 0
fi
if [ "$(id -u)" = 0 ]; then
	deploy/ensure-packages.sh iproute2 # for the scan from another network namespace
fi

# venv FOLDER PACKAGE...: made once for a list of packages.
venv() {
	local dir=$1
	shift
	[ "$(cat "$dir/installed" 2>/dev/null)" = "$*" ] && return
	rm -rf "$dir"
	python3 -m venv "$dir"
	"$dir/bin/pip" install -q --disable-pip-version-check "$@" || return 1
	echo "$*" >"$dir/installed"
}

triton=$PWD/.cache/serving-venv
if venv "$triton" 'nvidia-pytriton==0.7.0' 'tritonclient[all]==2.73.0' 'onnxruntime==1.32.0' 'numpy==1.26.4'; then
	site=$("$triton/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
	python=$("$triton/bin/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
	# The Python backend with the program that runs models under this Python.
	mkdir -p "$triton/backends/python"
	ln -sfn "$site"/pytriton/tritonserver/backends/python/*.so "$site"/pytriton/tritonserver/backends/python/*.py \
		"$site/pytriton/tritonserver/python_backend_stubs/$python/triton_python_backend_stub" "$triton/backends/python/"
	export SKEIN_TEST_TRITON=$site/pytriton/tritonserver/bin/tritonserver
	export SKEIN_TEST_TRITON_LIBS=$site/nvidia_pytriton.libs
	export SKEIN_TEST_TRITON_BACKENDS=$triton/backends
	export SKEIN_TEST_PYTHON=$triton/bin/python SKEIN_TEST_PYTHONPATH=$site
else
	echo "skipped: nvidia-pytriton, tritonclient and onnxruntime cannot be installed here" >&2
fi

mlserver=$PWD/.cache/mlserver-venv
if venv "$mlserver" 'mlserver==1.7.1' 'onnxruntime==1.22.1'; then
	export SKEIN_TEST_MLSERVER=$mlserver/bin/mlserver
else
	echo "skipped: mlserver cannot be installed here" >&2
fi

out=$(mktemp)
trap 'rm -f "$out"' EXIT
status=0
[ $# -gt 0 ] || set -- ./agent/internal/triton ./agent/internal/serving ./agent/internal/tap
go test -count=1 -v -timeout 30m "$@" >"$out" 2>&1 || status=$?
grep -E '^(---|ok|FAIL|panic)|_test.go:[0-9]+:' "$out" || true
# Tests within tests are not counted, so that the numbers stay comparable.
count() { grep -cE "^--- $1" "$out" || true; }
echo "serving: $(count PASS) tests passed, $(count FAIL) failed, $(count SKIP) skipped"
exit $status
