"""stem3d's CUDA kernel (emulated, where there is no GPU) against the reference in float64."""

import importlib
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from ops.parity import (
    ORDERS,
    bits,
    case_named,
    check,
    on_cuda,
    reference,
)
from slowfast_kernels import _extension, ops
from slowfast_kernels.ops._cases import Draw
from slowfast_kernels.ops._memory import empty_channels_last
from slowfast_kernels.ops._spec import ConvAffine
from slowfast_kernels.ops.stem3d.cases import _call
from slowfast_kernels.ops.stem3d.spec import StemSpec
from slowfast_kernels.testing import assert_close, assert_same_nonfinite, provider_device, to_float64

OP = "stem3d"
DEVICE = provider_device("cuda")
kernels = importlib.import_module("slowfast_kernels.ops.stem3d.cuda")
DTYPES = (torch.bfloat16, torch.float16)
PRODUCTS = 5 * 7 * 7 * 3
pytestmark = on_cuda


def stem(args, kwargs):
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda x: x.to(DEVICE), (args, kwargs))
    return ops.stem3d(*args, **kwargs).cpu()


def run_packed(args, segment, out=None):
    """The packed entry point: a given output and number of frames of a block of threads."""
    x, weight, scale, shift = pytree.tree_map_only(torch.Tensor, lambda x: x.to(DEVICE), args)
    spec = StemSpec(ConvAffine(weight, scale, shift))
    if out is None:
        out = empty_channels_last(x, spec.out_shape(x.shape)).fill_(math.nan)
    packed = kernels.pack(spec.conv, x.dtype)
    return kernels.run_packed(x, packed, out, config=segment and kernels.Segment(segment)).cpu()


@pytest.mark.parametrize("name", ["stem.slow", "stem.fast"])
def test_parity_of_several_tiles(name, provider):
    """Tiles inside the map, at its edges and beyond them, as vectors of 16 bytes (width 72) and not (70, 61)."""
    for width in (72, 70, 61):
        args, kwargs = case_named(OP, name).args(dtype=torch.bfloat16, shrink=1000)
        x = Draw(seed=width, dtype=torch.bfloat16).normal(1, 3, 2, 67, width)
        call = (x, *args[1:]), kwargs
        check(
            [stem(*call)],
            reference(OP, *to_float64(call)),
            reference(OP, *call),
            PRODUCTS,
            f"{name}, {width}",
        )


@st.composite
def calls(draw):
    kernel_t = draw(st.sampled_from([1, 5]))
    cout = 8 if kernel_t == 5 else 8 * draw(st.integers(1, 8))
    source = Draw(seed=draw(st.integers(0, 999)), dtype=draw(st.sampled_from(DTYPES)))
    shape = (draw(st.integers(0, 2)), 3, *(draw(st.integers(1, n)) for n in (7, 40, 44)))
    activation, affine = draw(st.sampled_from(["relu", "none"])), draw(st.booleans())
    (x, *rest), kwargs = _call(source, shape, cout, (kernel_t, 7, 7), activation=activation, affine=affine)
    layout = draw(st.sampled_from(["channels last", "channels first", "every other frame", "cropped"]))
    if layout == "channels first":
        x = x.contiguous()
    elif layout == "every other frame":
        x = source.normal(*shape[:2], 2 * shape[2], *shape[3:])[:, :, ::2]
    elif layout == "cropped":
        x = source.normal(*shape[:3], shape[3] + 3, shape[4] + 5)[..., 1 : 1 + shape[3], 2 : 2 + shape[4]]
    return (x, *rest), kwargs


@given(drawn=calls())
def test_drawn_calls(drawn, provider):
    exact, peer = reference(OP, *to_float64(drawn)), reference(OP, *drawn)
    check([stem(*drawn)], exact, peer, PRODUCTS, "drawn")


@pytest.mark.parametrize("kernel", [(1, 7, 7), (5, 7, 7)], ids=str)
@pytest.mark.parametrize("frames", [1, 2, 5, 9])
def test_segments_do_not_change_the_result(frames, kernel, provider):
    source = Draw(dtype=torch.bfloat16)
    args, _ = _call(source, (1, 3, frames, 15, 18), 8 if kernel[0] == 5 else 24, kernel)
    first = run_packed(args, frames)
    assert first.isfinite().all()
    for segment in {s for s in (1, 2, 3, 4, 7) if s < frames}:
        assert torch.equal(bits(run_packed(args, segment)), bits(first)), segment


@pytest.mark.skipif(not _extension.EMULATE, reason="orders of the emulator's threads")
@pytest.mark.parametrize("kernel", [(1, 7, 7), (5, 7, 7)], ids=str)
def test_the_order_of_the_threads_does_not_matter(kernel, provider, monkeypatch):
    args, kwargs = _call(Draw(dtype=torch.bfloat16), (1, 3, 4, 24, 40), 8 if kernel[0] == 5 else 64, kernel)
    first = stem(args, kwargs)
    assert first.isfinite().all()
    for order in ORDERS:
        monkeypatch.setenv("SLOWFAST_EMULATE_ORDER", order)
        assert torch.equal(bits(stem(args, kwargs)), bits(first)), order


@pytest.mark.parametrize("kernel", [(1, 7, 7), (5, 7, 7)], ids=str)
@pytest.mark.parametrize("activation", ["relu", "none"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_input_stays_where_it_belongs(value, activation, kernel, provider):
    """One bad pixel reaches the windows that hold it and no others; NaN wins a pool window as in PyTorch."""
    draw = Draw(seed=3, dtype=torch.float16)
    for at in ((11, 12), (0, 0), (22, 31)):
        x, weight = draw.normal(1, 3, 6, 23, 32), draw.weight(8, 3, *kernel)
        x[0, 1, 3, at[0], at[1]] = value
        got = stem((x, weight), {"activation": activation})
        expected = reference(OP, (x.double(), weight.double()), {"activation": activation})[0]
        assert_same_nonfinite(got, expected)
        assert_close(got, expected, PRODUCTS, bound=0.02)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pool_of_only_negative_sums(dtype, provider):
    """The pool's padding is minus infinity, not zero."""
    x, weight = torch.rand(1, 3, 2, 13, 14).to(dtype), -torch.rand(8, 3, 1, 7, 7).to(dtype)
    got = stem((x, weight), {"activation": "none"})
    expected = reference(OP, (x.double(), weight.double()), {"activation": "none"})[0]
    assert expected.max() < 0
    assert_close(got, expected, PRODUCTS)


def test_result_in_a_channel_slice(provider):
    args, _ = _call(Draw(dtype=torch.bfloat16), (2, 3, 2, 30, 34), 16, (1, 7, 7))
    expected = run_packed(args, 2)
    n, c, *thw = expected.shape
    wide = empty_channels_last(args[0], (n, c + 16, *thw)).fill_(7).to(DEVICE)
    run_packed(args, 1, out=wide[:, 8 : 8 + c])
    assert torch.equal(wide[:, 8 : 8 + c].cpu(), expected)
    assert (wide[:, :8] == 7).all() and (wide[:, 8 + c :] == 7).all()


@pytest.mark.parametrize("kernel", [(1, 7, 7), (5, 7, 7)], ids=str)
def test_every_argument_is_obeyed(kernel, provider):
    """As the contract test, on a call that the kernel takes."""
    draw = Draw(seed=11, dtype=torch.bfloat16)
    args, kwargs = _call(draw, (2, 3, 5, 14, 15), 8, kernel)
    base = stem(args, kwargs)
    changes = [(i, draw.normal(*a.shape).to(a.dtype)) for i, a in enumerate(args)] + [(2, None), (3, None)]
    changed = [((*args[:i], value, *args[i + 1 :]), kwargs) for i, value in changes]
    below = (*args[:3], args[3] - 3)  # enough below zero for whole pool windows
    clamped, free = stem(below, kwargs), stem(below, kwargs | {"activation": "none"})
    assert (clamped == 0).any() and (free < 0).any()
    for call in (*changed, (below, kwargs), (below, kwargs | {"activation": "none"})):
        got = stem(*call)
        assert not torch.equal(got, base)
        check([got], reference(OP, *to_float64(call)), reference(OP, *call), PRODUCTS, "changed")
