"""torch.utils.flop_counter counts the ops: by their own cost, which is the network's."""

import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from slowfast_kernels import models, ops
from slowfast_kernels.ops._cases import Draw, contracts_of, cost_of, op_names
from slowfast_kernels.testing import with_gradients


def counted(function):
    with FlopCounterMode(display=False) as counter:
        result = function()
    return counter.get_total_flops(), result


@pytest.mark.parametrize("op", op_names())
def test_a_call_counts_its_cost(op):
    contract = contracts_of(op)["odd"](Draw(seed=1))
    calls = [contract.base, *(contract.base | c for cs in contract.changes.values() for c in cs)]
    for call in calls:
        total, _ = counted(lambda call=call: getattr(ops, op)(**call))
        assert total == cost_of(op, **call).flops and (total > 0 or call.get("kind", "") != "conv")


@pytest.mark.parametrize("op, names, passes", [
    ("conv_bn_act3d", ("x", "weight", "scale"), 2),
    ("conv_bn_act3d", ("weight",), 1),
    ("conv_bn_act3d", ("shift",), 0),
    ("stem3d", ("weight", "scale"), 1),
    ("bottleneck3d", ("x", "weight_a", "weight_b", "weight_c"), 2),
    ("lateral_fusion", ("slow", "fast", "weight"), 2),
    ("pool_concat_head", ("slow", "fast", "weight"), 2),
    ("roi_align3d", ("features",), 1),
    ("roi_head_pool", ("slow", "fast"), 1),
])  # fmt: skip
def test_a_backward_counts_each_gradient(op, names, passes):
    call = dict(contracts_of(op)["odd"](Draw(seed=1)).base)
    live: dict = {}
    for name in names:
        if name.startswith("weight_"):  # a block's
            key = name.removeprefix("weight_")
            live[key] = call[key]._replace(weight=call[key].weight.clone().requires_grad_())
        else:
            (live[name],), _ = with_gradients((call[name],))
    out = getattr(ops, op)(**call | live)
    total, _ = counted(lambda: out.sum().backward())
    assert total == passes * cost_of(op, **call).flops


def network():
    torch.manual_seed(0)
    return models.create("slowfast_8x8_r50", crop=32, frames=8, classes=5, blocks=(1, 1, 1, 1))


def test_a_network_counts_its_macs():
    """Twice the multiply-adds; the head's pooling, an addition per value of its maps, counts as well."""
    model, clips = network().eval(), [torch.randn(2, 3, 2, 32, 32), torch.randn(2, 3, 8, 32, 32)]
    with torch.no_grad():
        total, _ = counted(lambda: model(clips))
        pooled = sum(f.numel() for f in model.forward_features(clips))
    assert total == 2 * 2 * models.macs(model, 8, 32) + pooled


def test_a_network_counts_as_pytorchs_own_does():
    """In training it is made of PyTorch's convolutions: forward and backward."""
    clips = [torch.randn(2, 3, 2, 32, 32), torch.randn(2, 3, 8, 32, 32)]
    totals = []
    for training in (True, False):
        model = network().train(training)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.eval()
        forward, scores = counted(lambda model=model: model(clips))
        backward, _ = counted(lambda scores=scores: scores.square().sum().backward())
        totals.append((forward, backward))
    for plain, fused in zip(*totals, strict=True):
        assert plain == pytest.approx(fused, rel=2e-3) and plain > 0


def test_shapes_are_enough():
    """With fake tensors, as a compiler's estimates have them; boxes without values count nothing."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        x, weight = torch.randn(1, 4, 2, 5, 5), torch.randn(6, 4, 1, 1, 1)
        assert counted(lambda: ops.conv_bn_act3d(x, weight))[0] == cost_of("conv_bn_act3d", x, weight).flops
        assert counted(lambda: ops.roi_align3d(x, torch.zeros(2, 5), 2))[0] == 0


def test_the_counter_is_not_imported_but_finds_the_formulas():
    """It imports Triton where there is one, which takes as long as torch."""
    code = """
import sys, slowfast_kernels
assert "torch.utils.flop_counter" not in sys.modules
import torch.utils.flop_counter
registry = torch.utils.flop_counter.flop_registry
assert torch.ops.slowfast.stem3d in registry and torch.ops.slowfast.roi_align3d_bwd in registry
assert torch.ops.aten.convolution in registry
"""
    subprocess.run([sys.executable, "-c", code], check=True)
