"""stem3d on every provider against the reference in float64."""

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
from slowfast_kernels.testing import assert_close, assert_same_layout, assert_same_nonfinite, to_float64

OP = "stem3d"
CASES = cases_of(OP)
on_each = pytest.mark.parametrize("provider", CPU_PROVIDERS, indirect=True)
on_each_computing = pytest.mark.parametrize("provider", COMPUTING, indirect=True)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def products(weight):
    return math.prod(weight.shape[1:])


@on_each_computing
@DTYPES
@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case, dtype, provider):
    check_case(OP, case, dtype, provider, products(case.args(shrink=1000)[0][1]))


@pytest.mark.parametrize("case", [case for case in CASES if case.edge], ids=str)
def test_reference_in_float32(case):
    with use_backend("reference"):
        check_case(OP, case, torch.float32, "reference", products(case.args(shrink=1000)[0][1]))


@st.composite
def calls(draw):
    kernel = tuple(draw(st.sampled_from([1, 3, 5, 7])) for _ in range(3))
    stride = draw(st.one_of(st.just((1, 2, 2)), st.tuples(*[st.integers(1, 3)] * 3)))
    shape = [draw(st.integers(0, 2)), draw(st.integers(1, 4)), draw(st.integers(1, 5))]
    shape += [draw(st.integers(1, 24)), draw(st.integers(1, 40))]
    cout = draw(st.one_of(st.integers(1, 20), st.integers(60, 70)))
    assume(math.prod(shape) * math.prod(kernel) * cout < 2e7)
    source = Draw(
        seed=draw(st.integers(0, 999)), dtype=draw(st.sampled_from([torch.float32, torch.bfloat16]))
    )
    x = source.normal(*shape)
    layout = draw(st.sampled_from(["channels last", "channels first", "every other frame", "cropped"]))
    if layout == "channels first":
        x = x.contiguous()
    elif layout == "every other frame":
        x = source.normal(*shape[:2], 2 * shape[2], *shape[3:])[:, :, ::2]
    elif layout == "cropped":
        x = source.normal(*shape[:3], shape[3] + 3, shape[4] + 5)[..., 1 : 1 + shape[3], 2 : 2 + shape[4]]
    args = (
        x,
        source.weight(cout, shape[1], *kernel),
        source.scale(cout) if draw(st.booleans()) else None,
        source.shift(cout) if draw(st.booleans()) else None,
    )
    return args, {"stride": stride, "relu": draw(st.booleans()), "pool": draw(st.booleans())}


@on_each_computing
@given(drawn=calls())
def test_drawn_shapes(drawn, provider):
    args, kwargs = drawn
    exact, peer = reference(OP, *to_float64(drawn)), reference(OP, *drawn)
    check([ops.stem3d(*args, **kwargs)], exact, peer, products(args[1]), provider)


@on_each
@pytest.mark.parametrize("pool", [True, False])
def test_result_is_channels_last(pool, provider):
    for shape in ((2, 3, 2, 9, 9), (1, 3, 1, 1, 1), (0, 3, 2, 8, 8)):
        got = ops.stem3d(torch.randn(shape), torch.randn(5, 3, 1, 3, 3), pool=pool)
        n, c, t, h, w = got.shape
        assert_same_layout(got, torch.zeros(n, t, h, w, c).permute(0, 4, 1, 2, 3))


@on_each
@pytest.mark.parametrize(
    "name", ["odd", "time stride", "no pool", "bare", "channels first", "one pixel", "batch 0"]
)
def test_gradients(name, provider):
    check_gradients(OP, *case_named(OP, name).args(), 1e-5, f"{name}, {provider}")


@on_each_computing  # PyTorch's own bfloat16 convolution spreads a NaN over neighbouring outputs
@DTYPES
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_input_stays_where_it_belongs(value, pool, relu, dtype, provider):
    """One bad pixel reaches the windows that hold it and no others; NaN wins a pool window as in PyTorch."""
    draw = Draw(seed=3, dtype=dtype)
    x, weight = draw.normal(1, 3, 3, 23, 26), draw.weight(19, 3, 1, 7, 7)
    x[0, 1, 1, 11, 12] = value
    got = ops.stem3d(x, weight, pool=pool, relu=relu)
    expected = reference(OP, (x.double(), weight.double()), {"pool": pool, "relu": relu})[0]
    assert_same_nonfinite(got, expected)
    assert_close(got, expected, products(weight), bound=1e-5 if dtype == torch.float32 else 0.02)


@on_each
def test_pool_of_only_negative_sums(provider):
    """The pool's padding is minus infinity, not zero."""
    x = torch.rand(1, 3, 2, 13, 14)
    weight = -torch.rand(8, 3, 1, 3, 3)
    got = ops.stem3d(x, weight, relu=False)
    expected = reference(OP, (x.double(), weight.double()), {"relu": False})[0]
    assert expected.max() < 0
    assert_close(got, expected, products(weight))


@on_each_computing
@pytest.mark.parametrize("name", ["stem.slow", "stem.fast", "odd", "one pixel", "wide"])
def test_threads_do_not_change_the_result(name, provider):
    check_threads(OP, *case_named(OP, name).args(shrink=4))


@on_each_computing
def test_calls_do_not_change_each_other(provider):
    first, other = case_named(OP, "odd").args(), case_named(OP, "no pool").args()
    before = ops.stem3d(*first[0], **first[1])
    ops.stem3d(*other[0], **other[1])
    assert torch.equal(bits(ops.stem3d(*first[0], **first[1])), bits(before))


X, W = (2, 3, 2, 9, 9), (6, 3, 1, 3, 3)
ERRORS = {
    "x is not a clip": ({"x": X[1:]}, r"x: expected \[N, C, T, H, W\], got shape \(3, 2, 9, 9\)"),
    "even kernel": (
        {"weight": (6, 3, 1, 4, 3)},
        r"weight: expected .* with odd kernel extents, got \(6, 3, 1, 4, 3\)",
    ),
    "channels differ": (
        {"x": (2, 1, 2, 9, 9)},
        r"x: expected 3 channels, as weight has, got shape \(2, 1, 2, 9, 9\)",
    ),
    "scale": ({"scale": (5,)}, r"scale: expected shape \(6,\), got \(5,\)"),
    "shift": ({"shift": (6, 1)}, r"shift: expected shape \(6,\), got \(6, 1\)"),
    "no frames": (
        {"x": (2, 3, 0, 9, 9)},
        r"x: expected at least one frame and one pixel, got shape \(2, 3, 0, 9, 9\)",
    ),
    "two strides": ({"stride": (1, 2)}, r"stride: expected an int or three ints .*, got \(1, 2\)"),
    "stride 0": ({"stride": (1, 0, 2)}, r"stride"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    changes, message = ERRORS[name]
    call = {"x": X, "weight": W} | changes
    call = {k: torch.zeros(v) if k in ("x", "weight", "scale", "shift") else v for k, v in call.items()}
    with pytest.raises(ValueError, match=message):
        ops.stem3d(**call)


@on_each_computing
@without_type_checks()
def test_what_the_kernels_refuse(provider):
    x, weight = torch.zeros(X), torch.zeros(W)
    with pytest.raises(RuntimeError, match=r"weight is torch\.bfloat16 but x is torch\.float32"):
        ops.stem3d(x, weight.bfloat16())
    with pytest.raises(RuntimeError, match=r"slowfast::stem3d cannot run here .*cpu: x is torch\.float16"):
        ops.stem3d(x.half(), weight.half())
