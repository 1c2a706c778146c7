"""Choosing a provider: who computes a call, what is said when nobody can, and no native library at all."""

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from slowfast_kernels import _extension, backends, ops, use_backend
from slowfast_kernels.ops._registration import OPS

ROOT = Path(__file__).parents[1]
X, W = torch.randn(1, 4, 2, 5, 5), torch.randn(6, 4, 1, 3, 3)
needs_native = pytest.mark.skipif(bool(_extension.cpu_missing), reason=str(_extension.cpu_missing))
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")


def python(program, **environment):
    """Run a program in a new interpreter, from the repository's root."""
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


def spy(monkeypatch, name):
    """Notes which provider of an op runs."""
    ran = []
    for provider, implementation in OPS[name].providers.items():

        def run(*args, provider=provider, implementation=implementation):
            ran.append(provider)
            return implementation.run(*args)

        monkeypatch.setitem(OPS[name].providers, provider, backends.Provider(run, implementation.refuses))
    return ran


@needs_native
def test_auto_prefers_the_native_kernels_and_falls_back(monkeypatch):
    ran = spy(monkeypatch, "conv_bn_act3d")
    ops.conv_bn_act3d(X, W)
    ops.conv_bn_act3d(X.double(), W.double())
    assert ran == ["cpu", "reference"]


@needs_native
def test_named_provider_runs(monkeypatch):
    ran = spy(monkeypatch, "conv_bn_act3d")
    for name in ("reference", "cpu"):
        with use_backend(name):
            assert backends.current() == name
            ops.conv_bn_act3d(X, W)
    assert ran == ["reference", "cpu"]


@needs_native
def test_named_provider_never_falls_back(monkeypatch):
    ran = spy(monkeypatch, "conv_bn_act3d")
    with (
        use_backend("cpu"),
        pytest.raises(
            RuntimeError,
            match=r"slowfast::conv_bn_act3d cannot run here \(cpu: the maps are float64, the C\+\+ kernels",
        ),
    ):
        ops.conv_bn_act3d(X.double(), W.double())
    assert ran == []


@without_cuda
@pytest.mark.parametrize("name", ["triton", "cuda"])
@pytest.mark.parametrize("op", OPS)
def test_gpu_providers_say_why_not(name, op, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(_extension, "EMULATE", False)
    if name in OPS[op].providers:
        message = f"{name}: no CUDA device is available"
    else:
        message = f"{name}: this op has no such provider"
    with use_backend(name), pytest.raises(RuntimeError, match=message):
        backends.choose(op, OPS[op].providers, "cpu", ())


@without_cuda
@pytest.mark.parametrize("name", ["triton", "cuda"])
def test_simulated_gpu_providers_take_tensors_of_the_cpu(name, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(_extension, "EMULATE", True)
    assert backends.simulated(name) and backends.home(name) == "cpu"
    with use_backend(name), pytest.raises(RuntimeError, match=f"{name}: the tensors are on cuda"):
        backends.choose("stem3d", OPS["stem3d"].providers, "cuda", ())


def test_without_triton(monkeypatch):
    monkeypatch.setattr(backends, "_triton_import", lambda: ("the triton package is not installed", ""))
    assert backends.unavailable("triton") == "the triton package is not installed"
    too_old = "the interpreter of triton 3.6.0 needs numpy below 2.4, this is 2.4.6"
    monkeypatch.setattr(backends, "_triton_import", lambda: ("", too_old))
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backends.unavailable("triton") == too_old


@pytest.mark.parametrize("op", [name for name in OPS if "cpu" in OPS[name].providers])
def test_cpu_kernels_refuse_other_devices(op):
    with use_backend("cpu"), pytest.raises(RuntimeError, match=r"cpu: (the tensors are on cuda|the native)"):
        backends.choose(op, OPS[op].providers, "cuda", ())


def test_unknown_names():
    with (
        pytest.raises(ValueError, match=r"expected a backend among \('auto', .*\), got 'mkl'"),
        use_backend("mkl"),
    ):
        pass
    assert backends.current() == "auto"


def test_choice_nests_and_ends():
    with use_backend("reference"):
        with use_backend("auto"):
            assert backends.current() == "auto"
        assert backends.current() == "reference"
        with pytest.raises(KeyError), use_backend("cpu"):
            raise KeyError
        assert backends.current() == "reference"
    assert backends.current() == "auto"


def test_choice_is_the_threads_own():
    seen = []
    with use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(backends.current()))
        thread.start()
        thread.join()
    assert seen == ["auto"]


@needs_native
def test_instruction_sets():
    best = backends.cpu_isa_found()
    with pytest.raises(
        ValueError, match=r"expected an instruction set among .*'avx2'.* or 'auto', got 'sse2'"
    ):
        backends.set_cpu_isa("sse2")
    with backends.force_cpu_isa("avx2"):
        assert backends.cpu_isa() == "avx2"
    assert backends.cpu_isa() == best
    for isa in _extension.ISAS[_extension.ISAS.index(best) + 1 :]:
        with pytest.raises(
            RuntimeError, match=f"this processor has {best} at best, cannot run {isa} kernels"
        ):
            backends.set_cpu_isa(isa)


# --- the environment, and no library ----------------------------------------------------------------------

RUN_ANYWAY = """
import torch
from slowfast_kernels import _extension, backends, ops, use_backend
x, w = torch.randn(1, 4, 2, 5, 5), torch.randn(6, 4, 1, 3, 3)
expected = torch.relu(torch.nn.functional.conv3d(x, w))
assert torch.allclose(ops.conv_bn_act3d(x, w), expected, atol=1e-5)
print(backends.cpu_isa_found(), backends.cpu_isa())
for attempt in (lambda: ops.conv_bn_act3d(x, w), lambda: backends.set_cpu_isa("avx2")):
    try:
        with use_backend("cpu"):
            attempt()
    except RuntimeError as error:
        print(error)
"""


def test_without_the_library(tmp_path):
    done = python(RUN_ANYWAY, SLOWFAST_LIB_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    why = "the native CPU library is not built (libslowfast_cpu.so is missing)"
    assert done.stdout.splitlines() == [
        "none none",
        f"slowfast::conv_bn_act3d cannot run here (cpu: {why})",
        f"cannot choose an instruction set: {why}",
    ]


def test_with_a_broken_library(tmp_path):
    (tmp_path / "libslowfast_cpu.so").write_bytes(b"not a library")
    done = python(RUN_ANYWAY, SLOWFAST_LIB_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "cpu: the native CPU library does not load: " in done.stdout


@needs_native
def test_without_avx2():
    # a processor that reports no instruction set the kernels are built for
    pretend = """
import ctypes
class Old(ctypes.CDLL):
    def __init__(self, name, *args, **kwargs):
        super().__init__(name, *args, **kwargs)
        if "slowfast" in str(name):
            self.slowfast_cpu_isa_found = ctypes.CFUNCTYPE(ctypes.c_int)(lambda: 0)
            self.slowfast_cpu_isa = self.slowfast_cpu_isa_found
ctypes.CDLL = Old
"""
    done = python(pretend + RUN_ANYWAY)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "none none"
    assert lines[1].endswith("are built for (AVX2, FMA and F16C at least))")


def test_backend_from_the_environment():
    show = "from slowfast_kernels import backends; print(backends.current())"
    assert python(show, SLOWFAST_BACKEND="reference").stdout == "reference\n"
    done = python(show, SLOWFAST_BACKEND="mkl")
    assert (
        "SLOWFAST_BACKEND: expected one of ('auto', 'reference', 'cpu', 'triton', 'cuda'), got 'mkl'"
        in done.stderr
    )


@needs_native
def test_vector_code_stays_in_its_instruction_set():
    """Code that an x86-64 without AVX2 runs (loading, choosing the kernels) holds no AVX instruction.

    Inline functions of the standard library instantiated in a file compiled for AVX-512 would leak here: the
    linker keeps one copy for everybody.
    """
    library = _extension.LIB_DIR / "libslowfast_cpu.so"
    try:
        listing = subprocess.run(
            ["objdump", "-d", "-C", "--no-show-raw-insn", "-j", ".text", str(library)],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except FileNotFoundError:
        pytest.skip("objdump (binutils) is not installed")
    owner, leaks, vector_functions = "", set(), 0
    for line in listing.splitlines():
        header = re.match(r"[0-9a-f]+ <(.*)>:$", line)
        if header:
            owner = header.group(1)
            vector_functions += "slowfast::avx" in owner
        elif re.search(r"%[yz]mm|\tv[a-z0-9]+ ", line) and "slowfast::avx" not in owner:
            leaks.add(owner)
    assert vector_functions > 10, "the listing shows no kernels: wrong file, or stripped"
    assert not leaks, f"AVX instructions in {sorted(leaks)}"
