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
# Reports go to files: what pytest has captured is lost when the process aborts.
rm -f report.*
common=log_path=$PWD/report:halt_on_error=1
export ASAN_OPTIONS=$common:detect_leaks=0:abort_on_error=1:allocator_may_return_null=1
export UBSAN_OPTIONS=$common:print_stacktrace=1
export PYTHONPATH=$PWD PYTHONMALLOC=malloc
rc=0
"$python" "$@" || rc=$?
unset LD_PRELOAD
cat report.* 2>/dev/null || true
exit "$rc"
