"""The library of CUDA kernels, emulated or on a GPU: it loads, its boxed ops run, its kernels do not spill."""

import json

import pytest
import torch

from slowfast_kernels import _extension, _selftest, backends


@pytest.fixture
def library():
    reason = _extension.cuda_missing()
    if reason:
        pytest.skip(reason)


@pytest.fixture
def scale(library):
    return _selftest.scaled


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


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize(("blocks", "steps"), [(1, 1), (2, 3), (1, 0)])
def test_every_product_is_made(library, depth, blocks, steps):
    out = torch.full((blocks * _selftest.THREADS,), torch.nan, device=backends.home("cuda"))
    _selftest.products(depth, steps, out)
    assert torch.equal(out, torch.full_like(out, 32 * depth * steps))
    # eight warps add up to as many values as there are FLOPs of multiplying and adding, over two
    assert out[: _selftest.THREADS].double().sum() == _selftest.STEP_FLOPS[depth] * steps / 2


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("groups", [1, 2, 5])
def test_every_block_reads_everything(library, blocks, groups, order):
    device = backends.home("cuda")
    x = torch.randint(-(2**31), 2**31 - 1, (groups * _selftest.READ_VALUES,), dtype=torch.int32).to(device)
    out = torch.zeros(blocks * _selftest.THREADS, dtype=torch.int32, device=device)
    _selftest.read(x, out)
    sums = out.view(blocks, -1).long().sum(1) % 2**32
    assert torch.equal(sums, (x.long().sum() % 2**32).expand(blocks))


def test_measuring_ops_refuse(library):
    device = backends.home("cuda")
    out = torch.zeros(_selftest.THREADS, device=device)
    with pytest.raises(RuntimeError, match="depth: expected 8 or 16, got 4"):
        _selftest.products(4, 1, out)
    with pytest.raises(RuntimeError, match="out: expected 256 values for each block"):
        _selftest.products(8, 1, out[:100])
    with pytest.raises(RuntimeError, match="x: expected a multiple of 4096"):
        _selftest.read(torch.zeros(100, dtype=torch.int32, device=device), out.int())


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
