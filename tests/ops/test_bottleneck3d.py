"""bottleneck3d on every provider against the reference in float64."""

import importlib
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from ops.parity import (
    case_named,
    check,
    on_each_computing,
    reference,
)
from slowfast_kernels import backends, ops
from slowfast_kernels.ops._cases import Draw
from slowfast_kernels.testing import assert_close, to_float64

OP = "bottleneck3d"
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])

#: Longest chain of products behind an output: the three convolutions' sums follow each other.
PRODUCTS = 9 * 512


@st.composite
def calls(draw):
    channels = st.one_of(st.integers(1, 20), st.integers(30, 36), st.integers(62, 70))
    inner, cin = draw(channels), draw(channels)
    shortcut = draw(st.booleans())
    cout = draw(channels) if shortcut else cin
    stride = draw(st.integers(1, 3)) if shortcut else 1
    kernel = draw(st.sampled_from([1, 3, 5]))
    shape = [
        draw(st.integers(0, 2)),
        cin,
        draw(st.integers(1, 5)),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 20)),
    ]
    assume(math.prod(shape) * inner < 1e7)
    source = Draw(
        seed=draw(st.integers(0, 999)), dtype=draw(st.sampled_from([torch.float32, torch.bfloat16]))
    )
    x = source.normal(*shape)
    layout = draw(st.sampled_from(["channels last", "channels first", "channel slice"]))
    if layout == "channels first":
        x = x.contiguous()
    elif layout == "channel slice":
        x = source.normal(shape[0], cin + 6, *shape[2:])[:, 4 : 4 + cin]

    def conv(cout, cin, *kernel):
        affine = (source.scale(cout), source.shift(cout)) if draw(st.booleans()) else (None, None)
        return source.weight(cout, cin, *kernel), *affine

    convs = [conv(inner, cin, kernel, 1, 1), conv(inner, inner, 1, 3, 3), conv(cout, inner, 1, 1, 1)]
    convs += [conv(cout, cin, 1, 1, 1)] if shortcut else []
    return (x, *convs), {"stride": stride, "dilation": draw(st.integers(1, 3))}


@on_each_computing
@given(drawn=calls())
def test_drawn_shapes(drawn, provider):
    args, kwargs = drawn
    exact, peer = reference(OP, *to_float64(drawn)), reference(OP, *drawn)
    check([ops.bottleneck3d(*args, **kwargs)], exact, peer, PRODUCTS, provider)


@on_each_computing  # PyTorch's own bfloat16 convolution spreads a NaN over neighbouring outputs
@DTYPES
@pytest.mark.parametrize("name", ["identity", "wide identity", "projection", "wide projection", "dilated"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_input_stays_where_it_belongs(value, name, dtype, provider):
    """A bad pixel spreads over a block's 3 x 3 x 3 window, and no further."""
    (x, *rest), kwargs = case_named(OP, name).args(dtype=dtype)
    x[0, 2, 1, 2, 3] = value
    got = ops.bottleneck3d(x, *rest, **kwargs)
    expected = reference(OP, *to_float64(((x, *rest), kwargs)))[0]
    assert_close(got, expected, PRODUCTS, bound=1e-5 if dtype == torch.float32 else 0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_native_call_refuses_weights_packed_for_another_block(dtype):
    """Of other sizes than the kernel will read: conv_c's without the shortcut's behind them, above all."""
    if backends.unavailable("cpu"):
        pytest.skip(backends.unavailable("cpu"))
    pack = importlib.import_module("slowfast_kernels.ops.conv_bn_act3d.cpu").pack
    cin, inner, cout = 40, 8, 32
    x = torch.randn(1, cin, 2, 4, 4).to(dtype).contiguous(memory_format=torch.channels_last_3d)
    a = pack(torch.randn(inner, cin, 3, 1, 1).to(dtype), None, dtype=dtype)
    b = pack(torch.randn(inner, inner, 1, 3, 3).to(dtype), None, dtype=dtype)
    wc, ws = torch.randn(cout, inner, 1, 1, 1).to(dtype), torch.randn(cout, cin, 1, 1, 1).to(dtype)
    both, alone = pack(wc, None, ws, None, dtype=dtype), pack(wc, None, dtype=dtype)
    out = torch.empty(1, cout, 2, 4, 4, dtype=dtype, memory_format=torch.channels_last_3d)

    def run(a, b, c):
        shifts = torch.zeros(inner), torch.zeros(inner), torch.zeros(cout)
        torch.ops.slowfast._block_run_cpu(x, a, shifts[0], b, shifts[1], c, shifts[2], 3, 1, 1, True, out)

    run(a, b, both)
    longer = torch.cat([both, both[:4]])
    for name, packed in {
        "packed_a": (b, b, both),
        "packed_b": (a, a, both),
        "packed_c": (a, b, alone),
    }.items():
        with pytest.raises(RuntimeError, match=rf"{name}: expected \d+ contiguous bytes, got \d+"):
            run(*packed)
    with pytest.raises(RuntimeError, match="packed_c: expected"):
        run(a, b, longer)
