#!/usr/bin/env bash
# Run a command on a build with ASan and UBSan: tools/sanitize.sh .venv/bin/python -m pytest ...
#
# The sanitized extension is built in a copy of the tree, build/sanitize, so the usual one stays.
set -euo pipefail
cd "$(dirname "$0")/.."

python=$(realpath -s "$1")
shift
copy=build/sanitize
mkdir -p "$copy"
tar -c --exclude=./build --exclude=./.git --exclude='./.venv*' --exclude='*.so' --exclude=__pycache__ . |
    tar -x -C "$copy"
cd "$copy"
export MARLIN_SANITIZE=1
"$python" setup.py -q build_ext --inplace

# Python itself is not sanitized, so the run-time library has to be there before it. CPython keeps
# memory until the process ends: leaks are looked for by the tests themselves.
LD_PRELOAD="$(gcc -print-file-name=libasan.so) $(gcc -print-file-name=libubsan.so)"
export LD_PRELOAD
export ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export PYTHONPATH=$PWD PYTHONMALLOC=malloc
"$python" "$@"
