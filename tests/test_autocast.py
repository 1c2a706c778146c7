"""Autocast converts the tensors that convolutions would, and nothing else."""

import pytest
import torch
from torch.utils import _pytree as pytree

from slowfast_kernels import ops, use_backend
from slowfast_kernels.ops import ConvAffine
from slowfast_kernels.ops._cases import cases_of
from slowfast_kernels.testing import devices

#: op -> (a case, positions of the arguments that autocast converts)
CAST = {
    "stem3d": ("odd", (0, 1)),
    "conv_bn_act3d": ("3x3x3", (0, 1, 4)),
    "bottleneck3d": ("projection", (0, 1, 2, 3, 4)),
    "lateral_fusion": ("odd", (0, 1, 2)),
    "pool_concat_head": ("odd", (0, 1)),
}
on_each_device = pytest.mark.parametrize("device", devices())
on_each_op = pytest.mark.parametrize("op", CAST)


def cast(value, dtype):
    """As autocast does: of a convolution the weight alone."""
    return value._replace(weight=value.weight.to(dtype)) if isinstance(value, ConvAffine) else value.to(dtype)


def case_of(op, device="cpu"):
    return next(c for c in cases_of(op) if c.name == CAST[op][0]).args(device=device)


@on_each_device
@on_each_op
@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_autocast_is_the_call_on_converted_arguments(op, device, backend):
    args, kwargs = case_of(op, device)
    function = getattr(ops, op)
    with use_backend(backend):
        with torch.autocast(device, dtype=torch.bfloat16):
            got = function(*args, **kwargs)
            with torch.autocast(device, enabled=False):
                full = function(*args, **kwargs)
        converted = [cast(a, torch.bfloat16) if i in CAST[op][1] else a for i, a in enumerate(args)]
        assert torch.equal(got, function(*converted, **kwargs))
        assert torch.equal(full, function(*args, **kwargs))
    assert got.dtype == (torch.float32 if op == "pool_concat_head" else torch.bfloat16)


@on_each_device
@on_each_op
def test_gradients_come_back_in_the_arguments_types(op, device):
    args, kwargs = case_of(op, device)
    leaves = [v.requires_grad_() for v in pytree.tree_leaves(args)]
    with torch.autocast(device, dtype=torch.bfloat16):
        out = getattr(ops, op)(*args, **kwargs)
    out.float().square().sum().backward()
    for a in leaves:
        assert a.grad is not None and a.grad.dtype == torch.float32
        assert torch.isfinite(a.grad).all() and a.grad.abs().max() > 0


@on_each_device
@on_each_op
def test_float64_is_left_alone(op, device):
    args, kwargs = case_of(op, device)
    wide = pytree.tree_map(lambda v: v.double(), args)
    with torch.autocast(device, dtype=torch.bfloat16):
        got = getattr(ops, op)(*wide, **kwargs)
    assert got.dtype == torch.float64
    assert torch.equal(got, getattr(ops, op)(*wide, **kwargs))


@on_each_device
def test_pixels_become_what_was_asked_for(device):
    frames = torch.randint(0, 256, (1, 8, 5, 5, 3), dtype=torch.uint8, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        slow, fast = ops.pack_pathways(frames, 4)
    assert slow.dtype == fast.dtype == torch.float32
    assert torch.equal(fast, ops.pack_pathways(frames, 4)[1])


@on_each_device
def test_mixed_types_are_an_error_outside_autocast(device):
    x, weight = (
        torch.randn(1, 4, 2, 5, 5, device=device).bfloat16(),
        torch.randn(6, 4, 1, 3, 3, device=device),
    )
    with pytest.raises(ValueError, match="weight: expected torch.bfloat16, as x has, got torch.float32"):
        ops.conv_bn_act3d(x, weight)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert ops.conv_bn_act3d(x, weight).dtype == torch.bfloat16
