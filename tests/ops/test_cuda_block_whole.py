"""The CUDA kernel for whole wide blocks (emulated, where there is no GPU) against the reference in float64."""

import importlib
import math
import re
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from ops.parity import (
    ORDERS,
    bits,
    check,
    on_cuda,
    reference,
)
from slowfast_kernels import _extension
from slowfast_kernels.ops._cases import Draw
from slowfast_kernels.ops._device import SHARED_BYTES
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
PRODUCTS = 9 * 64


def block(shape, cout=None, dtype=torch.bfloat16, seed=5, dilation=1, affine=True):
    """A call: with a shortcut where ``cout`` is given."""
    draw = Draw(seed=seed, dtype=dtype)
    cin = shape[1]
    return _call(
        draw, shape, 64, cout or cin, 1, cout is not None, affine=affine, stride=1, dilation=dilation
    )


def run(call, tiles=None, processors=2, out=None, monkeypatch=None):
    """The kernel on two blocks of threads, so that each walks over several tiles; poisoned output."""
    args, kwargs = call
    x, *parameters = pytree.tree_map_only(torch.Tensor, lambda t: t.to(DEVICE), args)
    packed = kernels.pack(BlockSpec(*parameters), x.dtype)
    if out is None:
        out = empty_channels_last(x, (x.shape[0], packed.cout, *x.shape[2:])).fill_(math.nan)
    tiles = tiles or (4, 6)
    torch.ops.slowfast._block_wide_one_run_cuda(
        x, packed.weights_a, packed.shift_a, packed.weights, packed.shifts, kwargs["dilation"], packed.shortcut,
        list(tiles), processors, out,
    )  # fmt: skip
    return out.cpu()


def agrees(call, got, what=""):
    check([got], reference(OP, *to_float64(call)), reference(OP, *call), PRODUCTS, what)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cout", [None, 256], ids=["identity", "shortcut"])
def test_parity_on_res2(cout, dtype, provider):
    """All channels; tiles with tails, each block of threads with several of them."""
    call = block((1, 80 if cout else 256, 2, 9, 7), cout, dtype)
    agrees(call, run(call))


def test_the_op_takes_it_by_itself(provider, monkeypatch):
    """An identity block of res2 runs on this kernel, unasked."""
    args, kwargs = call = block((1, 256, 1, 6, 5))
    x, *parameters = pytree.tree_map_only(torch.Tensor, lambda t: t.to(DEVICE), args)
    packed = kernels.pack(BlockSpec(*parameters), x.dtype)
    out = empty_channels_last(x, x.shape).fill_(math.nan)
    chosen = kernels._chosen(x, packed, out, 1, 1, None)
    assert isinstance(chosen, fit.TailTiles) and chosen.whole
    agrees(call, kernels.run_packed(x, packed, out, **kwargs).cpu())


@st.composite
def calls(draw):
    shortcut = draw(st.booleans())
    cin = 8 * draw(st.integers(1, 12 if shortcut else 20))
    shape = (draw(st.integers(0, 2)), cin, *(draw(st.integers(1, n)) for n in (3, 11, 13)))
    return block(
        shape,
        8 * draw(st.integers(1, 18)) if shortcut else None,
        draw(st.sampled_from(DTYPES)),
        draw(st.integers(0, 999)),
        draw(st.integers(1, 3)),
        draw(st.booleans()),
    )


@settings(max_examples=15)
@given(drawn=calls(), tiles=st.tuples(st.integers(1, 7), st.integers(1, 9)), processors=st.integers(1, 5))
def test_drawn_blocks(drawn, tiles, processors, provider):
    assume(drawn[0][0].numel() < 20000)  # each pixel costs tens of thousands of products
    agrees(drawn, run(drawn, tiles, processors), f"{tiles}, {processors} blocks")


@pytest.mark.parametrize("cout", [None, 72], ids=["identity", "shortcut"])
def test_tiles_do_not_change_the_result(cout, provider):
    call = block((1, 72, 2, 13, 12), cout)
    first = run(call)
    for tiles, processors in (((14, 14), 7), ((1, 5), 3), ((9, 2), 1), ((13, 12), 132)):
        assert torch.equal(bits(run(call, tiles, processors)), bits(first)), f"{tiles}, {processors} blocks"


def test_same_bits_as_the_two_kernels(provider):
    """conv_a's result is rounded alike, every sum is taken in the same order."""
    (x, *parameters), kwargs = call = block((1, 96, 2, 9, 10))
    x, *parameters = pytree.tree_map_only(torch.Tensor, lambda t: t.to(DEVICE), (x, *parameters))
    packed = kernels.pack(BlockSpec(*parameters), x.dtype)
    out = empty_channels_last(x, x.shape).fill_(math.nan)
    two = kernels.run_packed(x, packed, out, **kwargs, config=fit.TailTiles(5, 6))
    assert torch.equal(bits(run(call)), bits(two.cpu()))


@pytest.mark.skipif(not _extension.EMULATE, reason="orders of the emulator's threads")
@pytest.mark.parametrize("cout", [None, 40], ids=["identity", "shortcut"])
def test_the_order_of_the_threads_does_not_matter(cout, provider, monkeypatch):
    call = block((1, 72, 2, 7, 8), cout)
    first = run(call)
    assert first.isfinite().all()
    for order in ORDERS:
        monkeypatch.setenv("SLOWFAST_EMULATE_ORDER", order)
        assert torch.equal(bits(run(call)), bits(first)), order


@pytest.mark.parametrize("cout", [None, 40], ids=["identity", "shortcut"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_input_stays_where_it_belongs(value, cout, provider):
    (x, *rest), kwargs = block((2, 40, 2, 6, 7), cout, dilation=2)
    x = x.clone(memory_format=torch.preserve_format)
    x[0, 2, 1, -1, -1] = value
    exact = reference(OP, *to_float64(((x, *rest), kwargs)))[0]
    assert_close(run(((x, *rest), kwargs)), exact, PRODUCTS, bound=0.03)


def test_channel_slices(provider):
    """Input and result in channel slices of wider maps, which stay as they are."""
    (x, *rest), kwargs = block((2, 40, 2, 5, 6), 48)
    expected = run(((x, *rest), kwargs))
    n, c, *thw = x.shape
    wide_x = empty_channels_last(x, (n, c + 24, *thw)).fill_(math.nan)
    wide_x[:, 16 : 16 + c] = x
    wide = empty_channels_last(x, (n, 48 + 24, *thw)).fill_(7).to(DEVICE)
    run(((wide_x[:, 16 : 16 + c], *rest), kwargs), out=wide[:, 8:56])
    assert torch.equal(bits(wide[:, 8:56].cpu()), bits(expected))
    assert (wide[:, :8] == 7).all() and (wide[:, 56:] == 7).all()


def test_every_argument_is_obeyed(provider):
    args, kwargs = block((1, 40, 2, 5, 6), 48)
    base = run((args, kwargs))
    draw = Draw(seed=11, dtype=torch.bfloat16)
    flat, tree = pytree.tree_flatten(args)
    changes: list[tuple[int, Any]] = [
        (i, draw.normal(*a.shape, std=0.3).to(a.dtype)) for i, a in enumerate(flat)
    ]
    changes += [(i, None) for i in (2, 3, 5, 6, 8, 9, 11, 12)]
    changed = [(pytree.tree_unflatten([*flat[:i], v, *flat[i + 1 :]], tree), kwargs) for i, v in changes]
    changed += [(args, {**kwargs, "dilation": 2})]
    for call in changed:
        got = run(call)
        assert not torch.equal(got, base)
        agrees(call, got, "changed")


def test_what_the_kernel_refuses(provider):
    call = block((1, 24, 1, 5, 5))
    with pytest.raises(RuntimeError, match="tile: expected height and width of at most 256 pixels with"):
        run(call, (15, 15))
    with pytest.raises(RuntimeError, match="blocks: expected at least one, got 0"):
        run(call, processors=0)
    with pytest.raises(RuntimeError, match="x: expected at most 96 channels with a shortcut, got 104"):
        run(block((1, 104, 1, 5, 5), 64))
    with pytest.raises(RuntimeError, match="out: expected the block's result of x"):
        run(call, out=empty_channels_last(call[0][0], (1, 24, 1, 5, 4)).to(DEVICE))


@pytest.mark.parametrize(
    "cin, cout, kernel_t, stride, sentence",
    [
        (256, None, 3, 1, "no convolution in time"),
        (80, 256, 1, 2, "stride 1"),
        (104, 256, 1, 1, "at most 96 input channels with a shortcut, got 104"),
        (80, 256, 1, 1, None),
        (256, None, 1, 1, None),
    ],
)
def test_which_blocks_it_is_offered(cin, cout, kernel_t, stride, sentence, provider):
    draw = Draw(seed=1, dtype=torch.bfloat16)
    (x, *parameters), _ = _call(
        draw, (1, cin, 1, 2, 2), 64, cout or cin, kernel_t, cout is not None, stride=stride
    )
    packed = kernels.pack(BlockSpec(*parameters), x.dtype)
    refused = fit.whole_refuses(packed, stride)
    assert (sentence is None and refused is None) or sentence in refused
    offered = fit.whole_candidates(packed, 56, 56, stride, 1, SHARED_BYTES)
    assert bool(offered) == (sentence is None)


@pytest.mark.skipif(not _extension.EMULATE, reason="the emulator says how much was asked for")
@pytest.mark.parametrize("cin, cout", [(1024, None), (96, 1280)])
def test_shared_memory_is_what_the_choice_of_tiles_reckons(cin, cout, provider):
    """Asking for more than a block of threads can have is refused with the number of bytes."""
    call = block((1, cin, 1, 2, 2), cout)
    with pytest.raises(RuntimeError, match="at most 232448 bytes of shared memory") as caught:
        run(call, (5, 11))
    packed = kernels.pack(BlockSpec(*call[0][1:]), torch.bfloat16)
    asked = int(re.findall(r"\d+", str(caught.value))[-1])
    assert asked == fit.whole_shared_bytes(packed, fit.TailTiles(5, 11, True), 1), str(caught.value)


@pytest.mark.parametrize("dilation", [1, 2])
def test_candidates_fit(dilation, provider):
    packed = kernels.pack(BlockSpec(*block((1, 256, 1, 2, 2))[0][1:]), torch.bfloat16)
    for tiles in fit.whole_candidates(packed, 56, 56, 1, dilation, SHARED_BYTES):
        assert fit.whole_shared_bytes(packed, tiles, dilation) <= SHARED_BYTES
        assert (tiles.height + 2 * dilation) * (tiles.width + 2 * dilation) <= fit.WHOLE_ROWS
    assert fit.whole_heuristic(packed, 64, 56, 56, 1, 1, 132, SHARED_BYTES) == fit.TailTiles(14, 14, True)
    assert (
        fit.whole_heuristic(packed, 64, 56, 56, 1, 1, 108, 163 * 1024) is None
    )  # weights alone nearly fill it
