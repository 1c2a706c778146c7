"""stem3d on Triton (its interpreter, where there is no GPU) against the reference in float64."""

import importlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.parity import (
    FLOATS,
    case_named,
    check,
    on_triton,
    reference,
    run,
    there,
)
from slowfast_kernels.ops._cases import Draw
from slowfast_kernels.ops.stem3d.cases import _call
from slowfast_kernels.testing import assert_close, to_float64

OP = "stem3d"
kernels = importlib.import_module("slowfast_kernels.ops.stem3d.triton")
conv = importlib.import_module("slowfast_kernels.ops.conv_bn_act3d.triton")
pytestmark = [
    on_triton,
    pytest.mark.filterwarnings(
        "ignore:invalid value encountered:RuntimeWarning"
    ),  # the interpreter's infinities
]


def products(weight):
    return math.prod(weight.shape[1:])


@st.composite
def calls(draw):
    """A stem of any shape, its clip in one of several memory layouts."""
    channels, extents = draw(st.integers(1, 5)), [draw(st.integers(1, n)) for n in (4, 17, 17)]
    kernel = tuple(draw(st.sampled_from([1, 3, 5, 7])) for _ in range(3))
    stride = tuple(draw(st.integers(1, 3)) for _ in range(3))
    source = Draw(seed=draw(st.integers(0, 99)), dtype=draw(st.sampled_from(FLOATS)))
    (x, *rest), kwargs = _call(
        source, (draw(st.integers(0, 2)), channels, *extents), draw(st.integers(1, 70)), kernel, stride,
        draw(st.sampled_from(["relu", "none"])), draw(st.booleans()), draw(st.booleans()),
    )  # fmt: skip
    layout = draw(st.sampled_from(["channels last", "channels first", "every other frame"]))
    if layout == "channels first":
        x = x.contiguous()
    elif layout == "every other frame":
        x = torch.cat([x, x], 2).contiguous()[:, :, ::2]
    return (x, *rest), kwargs


@settings(max_examples=10)
@given(drawn=calls())
def test_drawn_shapes(drawn, provider):
    exact, peer = reference(OP, *to_float64(drawn)), reference(OP, *drawn)
    check(run(OP, *drawn), exact, peer, products(drawn[0][1]), provider)


SMALL = ["odd", "one pixel", "time stride", "negative sums", "every alpha-th frame"]


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_one_kernel_and_two_agree(name, fused, provider, monkeypatch):
    """Cut up as on a GPU."""

    def chosen(pixels, out_channels, products, row, *rest):
        return kernels.Tiles(fused, 64, 32, kernels.next_power_of_2(row, 16))

    args, kwargs = case_named(OP, name).args()
    expected = run(OP, args, kwargs)[0]
    monkeypatch.setattr(kernels, "heuristic", chosen)
    monkeypatch.setattr(kernels.TUNER, "found", {})
    exact = reference(OP, *to_float64((args, kwargs)))[0]
    got = run(OP, args, kwargs)[0]
    assert_close(got, exact, products(args[1]))
    assert_close(got, expected.double(), products(args[1]))


@pytest.mark.parametrize("name", ["odd", "channels first"])
def test_wide_offsets(name, provider, monkeypatch):
    args, kwargs = case_named(OP, name).args()
    narrow = run(OP, args, kwargs)[0]
    monkeypatch.setattr(conv, "WIDE_FROM", 1)
    assert torch.equal(run(OP, args, kwargs)[0], narrow)


@pytest.mark.parametrize("kernel", [(5, 1, 1), (1, 7, 1), (3, 3, 1), (1, 1, 1)])
def test_kernels_without_a_width(kernel, provider):
    args, kwargs = _call(Draw(seed=8), (2, 3, 4, 9, 8), 20, kernel)
    exact = reference(OP, *to_float64((args, kwargs)))
    assert_close(run(OP, args, kwargs)[0], exact[0], products(args[1]))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("activation", ["relu", "none"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_input(value, activation, fused, provider, monkeypatch):
    """As in PyTorch: a NaN wins every maximum that it takes part in, and no others."""
    monkeypatch.setattr(kernels, "heuristic", lambda *shape: kernels.Tiles(fused, 128, 16, 32))
    monkeypatch.setattr(kernels.TUNER, "found", {})
    draw = Draw(seed=9)
    x, weight = draw.normal(2, 3, 2, 17, 19), draw.weight(10, 3, 1, 3, 7)
    x[1, 2, 0, 9, 11] = value
    args = (x, weight, draw.scale(10), draw.shift(10))
    expected = reference(OP, to_float64(args), {"activation": activation})[0]
    assert not torch.isfinite(expected).all()
    assert_close(run(OP, args, {"activation": activation})[0], expected, products(weight), bound=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_packed_into_a_channel_slice(fused, provider):
    args, kwargs = case_named(OP, "odd").args()
    exact = reference(OP, *to_float64((args, kwargs)))[0]
    out = Draw(seed=1).normal(1, 31, *exact.shape[2:])
    untouched = out.clone()
    packed = kernels.conv.pack(*there(args[1:3]), dtype=torch.float32)
    middle = torch.empty(1, 12, 3, 10, 12).contiguous(memory_format=torch.channels_last_3d)
    x, shift, out, middle = there((args[0], args[3], out, middle))
    tiles = kernels.Tiles(fused, 128, 16, 32)
    kernels.run_packed(x, packed, shift, out[:, 8:20], middle=middle, config=tiles)
    out = out.cpu()
    assert_close(out[:, 8:20], exact, products(args[1]))
    assert torch.equal(out[:, :8], untouched[:, :8]) and torch.equal(out[:, 20:], untouched[:, 20:])
