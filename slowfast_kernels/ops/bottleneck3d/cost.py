"""Least work of a ``bottleneck3d`` call."""

from __future__ import annotations

import torch

from .._cases import Cost, bytes_of
from .cpu import output_shape


def cost(
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
    weight_s: torch.Tensor | None = None,
    scale_s: torch.Tensor | None = None,
    shift_s: torch.Tensor | None = None,
    *,
    stride: int = 1,
    dilation: int = 1,
) -> Cost:
    """FLOPs of the convolutions; bytes of the input, the weights and the output, nothing in between."""
    n, cout, t, h, w = output_shape(x.shape, weight_c.shape, stride)
    before, after = n * t * x.shape[3] * x.shape[4], n * t * h * w
    macs = before * weight_a.numel() + after * (weight_b.numel() + weight_c.numel())
    macs += after * weight_s.numel() if weight_s is not None else 0
    read = bytes_of(
        x, weight_a, scale_a, shift_a, weight_b, scale_b, shift_b, weight_c, scale_c, shift_c,
        weight_s, scale_s, shift_s,
    )  # fmt: skip
    return Cost(2 * macs, read + after * cout * x.element_size())
