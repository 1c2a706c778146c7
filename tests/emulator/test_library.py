"""The library of CUDA kernels, emulated or on a GPU: it loads, its boxed ops run, its kernels do not spill."""

import json

import pytest
import torch

from slowfast_kernels import _extension, backends

LIBRARY = torch.library.Library("slowfast", "FRAGMENT")
LIBRARY.define("_selftest_cuda(Tensor x, float s) -> Tensor")


@pytest.fixture
def scale():
    reason = _extension.cuda_missing()
    if reason:
        pytest.skip(reason)
    return torch.ops.slowfast._selftest_cuda


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", [0, 1, 128, 1000])
def test_an_op_runs(scale, dtype, n):
    x = torch.randn(n).to(dtype).to(backends.home("cuda"))
    assert torch.equal(scale(x, 2.5), (x.float() * 2.5).to(dtype))


def test_what_a_launcher_refuses_is_a_runtime_error(scale):
    x = torch.zeros(4, dtype=torch.int32, device=backends.home("cuda"))
    with pytest.raises(RuntimeError, match="x: expected float32, bfloat16 or float16"):
        scale(x, 1.0)


@pytest.mark.skipif(not _extension.EMULATE, reason="for the emulated library")
def test_what_the_emulator_finds_is_a_runtime_error(scale, monkeypatch):
    monkeypatch.setenv("SLOWFAST_EMULATE_ORDER", "sideways")
    with pytest.raises(RuntimeError, match="expected random.*got sideways"):
        scale(torch.ones(4), 1.0)


@pytest.mark.gpu
def test_the_current_stream_is_used(scale):
    if _extension.EMULATE:
        pytest.skip("the emulator has no streams")
    x = torch.ones(1 << 20, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(100):
            x = scale(x, 1.01)
    stream.synchronize()
    torch.testing.assert_close(x, torch.full_like(x, 1.01**100), rtol=1e-4, atol=0)


def test_no_kernel_spills():
    path = _extension.LIB_DIR / "cuda_resources.json"
    if not path.exists():
        pytest.skip("the CUDA library was not built with nvcc")
    kernels = json.loads(path.read_text())
    assert {k["threads"] for k in kernels if "scale_kernel" in k["kernel"]} == {128}  # its launch bounds
    assert {k["arch"] for k in kernels} == {"sm_80", "sm_90a"}
    spilling = [(k["kernel"], k["arch"]) for k in kernels if k["spill_store_bytes"] or k["spill_load_bytes"]]
    assert not spilling
    with_a_stack = [(k["kernel"], k["arch"]) for k in kernels if k["stack_bytes"]]
    assert not with_a_stack  # of arrays whose index is not known
    assert all(8 <= k["registers"] <= 255 and k["blocks_per_sm"] >= 1 for k in kernels)
