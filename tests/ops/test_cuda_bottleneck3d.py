"""bottleneck3d's CUDA kernels (emulated, where there is no GPU) against the reference in float64."""

import importlib
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from emulator.accesses import counted
from ops.parity import (
    ORDERS,
    SHRINK,
    bits,
    case_named,
    check,
    on_cuda,
    reference,
)
from slowfast_kernels import _extension, ops
from slowfast_kernels.ops._cases import Draw
from slowfast_kernels.ops._device import SHARED_BYTES, limits
from slowfast_kernels.ops._memory import empty_channels_last
from slowfast_kernels.ops.bottleneck3d.cases import _call
from slowfast_kernels.ops.bottleneck3d.spec import BlockSpec
from slowfast_kernels.testing import assert_close, provider_device, to_float64

OP = "bottleneck3d"
DEVICE = provider_device("cuda")
kernels = importlib.import_module("slowfast_kernels.ops.bottleneck3d.cuda")
fit = importlib.import_module("slowfast_kernels.ops.bottleneck3d.cuda_tiles")
DTYPES = (torch.bfloat16, torch.float16)
pytestmark = on_cuda
PRODUCTS = 9 * 512

WIDE = ["res2.slow.0", "res2.slow.1", "res3.slow.0", "res3.slow.1", "res5.fast.0", "res5.fast.1",
        "res5.fast.0 dilated", "res5.fast.1 dilated"]  # fmt: skip


def block(args, kwargs):
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda x: x.to(DEVICE), (args, kwargs))
    return ops.bottleneck3d(*args, **kwargs).cpu()


def run_packed(args, kwargs, **more):
    """The packed entry point, for what the op does not say: tiles, a given output."""
    x, *parameters = pytree.tree_map_only(torch.Tensor, lambda x: x.to(DEVICE), args)
    spec = BlockSpec(*parameters, **kwargs)
    packed = kernels.pack(spec, x.dtype)
    out = more.pop("out", None)
    if out is None:
        out = empty_channels_last(x, spec.out_shape(x.shape)).fill_(math.nan)
    return kernels.run_packed(x, packed, out, **kwargs, **more).cpu(), packed


def test_weights_have_to_fit_into_shared_memory(provider):
    # 1024 channels: the weights alone take more than a block of threads has
    call = _call(Draw(dtype=torch.bfloat16), (1, 1024, 1, 2, 2), 32, 1024, 3)
    with pytest.raises(RuntimeError, match=r"cuda: one output pixel takes \d+ bytes of shared memory"):
        block(*call)


@pytest.mark.parametrize(
    "name", ["res2.fast.0", "res4.fast.1", "one pixel", "res3.slow.0", "res5.fast.1 dilated"]
)
def test_least_shared_memory_is_that_of_a_tile_of_one_pixel(name, provider):
    args, kwargs = case_named(OP, name).args(dtype=torch.bfloat16, shrink=1000)
    packed = kernels.pack(BlockSpec(*args[1:]), torch.bfloat16)
    stride, dilation = kwargs.get("stride", 1), kwargs.get("dilation", 1)
    one = fit.TailTiles(1, 1) if name in WIDE else fit.Tiles(1, 1, 1)
    expected = reckoned((args, {"stride": stride, "dilation": dilation}), one)
    widths = (packed.cin, packed.inner, packed.cout, packed.kernel_t, packed.shortcut)
    assert fit.least_shared_bytes(*widths, stride, dilation) == expected


@st.composite
def calls(draw, inner):
    shortcut = draw(st.booleans())
    cin = 8 * draw(st.integers(1, 6))
    cout = 8 * draw(st.integers(1, 9)) if shortcut else cin
    source = Draw(seed=draw(st.integers(0, 999)), dtype=draw(st.sampled_from(DTYPES)))
    shape = (draw(st.integers(0, 2)), cin, *(draw(st.integers(1, n)) for n in (5, 13, 17)))
    return _call(
        source,
        shape,
        draw(st.sampled_from(inner)),
        cout,
        draw(st.sampled_from([1, 3, 5])),
        shortcut,
        affine=draw(st.booleans()),
        stride=draw(st.integers(1, 3)) if shortcut else 1,
        dilation=draw(st.integers(1, 3)),
    )


tiles = st.builds(fit.Tiles, st.integers(1, 9), st.integers(1, 18), st.integers(1, 6))


def reckoned(drawn, config):
    """Shared memory by the count of the choice of tiles."""
    (x, *parameters), kwargs = drawn
    packed = kernels.pack(BlockSpec(*parameters), x.dtype)
    count = fit.tail_shared_bytes if isinstance(config, fit.TailTiles) else fit.shared_bytes
    return count(packed, config, kwargs["stride"], kwargs["dilation"])


@given(drawn=calls(kernels.NARROW), config=tiles)
def test_drawn_narrow_blocks(drawn, config, provider):
    assume(reckoned(drawn, config) <= limits(torch.device(DEVICE))[1])
    got, _ = run_packed(*drawn, config=config)
    check([got], reference(OP, *to_float64(drawn)), reference(OP, *drawn), PRODUCTS, str(config))


tail_tiles = st.builds(fit.TailTiles, st.integers(1, 9), st.integers(1, 14))


@settings(max_examples=10)
@given(drawn=calls(kernels.WIDE), config=tail_tiles)
def test_drawn_wide_blocks(drawn, config, provider):
    assume(drawn[0][0].numel() < 15000)  # each pixel costs tens of thousands of products
    got, _ = run_packed(*drawn, config=config)
    check([got], reference(OP, *to_float64(drawn)), reference(OP, *drawn), PRODUCTS, str(config))


def test_tiles_of_a_wide_block_do_not_change_the_result(provider):
    args, kwargs = case_named(OP, "res5.fast.0").args(dtype=torch.bfloat16, shrink=2)
    args = (args[0][:, :, :2], *args[1:])
    first, _ = run_packed(args, kwargs)
    for config in (fit.TailTiles(3, 3), fit.TailTiles(2, 4), fit.TailTiles(10, 12)):
        other, _ = run_packed(args, kwargs, config=config)
        assert torch.equal(bits(other), bits(first)), f"{config}"


@pytest.mark.parametrize("name", ["res2.fast.0", "res3.fast.1", "res4.fast.0", "dilated and strided"])
def test_tiles_do_not_change_the_result(name, provider):
    args, kwargs = case_named(OP, name).args(dtype=torch.bfloat16, shrink=SHRINK)
    args = (args[0][:, :, :7], *args[1:])
    first, _ = run_packed(args, kwargs)
    for config in (fit.Tiles(3, 3, 7), fit.Tiles(2, 5, 3), fit.Tiles(4, 4, 1)):
        other, _ = run_packed(args, kwargs, config=config)
        assert torch.equal(bits(other), bits(first)), f"{config}"


@pytest.mark.parametrize(
    "name, large", [("res2.fast.0", 16), ("res3.fast.1", 15), ("dilated and strided", 7)]
)
def test_rolling_sums_are_the_same_bits(name, large, provider):
    """A halo of more pixels than rolling sums have registers for is summed tap by tap, in the same order."""
    args, kwargs = case_named(OP, name).args(dtype=torch.bfloat16, shrink=SHRINK)
    args = (args[0][:, :, :5], *args[1:])
    stride, dilation = kwargs.get("stride", 1), kwargs.get("dilation", 1)
    rolling, other = fit.Tiles(3, 5, 2), fit.Tiles(large, large, 2)
    assert fit._halo(rolling, stride, dilation) <= fit.ROLLING_HALO < fit._halo(other, stride, dilation)
    (first, _), (second, _) = (run_packed(args, kwargs, config=tiles) for tiles in (rolling, other))
    assert first.isfinite().all()
    assert torch.equal(bits(first), bits(second))


def narrow(inner, cin, frames, size):
    """A call of an identity block on a map of this size, packed as well."""
    args, kwargs = _call(Draw(dtype=torch.bfloat16), (1, cin, frames, *size), inner, cin, 3)
    return args, kwargs, kernels.pack(BlockSpec(*args[1:], **kwargs), torch.bfloat16)


NARROW_CIN = {8: 32, 16: 64, 32: 128}  # of Fast's identity blocks


@pytest.mark.skipif(not _extension.EMULATE, reason="counted by the emulator")
@pytest.mark.parametrize("inner", kernels.NARROW)
def test_a_rolling_conv_a_reads_every_frame_once(inner, provider):
    cin, frames, tiles = NARROW_CIN[inner], 8, fit.Tiles(7, 14, 4)
    args, kwargs, _ = narrow(inner, cin, frames, (7, 14))
    (found,) = counted(lambda: run_packed(args, kwargs, config=tiles))
    lines = (Path(_extension.__file__).parents[1] / "csrc/cuda/block_mma.cuh").read_text().splitlines()
    (line,) = (i for i, text in enumerate(lines, 1) if "ldmatrix_x4(a[m], frame +" in text)
    (read,) = (x for x in found.sites if x.site == f"block_mma.cuh:{line}")
    # Frames 0 to 4 for the results of 0 to 3, 3 to 7 for the others; the halo's 9 x 16 pixels, 16 x 16 at a time.
    assert read.requests == (5 + 5) * 9 * (cin // 16)
    assert read.passes == read.least
    assert found.threads == 32 * fit.NARROW_BLOCKS[inner][0]


def test_tiles_of_fast_blocks(provider):
    """7 x 14 pixels fit an SM of an H200, where C = 8 four times; what is offered for three taps rolls."""
    for inner, size, resident in ((8, 56, 4), (16, 28, 2), (32, 14, 1)):
        _, _, packed = narrow(inner, NARROW_CIN[inner], 1, (2, 2))
        found = fit.heuristic(packed, 8, 32, size, size, 1, 1, 132, SHARED_BYTES)
        assert (found.height, found.width) == (7, 14)
        each = fit.shared_bytes(packed, found, 1, 1) + 1024
        assert (SHARED_BYTES + 1024) // each == resident == fit.NARROW_BLOCKS[inner][1]
        for tiles in fit.candidates(packed, 8, 32, size, size, 1, 1, SHARED_BYTES):
            assert fit._halo(tiles, 1, 1) <= fit.ROLLING_HALO
            assert fit.shared_bytes(packed, tiles, 1, 1) <= SHARED_BYTES


def test_registers_leave_room_for_the_blocks_that_are_reckoned_with(provider):
    path = _extension.LIB_DIR / "cuda_resources.json"
    if not path.exists():
        pytest.skip("the CUDA library was not built with nvcc")
    name = re.compile(r"block_narrow_kernel<\w+, (\d+), ")
    found = [(m, k) for k in json.loads(path.read_text()) if (m := name.match(k["kernel"]))]
    assert {int(m[1]) for m, _ in found} == set(fit.NARROW_BLOCKS)
    for m, k in found:
        warps, resident = fit.NARROW_BLOCKS[int(m[1])]
        assert k["threads"] == 32 * warps and k["blocks_per_sm"] >= resident, k


@pytest.mark.skipif(not _extension.EMULATE, reason="orders of the emulator's threads")
@pytest.mark.parametrize("name", ["res2.fast.1", "res3.fast.0", "res4.fast.1", "res5.fast.0", "res5.fast.1"])
def test_the_order_of_the_threads_does_not_matter(name, provider, monkeypatch):
    args, kwargs = case_named(OP, name).args(dtype=torch.bfloat16, shrink=SHRINK)
    args = (args[0][:, :, : 2 if name.startswith("res5") else 5], *args[1:])
    first = block(args, kwargs)
    assert first.isfinite().all()
    for order in ORDERS:
        monkeypatch.setenv("SLOWFAST_EMULATE_ORDER", order)
        assert torch.equal(bits(block(args, kwargs)), bits(first)), order


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["channel slice", "one column", "dilated", "res4.fast.1", "res5.fast.0"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_input_stays_where_it_belongs(value, name, dtype, provider):
    """A bad pixel spreads over a block's windows, and no further: no product with padding, no clamped NaN."""
    (x, *rest), kwargs = case_named(OP, name).args(dtype=dtype, shrink=4)
    x = x[:, :, :4].clone(memory_format=torch.preserve_format)
    x[0, 2, 1, -1, -1] = value
    exact = reference(OP, *to_float64(((x, *rest), kwargs)))[0]
    assert_close(block((x, *rest), kwargs), exact, PRODUCTS, bound=0.03)


@pytest.mark.parametrize("name", ["dilated", "res3.fast.0", "res5.fast.1"])
def test_result_in_a_channel_slice(name, provider):
    (x, *rest), kwargs = case_named(OP, name).args(dtype=torch.bfloat16, shrink=SHRINK)
    args = (x[:, :, :3], *rest)
    expected, packed = run_packed(args, kwargs)
    n, c, *thw = expected.shape
    wide = empty_channels_last(args[0], (n, c + 24, *thw)).fill_(7).to(DEVICE)
    run_packed(args, kwargs, out=wide[:, 8 : 8 + c])
    assert torch.equal(wide[:, 8 : 8 + c].cpu(), expected)
    assert (wide[:, :8] == 7).all() and (wide[:, 8 + c :] == 7).all()


@pytest.mark.parametrize("layout", ["channels first", "every other frame", "odd offset"])
def test_other_memory_is_copied(layout, provider):
    (x, *rest), kwargs = case_named(OP, "dilated").args(dtype=torch.bfloat16)
    expected = block((x, *rest), kwargs)
    if layout == "channels first":
        other = x.contiguous()
    elif layout == "every other frame":
        other = x.repeat_interleave(2, 2)[:, :, ::2]
    else:
        buffer = x.new_empty(x.numel() + 1)
        other = buffer[1:].as_strided(x.shape, x.stride(), 1).copy_(x)
    assert torch.equal(bits(block((other, *rest), kwargs)), bits(expected))


@pytest.mark.parametrize("inner", [16, 64])
def test_every_argument_is_obeyed(inner, provider):
    """As the contract test, on a call that these kernels take."""
    draw = Draw(seed=11, dtype=torch.bfloat16)
    shape = (2, 24, 3, 6, 7) if inner == 16 else (1, 24, 2, 5, 5)
    args, kwargs = _call(draw, shape, inner, 40, 3, True, stride=1, dilation=1)
    base = block(args, kwargs)
    flat, tree = pytree.tree_flatten(args)
    changes: list[tuple[int, Any]] = [
        (i, draw.normal(*a.shape, std=0.3).to(a.dtype)) for i, a in enumerate(flat)
    ]
    changes += [(i, None) for i in (2, 3, 5, 6, 8, 9, 11, 12)]
    changed = [(pytree.tree_unflatten([*flat[:i], v, *flat[i + 1 :]], tree), kwargs) for i, v in changes]
    changed += [(args, {"stride": 2, "dilation": 1}), (args, {"stride": 1, "dilation": 2})]
    for call in changed:
        got = block(*call)
        assert got.shape != base.shape or not torch.equal(got, base)
        check([got], reference(OP, *to_float64(call)), reference(OP, *call), PRODUCTS, "changed")


@pytest.mark.skipif(not _extension.EMULATE, reason="the emulator says how much was asked for")
@pytest.mark.parametrize("name", ["res2.fast.0", "res3.fast.1", "res4.fast.0", "res3.slow.0", "res5.fast.1"])
def test_shared_memory_is_what_the_choice_of_tiles_reckons(name, provider):
    """Asking for more than a block of threads can have is refused with the number of bytes."""
    args, kwargs = case_named(OP, name).args(dtype=torch.bfloat16, shrink=1000)
    if name in WIDE:
        kwargs = {"stride": 7, "dilation": 17}
        big = fit.TailTiles(8, 13)
    else:
        big = fit.Tiles(73, 61, 2)
    with pytest.raises(RuntimeError, match="at most 232448 bytes of shared memory") as caught:
        run_packed(args, kwargs, config=big)
    bytes_asked = int(re.findall(r"\d+", str(caught.value))[-1])
    assert bytes_asked == reckoned((args, kwargs), big), str(caught.value)
