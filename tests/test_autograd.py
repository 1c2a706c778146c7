"""Gradients in the company of PyTorch's own tools."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from slowfast_kernels import ops
from slowfast_kernels.ops._cases import cases_of
from slowfast_kernels.ops._registration import RecordCalls
from slowfast_kernels.testing import with_gradients

OPS = {"stem3d": "odd", "conv_bn_act3d": "3x3x3", "bottleneck3d": "projection", "lateral_fusion": "odd",
       "pool_concat_head": "odd"}  # fmt: skip


def gradients(op, wrap):
    case = next(c for c in cases_of(op) if c.name == OPS[op])
    (args, kwargs), leaves = with_gradients(case.args())
    wrap(lambda *a: getattr(ops, op)(*a, **kwargs), args)
    return [leaf.grad for leaf in leaves]


def plain(function, args):
    function(*args).square().sum().backward()


def counting_flops(function, args):
    with FlopCounterMode(display=False):
        plain(function, args)


def recording(function, args):
    with RecordCalls():
        plain(function, args)


def checkpointed(function, args):
    checkpoint(function, *args, use_reentrant=False).square().sum().backward()


def twice_from_one_graph(function, args):
    loss = function(*args).square().sum() / 2
    loss.backward(retain_graph=True)
    loss.backward()


@pytest.mark.parametrize("wrap", [counting_flops, recording, checkpointed, twice_from_one_graph])
@pytest.mark.parametrize("op", OPS)
def test_gradients_are_the_same(op, wrap):
    for got, expected in zip(gradients(op, wrap), gradients(op, plain), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("op", OPS)
def test_no_graph_without_grad(op):
    case = next(c for c in cases_of(op) if c.name == OPS[op])
    (args, kwargs), _ = with_gradients(case.args())
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert not getattr(ops, op)(*args, **kwargs).requires_grad


def test_changed_inputs_are_noticed():
    x, weight = torch.randn(1, 4, 2, 5, 5), torch.randn(6, 4, 1, 1, 1, requires_grad=True)
    out = ops.conv_bn_act3d(x, weight)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()
