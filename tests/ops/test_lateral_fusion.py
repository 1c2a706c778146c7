"""lateral_fusion on every provider against the reference in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ops.parity import (
    COMPUTING,
    CPU_PROVIDERS,
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

OP = "lateral_fusion"
CASES = cases_of(OP)
KINDS = ("conv", "time_to_channel_concat", "time_to_channel_sum", "time_sample")
on_each = pytest.mark.parametrize("provider", CPU_PROVIDERS, indirect=True)
on_each_computing = pytest.mark.parametrize("provider", COMPUTING, indirect=True)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


def products(args):
    return 1 if args[2] is None else math.prod(args[2].shape[1:])


@on_each_computing
@DTYPES
@pytest.mark.parametrize("case", CASES, ids=str)
def test_parity(case, dtype, provider):
    check_case(OP, case, dtype, provider, products(case.args(shrink=1000)[0]))


@pytest.mark.parametrize("case", [case for case in CASES if case.edge], ids=str)
def test_reference_in_float32(case):
    with use_backend("reference"):
        check_case(OP, case, torch.float32, "reference", products(case.args(shrink=1000)[0]))


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
    return args, {"alpha": alpha, "kind": kind, "relu": draw(st.booleans())}


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


@on_each
def test_result_is_channels_last(provider):
    for name in ("odd", "one frame", "odd concat", "odd sum", "odd sample", "batch 0"):
        args, kwargs = case_named(OP, name).args()
        got = ops.lateral_fusion(*args, **kwargs)
        n, c, t, h, w = got.shape
        assert_same_layout(got, torch.zeros(n, t, h, w, c).permute(0, 4, 1, 2, 3))


@on_each
@pytest.mark.parametrize(
    "name", ["odd", "alpha 1", "odd concat", "odd sum", "odd sample", "channels first", "batch 0"]
)
def test_gradients(name, provider):
    check_gradients(OP, *case_named(OP, name).args(), 1e-5, f"{name}, {provider}")


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


@on_each_computing
@pytest.mark.parametrize("name", ["lateral.0", "lateral.3", "wide", "odd sum"])
def test_threads_do_not_change_the_result(name, provider):
    check_threads(OP, *case_named(OP, name).args(shrink=4))


SLOW, FAST, W = (2, 6, 2, 5, 4), (2, 3, 8, 5, 4), (10, 3, 5, 1, 1)
ERRORS = {
    "kind": ({"kind": "sum"}, r"kind: expected one of \('conv', .*'none'\), got 'sum'"),
    "slow": ({"slow": SLOW[1:]}, r"slow: expected \[N, C, T, H, W\], got shape \(6, 2, 5, 4\)"),
    "fast": ({"fast": FAST[1:]}, r"fast: expected \[N, C, T, H, W\], got shape \(3, 8, 5, 4\)"),
    "frames": (
        {"fast": (2, 3, 6, 5, 4)},
        r"fast: expected N, T, H, W = \(2, 8, 5, 4\) \(alpha = 4 times slow's frames\), got shape \(2, 3, 6,",
    ),
    "no weight": ({"weight": None}, r"weight: expected a tensor for kind 'conv'"),
    "unneeded weight": ({"kind": "time_sample"}, r"weight: expected None for kind 'time_sample'"),
    "weight's kernel": (
        {"weight": (10, 3, 4, 1, 1)},
        r"weight: expected \[Cl, Cf, kt, 1, 1\] with kt odd, got \(10, 3, 4, 1, 1\)",
    ),
    "weight's channels": (
        {"weight": (10, 4, 5, 1, 1)},
        r"fast: expected 4 channels, as weight has, got shape",
    ),
    "scale": ({"scale": (6,)}, r"scale: expected shape \(10,\), got \(6,\)"),
    "sum": (
        {"kind": "time_to_channel_sum", "weight": None},
        r"slow: expected 12 channels, as fast, times alpha, has, got shape \(2, 6, 2, 5, 4\)",
    ),
    "out's shape": (
        {"out": (2, 17, 2, 5, 4)},
        r"out: expected channels_last_3d memory of shape \(2, 16, 2, 5, 4\), got",
    ),
    "out is not slow": ({"out": (2, 16, 2, 5, 4)}, r"out: expected its first channels to be slow itself"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    changes, message = ERRORS[name]
    call = {"slow": SLOW, "fast": FAST, "weight": W, "alpha": 4} | changes
    call = {k: torch.zeros(v) if isinstance(v, tuple) else v for k, v in call.items()}
    if "out" in call:
        call["out"] = call["out"].contiguous(memory_format=torch.channels_last_3d)
    with pytest.raises(ValueError, match=message):
        ops.lateral_fusion(**call)


def test_negative_alpha_is_refused():
    with pytest.raises(ValueError, match="alpha"):
        ops.lateral_fusion(torch.zeros(SLOW), torch.zeros(2, 3, 0, 5, 4), torch.zeros(W), alpha=0)


@on_each_computing
@without_type_checks()
def test_what_the_kernels_refuse(provider):
    slow, fast, weight = torch.zeros(SLOW), torch.zeros(FAST), torch.zeros(W)
    with pytest.raises(RuntimeError, match=r"fast is torch\.bfloat16 but slow is torch\.float32"):
        ops.lateral_fusion(slow, fast.bfloat16(), weight.bfloat16(), alpha=4)
    with pytest.raises(RuntimeError, match=r"weight is torch\.bfloat16 but x is torch\.float32"):
        ops.lateral_fusion(slow, fast, weight.bfloat16(), alpha=4)
    out = torch.zeros(2, 16, 2, 5, 4, dtype=torch.bfloat16).contiguous(memory_format=torch.channels_last_3d)
    with pytest.raises(RuntimeError, match=r"fast is torch\.float32 but slow is torch\.bfloat16"):
        ops.lateral_fusion(out[:, :6], fast, weight, alpha=4, out=out)
