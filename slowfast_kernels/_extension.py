"""Loads the native libraries where there are any. Never raises: what is missing is kept as a sentence."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
from pathlib import Path

import torch

#: SLOWFAST_LIB_DIR names another build's folder: a sanitizer build, or none to run without native code.
LIB_DIR = Path(os.environ.get("SLOWFAST_LIB_DIR") or Path(__file__).resolve().parent / "_lib")

#: Instruction sets the kernels are compiled for, weakest first; the index is the native enumeration's value.
ISAS = ("none", "avx2", "avx512", "avx512_bf16")

_cpu: ctypes.CDLL | None = None
cpu_missing: str | None = None


def _load() -> None:
    global _cpu, cpu_missing
    path = LIB_DIR / "libslowfast_cpu.so"
    if not path.exists():
        told = LIB_DIR / "missing.txt"  # what setup.py knew
        reason = told.read_text().strip() if told.exists() else f"{path.name} is missing"
        cpu_missing = f"the native CPU library is not built ({reason})"
        return
    try:
        torch.ops.load_library(str(path))
        _cpu = ctypes.CDLL(str(path))
        for name in ("slowfast_cpu_isa_found", "slowfast_cpu_isa"):
            getattr(_cpu, name).restype = ctypes.c_int
        _cpu.slowfast_cpu_set_isa.argtypes = [ctypes.c_int]
        _cpu.slowfast_cpu_set_isa.restype = ctypes.c_int
    except Exception as error:
        _cpu = None
        cpu_missing = f"the native CPU library does not load: {error}"
        return
    if _cpu.slowfast_cpu_isa_found() == 0:
        needed = "AVX2, FMA and F16C at least"
        cpu_missing = f"this processor has no instruction set that the CPU kernels are built for ({needed})"


_load()

#: SLOWFAST_EMULATE=1: the CUDA kernels run on the CPU, in the emulator of csrc/emulator.
EMULATE = os.environ.get("SLOWFAST_EMULATE", "0") == "1"


def cuda_missing() -> str | None:
    """Why the CUDA kernels cannot run, or None; loads their library (or the emulated one) at the first call."""
    if not EMULATE:
        if not torch.cuda.is_available():
            return "no CUDA device is available"
        if torch.cuda.get_device_capability() < (8, 0):
            return "the CUDA kernels need compute capability 8.0 or higher"
    return _load_cuda("libslowfast_emulated.so" if EMULATE else "libslowfast_cuda.so")


@functools.cache
def _load_cuda(name: str) -> str | None:
    path = LIB_DIR / name
    if not path.exists():
        return f"the library of the CUDA kernels is not built ({name} is missing)"
    try:
        torch.ops.load_library(str(path))
    except Exception as error:
        return f"the library of the CUDA kernels does not load: {error}"
    return None


@functools.cache
def cuda_source(*prefixes: str) -> str:
    """Hash of the CUDA sources whose names start with one of these, as the library was built from them; and of what
    all of them include.
    """
    try:
        hashes = json.loads((LIB_DIR / "cuda_sources.json").read_text())
    except (OSError, ValueError):  # built by hand: winners are good for this file only
        library = LIB_DIR / "libslowfast_cuda.so"
        return hashlib.sha256(library.read_bytes() if library.exists() else b"").hexdigest()[:16]
    names = [n for n in sorted(hashes) if n.startswith((*prefixes, "primitives.", "types."))]
    return hashlib.sha256("".join(f"{n} {hashes[n]}\n" for n in names).encode()).hexdigest()[:16]


def cpu_isa_found() -> str:
    """Best instruction set of this processor that the kernels are built for ("none" without AVX2)."""
    return ISAS[_cpu.slowfast_cpu_isa_found()] if _cpu else "none"


def cpu_isa() -> str:
    """Instruction set the CPU kernels use now."""
    return ISAS[_cpu.slowfast_cpu_isa()] if _cpu else "none"


def set_cpu_isa(name: str) -> None:
    """Force the CPU kernels onto a weaker instruction set ("avx2", "avx512", "avx512_bf16"), or "auto"."""
    if name != "auto" and name not in ISAS[1:]:
        raise ValueError(f"expected an instruction set among {ISAS[1:]} or 'auto', got {name!r}")
    if _cpu is None:
        raise RuntimeError(f"cannot choose an instruction set: {cpu_missing}")
    wanted = cpu_isa_found() if name == "auto" else name
    if _cpu.slowfast_cpu_set_isa(ISAS.index(wanted)) != 0:
        if ISAS.index(wanted) < ISAS.index(cpu_isa_found()):
            raise RuntimeError(f"this build has no {name} kernels (SLOWFAST_ISAS when it was built)")
        raise RuntimeError(f"this processor has {cpu_isa_found()} at best, cannot run {name} kernels")
