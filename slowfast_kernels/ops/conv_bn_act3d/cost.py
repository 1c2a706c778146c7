"""Least work of a ``conv_bn_act3d`` call."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from .._cases import Cost, bytes_of
from .._registration import as_triple
from .cpu import output_shape


def cost(
    x: torch.Tensor,
    weight: torch.Tensor,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    relu: bool = True,
    out: torch.Tensor | None = None,
    channel_offset: int = 0,
) -> Cost:
    """FLOPs of the convolution, taps in the padding counted as everybody does; bytes of every tensor."""
    s, p, d = as_triple(stride, "stride"), as_triple(padding, "padding"), as_triple(dilation, "dilation")
    elements = math.prod(output_shape(x.shape, weight.shape, s, p, d))
    flops = 2 * elements * math.prod(weight.shape[1:])
    return Cost(flops, bytes_of(x, weight, scale, shift, residual) + elements * x.element_size())
