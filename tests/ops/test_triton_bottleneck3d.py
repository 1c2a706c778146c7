"""bottleneck3d on Triton (its interpreter, where there is no GPU) against the reference in float64."""

import importlib
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils import _pytree as pytree

from ops.parity import (
    FLOATS,
    case_named,
    check,
    on_triton,
    reference,
    run,
    there,
)
from slowfast_kernels.ops._cases import Draw, cases_of
from slowfast_kernels.ops.bottleneck3d.cases import _call
from slowfast_kernels.ops.bottleneck3d.spec import BlockSpec
from slowfast_kernels.testing import assert_close, provider_device, to_float64

OP = "bottleneck3d"
DEVICE = provider_device("triton")
kernels = importlib.import_module("slowfast_kernels.ops.bottleneck3d.triton")
conv = importlib.import_module("slowfast_kernels.ops.conv_bn_act3d.triton")
pytestmark = [
    on_triton,
    pytest.mark.filterwarnings(
        "ignore:invalid value encountered:RuntimeWarning"
    ),  # the interpreter's infinities
]


def products(args):
    """Of the longest sum."""
    return max(math.prod(conv.weight.shape[1:]) for conv in args[1:4])


def packed_of(args, kwargs):
    x, *parameters = there(args)
    return kernels.prepare(BlockSpec(*parameters, **kwargs), x.dtype, x.device).packed


@st.composite
def blocks(draw):
    """A block of any shape: identity or projection, narrow or wide, strided or dilated."""
    cin, inner = draw(st.integers(1, 40)), draw(st.integers(1, 70))
    shortcut = draw(st.booleans())
    cout = draw(st.integers(1, 80)) if shortcut else cin
    extents = [draw(st.integers(1, n)) for n in (4, 9, 9)]
    source = Draw(seed=draw(st.integers(0, 99)), dtype=draw(st.sampled_from(FLOATS)))
    return _call(
        source, (draw(st.integers(0, 2)), cin, *extents), inner, cout, draw(st.sampled_from([1, 3, 5])), shortcut,
        draw(st.booleans()), stride=draw(st.integers(1, 3)) if shortcut else 1, dilation=draw(st.integers(1, 3)),
    )  # fmt: skip


@settings(max_examples=12)
@given(drawn=blocks())
def test_drawn_shapes(drawn, provider):
    exact, peer = reference(OP, *to_float64(drawn)), reference(OP, *drawn)
    check(run(OP, *drawn), exact, peer, products(drawn[0]), provider)


SMALL = ["identity", "projection", "dilated and strided", "stride 3", "channel slice", "one column", "bare"]


@pytest.mark.parametrize("tiles", [
    kernels.Tiles(False), kernels.Tiles(True, 32, 16, 32), kernels.Tiles(True, 16, 32, 64),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("name", [*SMALL, "wide bare projection", "res4.fast.1"])
def test_tiles_change_nothing(name, tiles, provider, monkeypatch):
    """Both ways of computing conv_b and conv_c, cut up as on a GPU."""

    def chosen(pixels, inner, out_channels, row, *rest):
        return (
            replace(tiles, block_k=max(tiles.block_k, kernels.next_power_of_2(row, 16)))
            if tiles.fused
            else tiles
        )

    monkeypatch.setattr(kernels, "heuristic", chosen)
    monkeypatch.setattr(kernels.TUNER, "found", {})
    args, kwargs = case_named(OP, name).args(shrink=8)
    exact, peer = reference(OP, *to_float64((args, kwargs))), reference(OP, args, kwargs)
    check(run(OP, args, kwargs), exact, peer, products(args), name)


@pytest.mark.parametrize("name", SMALL)
def test_wide_offsets(name, provider, monkeypatch):
    args, kwargs = case_named(OP, name).args(shrink=16)
    narrow = run(OP, args, kwargs)[0]
    monkeypatch.setattr(conv, "WIDE_FROM", 1)
    assert torch.equal(run(OP, args, kwargs)[0], narrow)


@pytest.mark.parametrize("config", [kernels.Tiles(False), kernels.Tiles(True, 32, 32, 32)], ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_packed_into_buffers_of_the_caller(dtype, config, provider):
    """x and out are channel slices, scratch is given: nothing else is written."""
    args, kwargs = case_named(OP, "projection").args(dtype=dtype)
    exact, peer = reference(OP, *to_float64((args, kwargs))), reference(OP, args, kwargs)
    draw = Draw(seed=1, dtype=dtype)
    x = draw.normal(2, 13 + 19, 3, 7, 8)
    x[:, 16:29] = args[0]
    out, untouched = draw.normal(2, 48, 3, 4, 4), None
    untouched = out.clone()
    packed = packed_of(args, kwargs)
    x, out = there(x), there(out)
    inner, middle = there(draw.normal(2, 9, 3, 7, 8)), there(draw.normal(2, 9, 3, 4, 4))
    got = kernels.run_packed(
        x[:, 16:29], packed, out[:, 8:38], stride=2, inner=inner, middle=middle, config=config
    )
    assert got.data_ptr() == out[:, 8:38].data_ptr()
    check([got.cpu()], exact, peer, products(args), "packed")
    out = out.cpu()
    assert torch.equal(out[:, :8], untouched[:, :8]) and torch.equal(out[:, 38:], untouched[:, 38:])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["identity", "projection"])
def test_nonfinite_input_stays_where_it_belongs(name, value, provider):
    """Also where channels fill a tile up: an infinity times their zeros must not get into the sums."""
    args, kwargs = case_named(OP, name).args()
    args[0][0, 2, 1, 3, 4] = value
    args = (args[0], *pytree.tree_map_only(torch.Tensor, torch.abs, args[1:]))
    expected = reference(OP, *to_float64((args, kwargs)))[0]
    assert not torch.isfinite(expected).all()
    assert_close(run(OP, args, kwargs)[0], expected, products(args), bound=1e-5)


def test_out_without_a_pixel_pitch_is_refused(provider):
    args, kwargs = there(case_named(OP, "identity").args())
    packed = packed_of(args, kwargs)
    with pytest.raises(ValueError, match="out: expected pixels that follow one another in memory"):
        kernels.run_packed(
            args[0],
            packed,
            torch.zeros(1, 20, 3, 5, 6, device=DEVICE),
            config=kernels.Tiles(True, 32, 32, 32),
        )


@pytest.mark.parametrize("mode", ["ieee", "tf32", "bf16x3"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_tiles_fit_the_machine(dtype, mode, provider, monkeypatch):
    monkeypatch.setattr(kernels.backends, "simulated", lambda name: False)
    fused = 0
    for case in cases_of(OP):
        if not case.real:
            continue
        (x, *weights), _ = case.args(dtype=dtype, device="meta", batch=8)
        a, _, c, shortcut = weights
        inner, cout, cin2 = len(a.weight), len(c.weight), 0 if shortcut is None else x.shape[1]
        row = conv.row_of(inner, (1, 3, 3), dtype)
        shape = (x.numel() // x.shape[1], inner, cout, row, cin2, dtype, mode)
        several = kernels.candidates(*shape)
        assert len(several) <= 8
        for tiles in (kernels.heuristic(*shape), *several):
            if tiles.fused:
                fused += 1
                assert inner <= kernels.INNER_CHANNELS and tiles.block_k >= row and tiles.warps == 4
                held = (tiles.block_m + max(tiles.block_n, inner)) * tiles.block_k * tiles.stages
                assert held * dtype.itemsize <= conv.triton_tiles.SHARED_BYTES, (case.name, tiles)
    assert bool(fused) == (dtype != torch.float32 or mode != "ieee")
