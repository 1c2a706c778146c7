"""conv_bn_act3d on Triton (its interpreter, where there is no GPU) against the reference in float64."""

import importlib
import math

import pytest
import torch
from hypothesis import given, settings

from ops.parity import (
    FLOATS,
    case_named,
    check,
    on_triton,
    reference,
    run,
    there,
)
from ops.test_conv_bn_act3d import NONFINITE, PARAMETERS, calls, products
from slowfast_kernels import backends, ops
from slowfast_kernels._triton.launch import next_power_of_2
from slowfast_kernels.ops._cases import Draw, cases_of
from slowfast_kernels.ops.conv_bn_act3d.spec import ConvSpec
from slowfast_kernels.testing import assert_close, provider_device, to_float64

OP = "conv_bn_act3d"
DEVICE = provider_device("triton")
kernels = importlib.import_module("slowfast_kernels.ops.conv_bn_act3d.triton")
pytestmark = [
    on_triton,
    pytest.mark.filterwarnings(
        "ignore:invalid value encountered:RuntimeWarning"
    ),  # the interpreter's infinities
]


@settings(max_examples=12)
@given(drawn=calls())
def test_drawn_shapes(drawn, provider):
    exact, peer = reference(OP, *to_float64(drawn)), reference(OP, *drawn)
    check(run(OP, *drawn), exact, peer, products(drawn[0][1]), provider)


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles as on a GPU: several programs along both axes, several steps along the products."""

    def tiles(pixels, out_channels, channels, taps, row, *rest):
        return kernels.Tiles(32, 16, next_power_of_2(row, 16) if row else 16)

    monkeypatch.setattr(kernels, "heuristic", tiles)
    monkeypatch.setattr(kernels.TUNER, "found", {})


SMALL = ["1x1x1", "3x3x3", "one channel", "dilation 2", "even kernel", "padding beyond the kernel", "bare",
         "stride beyond the kernel", "channel slices", "transposed", "res2.fast.0.a", "res4.fast.0.b"]  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_tiles_change_nothing(name, provider, small_tiles):
    case = case_named(OP, name)
    for dtype in (torch.float32, torch.bfloat16):
        args, kwargs = case.args(dtype=dtype, shrink=16)
        exact, peer = reference(OP, *to_float64((args, kwargs))), reference(OP, args, kwargs)
        check(run(OP, args, kwargs), exact, peer, products(args[1]), name)


@pytest.mark.parametrize("name", SMALL)
def test_wide_offsets(name, provider, monkeypatch):
    """Offsets of 64 bits, as tensors of 2^31 elements need them, on small ones: the same bits."""
    args, kwargs = case_named(OP, name).args(shrink=16)
    narrow = run(OP, args, kwargs)[0]
    monkeypatch.setattr(kernels, "WIDE_FROM", 1)
    assert torch.equal(run(OP, args, kwargs)[0], narrow)


@pytest.mark.parametrize("kernel", [(1, 7, 1), (3, 5, 1), (3, 1, 3), (5, 1, 1), (1, 1, 5)])
@pytest.mark.parametrize("channels", [3, 8, 33])
def test_rows_of_taps_along_any_axis(channels, kernel, provider):
    draw = Draw(seed=2)
    args = (draw.normal(2, channels, 4, 6, 5), draw.weight(9, channels, *kernel))
    for padding in (0, [k // 2 for k in kernel]):
        if padding == 0 and any(k > n for k, n in zip(kernel, (4, 6, 5), strict=True)):
            continue
        kwargs = {"stride": (2, 1, 2), "padding": padding}
        exact = reference(OP, *to_float64((args, kwargs)))
        assert_close(run(OP, args, kwargs)[0], exact[0], products(args[1]))


@settings(max_examples=6)
@given(drawn=calls())
def test_out_is_a_channel_slice(drawn, provider):
    args, kwargs = drawn
    exact, peer = reference(OP, *to_float64(drawn)), reference(OP, *drawn)
    n, c, *extents = exact[0].shape
    out = Draw(seed=1, dtype=args[0].dtype).normal(n, 3 + c + 5, *extents)
    untouched = out.clone()
    args, kwargs, out = there((args, kwargs, out))
    assert ops.conv_bn_act3d(*args, **kwargs, out=out, channel_offset=3) is out
    out = out.cpu()
    check([out[:, 3 : 3 + c]], exact, peer, products(args[1]), provider)
    assert torch.equal(out[:, :3], untouched[:, :3]) and torch.equal(out[:, 3 + c :], untouched[:, 3 + c :])


def test_out_may_be_the_residual(provider, monkeypatch):
    """Also while candidates are measured, which runs the call many times."""
    (x, weight, scale, shift, residual), kwargs = there(case_named(OP, "3x3x3").args())
    expected = ops.conv_bn_act3d(x, weight, scale, shift, residual, **kwargs)

    def measure(op, key, source, device, heuristic, candidates, run, family):
        for config in candidates()[:3]:
            run(config)
            run(config)
        return heuristic

    monkeypatch.setattr(kernels.autotune, "choose", measure)
    monkeypatch.setattr(kernels.TUNER, "found", {})
    got = ops.conv_bn_act3d(x, weight, scale, shift, residual, **kwargs, out=residual)
    assert torch.equal(got, expected)


def test_choices_are_made_once(provider, monkeypatch):
    asked = []

    def choose(op, key, source, device, heuristic, candidates, run, family):
        asked.append(key)
        return heuristic

    monkeypatch.setattr(kernels.autotune, "choose", choose)
    monkeypatch.setattr(kernels.TUNER, "found", {})
    args, kwargs = there(case_named(OP, "1x1x1").args())
    for _ in range(3):
        ops.conv_bn_act3d(*args, **kwargs)
    assert len(asked) == 1
    ops.conv_bn_act3d(args[0][:, :, :1], *args[1:4], **kwargs)
    assert len(asked) == 2


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kernel, stride2", [((1, 1, 1), 2), ((1, 1, 1), 1), ((1, 3, 3), 2)])
def test_second_source(kernel, stride2, dtype, fold, provider):
    """A strided 1x1x1 convolution of another tensor as further products; every tensor a channel slice."""
    draw = Draw(seed=6, dtype=dtype)
    x, x2 = draw.normal(2, 40, 3, 5, 4)[:, 8:32], draw.normal(2, 50, 3, 9, 8)[:, 3:40]
    weight, weight2 = draw.weight(20, 24, *kernel), draw.weight(20, 37, 1, 1, 1)
    scale, scale2, shift = draw.scale(20), draw.scale(20), draw.shift(20)
    if stride2 == 1:
        x2 = x2[:, :, :, :5, :4]
    padding = [k // 2 for k in kernel]

    def both(x, weight, scale, x2, weight2, scale2, shift):
        second = reference(
            OP, (x2, weight2, scale2), {"stride": (1, stride2, stride2), "activation": "none"}
        )[0]
        return reference(OP, (x, weight, scale, shift, second), {"padding": padding})

    tensors = (x, weight, scale, x2, weight2, scale2, shift)
    exact, peer = both(*to_float64(tensors)), both(*tensors)
    packed = there(kernels.pack(weight, scale, weight2, scale2, dtype=dtype, fold=fold).__dict__)
    out = there(draw.normal(2, 33, 3, 5, 4))
    kernels.run_packed(
        there(x), kernels.Packed(**packed), there(shift), out[:, 7:27], padding=padding, x2=there(x2),
        stride2=(1, stride2, stride2),
    )  # fmt: skip
    check([out[:, 7:27].cpu()], exact, peer, 24 * 9 + 37, "second source")


def test_out_without_a_pixel_pitch_is_refused(provider):
    packed = kernels.pack(torch.zeros(6, 4, 1, 1, 1), dtype=torch.float32)
    with pytest.raises(ValueError, match="out: expected pixels that follow one another in memory"):
        kernels.run_packed(torch.zeros(1, 4, 2, 3, 3), packed, None, torch.zeros(1, 6, 2, 3, 3))


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("activation", ["relu", "none"])
@pytest.mark.parametrize("value", NONFINITE)
def test_nonfinite_input_stays_where_it_belongs(value, activation, dtype, provider):
    """One bad pixel reaches the outputs whose window holds it and no others, whatever shares its vector."""
    for cin, kernel, padding in ((5, (1, 3, 3), (0, 1, 1)), (24, (1, 1, 1), 0), (40, (3, 1, 1), (1, 0, 0))):
        draw = Draw(seed=3, dtype=dtype)
        x, weight = draw.normal(2, cin, 3, 5, 6), draw.weight(19, cin, *kernel)
        x[1, cin - 1, 1, 2, 3] = value
        args, kwargs = (
            (x, weight, draw.scale(19), draw.shift(19)),
            {"padding": padding, "activation": activation},
        )
        expected = reference(OP, to_float64(args), kwargs)[0]
        got = run(OP, args, kwargs)[0]
        assert_close(got, expected, products(weight), bound=1e-5 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("which, value", PARAMETERS)
def test_nonfinite_parameters(which, value, provider):
    draw = Draw(seed=4)
    args = {
        "x": draw.normal(1, 6, 2, 4, 5),
        "weight": draw.weight(21, 6, 1, 1, 1),
        "scale": draw.scale(21),
        "shift": draw.shift(21),
        "residual": draw.normal(1, 21, 2, 4, 5),
    }
    at = {"weight": (7, 2), "scale": 7, "shift": 7, "residual": (0, 7, 1, 2, 3)}[which]
    args[which][at] = value
    assert_close(run(OP, (), args)[0], reference(OP, (), to_float64(args))[0], 6, bound=1e-5)


def test_what_the_kernels_refuse(provider):
    x, weight = torch.zeros(2, 4, 3, 5, 5, device=DEVICE), torch.zeros(6, 4, 1, 3, 3, device=DEVICE)
    with pytest.raises(RuntimeError, match="out is not channels_last_3d"):
        ops.conv_bn_act3d(x, weight, out=torch.zeros(2, 6, 3, 3, 3, device=DEVICE))
    huge = torch.empty(2**16, 1, 2, 128, 128, device="meta")
    spec = ConvSpec(torch.empty(1, 1, 1, 1, 1, device="meta"))
    reason = kernels.refuses_shapes(spec, huge.shape)
    assert reason == f"there are {2**31} pixels, the Triton kernels count up to {2**31 - 1}"


@pytest.mark.parametrize("mode", ["ieee", "tf32", "tf32x3", "bf16x3"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_tiles_fit_the_machine(dtype, mode, provider, monkeypatch):
    """Every choice and candidate, over the network's shapes: what the kernels and tl.dot can take."""
    monkeypatch.setattr(backends, "simulated", lambda name: False)
    for case in cases_of(OP):
        if not case.real:
            continue
        (x, weight, *_), _ = case.args(dtype=dtype, device="meta", batch=8)
        taps, row = math.prod(weight.shape[2:]), kernels.row_of(weight.shape[1], weight.shape[2:], dtype)
        shape = (x.numel() // x.shape[1], weight.shape[0], weight.shape[1], taps, row, 0, dtype, mode)
        first = kernels.heuristic(*shape)
        several = kernels.candidates(*shape)
        assert 0 < len(several) <= 8 and len(set(several)) == len(several), case.name
        for tiles in (first, *several):
            assert min(tiles.block_m, tiles.block_n, tiles.block_k) >= 16
            assert all((v & (v - 1)) == 0 for v in (tiles.block_m, tiles.block_n, tiles.block_k))
            assert tiles.block_k >= row and tiles.warps <= (8 if taps == 1 else 4)
            held = (tiles.block_m + tiles.block_n) * tiles.block_k * dtype.itemsize * tiles.stages
            assert held <= kernels.triton_tiles.SHARED_BYTES, (case.name, tiles)
        if dtype != torch.float32:
            assert first.block_m >= 64  # rows of a wgmma
