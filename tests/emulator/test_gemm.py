"""A GEMM with cp.async, ldmatrix and mma, small and complete: what the emulator is for."""

import re

import pytest
import torch

SHAPES = [(64, 64, 32), (64, 64, 8), (70, 72, 136), (128, 192, 96), (1, 8, 64), (256, 128, 256)]


def product(kernels, bug, dtype, m, n, k):
    a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
    c = torch.full((m, n), float("nan"), device=kernels.device)
    kernels.call(
        "test_gemm", bug, dtype == torch.bfloat16, a.to(kernels.device), b.to(kernels.device), c, m, n, k
    )
    expected = a.double() @ b.double()
    return c.cpu().double(), expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gemm(kernels, bug, dtype, shape):
    c, expected = product(kernels, bug("none"), dtype, *shape)
    assert (c - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gemm_in_every_order(emulated, order, bug, shape):
    c, expected = product(emulated, bug("none"), torch.bfloat16, *shape)
    assert (c - expected).norm() <= 1e-6 * expected.norm()


def test_order_does_not_change_a_bit(emulated, bug, monkeypatch):
    results = []
    for order in ("random:1", "random:99", "reversed", "ahead", "ahead:3"):
        monkeypatch.setenv("SLOWFAST_EMULATE_ORDER", order)
        torch.manual_seed(0)
        results.append(product(emulated, bug("none"), torch.bfloat16, 128, 72, 136)[0])
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("name", ["no_wait", "no_barrier", "reuse"])
def test_gemm_without_its_synchronisation_is_wrong(emulated, order, bug, name):
    c, expected = product(emulated, bug(name), torch.bfloat16, 128, 64, 256)
    assert not (c - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.parametrize("arch", ["80", "90a"])
def test_nvcc_compiles_the_same_source(nvcc_build, arch):
    cubin = nvcc_build(f"sm_{arch}.cubin", "-cubin", f"-gencode=arch=compute_{arch},code=sm_{arch}")
    names = cubin.read_bytes()
    assert b"gemm_kernel" in names
    assert b"mirror_kernel" in names


def test_vectors_are_single_accesses(nvcc_build):
    """Whatever the compiler knows of an address: 16 bytes are one instruction, never 16."""
    ptx = nvcc_build("vectors.ptx", "-ptx", "-arch=compute_80").read_text()
    kernels = [body for body in ptx.split(".entry") if "vectors_kernel" in body[:200]]
    assert len(kernels) == 2
    for body in kernels:
        found = re.findall(r"\b((?:ld|st)\.global[.\w]*)", body)
        assert sorted(re.sub(r"[fu]32$|\.nc", "", f) for f in found) == ["ld.global.v4."] * 2 + [
            "st.global.v4."
        ]
