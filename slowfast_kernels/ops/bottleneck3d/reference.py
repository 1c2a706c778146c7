"""Plain PyTorch ``bottleneck3d``: the specification."""

from __future__ import annotations

import torch

from ..conv_bn_act3d.reference import conv_bn_act3d_reference as conv


def bottleneck3d_reference(
    x: torch.Tensor,
    weight_a: torch.Tensor,
    scale_a: torch.Tensor | None,
    shift_a: torch.Tensor | None,
    weight_b: torch.Tensor,
    scale_b: torch.Tensor | None,
    shift_b: torch.Tensor | None,
    weight_c: torch.Tensor,
    scale_c: torch.Tensor | None,
    shift_c: torch.Tensor | None,
    weight_s: torch.Tensor | None,
    scale_s: torch.Tensor | None,
    shift_s: torch.Tensor | None,
    stride: int,
    dilation: int,
) -> torch.Tensor:
    none, one, spatial = [0, 0, 0], [1, 1, 1], [1, stride, stride]
    shortcut = x
    if weight_s is not None:
        shortcut = conv(x, weight_s, scale_s, shift_s, None, spatial, none, one, False)
    y = conv(x, weight_a, scale_a, shift_a, None, one, [weight_a.shape[2] // 2, 0, 0], one, True)
    around = [0, dilation, dilation]
    y = conv(y, weight_b, scale_b, shift_b, None, spatial, around, [1, dilation, dilation], True)
    return conv(y, weight_c, scale_c, shift_c, shortcut, one, none, one, True)
