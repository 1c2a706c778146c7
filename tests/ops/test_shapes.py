"""The table of SlowFast's layers, and what the ops' cases make of it, against the model itself."""

from collections import Counter

import pytest
import torch
from torch import nn

from slowfast_kernels import models
from slowfast_kernels.ops import _shapes
from slowfast_kernels.ops._cases import cases_of, cost_of

NET = _shapes.SLOWFAST_8X8_R50


def convolutions_of_the_model(name, net):
    """(kernel, strides ..., input frames and size) -> how many, from a forward pass without storage."""
    with torch.device("meta"):
        model = models.create(name).train()  # in training mode every convolution is called as a module
        clips = [torch.empty(2, 3, t, net.crop, net.crop) for t in (net.frames // net.alpha, net.frames)]
    found = Counter()

    def note(conv, inputs, _):
        t, h, _w = inputs[0].shape[2:]
        found[(*conv.weight.shape, conv.stride, conv.padding, conv.dilation, t, h)] += 1

    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eval()  # statistics of nothing are nothing
        if isinstance(module, nn.Conv3d):
            module.register_forward_hook(note)
    model.forward_features(clips)
    return found


@pytest.mark.parametrize(
    "name, net", [("slowfast_8x8_r50", NET), ("slowfast_8x8_r50_ava", _shapes.SLOWFAST_8X8_R50_AVA)]
)
def test_table_is_the_model(name, net):
    table = Counter()
    for c in _shapes.convs(net):
        table[(c.cout, c.cin, *c.kernel, c.stride, c.padding, c.dilation, c.frames, c.size)] += c.count
    for s in _shapes.stems(net):
        padding = tuple(k // 2 for k in s.kernel)
        table[(s.cout, s.cin, *s.kernel, (1, 2, 2), padding, (1, 1, 1), s.frames, s.size)] += s.count
    assert table == convolutions_of_the_model(name, net)


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
    expected = models.macs(models.create("slowfast_8x8_r50"), NET.frames, NET.crop)
    assert f"{expected / 1e9:.2f}" == "50.31"
    head = _shapes.head()
    pooled = head.size**2 * (head.slow * head.frames + head.fast * head.frames * head.alpha)
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
