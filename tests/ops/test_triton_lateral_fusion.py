"""lateral_fusion on Triton (its interpreter, where there is no GPU) against the reference in float64."""

import importlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ops.parity import (
    FLOATS,
    check,
    on_triton,
    reference,
    run,
    there,
)
from slowfast_kernels import ops
from slowfast_kernels.ops._cases import Draw
from slowfast_kernels.ops.lateral_fusion.cases import _call
from slowfast_kernels.ops.lateral_fusion.spec import KINDS
from slowfast_kernels.testing import to_float64

OP = "lateral_fusion"
kernels = importlib.import_module("slowfast_kernels.ops.lateral_fusion.triton")
pytestmark = on_triton


def products(args):
    return 1 if args[2] is None else math.prod(args[2].shape[1:])


@st.composite
def calls(draw):
    alpha, kind = draw(st.integers(1, 4)), draw(st.sampled_from(KINDS))
    fast = draw(st.integers(1, 20))
    slow = alpha * fast if kind == "time_to_channel_sum" else draw(st.integers(1, 40))
    extents = [draw(st.integers(1, n)) for n in (3, 6, 6)]
    source = Draw(seed=draw(st.integers(0, 99)), dtype=draw(st.sampled_from(FLOATS)))
    return _call(
        source, (draw(st.integers(0, 2)), slow, *extents), fast, draw(st.integers(1, 40)),
        draw(st.sampled_from([1, 3, 5, 7])), alpha=alpha, kind=kind, affine=draw(st.booleans()),
        activation=draw(st.sampled_from(["relu", "none"])),
    )  # fmt: skip


@settings(max_examples=15)
@given(drawn=calls())
def test_drawn_calls(drawn, provider):
    exact, peer = reference(OP, *to_float64(drawn)), reference(OP, *drawn)
    check(run(OP, *drawn), exact, peer, products(drawn[0]), provider)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_into_the_fused_buffer(kind, dtype, provider):
    """Only the lateral's channels are written (all of them, for the sum)."""
    draw = Draw(seed=5, dtype=dtype)
    (slow, fast, *rest), kwargs = _call(draw, (2, 12, 2, 5, 4), 4, 9, 5, alpha=3, kind=kind)
    expected = (
        reference(OP, *to_float64(((slow, fast, *rest), kwargs))),
        reference(OP, (slow, fast, *rest), kwargs),
    )
    out = torch.full(expected[1][0].shape, math.nan, dtype=dtype)
    out = there(out.contiguous(memory_format=torch.channels_last_3d))
    out[:, :12] = there(slow)
    fast, rest = there((fast, rest))
    got = ops.lateral_fusion(out[:, :12], fast, *rest, **kwargs, out=out)
    assert got is out
    check([out.cpu()], *expected, fast.shape[1] * 5, kind)
    if kind != "time_to_channel_sum":
        assert torch.equal(out[:, :12].cpu(), slow)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_copies_are_exact_whatever_they_hold(kind, provider):
    draw = Draw(seed=5)
    (slow, fast, *rest), kwargs = _call(draw, (2, 12, 2, 5, 4), 4, alpha=3, kind=kind)
    for i, value in enumerate((math.nan, math.inf, -math.inf, -0.0)):
        fast[1, i, 3, 2, i], slow[0, i, 1, 3, i] = value, value
    expected = reference(OP, (slow, fast, *rest), kwargs)[0]
    got = run(OP, (slow, fast, *rest), kwargs)[0]
    assert torch.equal(torch.nan_to_num(got), torch.nan_to_num(expected))
    assert torch.equal(torch.isnan(got), torch.isnan(expected))
    assert torch.equal(torch.signbit(got), torch.signbit(expected))
