#!/usr/bin/env bash
# Checks and measures slowfast-kernels on this machine's NVIDIA GPU: one command, no network, nothing installed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
die() { echo "bench/gpu.sh: error: $*" >&2; exit 2; }

usage() {
    cat <<'TEXT'
usage: bench/gpu.sh [OUT] [--dry-run] [--skip PART]... [--only PART]... [options]

Checks every kernel of the library on the NVIDIA GPU of this machine, then measures ceilings, ops, parts of the
network and the whole model against cuDNN, torch.compile and torchvision. Needs a Python with CUDA torch and
numpy; uses triton, torchvision, pytest, matplotlib and compute-sanitizer where they are there. Needs no network
and no installed package, changes no setting of the GPU, ends within ten minutes, building the library included.

Results come into OUT (default: build/gpu-results): gpu.json, gpu.md, speedups.png, roofline.png, log.txt. They are
rewritten while it runs, so that a run that is stopped keeps what it has.

The CUDA library is slowfast_kernels/_lib/libslowfast_cuda.so if it is there; otherwise it is built with nvcc.
Without either the CUDA provider is reported as missing and the rest is run.

before the run:
  PYTHON=...        the Python to use (default: .venv/bin/python, then python3: the first that has CUDA torch)
  --rebuild         build the CUDA library although there is one
  --no-build        never build it

TEXT
}

# --- options of this script; the others go on ------------------------------------------------------------------
dry=0 build=auto help=0
arguments=()
for word in "$@"; do
    case $word in
        -h | --help) help=1 ;;
        --rebuild) build=always ;;
        --no-build) build=never ;;
        --dry-run) dry=1; arguments+=("$word") ;;
        *) arguments+=("$word") ;;
    esac
done

# --- python ----------------------------------------------------------------------------------------------------
# A dry run is content with any torch; a run wants one that sees a GPU.
has_torch() {
    if [ "$dry" = 1 ] || [ "$help" = 1 ]; then
        "$1" -c 'import torch' 2>/dev/null
    else
        "$1" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null
    fi
}
python=
candidates=("$root/.venv/bin/python" python3 python)
[ -n "${PYTHON:-}" ] && candidates=("$PYTHON")
for candidate in "${candidates[@]}"; do
    if command -v "$candidate" >/dev/null && has_torch "$candidate"; then
        python=$(command -v "$candidate")
        break
    fi
done
if [ -z "$python" ]; then
    [ "$help" = 1 ] && { usage; exit 0; }
    if [ "$dry" = 1 ]; then
        die "no Python with torch among ${candidates[*]}: set PYTHON="
    fi
    command -v nvidia-smi >/dev/null || die "no NVIDIA driver (nvidia-smi) here; --dry-run runs on any machine"
    die "no Python whose torch sees a CUDA device among ${candidates[*]}: set PYTHON="
fi
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "$python is older than Python 3.11"
"$python" -c 'import numpy' 2>/dev/null || die "$python has no numpy"

# --- the package without installing it ---------------------------------------------------------------------------
# models/ and bench/ are the package's sub-packages: a folder of links puts them where an installation would.
# The folder goes when the run ends; PYTHONSAFEPATH keeps the repository's own top level off the path.
path=$(mktemp -d)
trap 'rm -rf "$path"' EXIT
mkdir "$path/slowfast_kernels"
for entry in "$root"/slowfast_kernels/*; do
    case ${entry##*/} in __pycache__ | models | bench) ;; *) ln -s "$entry" "$path/slowfast_kernels/" ;; esac
done
ln -s "$root/models" "$path/slowfast_kernels/models"
ln -s "$root/bench" "$path/slowfast_kernels/bench"
# Progress bars are not worth a package: where there is none, this takes its place.
if ! "$python" -c 'import tqdm' 2>/dev/null; then
    cat >"$path/tqdm.py" <<'PY'
class tqdm:
    def __init__(self, iterable=(), *_, **__):
        self.iterable = iterable

    def __iter__(self):
        return iter(self.iterable)

    def __getattr__(self, name):
        return lambda *_, **__: None
PY
fi
export PYTHONPATH="$path${PYTHONPATH:+:$PYTHONPATH}" PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1

if [ "$help" = 1 ]; then
    usage
    "$python" -m slowfast_kernels.bench.gpu --help
    exit 0
fi

# A dry run interprets and emulates, and leaves a GPU that is here alone.
[ "$dry" = 0 ] || export TRITON_INTERPRET=1 SLOWFAST_EMULATE=1 CUDA_VISIBLE_DEVICES=

# --- the CUDA library ----------------------------------------------------------------------------------------------
library=$root/slowfast_kernels/_lib/libslowfast_cuda.so

# nvcc is often installed and not on the PATH.
for home in "${CUDA_HOME:-}" /usr/local/cuda; do
    if ! command -v nvcc >/dev/null && [ -n "$home" ] && [ -x "$home/bin/nvcc" ]; then export PATH="$PATH:$home/bin"; fi
done

# What csrc/cuda/CMakeLists.txt does, on every core and for one target; needs neither cmake nor Python's headers.
# A library half written would look like a whole one: it moves to its place when it is done.
with_nvcc() {
    local objects=$root/build/gpu-nvcc flags
    rm -rf "$objects"
    mkdir -p "$objects" "${library%/*}"
    flags="-std=c++17 -O3 -DNDEBUG -DUSE_CUDA -DTORCH_TARGET_VERSION=0x020b000000000000 -I$root/csrc"
    flags="$flags -isystem $torch/include -Xcompiler -fPIC,-fvisibility=hidden $target"
    # the largest first, so that none of them begins when the others are done
    find "$root/csrc/cuda" "$root/csrc/bindings" \( -name '*.cu' -o -name 'cuda*.cpp' \) -printf '%s %p\n' |
        sort -rn | cut -d' ' -f2- |
        FLAGS=$flags OBJECTS=$objects timeout 400 xargs -P "$(nproc)" -I{} bash -c \
            'nvcc $FLAGS -c "$1" -o "$OBJECTS/$(basename "$1").o" || exit 255' _ {} || return 1
    nvcc -shared -cudart static -o "$library.new" "$objects"/*.o -L"$torch/lib" \
        -Xlinker --no-as-needed -ltorch_cpu -ltorch -lc10 && mv "$library.new" "$library" || return 1
    # tiles measured with it are good for these sources
    "$python" "$root/csrc/cuda/resources.py" sources "${library%/*}/cuda_sources.json" "$root/csrc/cuda"
}

broken=0
if [ "$dry" = 0 ]; then
    if [ "$build" = never ] || { [ "$build" = auto ] && [ -e "$library" ]; }; then
        if [ -e "$library" ]; then
            echo "CUDA library: $library"
        else
            echo "CUDA library: not built (--no-build); the provider 'cuda' is missing"
        fi
    elif ! command -v nvcc >/dev/null; then
        echo "CUDA library: not built, there is no nvcc on the PATH; the provider 'cuda' is missing"
    else
        begin=$SECONDS built=0
        log=$(mktemp)
        # For the GPU that is here only; a release builds for several.
        read -r capability torch < <("$python" -c 'import os, torch
print("%d%d" % torch.cuda.get_device_capability(), os.path.dirname(torch.__file__))')
        [ "$capability" != 90 ] || capability=90a
        target="-gencode arch=compute_$capability,code=sm_$capability"
        echo "CUDA library: building for sm_$capability"
        with_nvcc >"$log" 2>&1 && built=1 || true
        if [ "$built" = 1 ]; then
            echo "  built in $((SECONDS - begin)) s"
        else
            broken=1
            echo "  not built; the provider 'cuda' is missing. The end of what nvcc said:"
            tail -n 15 "$log"
        fi
        rm -f "$log"
    fi
fi

status=0
SLOWFAST_BENCH_SPENT=$SECONDS "$python" -m slowfast_kernels.bench.gpu ${arguments[@]+"${arguments[@]}"} || status=$?
if [ "$broken" = 1 ] && [ "$status" = 0 ]; then
    echo "FAILED: the CUDA library was not built"
    status=1
fi
exit "$status"
