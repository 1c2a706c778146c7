"""bottleneck3d on every provider against the reference in float64."""

import importlib
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
from slowfast_kernels import backends, ops, use_backend
from slowfast_kernels.ops._cases import Draw, cases_of
from slowfast_kernels.testing import assert_close, assert_same_layout, to_float64

OP = "bottleneck3d"
CASES = cases_of(OP)
on_each = pytest.mark.parametrize("provider", CPU_PROVIDERS, indirect=True)
on_each_computing = pytest.mark.parametrize("provider", COMPUTING, indirect=True)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])

#: Longest chain of products behind an output: the three convolutions' sums follow each other.
PRODUCTS = 9 * 512


@on_each_computing
@DTYPES
@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case, dtype, provider):
    check_case(OP, case, dtype, provider, PRODUCTS)


@pytest.mark.parametrize("case", [case for case in CASES if case.edge], ids=str)
def test_reference_in_float32(case):
    with use_backend("reference"):
        check_case(OP, case, torch.float32, "reference", PRODUCTS)


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

    args = (x, *conv(inner, cin, kernel, 1, 1), *conv(inner, inner, 1, 3, 3), *conv(cout, inner, 1, 1, 1))
    args += conv(cout, cin, 1, 1, 1) if shortcut else ()
    return args, {"stride": stride, "dilation": draw(st.integers(1, 3))}


@on_each_computing
@given(drawn=calls())
def test_drawn_shapes(drawn, provider):
    args, kwargs = drawn
    exact, peer = reference(OP, *to_float64(drawn)), reference(OP, *drawn)
    check([ops.bottleneck3d(*args, **kwargs)], exact, peer, PRODUCTS, provider)


@on_each
def test_result_is_channels_last(provider):
    for name in ("identity", "projection", "one pixel", "one channel", "batch 0"):
        args, kwargs = case_named(OP, name).args()
        got = ops.bottleneck3d(*args, **kwargs)
        n, c, t, h, w = got.shape
        assert_same_layout(got, torch.zeros(n, t, h, w, c).permute(0, 4, 1, 2, 3))


@on_each
@pytest.mark.parametrize(
    "name",
    ["identity", "wide identity", "projection", "wide projection", "dilated and strided", "bare", "batch 0"],
)
def test_gradients(name, provider):
    check_gradients(OP, *case_named(OP, name).args(), 1e-5, f"{name}, {provider}")


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


@on_each_computing
@pytest.mark.parametrize(
    "name", ["res2.fast.0", "res4.fast.1", "res3.slow.0", "wide projection", "one pixel"]
)
def test_threads_do_not_change_the_result(name, provider):
    check_threads(OP, *case_named(OP, name).args(shrink=4))


@on_each_computing
def test_calls_do_not_change_each_other(provider):
    first, other = case_named(OP, "res2.fast.1").args(shrink=4), case_named(OP, "wide identity").args()
    before = ops.bottleneck3d(*first[0], **first[1])
    ops.bottleneck3d(*other[0], **other[1])
    assert torch.equal(bits(ops.bottleneck3d(*first[0], **first[1])), bits(before))


def test_inputs_are_not_written():
    (x, *rest), kwargs = case_named(OP, "identity").args()
    before = x.clone()
    ops.bottleneck3d(x, *rest, **kwargs)
    assert torch.equal(x, before)


NAMES = ["x"] + [f"{kind}_{conv}" for conv in "abcs" for kind in ("weight", "scale", "shift")]
ERRORS = {
    "x is not a clip": ({"x": (20, 3, 5, 6)}, r"x: expected \[N, C, T, H, W\], got shape \(20, 3, 5, 6\)"),
    "a's channels": (
        {"weight_a": (5, 7, 3, 1, 1)},
        r"weight_a: expected shape \(5, 20, 3, 1, 1\), got \(5, 7, 3, 1, 1\)",
    ),
    "a's kernel": ({"weight_a": (5, 20, 3, 3, 1)}, r"weight_a: expected shape \(5, 20, 3, 1, 1\), got"),
    "a's kernel is even": (
        {"weight_a": (5, 20, 2, 1, 1)},
        r"weight_a: expected an odd temporal kernel, got 2",
    ),
    "a is 4-D": ({"weight_a": (5, 20, 1, 1)}, r"weight_a: expected shape .*, got \(5, 20, 1, 1\)"),
    "b": (
        {"weight_b": (5, 5, 3, 3, 3)},
        r"weight_b: expected shape \(5, 5, 1, 3, 3\), got \(5, 5, 3, 3, 3\)",
    ),
    "c": (
        {"weight_c": (20, 6, 1, 1, 1)},
        r"weight_c: expected shape \(20, 5, 1, 1, 1\), got \(20, 6, 1, 1, 1\)",
    ),
    "s": (
        {"weight_s": (20, 9, 1, 1, 1)},
        r"weight_s: expected shape \(20, 20, 1, 1, 1\), got \(20, 9, 1, 1, 1\)",
    ),
    "scale_a": ({"scale_a": (20,)}, r"scale_a: expected shape \(5,\), got \(20,\)"),
    "shift_b": ({"shift_b": (20,)}, r"shift_b: expected shape \(5,\), got \(20,\)"),
    "scale_c": ({"scale_c": (5,)}, r"scale_c: expected shape \(20,\), got \(5,\)"),
    "shift_s": ({"shift_s": (5,)}, r"shift_s: expected shape \(20,\), got \(5,\)"),
    "identity with a stride": ({"stride": 2}, r"an identity shortcut needs stride 1, got stride 2"),
    "identity of other channels": (
        {"weight_c": (30, 5, 1, 1, 1), "scale_c": (30,), "shift_c": (30,)},
        r"x: expected 30 channels, as weight_c \(identity shortcut\) has, got shape \(1, 20, 3, 5, 6\)",
    ),
    "dilation 0": ({"dilation": 0}, r"expected stride and dilation >= 1, got 1 and 0"),
    "no pixels": ({"x": (1, 20, 3, 0, 6)}, r"x: expected at least one frame and one pixel, got shape"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    changes, message = ERRORS[name]
    args, kwargs = case_named(OP, "identity").args()
    call = dict(zip(NAMES, args, strict=False)) | kwargs
    call |= {k: torch.zeros(v) if k in NAMES else v for k, v in changes.items()}
    with pytest.raises(ValueError, match=message):
        ops.bottleneck3d(**call)


@on_each_computing
@pytest.mark.parametrize("which", ["weight_a", "weight_b", "weight_c", "weight_s"])
@without_type_checks()
def test_what_the_kernels_refuse(which, provider):
    args, kwargs = case_named(OP, "projection").args()
    call = dict(zip(NAMES, args, strict=True)) | kwargs
    call[which] = call[which].bfloat16()
    with pytest.raises(RuntimeError, match=r"cpu: weight is torch\.bfloat16 but x is torch\.float32"):
        ops.bottleneck3d(**call)


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
