"""What the ops' cases make of SlowFast's layers, against the model and its published figures."""

import math

import torch

from slowfast_kernels import models
from slowfast_kernels.ops import _layers
from slowfast_kernels.ops._cases import cases_of, cost_of


def multiply_adds(*ops):
    return sum(
        case.count * cost_of(op, *args, **kwargs).flops // 2
        for op in ops
        for case in cases_of(op)
        if case.count
        for args, kwargs in [case.args(device="meta")]
    )


def test_costs_add_up_to_the_model():
    """50.31 G multiply-adds at 224 x 224 (the published figure), as layers and as fused ops."""
    expected = models.macs(models.create(_layers.CLASSIFIER), _layers.FRAMES, _layers.CROP)
    assert f"{expected / 1e9:.2f}" == "50.31"
    pooled = sum(map(math.prod, _layers.head().inputs))
    as_layers = multiply_adds("conv_bn_act3d", "stem3d", "pool_concat_head") - pooled // 2
    as_blocks = multiply_adds("bottleneck3d", "lateral_fusion", "stem3d", "pool_concat_head") - pooled // 2
    assert as_layers == as_blocks == expected


def test_cost_counts_bytes_once():
    (case,) = (c for c in cases_of("conv_bn_act3d") if c.name == "res2.slow.0.b")
    args, kwargs = case.args(device="meta")
    pixels, weights, vectors = 8 * 56 * 56 * 64, 64 * 64 * 9, 2 * 64
    assert cost_of("conv_bn_act3d", *args, **kwargs).bytes == 4 * (2 * pixels + weights + vectors)
    args, kwargs = case.args(device="meta", dtype=torch.bfloat16)
    assert cost_of("conv_bn_act3d", *args, **kwargs).bytes == 2 * (2 * pixels + weights) + 4 * vectors


def test_shrink_keeps_channels_and_kernels():
    for case in cases_of("conv_bn_act3d"):
        if case.real:
            (x, weight, *_), _ = case.args(device="meta")
            (small, same, *_), _ = case.args(device="meta", shrink=8)
            assert small.shape[:3] == x.shape[:3] and same.shape == weight.shape
            assert small.shape[3] == max(3, -(-x.shape[3] // 8))
