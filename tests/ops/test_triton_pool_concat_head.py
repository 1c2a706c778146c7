"""pool_concat_head on Triton (its interpreter, where there is no GPU) against the reference in float64."""

import importlib
import math

import pytest
import torch
from hypothesis import given, settings
from torch.utils import _pytree as pytree

from ops.parity import (
    bits,
    case_named,
    on_triton,
    reference,
)
from ops.test_pool_concat_head import calls
from slowfast_kernels import ops
from slowfast_kernels.ops._cases import Draw
from slowfast_kernels.testing import assert_close, provider_device, to_float64

OP = "pool_concat_head"
DEVICE = provider_device("triton")
kernels = importlib.import_module("slowfast_kernels.ops.pool_concat_head.triton")
pytestmark = on_triton


def head(*args, **kwargs):
    args, kwargs = pytree.tree_map_only(torch.Tensor, lambda x: x.to(DEVICE), (args, kwargs))
    return ops.pool_concat_head(*args, **kwargs).cpu()


def check(args, kwargs, what):
    """Scores are float32 sums of whatever was stored: float32's tolerance holds for every dtype."""
    got, exact = head(*args, **kwargs), reference(OP, *to_float64((args, kwargs)))[0]
    assert got.dtype == torch.float32
    assert_close(got, exact, args[2].shape[1], what=what)


@settings(max_examples=20)
@given(drawn=calls())
def test_drawn_calls(drawn, provider):
    args, kwargs = drawn
    check(args, kwargs, "drawn")


@pytest.mark.parametrize("case", ["odd", "softmax of the mean", "other maps", "channel slice", "wide window"])
def test_small_tiles(case, provider, monkeypatch):
    """Several programs along every axis, sums in parts."""
    monkeypatch.setattr(kernels, "tiles_of", lambda *args: kernels.Tiles(8, 8, 3, 2, 4, 16, 4))
    check(*case_named(OP, case).args(), case)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_repetition_changes_nothing(activation, provider):
    draw = Draw(seed=1)
    args = (draw.normal(2, 12, 2, 8, 9), draw.normal(2, 6, 4, 8, 9), draw.weight(7, 18), draw.uniform(7))
    first, second = (head(*args, activation=activation) for _ in range(2))
    assert torch.equal(bits(first), bits(second))


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("semantics", ["pyslowfast", "pytorchvideo"])
def test_nonfinite_values(activation, semantics, provider):
    """NaN in a clip reaches all its scores and no other clip's; an infinite weight its class alone."""
    draw = Draw(seed=2)
    slow, fast, weight = draw.normal(2, 12, 2, 8, 9), draw.normal(2, 6, 4, 8, 9), draw.weight(7, 18)
    options = {"activation": activation, "semantics": semantics}
    clean = head(slow, fast, weight, None, **options)
    slow[1, 3, 1, 0, 8] = math.nan  # a corner: in one of the windows only
    got = head(slow, fast, weight, None, **options)
    assert torch.equal(got[0], clean[0]) and got[1].isnan().all()
    weight[2, 5] = math.inf
    got = head(slow[:1], fast[:1], weight, None, activation="none", semantics=semantics)
    assert torch.equal(got[0].isfinite(), torch.arange(7) != 2)


def test_what_is_refused(provider):
    x, weight = torch.zeros(1, 2, 1, 1, 1), torch.zeros(kernels.MAX_CLASSES + 1, 2)
    with pytest.raises(RuntimeError, match=r"triton: the maps are float64, the Triton kernels take float32"):
        head(x.double(), None, weight[:3], pool_size=1)
    with pytest.raises(RuntimeError, match=r"triton: softmax over 32769 classes, the Triton kernel takes"):
        head(x, None, weight, pool_size=1)
