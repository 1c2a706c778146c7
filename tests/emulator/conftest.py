"""Builds the emulator's test kernels (kernels.cu): by the host compiler, with AddressSanitizer, and by nvcc."""

import ctypes
import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from ops.parity import ORDERS

ROOT = Path(__file__).resolve().parents[2]
CSRC = ROOT / "csrc"
KERNELS = Path(__file__).with_name("kernels.cu")

# enum Bug of kernels.cu, in order.
BUGS = ["none", "no_barrier", "no_syncwarp", "no_wait", "reuse", "divergent_barrier", "missing_thread", "missing_lane",
        "read_outside", "write_outside", "ldmatrix_outside", "misaligned", "unwritten"]  # fmt: skip


def _build(name, command, sources):
    """Output of a compilation, made once per content of its sources, whoever asks."""
    headers = sorted(p for folder in ("cuda", "emulator") for p in (CSRC / folder).glob("*.[hc]*"))
    digest = hashlib.sha256(" ".join(map(str, command)).encode())
    for path in [*sources, *headers]:
        digest.update(path.read_bytes())
    folder = ROOT / "build" / "emulator-tests"
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"{digest.hexdigest()[:16]}-{name}"
    with open(folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not output.exists():
            for old in folder.glob(f"*-{name}"):
                old.unlink()
            part = folder / f"part-{name}"
            done = subprocess.run([*command, *sources, "-o", part], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            part.rename(output)
    return output


def _host_compiler():
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler found")
    return compiler


def _host_build(name, *flags):
    command = [_host_compiler(), "-x", "c++", "-std=c++17", "-Wall", "-Wextra", "-Wno-unused-parameter",
               f"-I{CSRC}", "-DSLOWFAST_EMULATE", *flags]  # fmt: skip
    return _build(name, command, [KERNELS, *sorted((CSRC / "emulator").glob("*.cpp"))])


def _nvcc_build(name, *flags):
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("no nvcc found")
    return _build(name, [nvcc, "-std=c++17", "-O3", f"-I{CSRC}", *flags], [KERNELS])


class Kernels:
    """The test kernels on one device: ``call`` takes tensors of that device and numbers, raises what they report."""

    def __init__(self, library, device):
        self.device = device
        self._library = ctypes.CDLL(str(library))

    int64 = ctypes.c_int64

    def call(self, name, *args):
        function = getattr(self._library, name)
        function.restype = ctypes.c_char_p
        for i in args:
            assert not isinstance(i, torch.Tensor) or (i.is_contiguous() and i.device.type == self.device)
        error = function(*(ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else a for a in args))
        if error is not None:
            raise RuntimeError(error.decode())
        if self.device == "cuda":
            torch.cuda.synchronize()


@pytest.fixture(scope="session")
def emulated():
    return Kernels(_host_build("emulated.so", "-O2", "-fPIC", "-fvisibility=hidden", "-shared"), "cpu")


@pytest.fixture(scope="session", params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def kernels(request):
    """The emulator, and where there is one, the machine it stands for."""
    if request.param == "emulated":
        return request.getfixturevalue("emulated")
    flags = ["-arch=native", "-shared", "-Xcompiler", "-fPIC"]
    return Kernels(_nvcc_build("gpu.so", *flags), "cuda")


@pytest.fixture(scope="session")
def asan_program():
    return _host_build("asan", "-O1", "-g1", "-fsanitize=address", "-DSLOWFAST_TEST_PROGRAM")


@pytest.fixture(scope="session")
def ucontext_program():
    """Without the emulator's own stack switch, as on processors it is not written for."""
    return _host_build("ucontext", "-O1", "-DSLOWFAST_EMULATE_UCONTEXT", "-DSLOWFAST_TEST_PROGRAM")


@pytest.fixture
def nvcc_build():
    return _nvcc_build


@pytest.fixture
def order(request, monkeypatch):
    monkeypatch.setenv("SLOWFAST_EMULATE_ORDER", request.param)
    return request.param


@pytest.fixture
def bug():
    return BUGS.index


def pytest_generate_tests(metafunc):
    if "order" in metafunc.fixturenames:
        metafunc.parametrize("order", ORDERS, indirect=True)
