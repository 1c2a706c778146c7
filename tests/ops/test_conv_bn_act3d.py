"""conv_bn_act3d on every provider against the reference in float64."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ops.parity import (
    case_named,
    check,
    on_each,
    on_each_computing,
    reference,
)
from slowfast_kernels import ops, use_backend
from slowfast_kernels.ops._cases import Draw
from slowfast_kernels.testing import assert_close, to_float64

OP = "conv_bn_act3d"


def products(weight):
    return math.prod(weight.shape[1:])


@st.composite
def calls(draw):
    """A call of any shape: odd sizes, few or many channels, any stride, padding and dilation."""

    def triple(low, high):
        return tuple(draw(st.integers(low, high)) for _ in range(3))

    kernel, stride, dilation = triple(1, 3), triple(1, 3), triple(1, 2)
    padding = tuple(draw(st.integers(0, d * (k - 1))) for k, d in zip(kernel, dilation, strict=True))
    n, t, h, w = draw(st.integers(0, 2)), draw(st.integers(1, 4)), *(draw(st.integers(1, 9)) for _ in "hw")
    cin = draw(st.one_of(st.integers(1, 20), st.integers(60, 70)))
    cout = draw(st.one_of(st.integers(1, 20), st.integers(60, 135)))
    spans = [
        (e + 2 * p - d * (k - 1) - 1) for e, p, d, k in zip((t, h, w), padding, dilation, kernel, strict=True)
    ]
    assume(min(spans) >= 0)
    shape = [n, cout, *(span // s + 1 for span, s in zip(spans, stride, strict=True))]
    source = Draw(
        seed=draw(st.integers(0, 999)), dtype=draw(st.sampled_from([torch.float32, torch.bfloat16]))
    )

    def tensor(*shape):
        """The same values in one of several memory layouts."""
        layout = draw(
            st.sampled_from(["channels last", "channels first", "channel slice", "every other row"])
        )
        if layout == "channel slice":
            return source.normal(shape[0], shape[1] + 5, *shape[2:])[:, 2 : 2 + shape[1]]
        if layout == "every other row":
            return source.normal(*shape[:3], 2 * shape[3], shape[4])[:, :, :, ::2]
        x = source.normal(*shape)
        return x.contiguous() if layout == "channels first" else x

    args = (
        tensor(n, cin, t, h, w),
        source.weight(cout, cin, *kernel),
        source.scale(cout) if draw(st.booleans()) else None,
        source.shift(cout) if draw(st.booleans()) else None,
        tensor(*shape) if draw(st.booleans()) else None,
    )
    return args, {
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "activation": draw(st.sampled_from(["relu", "none"])),
    }


@on_each_computing
@given(drawn=calls())
def test_drawn_shapes(drawn, provider):
    args, kwargs = drawn
    exact, peer = reference(OP, *to_float64(drawn)), reference(OP, *drawn)
    check([ops.conv_bn_act3d(*args, **kwargs)], exact, peer, products(args[1]), provider)


@on_each
@given(drawn=calls(), before=st.integers(0, 9), after=st.integers(0, 9))
def test_out_is_a_channel_slice(drawn, before, after, provider):
    args, kwargs = drawn
    exact, peer = reference(OP, *to_float64(drawn)), reference(OP, *drawn)
    n, c, *extents = exact[0].shape
    out = Draw(seed=1, dtype=args[0].dtype).normal(n, before + c + after, *extents)
    untouched = out.clone()
    assert ops.conv_bn_act3d(*args, **kwargs, out=out, channel_offset=before) is out
    check([out[:, before : before + c]], exact, peer, products(args[1]), provider)
    assert torch.equal(out[:, :before], untouched[:, :before])
    assert torch.equal(out[:, before + c :], untouched[:, before + c :])


@on_each_computing
def test_out_may_be_the_residual(provider):
    # how a block adds its shortcut without a second buffer
    (x, weight, scale, shift, residual), kwargs = case_named(OP, "3x3x3").args()
    expected = ops.conv_bn_act3d(x, weight, scale, shift, residual, **kwargs)
    got = ops.conv_bn_act3d(x, weight, scale, shift, residual, **kwargs, out=residual)
    assert torch.equal(got, expected)


def test_gradcheck_of_the_reference():
    args, kwargs = case_named(OP, "1x1x1").args()
    args = tuple(a.double().requires_grad_() for a in args)
    assert torch.autograd.gradcheck(lambda *a: ops.conv_bn_act3d(*a, **kwargs), args, fast_mode=True)


def test_gradients_only_where_wanted():
    (x, weight, scale, shift, residual), kwargs = case_named(OP, "3x3x3").args()
    weight.requires_grad_()
    ops.conv_bn_act3d(x, weight, scale, shift, residual, **kwargs).sum().backward()
    assert weight.grad is not None
    assert x.grad is None and scale.grad is None and residual.grad is None


NONFINITE = [math.nan, math.inf, -math.inf]


@on_each_computing  # PyTorch's own bfloat16 convolution spreads a NaN over neighbouring outputs
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("activation", ["relu", "none"])
@pytest.mark.parametrize("value", NONFINITE)
def test_nonfinite_input_stays_where_it_belongs(value, activation, dtype, provider):
    """One bad pixel reaches the outputs whose window holds it and no others, whatever shares its vector."""
    for cin, kernel, padding in ((5, (1, 3, 3), (0, 1, 1)), (24, (1, 1, 1), 0), (8, (3, 1, 1), (1, 0, 0))):
        draw = Draw(seed=3, dtype=dtype)
        x, weight = draw.normal(2, cin, 3, 5, 6), draw.weight(19, cin, *kernel)
        x[1, cin - 1, 1, 2, 3] = value
        got = ops.conv_bn_act3d(
            x, weight, draw.scale(19), draw.shift(19), padding=padding, activation=activation
        )
        with torch.no_grad():
            draw = Draw(seed=3)
            draw.normal(2, cin, 3, 5, 6), draw.weight(19, cin, *kernel)
            call = (x.double(), weight.double(), draw.scale(19), draw.shift(19))
        expected = reference(OP, call, {"padding": padding, "activation": activation})[0]
        assert_close(got, expected, products(weight), bound=1e-5 if dtype == torch.float32 else 0.02)


# an infinite scale is not asked for: folded into the weights it makes infinities of both signs, hence NaN
PARAMETERS = [(which, v) for which in ("weight", "shift", "residual") for v in NONFINITE] + [
    ("scale", math.nan)
]


@on_each
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
    got = ops.conv_bn_act3d(**args)
    assert not torch.isfinite(got).all() or value == -math.inf
    assert_close(got, reference(OP, (), to_float64(args))[0], 6, bound=1e-5)


@on_each_computing
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=["float16", "float64"])
def test_other_dtypes_run_on_the_reference_or_say_why(dtype, provider):
    x, weight = torch.randn(1, 4, 2, 5, 5).to(dtype), torch.randn(6, 4, 1, 3, 3).to(dtype)
    with pytest.raises(
        RuntimeError, match=f"slowfast::conv_bn_act3d cannot run here .*cpu: the maps are {str(dtype)[6:]}"
    ):
        ops.conv_bn_act3d(x, weight)
    with use_backend("auto"):
        got = ops.conv_bn_act3d(x, weight)
    assert got.dtype == dtype
    assert torch.equal(got, reference(OP, (x, weight), {})[0])


X, W = (2, 4, 3, 5, 5), (6, 4, 1, 3, 3)


def test_integers_are_refused():
    with pytest.raises(ValueError, match=r"x: expected a floating-point tensor, got torch\.uint8"):
        ops.conv_bn_act3d(torch.zeros(X, dtype=torch.uint8), torch.zeros(W))


@on_each_computing
def test_out_has_to_be_channels_last(provider):
    with pytest.raises(RuntimeError, match="out is not channels_last_3d"):
        ops.conv_bn_act3d(
            torch.zeros(2, 4, 3, 5, 5), torch.zeros(6, 4, 1, 3, 3), out=torch.zeros(2, 6, 3, 3, 3)
        )
