"""stem3d on every provider against the reference in float64."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ops.parity import (
    check,
    on_each,
    on_each_computing,
    reference,
)
from slowfast_kernels import ops
from slowfast_kernels.ops._cases import Draw
from slowfast_kernels.testing import assert_close, assert_same_nonfinite, to_float64

OP = "stem3d"
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def products(weight):
    return math.prod(weight.shape[1:])


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
    return args, {
        "stride": stride,
        "activation": draw(st.sampled_from(["relu", "none"])),
        "pool": draw(st.booleans()),
    }


@on_each_computing
@given(drawn=calls())
def test_drawn_shapes(drawn, provider):
    args, kwargs = drawn
    exact, peer = reference(OP, *to_float64(drawn)), reference(OP, *drawn)
    check([ops.stem3d(*args, **kwargs)], exact, peer, products(args[1]), provider)


@on_each_computing  # PyTorch's own bfloat16 convolution spreads a NaN over neighbouring outputs
@DTYPES
@pytest.mark.parametrize("activation", ["relu", "none"])
@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_input_stays_where_it_belongs(value, pool, activation, dtype, provider):
    """One bad pixel reaches the windows that hold it and no others; NaN wins a pool window as in PyTorch."""
    draw = Draw(seed=3, dtype=dtype)
    x, weight = draw.normal(1, 3, 3, 23, 26), draw.weight(19, 3, 1, 7, 7)
    x[0, 1, 1, 11, 12] = value
    got = ops.stem3d(x, weight, pool=pool, activation=activation)
    expected = reference(OP, (x.double(), weight.double()), {"pool": pool, "activation": activation})[0]
    assert_same_nonfinite(got, expected)
    assert_close(got, expected, products(weight), bound=1e-5 if dtype == torch.float32 else 0.02)


@on_each
def test_pool_of_only_negative_sums(provider):
    """The pool's padding is minus infinity, not zero."""
    x = torch.rand(1, 3, 2, 13, 14)
    weight = -torch.rand(8, 3, 1, 3, 3)
    got = ops.stem3d(x, weight, activation="none")
    expected = reference(OP, (x.double(), weight.double()), {"activation": "none"})[0]
    assert expected.max() < 0
    assert_close(got, expected, products(weight))


X, W = (2, 3, 2, 9, 9), (6, 3, 1, 3, 3)
