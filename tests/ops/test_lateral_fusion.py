"""lateral_fusion on every provider against the reference in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ops.parity import (
    case_named,
    check,
    on_each,
    on_each_computing,
    reference,
)
from slowfast_kernels import ops
from slowfast_kernels.ops._cases import Draw
from slowfast_kernels.testing import assert_close, to_float64

OP = "lateral_fusion"
KINDS = ("conv", "time_to_channel_concat", "time_to_channel_sum", "time_sample")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def products(args):
    return 1 if args[2] is None else math.prod(args[2].shape[1:])


@st.composite
def calls(draw, kinds=KINDS):
    kind, alpha = draw(st.sampled_from(kinds)), draw(st.integers(1, 5))
    n, t, h, w = (
        draw(st.integers(0, 2)),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 6)),
        draw(st.integers(1, 6)),
    )
    cf, cl = draw(st.integers(1, 20)), draw(st.one_of(st.integers(1, 20), st.integers(60, 70)))
    cs = alpha * cf if kind == "time_to_channel_sum" else draw(st.integers(1, 30))
    source = Draw(
        seed=draw(st.integers(0, 999)), dtype=draw(st.sampled_from([torch.float32, torch.bfloat16]))
    )

    def tensor(*shape):
        x = source.normal(*shape)
        return x.contiguous() if draw(st.booleans()) else x

    conv = kind == "conv"
    args = (
        tensor(n, cs, t, h, w),
        tensor(n, cf, alpha * t, h, w),
        source.weight(cl, cf, draw(st.sampled_from([1, 3, 5, 7])), 1, 1) if conv else None,
        source.scale(cl) if conv and draw(st.booleans()) else None,
        source.shift(cl) if conv and draw(st.booleans()) else None,
    )
    return args, {"alpha": alpha, "kind": kind, "activation": draw(st.sampled_from(["relu", "none"]))}


@on_each_computing
@given(drawn=calls())
def test_drawn_shapes(drawn, provider):
    args, kwargs = drawn
    exact, peer = reference(OP, *to_float64(drawn)), reference(OP, *drawn)
    check([ops.lateral_fusion(*args, **kwargs)], exact, peer, products(args), provider)


@on_each
@given(drawn=calls())
def test_out_holds_slow_already(drawn, provider):
    (slow, *rest), kwargs = drawn
    exact, peer = reference(OP, *to_float64(drawn)), reference(OP, *drawn)
    n, cs, *extents = slow.shape
    out = torch.empty(exact[0].shape, dtype=slow.dtype, memory_format=torch.channels_last_3d)
    out[:, :cs] = slow
    assert ops.lateral_fusion(out[:, :cs], *rest, **kwargs, out=out) is out
    check([out], exact, peer, products((slow, *rest)), provider)


@on_each
def test_slow_passes_bit_by_bit(provider):
    for name in ("odd", "odd concat", "odd sample", "channels first"):
        (slow, *rest), kwargs = case_named(OP, name).args()
        slow[0, 0, 0, 0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
        got = ops.lateral_fusion(slow, *rest, **kwargs)[:, : slow.shape[1]]
        assert torch.equal(got.contiguous().view(torch.int32), slow.contiguous().view(torch.int32)), name


@on_each
def test_time_to_channel_order(provider):
    """Channel a * C + c of the reshaped Fast clip is channel c of frame t * alpha + a."""
    fast = torch.arange(2 * 6.0).view(1, 2, 6, 1, 1)  # value = 6 c + frame
    got = ops.lateral_fusion(torch.zeros(1, 1, 2, 1, 1), fast, alpha=3, kind="time_to_channel_concat")
    assert got[0, 1:, :, 0, 0].tolist() == [[0, 3], [6, 9], [1, 4], [7, 10], [2, 5], [8, 11]]


def test_none_returns_slow():
    slow = torch.randn(1, 3, 2, 2, 2)
    assert ops.lateral_fusion(slow, torch.randn(1, 1, 8, 2, 2), alpha=4, kind="none") is slow


@on_each_computing  # PyTorch's own bfloat16 convolution spreads a NaN over neighbouring outputs
@DTYPES
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_input_stays_where_it_belongs(value, kind, dtype, provider):
    draw = Draw(seed=5, dtype=dtype)
    slow, fast = draw.normal(1, 12, 3, 4, 5), draw.normal(1, 6, 6, 4, 5)
    weight = draw.weight(19, 6, 3, 1, 1) if kind == "conv" else None
    fast[0, 4, 2, 1, 3] = value
    kwargs = {"alpha": 2, "kind": kind}
    got = ops.lateral_fusion(slow, fast, weight, **kwargs)
    expected = reference(OP, *to_float64(((slow, fast, weight), kwargs)))[0]
    assert_close(got, expected, 18, bound=1e-5 if dtype == torch.float32 else 0.02)


SLOW, FAST, W = (2, 6, 2, 5, 4), (2, 3, 8, 5, 4), (10, 3, 5, 1, 1)
