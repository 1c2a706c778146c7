#!/usr/bin/env bash
# The op tests on native kernels, CPU and emulated CUDA, built with AddressSanitizer and UndefinedBehaviorSanitizer.
#
#   tests/sanitize.sh [pytest arguments]        default: parity, gradient and contract tests of every op, frozen models
#
# Builds into build/sanitize, with the libraries in build/sanitize/lib; the ordinary build is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-$PWD/.venv/bin/python}
build=$PWD/build/sanitize
cmake=$(dirname "$python")/cmake
[ -x "$cmake" ] || cmake=cmake
mkdir -p "$build"

"$cmake" -S . -B "$build" -G Ninja -DPython_EXECUTABLE="$python" -DCMAKE_BUILD_TYPE=Release \
    -DSLOWFAST_SANITIZE=ON -DSLOWFAST_EMULATOR=ON -DSLOWFAST_OUTPUT_DIR="$build/lib" >"$build.log" 2>&1 ||
    { cat "$build.log"; exit 1; }
"$cmake" --build "$build" --target slowfast_cpu slowfast_emulated

# Python itself is not built with the sanitizers, so their runtimes have to be there first.
compiler=$(sed -n 's/^CMAKE_CXX_COMPILER:[A-Z]*=//p' "$build/CMakeCache.txt")
runtimes=
for name in asan ubsan; do
    runtimes+=${runtimes:+:}$("$compiler" -print-file-name="lib$name.so")
done

# Leaks: Python's own would drown ours. Fresh memory is all ones, NaN in every floating-point type.
export ASAN_OPTIONS=detect_leaks=0:max_malloc_fill_size=1073741824:malloc_fill_byte=255:allocator_may_return_null=1
export UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1
export SLOWFAST_LIB_DIR=$build/lib

[ $# -gt 0 ] || set -- tests/ops tests/test_contract.py tests/test_freeze.py -k "not reference and not triton"
# -s: a report of the sanitizers would be lost with pytest's captured output when the process ends.
# faulthandler would take a bad access's signal before they see it.
LD_PRELOAD=$runtimes exec "$python" -m pytest -q -s -p no:cacheprovider -p no:faulthandler "$@"
