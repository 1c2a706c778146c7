"""conv_bn_act3d on every provider against the reference in float64."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ops.parity import (
    COMPUTING,
    CPU_PROVIDERS,
    bits,
    case_named,
    check,
    check_case,
    check_gradients,
    check_threads,
    reference,
    without_type_checks,
)
from slowfast_kernels import ops, use_backend
from slowfast_kernels.ops._cases import Draw, cases_of
from slowfast_kernels.testing import assert_close, assert_same_layout, to_float64

OP = "conv_bn_act3d"
CASES = cases_of(OP)
on_each = pytest.mark.parametrize("provider", CPU_PROVIDERS, indirect=True)
on_each_computing = pytest.mark.parametrize("provider", COMPUTING, indirect=True)


def products(weight):
    return math.prod(weight.shape[1:])


@on_each_computing
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case, dtype, provider):
    check_case(OP, case, dtype, provider, products(case.args(shrink=1000)[0][1]))


@pytest.mark.parametrize("case", [case for case in CASES if case.edge], ids=str)
def test_reference_in_float32(case):
    with use_backend("reference"):
        check_case(OP, case, torch.float32, "reference", products(case.args(shrink=1000)[0][1]))


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
    return args, {"stride": stride, "padding": padding, "dilation": dilation, "relu": draw(st.booleans())}


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


@on_each
def test_result_is_channels_last(provider):
    for shape in ((2, 5, 3, 4, 4), (1, 5, 1, 1, 1), (1, 1, 3, 4, 4), (0, 5, 3, 4, 4)):
        got = ops.conv_bn_act3d(torch.randn(shape), torch.randn(7, shape[1], 1, 1, 1))
        n, _, t, h, w = shape
        assert_same_layout(got, torch.zeros(n, t, h, w, 7).permute(0, 4, 1, 2, 3))


GRADIENT_CASES = (
    "1x1x1",
    "3x3x3",
    "dilation 2",
    "bare",
    "one frame",
    "channels first",
    "transposed",
    "batch 0",
)


@on_each
@pytest.mark.parametrize("name", GRADIENT_CASES)
def test_gradients(name, provider):
    check_gradients(OP, *case_named(OP, name).args(), 1e-5, f"{name}, {provider}")


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
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("value", NONFINITE)
def test_nonfinite_input_stays_where_it_belongs(value, relu, dtype, provider):
    """One bad pixel reaches the outputs whose window holds it and no others, whatever shares its vector."""
    for cin, kernel, padding in ((5, (1, 3, 3), (0, 1, 1)), (24, (1, 1, 1), 0), (8, (3, 1, 1), (1, 0, 0))):
        draw = Draw(seed=3, dtype=dtype)
        x, weight = draw.normal(2, cin, 3, 5, 6), draw.weight(19, cin, *kernel)
        x[1, cin - 1, 1, 2, 3] = value
        got = ops.conv_bn_act3d(x, weight, draw.scale(19), draw.shift(19), padding=padding, relu=relu)
        with torch.no_grad():
            draw = Draw(seed=3)
            draw.normal(2, cin, 3, 5, 6), draw.weight(19, cin, *kernel)
            call = (x.double(), weight.double(), draw.scale(19), draw.shift(19))
        expected = reference(OP, call, {"padding": padding, "relu": relu})[0]
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
@pytest.mark.parametrize("name", ["res4.slow.1.a", "res2.fast.0.b", "res2.fast.0.c", "3x3x3", "one pixel"])
def test_threads_do_not_change_the_result(name, provider):
    check_threads(OP, *case_named(OP, name).args(shrink=4))


@on_each_computing
def test_calls_do_not_change_each_other(provider):
    """Results do not depend on what ran before: scratch memory and packed weights of other calls are gone."""
    first, other = (
        case_named(OP, "res3.fast.1.b").args(shrink=4),
        case_named(OP, "res4.slow.1.a").args(shrink=4),
    )
    before = ops.conv_bn_act3d(*first[0], **first[1])
    ops.conv_bn_act3d(*other[0], **other[1])
    assert torch.equal(bits(ops.conv_bn_act3d(*first[0], **first[1])), bits(before))


@on_each_computing
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=["float16", "float64"])
def test_other_dtypes_run_on_the_reference_or_say_why(dtype, provider):
    x, weight = torch.randn(1, 4, 2, 5, 5).to(dtype), torch.randn(6, 4, 1, 3, 3).to(dtype)
    with pytest.raises(RuntimeError, match=f"slowfast::conv_bn_act3d cannot run here .*cpu: x is {dtype}"):
        ops.conv_bn_act3d(x, weight)
    with use_backend("auto"):
        got = ops.conv_bn_act3d(x, weight)
    assert got.dtype == dtype
    assert torch.equal(got, reference(OP, (x, weight), {})[0])


X, W = (2, 4, 3, 5, 5), (6, 4, 1, 3, 3)
ERRORS = {
    "x is not a clip": ({"x": X[1:]}, r"x: expected \[N, C, T, H, W\], got shape \(4, 3, 5, 5\)"),
    "weight is 4-D": (
        {"weight": W[1:]},
        r"weight: expected \[Cout, Cin, kt, kh, kw\], got shape \(4, 1, 3, 3\)",
    ),
    "channels differ": (
        {"x": (2, 5, 3, 5, 5)},
        r"x: expected 4 channels, as weight has, got shape \(2, 5, 3, 5, 5\)",
    ),
    "scale": ({"scale": (5,)}, r"scale: expected shape \(6,\), got \(5,\)"),
    "shift": ({"shift": (1, 6)}, r"shift: expected shape \(6,\), got \(1, 6\)"),
    "residual": (
        {"residual": (2, 6, 3, 5, 5)},
        r"residual: expected shape \(2, 6, 3, 3, 3\), got \(2, 6, 3, 5, 5\)",
    ),
    "stride 0": ({"stride": 0}, r"expected stride and dilation >= 1 and padding >= 0, got \[0, 0, 0\]"),
    "negative padding": ({"padding": (0, -1, 0)}, r"padding >= 0, got .*\[0, -1, 0\]"),
    "two strides": ({"stride": (1, 2)}, r"stride: expected an int or three ints .*, got \(1, 2\)"),
    "too small": ({"dilation": 3}, r"x of shape \(2, 4, 3, 5, 5\) is smaller than the kernel \(1, 3, 3\)"),
    "out's extents": ({"out": (2, 6, 3, 5, 5)}, r"out: expected N, T, H, W = \(2, 3, 3, 3\), got shape"),
    "out's channels": (
        {"out": (2, 8, 3, 3, 3), "channel_offset": 3},
        r"out has 8 channels, cannot take 6 from channel 3 on",
    ),
    "negative offset": ({"out": (2, 8, 3, 3, 3), "channel_offset": -1}, r"cannot take 6 from channel -1 on"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    changes, message = ERRORS[name]
    call = {"x": X, "weight": W} | changes
    tensors = ("x", "weight", "scale", "shift", "residual", "out")
    call = {k: torch.zeros(v) if k in tensors else v for k, v in call.items()}
    with pytest.raises(ValueError, match=message):
        ops.conv_bn_act3d(**call)


def test_integers_are_refused():
    with pytest.raises(ValueError, match=r"x: expected a floating-point tensor, got torch\.uint8"):
        ops.conv_bn_act3d(torch.zeros(X, dtype=torch.uint8), torch.zeros(W))


@on_each_computing
@without_type_checks()
def test_what_the_kernels_refuse(provider):
    x, weight = torch.zeros(X), torch.zeros(W)
    with pytest.raises(RuntimeError, match=r"weight is torch\.bfloat16 but x is torch\.float32"):
        ops.conv_bn_act3d(x, weight.bfloat16())
    with pytest.raises(RuntimeError, match=r"residual is torch\.bfloat16 but x is torch\.float32"):
        ops.conv_bn_act3d(x, weight, residual=torch.zeros(2, 6, 3, 3, 3).bfloat16())
    with pytest.raises(RuntimeError, match=r"out is torch\.bfloat16 but x is torch\.float32"):
        ops.conv_bn_act3d(x, weight, out=torch.zeros(2, 6, 3, 3, 3).bfloat16())
    with pytest.raises(RuntimeError, match="out is not channels_last_3d"):
        ops.conv_bn_act3d(x, weight, out=torch.zeros(2, 6, 3, 3, 3))
